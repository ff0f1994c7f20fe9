"""Writes a run's metrics as JSON lines and as TensorBoard event files, without TensorFlow."""

import json
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import SupportsFloat, SupportsInt

import jax
from tensorboardX import SummaryWriter


class MetricsWriter:
  """Appends {name: number} per step to `metrics.jsonl` and to event files in a folder.

  A resumed run writes the steps after its checkpoint again. So lines after `resume_step` are
  dropped first, TensorBoard is told to forget them too, and no step stands in the file twice.
  Of several processes only the first one writes; the others' writers do nothing.

  Attributes:
    last: the newest line that a resumed run goes on from; {} in a new one.
  """

  def __init__(self, folder: str | os.PathLike, *, resume_step: int = 0):
    """Opens the folder's files, creating them where there are none.

    Args:
      folder: a folder of the local disk; created where it does not exist.
      resume_step: the last step of the checkpoint that the run goes on from; 0 for a new run.
    """
    self.folder = pathlib.Path(folder)
    self.path = self.folder / "metrics.jsonl"
    self.last: dict = {}
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    self.folder.mkdir(parents=True, exist_ok=True)
    first = resume_step + 1 if resume_step else 0  # a new run may write a step 0
    if self.path.exists():
      self.last = _keep_before(self.path, first)
    self._lines = open(self.path, "a")  # noqa: SIM115, closed by close()
    # The suffix: two files begun in one second would have one name.
    self._events = SummaryWriter(
      str(self.folder),
      purge_step=first,
      flush_secs=10,
      filename_suffix=f".{resume_step}",
    )

  def write(self, step: SupportsInt, values: Mapping[str, SupportsFloat]) -> None:
    """Writes the metrics of a step; the JSON line is on disk when this returns.

    A value that JSON cannot hold (NaN, infinity) stands as null in the lines and as itself in the
    event file.
    """
    if not self._writes:
      return
    numbers = {name: float(value) for name, value in values.items()}
    line = {"step": int(step), "time": round(time.time(), 3)}
    line |= {name: value if abs(value) < float("inf") else None for name, value in numbers.items()}
    self._lines.write(json.dumps(line, allow_nan=False) + "\n")
    self._lines.flush()
    for name, value in numbers.items():
      self._events.add_scalar(name, value, step)

  def close(self) -> None:
    if self._writes:
      self._lines.close()
      self._events.close()

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read(path: str | os.PathLike) -> list[dict[str, int | float | None]]:
  """Returns the lines of a metrics.jsonl; the last is left out where a kill has cut it short."""
  lines = pathlib.Path(path).read_text().split("\n")
  return [json.loads(line) for line in lines[:-1]]


def _keep_before(path: pathlib.Path, step: int) -> dict:
  kept = [line for line in read(path) if line["step"] < step]
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  with os.fdopen(handle, "w") as file:
    file.writelines(json.dumps(line) + "\n" for line in kept)
  os.chmod(temporary, 0o644)
  os.replace(temporary, path)
  return kept[-1] if kept else {}
