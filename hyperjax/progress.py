"""A command as its user sees it: progress, signals, compilations."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

import jax
import rich.console
import rich.progress
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh

_COMPILED = 0


def _count(event: str, duration: float, **_) -> None:
  global _COMPILED
  if event == "/jax/core/compile/backend_compile_duration":
    _COMPILED += 1


jax.monitoring.register_event_duration_secs_listener(_count)


def compilations() -> int:
  """How many programs JAX has compiled in this process."""
  return _COMPILED


def say_devices(mesh: Mesh | AbstractMesh) -> None:
  """Says which devices a command uses, where there is a choice."""
  if jax.device_count() > 1 and jax.process_index() == 0:
    print(f"mesh: {_axes(mesh)}, {mesh.size} of {jax.device_count()} devices", flush=True)


def in_words(mesh: Mesh | AbstractMesh) -> str:
  """The devices of a run that is planned here, and may be one of another machine."""
  return f"{_axes(mesh)}: {mesh.size}, where this machine has {jax.device_count()}"


def _axes(mesh: Mesh | AbstractMesh) -> str:
  return " x ".join(f"{name} {size}" for name, size in mesh.shape.items())


def counter() -> rich.progress.Progress:
  """Bars of described tasks: how many of how many are done, since when, and for how long yet."""
  return rich.progress.Progress(
    rich.progress.TextColumn("{task.description:<40}"),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TimeRemainingColumn(),
  )


class StopSignal:
  """Catches SIGINT and SIGTERM while it is open: `received` is the signal, None before one came.

  A second signal of the same kind ends the process at once.

  Of several processes each may get a SIGTERM at another time, or only one of them may. JAX's own
  service catches it from the start and lets all agree on a step; SIGINT ends the process.
  """

  def __init__(self):
    self.received: signal.Signals | None = None
    self._previous: dict = {}
    self._several = jax.process_count() > 1

  def __enter__(self) -> "StopSignal":
    for number in () if self._several else (signal.SIGINT, signal.SIGTERM):
      self._previous[number] = signal.signal(number, self._handle)
    return self

  def stops_after(self, step: int) -> bool:
    """Whether to save and stop now; every process asks after every step, by the same numbers."""
    if self._several and multihost_utils.reached_preemption_sync_point(step):
      self.received = signal.SIGTERM
    return self.received is not None

  @property
  def status(self) -> int:
    """The exit status of a command that stopped because of the signal, its state saved.

    EX_TEMPFAIL (75) after SIGTERM, which a machine sends that is taken away: start it again. After
    SIGINT, a person's Ctrl-C, 130 as from a shell.
    """
    return os.EX_TEMPFAIL if self.received == signal.SIGTERM else 128 + self.received

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, frame) -> None:
    self.received = signal.Signals(number)
    signal.signal(number, self._previous[number])


class Progress:
  """A progress bar with loss, tokens/s and ETA; plain lines where the output is no terminal.

  Attributes:
    minutes: wall-clock time of training so far, pauses left out; with that of the processes which
      a resumed run goes on from.
  """

  def __init__(self, total: int, start: int, minutes_before: float = 0.0):
    self._total, self._done, self._tokens = total, start, 0
    self._start_step, self._started, self._excluded = start, time.monotonic(), 0.0
    self._printed, self._minutes_before = self._started, minutes_before
    self._bar: rich.progress.Progress | None = None

  def __enter__(self) -> "Progress":
    if sys.stdout.isatty():
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn("step {task.completed}/{task.total}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[text]}"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("ETA"),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(),
      )
      self._task = self._bar.add_task(
        "", total=self._total, completed=self._done, text="compiling"
      )
      self._bar.start()
    else:
      steps = f"step {self._done} to {self._total}"
      print(f"training from {steps}; the first steps compile", flush=True)
    return self

  def __exit__(self, *_) -> None:
    if self._bar:
      self._bar.stop()

  @property
  def minutes(self) -> float:
    return self._minutes_before + self._minutes_here

  @property
  def _minutes_here(self) -> float:
    return (time.monotonic() - self._started - self._excluded) / 60

  @property
  def tokens_per_second(self) -> float:
    return self._tokens / max(60 * self._minutes_here, 1e-9)

  def advance(self, tokens: int, loss: float) -> float:
    """Counts one step; returns real tokens per second since the start."""
    self._done += 1
    self._tokens += tokens
    text = f"loss {loss:.3f}  {self.tokens_per_second:.0f} tokens/s"
    if self._bar:
      self._bar.update(self._task, completed=self._done, text=text)
    elif time.monotonic() - self._printed >= 15 or self._done == self._total:
      self._printed = time.monotonic()
      done = self._done - self._start_step
      left = self._minutes_here / done * (self._total - self._done)
      print(f"step {self._done}/{self._total}  {text}  ETA {left:.1f} min", flush=True)
    return self.tokens_per_second

  def note(self, text: str) -> None:
    """Prints a line above the bar."""
    if self._bar:
      self._bar.console.print(text)
    else:
      print(text, flush=True)

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves what happens inside out of the training time."""
    start = time.monotonic()
    yield
    self._excluded += time.monotonic() - start
