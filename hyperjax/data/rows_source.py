"""A seqio source of rows that Python makes: what the tasks of this project are registered over."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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


class RowsSource(seqio.FunctionDataSource):
  """A source whose splits are functions that yield rows of text.

  A row has "targets", and "inputs" where the task is not language modelling; it may have "options"
  and "references" (lists of texts) and "definition".
  """

  def __init__(
    self, splits: Mapping[str, Callable[[], Iterable[Row]]], *, documents: bool = False,
    files: Sequence[str | os.PathLike] = (), made_of: seqio.DataSource | None = None,
  ):  # fmt: skip
    """The source of `splits`.

    Args:
      splits: {split: what gives its rows}. Rows that have an attribute `fraction`, how much of them
        has been read, move a progress bar.
      documents: rows have "targets" alone.
      files: what the rows are read from; see `check`.
      made_of: a source that the rows are made of: its files are these rows' files too.
    """
    self._rows, self._reading = dict(splits), None
    self._files = {file: _state(file) for file in files}
    if isinstance(made_of, RowsSource):
      self._files |= made_of._files  # as they were when that source was made
    self.features = {"targets": _TEXT} if documents else FEATURES
    super().__init__(self._dataset, splits=tuple(splits))

  def rows(self, split: str) -> Iterable[Row]:
    """Returns the rows of a split."""
    self._reading = self._rows[split]()
    return self._reading

  @property
  def fraction(self) -> float | None:
    """How much of the split that was asked for last has been read; None: it does not say."""
    return getattr(self._reading, "fraction", None)

  def check(self) -> None:
    """Raises ValueError if a file is not what it was when this source, or its own, was made."""
    for file, state in self._files.items():
      if _state(file) != state:
        raise ValueError(f"{file}: it changed while it was read; repeat the build.")

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
