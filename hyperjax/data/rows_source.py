"""A seqio source of rows that Python makes: what the tasks of this project are registered over."""

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


class RowsSource(seqio.FunctionDataSource):
  """A source whose splits are functions that yield rows of text.

  A row has "targets", and "inputs" where the task is not language modelling; it may have "options"
  and "references" (lists of texts) and "definition".
  """

  def __init__(self, splits: Mapping[str, Callable[[], Iterable[Row]]], *, documents: bool = False):
    """The source of `splits`; documents: rows have "targets" alone."""
    self._rows = dict(splits)
    self.features = {"targets": _TEXT} if documents else FEATURES
    super().__init__(self._dataset, splits=tuple(splits))

  def rows(self, split: str) -> Iterable[Row]:
    """Yields the rows of a split."""
    return self._rows[split]()

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


def filled(row: Row) -> dict[str, Any]:
  """The row with every optional feature."""
  return {**_DEFAULTS, **row}
