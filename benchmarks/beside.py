"""Implementations beside one another: each in a process of its own, all taking turns at their work.

While one works the others sleep, so that they share neither memory nor threads; and what slows the
machine down for a while slows all of them. Beside each stands its floor: the time that the work
would take at the rate of a plain operation (a matrix product, a copy) measured in the same process.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import pathlib
import pkgutil
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hyperjax import children

SIDES = ("hyperjax", "pytorch")
DTYPES = ("float32", "bfloat16")

# ---- One implementation --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Side:
  """What an implementation can do once it is set up.

  Attributes:
    run: does the work once and returns what came of it as JSON values; `tokens` is how many tokens
      the work was about.
    rate: measures the plain operation: flops or bytes a second.
    facts: what it runs on, as JSON values.
  """

  run: Callable[[], Mapping[str, Any]]
  rate: Callable[[], float]
  facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Contestant:
  """One implementation to be measured.

  Attributes:
    name: for tables.
    make: "module:function" that returns its Side; imported in its own process only.
    given: the function's keyword arguments, picklable.
    cost: operations, of the kind whose rate the side measures, that a token takes at the least.
  """

  name: str
  make: str
  given: Mapping[str, Any]
  cost: float


@dataclasses.dataclass(frozen=True)
class Turn:
  """One piece of work.

  Attributes:
    seconds: how long it took.
    peak_mib: the most memory that its process had at once in this time.
    found: what came of it.
  """

  seconds: float
  peak_mib: float
  found: Mapping[str, Any]


def timed(work: Callable[[], Mapping[str, Any]]) -> Turn:
  """Does a piece of work."""
  _forget_peak()
  start = time.perf_counter()
  found = work()
  return Turn(time.perf_counter() - start, _peak_mib(), found)


def _forget_peak() -> None:
  # Linux's own; elsewhere the peak is that since the start of the process.
  with contextlib.suppress(OSError):
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
  with contextlib.suppress(OSError):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
      if line.startswith("VmHWM:"):
        return int(line.split()[1]) / 2**10
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / (2**20 if sys.platform == "darwin" else 2**10)


def best(function: Callable[[], Any], repeats: int = 5) -> float:
  """The shortest time of a call in seconds; the first one, which may compile, does not count."""
  function()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return min(times)


class Local:
  """A contestant in this process, set up, after its first turn.

  Attributes:
    facts: what it runs on.
    first: the first turn, in which it may have compiled.
  """

  def __init__(self, contestant: Contestant):
    self._side = pkgutil.resolve_name(contestant.make)(**contestant.given)
    self.facts = self._side.facts
    self.first = self.run()

  def __enter__(self) -> "Local":
    return self

  def __exit__(self, *_) -> None:
    pass

  def run(self) -> Turn:
    """One turn."""
    return timed(self._side.run)

  def rate(self) -> float:
    """The rate of its plain operation."""
    return self._side.rate()


class Worker:
  """A contestant in a process of its own; else as `Local`.

  Raises:
    RuntimeError: it failed there, or its process was ended.
  """

  def __init__(self, contestant: Contestant):
    context = multiprocessing.get_context("spawn")
    self._name = contestant.name
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, contestant), daemon=True)
    self._process.start()
    theirs.close()
    self.facts, self.first = self._ask(None)

  def __enter__(self) -> "Worker":
    return self

  def __exit__(self, *_) -> None:
    self._pipe.close()  # which ends it
    self._process.join()

  def run(self) -> Turn:
    """One turn."""
    return self._ask("run")

  def rate(self) -> float:
    """The rate of its plain operation."""
    return self._ask("rate")

  def _ask(self, word: str | None) -> Any:
    try:
      if word is not None:
        self._pipe.send(word)
      failure, answer = self._pipe.recv()
    except (EOFError, ConnectionError):
      self._process.join()
      raise RuntimeError(
        f"{self._name}: its process was ended (exit status {self._process.exitcode}); was there "
        "memory for it?"
      ) from None
    if failure:
      raise RuntimeError(f"{self._name}: {failure}")
    return answer


def _serve(pipe, contestant: Contestant) -> None:
  """What a process of its own does: a turn at every word, until the other end is closed."""
  children.end_with_parent()
  try:
    local = Local(contestant)
    pipe.send((None, (local.facts, local.first)))
    for word in _words(pipe):
      pipe.send((None, getattr(local, word)()))
  except Exception as error:
    traceback.print_exc()
    pipe.send((f"{type(error).__name__}: {error}", None))


def _words(pipe) -> Iterator[str]:
  """What is sent, until the other end is closed."""
  while True:
    try:
      word = pipe.recv()
    except EOFError:
      return
    yield word


# ---- All of them ---------------------------------------------------------------------------------


def take_turns(contestants: Sequence[Contestant], rounds: int) -> list[dict[str, Any]]:
  """Measures all contestants: A B C, A B C, ...

  Returns:
    A row for each, as JSON values: medians, and the figures of every round.
  """
  turns: dict[str, list[Turn]] = {c.name: [] for c in contestants}
  rates: dict[str, list[float]] = {c.name: [] for c in contestants}
  with contextlib.ExitStack() as stack:
    workers = {}
    for c in contestants:  # one after another: none is set up beside another
      workers[c.name] = stack.enter_context(Worker(c))
      print(f"{c.name}: first turn {workers[c.name].first.seconds:.2f} s", file=sys.stderr)
    for number in range(rounds):
      for name, worker in workers.items():
        turns[name].append(worker.run())
        rates[name].append(worker.rate())
        print(f"{name}: round {number + 1}, {turns[name][-1].seconds:.3f} s", file=sys.stderr)
    rows = [
      _row(c, workers[c.name].facts, workers[c.name].first, turns[c.name], rates[c.name])
      for c in contestants
    ]
  for row in rows:
    row["times_as_long"] = _short(rows[0]["tokens_per_second"] / row["tokens_per_second"])
  return rows


def _row(
  c: Contestant, facts: Mapping[str, Any], first: Turn, turns: list[Turn], rates: list[float]
) -> dict[str, Any]:
  speed = statistics.median(turn.found["tokens"] / turn.seconds for turn in turns)
  most = max(rates) / c.cost
  return {
    "name": c.name,
    "tokens_per_second": _short(speed),
    "median_seconds": _short(statistics.median(turn.seconds for turn in turns)),
    "seconds": [_short(turn.seconds) for turn in turns],
    "first_seconds": _short(first.seconds),
    "peak_mib": round(max(turn.peak_mib for turn in turns)),
    "rate": _short(max(rates)),
    "cost_per_token": _short(c.cost),
    "floor_seconds": _short(turns[-1].found["tokens"] / most),
    "share": _short(speed / most),
    "first_found": dict(first.found),
    "found": dict(turns[-1].found),
    "on": dict(facts),
  }


def _short(x: float) -> float:
  return float(f"{x:.4g}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows for people: a Markdown table."""
  lines = [
    "| | tokens/s | times as long | seconds | floor, seconds | share | peak MiB |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    lines.append(
      f"| {row['name']} | {row['tokens_per_second']:,.4g} | {row['times_as_long']:.2f} | "
      f"{row['median_seconds']:.4g} | {row['floor_seconds']:.4g} | {row['share']:.2f} | "
      f"{row['peak_mib']:,} |"
    )
  return "\n".join(lines)


