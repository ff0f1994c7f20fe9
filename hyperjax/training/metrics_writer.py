"""Writes a run's metrics as JSON lines and as TensorBoard event files, without TensorFlow."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import SupportsFloat, SupportsInt

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from hyperjax import storage

_FLUSH = 10  # seconds between two times that the event file is brought to disk, which takes long


class MetricsWriter:
  """Appends {name: number} per step to `metrics.jsonl` and to event files in a folder.

  A resumed run writes the steps after its checkpoint again. So lines after `resume_step` are
  dropped first, TensorBoard is told to forget them too, and no step stands in the file twice.
  Of several processes only the first one writes; the others' writers do nothing.

  Nothing can be appended to a bucket's object. So the files of a folder in a bucket are written to
  the local disk, and `publish` and `close` copy them.

  Attributes:
    last: the newest line that a resumed run goes on from; {} in a new one.
  """

  def __init__(self, folder: str | os.PathLike, *, resume_step: int = 0):
    """Opens the folder's files, creating them where there are none.

    Args:
      folder: of the local disk, created where it does not exist, or of a bucket.
      resume_step: the last step of the checkpoint that the run goes on from; 0 for a new run.
    """
    self._bucket = storage.folder(folder) if storage.in_bucket(folder) else None
    self.last: dict = {}
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    if self._bucket is None:
      self.folder = pathlib.Path(folder)
      self.folder.mkdir(parents=True, exist_ok=True)
    else:
      self.folder = pathlib.Path(tempfile.mkdtemp(prefix="hyperjax-metrics-"))
      if (self._bucket / "metrics.jsonl").exists():
        (self._bucket / "metrics.jsonl").copy(self.path)
    first = resume_step + 1 if resume_step else 0  # a new run may write a step 0
    if self.path.exists():
      self.last = _keep_before(self.path, first)
    self._flushed = 0.0
    self._lines = open(self.path, "a")  # noqa: SIM115, closed by close()
    # tensorboardX's own writer has a thread: where that dies (a full disk) the run would wait for
    # it. The suffix: two files begun in one second would have one name.
    self._events = EventsWriter(str(self.folder / "events"), f".{resume_step}")
    self._events.write_event(
      Event(wall_time=time.time(), step=first, session_log=SessionLog(status=SessionLog.START))
    )

  @property
  def path(self) -> pathlib.Path:
    """The JSON lines on the local disk."""
    return self.folder / "metrics.jsonl"

  def write(self, step: SupportsInt, values: Mapping[str, SupportsFloat]) -> None:
    """Writes the metrics of a step; the JSON line is on disk when this returns.

    A value that JSON cannot hold (NaN, infinity) stands as null in the lines and as itself in the
    event file.

    Raises:
      OSError: the disk is full, or the like.
    """
    if not self._writes:
      return
    numbers = {name: float(value) for name, value in values.items()}
    now = time.time()
    line = {"step": int(step), "time": round(now, 3)}
    line |= {name: value if abs(value) < float("inf") else None for name, value in numbers.items()}
    found = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
    with self._naming_the_file():
      self._lines.write(json.dumps(line, allow_nan=False) + "\n")
      self._lines.flush()
      self._events.write_event(Event(wall_time=now, step=int(step), summary=Summary(value=found)))
      if now - self._flushed >= _FLUSH:
        self._flush(now)

  def publish(self) -> None:
    """Copies the files of a folder in a bucket there.

    Raises:
      OSError: the bucket does not take them.
    """
    if self._writes and self._bucket is not None:
      with self._naming_the_file():
        self._flush(time.time())
      self._copy()

  def _copy(self) -> None:
    for file in self.folder.iterdir():
      to = self._bucket / file.name
      try:
        storage.folder(file).copy(to, overwrite=True)
      except Exception as error:  # whatever a bucket's library raises
        raise OSError(
          f"{to} could not be written ({storage.said(error)}); it is kept in "
          f"{self.folder}"
        ) from error

  def close(self) -> None:
    """Ends the files, and copies those of a folder in a bucket; raises OSError as `publish`."""
    if not self._writes:
      return
    with self._naming_the_file():
      self._lines.close()
      self._events.close()
    if self._bucket is not None:
      self._copy()
      shutil.rmtree(self.folder)

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    if kind is None:
      self.close()
    else:
      with contextlib.suppress(OSError):  # what is on its way says more
        self.close()

  def _flush(self, now: float) -> None:
    self._events.flush()
    self._flushed = now

  @contextlib.contextmanager
  def _naming_the_file(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise OSError(f"{self.path} and the event files beside it: {error.strerror}") from error


def read(path: str | os.PathLike) -> list[dict[str, int | float | None]]:
  """Returns the lines of a metrics.jsonl; the last is left out where a kill has cut it short."""
  lines = storage.folder(path).read_text().split("\n")
  return [json.loads(line) for line in lines[:-1]]


def _keep_before(path: pathlib.Path, step: int) -> dict:
  kept = [line for line in read(path) if line["step"] < step]
  storage.write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
  return kept[-1] if kept else {}
