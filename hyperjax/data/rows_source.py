"""A seqio source of rows that Python makes: what the tasks of this project are registered over."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import seqio
import tensorflow as tf

Row = Mapping[str, Any]
_TEXT = seqio.Feature(
  seqio.PassThroughVocabulary(size=0), add_eos=False, required=False, dtype=tf.string, rank=0
)
_TEXTS = seqio.Feature(
  seqio.PassThroughVocabulary(size=0), add_eos=False, required=False, dtype=tf.string, rank=1
)
FEATURES = {
  "inputs": _TEXT, "targets": _TEXT, "options": _TEXTS, "references": _TEXTS, "definition": _TEXT,
}  # fmt: skip
_DEFAULTS = {"options": [], "references": [], "definition": ""}


class Files:
  """Files that are being read, and how they were when that began."""

  def __init__(self, paths: Iterable[str | os.PathLike] = ()):
    self._states = {path: _state(path) for path in paths}

  @property
  def paths(self) -> tuple[str | os.PathLike, ...]:
    return tuple(self._states)

  def check(self) -> None:
    """Raises ValueError if one is not what it was."""
    for path, state in self._states.items():
      if _state(path) != state:
        raise ValueError(f"{path}: it changed while it was read; repeat the build.")


class RowsSource(seqio.FunctionDataSource):
  """A source whose splits are functions that yield rows of text.

  A row has "targets", and "inputs" where the task is not language modelling; it may have "options"
  and "references" (lists of texts) and "definition".

  Attributes:
    features: seqio's output features.
    files: what the rows are read from, as it was when this source was made.
  """

  def __init__(
    self, splits: Mapping[str, Callable[[], Iterable[Row]]], *, documents: bool = False,
    files: Iterable[str | os.PathLike] = (), counts: Mapping[str, int] | None = None,
  ):  # fmt: skip
    """The source of `splits`.

    Args:
      splits: {split: what gives its rows}. Rows that have an attribute `fraction`, how much of them
        has been read, move a progress bar.
      documents: rows have "targets" alone.
      files: what the rows are read from.
      counts: {split: how many rows}, of the splits of which that is known.
    """
    self._rows, self._reading, self.files = dict(splits), None, Files(files)
    counts = None if counts is None else dict.fromkeys(splits) | dict(counts)
    self.features = {"targets": _TEXT} if documents else FEATURES
    super().__init__(self._dataset, splits=tuple(splits), num_input_examples=counts)

  def rows(self, split: str) -> Iterable[Row]:
    """Returns the rows of a split."""
    self._reading = self._rows[split]()
    return self._reading

  @property
  def fraction(self) -> float | None:
    """How much of the split that was asked for last has been read; None: it does not say."""
    return getattr(self._reading, "fraction", None)

  def _dataset(self, split: str, shuffle_files: bool = False, seed: int | None = None):
    del shuffle_files, seed
    spec = {
      name: tf.TensorSpec([None] * feature.rank, tf.string)
      for name, feature in self.features.items()
    }

    def rows():
      for row in map(filled, self.rows(split)):
        yield {name: row[name] for name in spec}

    return tf.data.Dataset.from_generator(rows, output_signature=spec)


def _state(file: str | os.PathLike) -> tuple[int, int] | None:
  """A file's size and time of change; None where there is none."""
  try:
    found = os.stat(file)
  except FileNotFoundError:
    return None
  return found.st_size, found.st_mtime_ns


def filled(row: Row) -> dict[str, Any]:
  """The row with every optional feature."""
  return {**_DEFAULTS, **row}