def main(
  benchmark: str,
  p: argparse.ArgumentParser,
  contestants: Callable[[argparse.Namespace], Sequence[Contestant]],
) -> int:
  """A whole benchmark: measures, prints the table, then one line of JSON; returns the status.

  Args:
    benchmark: its name.
    p: its arguments.
    contestants: what they ask for.
  """
  args = parse(p)
  try:
    rows = take_turns(contestants(args), args.rounds)
  except (OSError, RuntimeError, ValueError) as error:
    print(f"benchmarks.{benchmark}: {error}", file=sys.stderr)
    return 1
  print(table(rows))
  print(json.dumps({
    "benchmark": benchmark, "processor": _processor(), "threads": threads(),
    "python": platform.python_version(), "arguments": vars(args), "contestants": rows,
  }))  # fmt: skip
  return 0


def threads() -> int:
  """How many threads each side has: the cores that this process may use (`taskset` chooses)."""
  allowed = getattr(os, "sched_getaffinity", None)
  return len(allowed(0)) if allowed else os.cpu_count()


def _processor() -> str:
  with contextlib.suppress(OSError):
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


# ---- The command line ----------------------------------------------------------------------------


def count(text: str) -> int:
  """An argument that is a number from 1 on."""
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
  return number


def parser(description: str) -> argparse.ArgumentParser:
  """The arguments that every benchmark of this kind has."""
  p = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--rounds", type=count, default=5, help="turns of each (default: 5)")
  p.add_argument(
    "--sides", nargs="+", choices=SIDES, default=list(SIDES),
    help="what is measured (default: both); hyperjax alone may be on any device",
  )  # fmt: skip
  return p


def add_model(p: argparse.ArgumentParser, dtypes: Sequence[str] = ("float32",)) -> None:
  """The arguments of those that need a model."""
  p.add_argument(
    "--model", default="smollm2_135m",
    help="a file of gin/models, with random weights (default: smollm2_135m)",
  )  # fmt: skip
  p.add_argument("--gin", action="append", default=[], metavar="NAME=VALUE",
                 help="as for hyperjax train, for example LORA_RANK=8")  # fmt: skip
  p.add_argument(
    "--dtypes", nargs="+", choices=DTYPES, default=list(dtypes),
    help=f"of the frozen weights, and of PyTorch's activations (default: {' '.join(dtypes)})",
  )  # fmt: skip


def parse(p: argparse.ArgumentParser) -> argparse.Namespace:
  """The arguments; exits where what they ask for is not installed."""
  args = p.parse_args()
  if "pytorch" in args.sides:
    missing = [n for n in ("torch", "transformers", "peft") if importlib.util.find_spec(n) is None]
    if missing:
      p.error(
        f"PyTorch's side needs {' and '.join(missing)}: pip install -r requirements-test.txt, or "
        "measure --sides hyperjax alone"
      )
    os.environ["JAX_PLATFORMS"] = "cpu"  # where PyTorch's side is
  return args
