"""A seqio task's examples as rows of text, and the place of what is wrong in them."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from hyperjax.data import rows, seqio_cache
from hyperjax.data.rows_source import Files, RowsSource, filled

_BATCH = 4096


def texts(task, split: str, lengths: Mapping[str, int] | None = None) -> Iterator[dict[str, Any]]:
  """Yields a seqio task's examples as text, before tokenisation; from seqio's cache if it is there.

  Returns:
    Dicts with `inputs` (absent where the task has none: language modelling), `targets`, `options`
    and `references` (lists) and `definition` ("" where there is none).

  Raises:
    ValueError: it has no texts, or what is wrong with one, with the file or the example's number.
  """
  if isinstance(task.source, RowsSource) and not task.preprocessors:
    yield from map(filled, task.source.rows(split))  # ten times as fast as by way of TensorFlow
    return
  cached = _cached(task, split)
  if cached:
    cached.check()
  dataset = task.get_dataset(
    lengths, split, shuffle=False, num_epochs=1, use_cached=_is_cached(task)
  )
  names = _names(task.name, dataset.element_spec)
  dataset = dataset.map(lambda row: {field: row[name] for field, name in names.items()})
  count = 0
  try:
    for row in _rows(dataset):
      yield {field: _decoded(value) for field, value in filled(row).items()}
      count += 1
  except (UnicodeDecodeError, tf.errors.OpError) as e:
    if cached:
      cached.check_records()  # names the file and the record
    reason = str(e).rpartition("}} ")[2].splitlines()[0]  # behind the name of TensorFlow's node
    raise ValueError(f"{place(task, split)}, after {count} examples: {reason}") from e
  # What is done after the cache may leave examples out: only then are the records counted.
  if cached and count != cached.num_records:
    cached.check_records()


def place(task, split: str) -> str:
  """Returns where examples are from, for errors."""
  return f"{task.name} {split}" + (f" in {task.cache_dir}" if _is_cached(task) else "")


def check(row: Mapping[str, Any], where: str) -> None:
  """Refuses a row without a target, options that no ranking can use, and a text that no tokenizer
  takes; `where` opens the error. Two options that are alike are found once they are tokens."""
  if "inputs" in row and not row["targets"].strip():
    raise ValueError(f"{where}: its target is empty.")
  if options := row.get("options"):
    way_out = "Mend it, or leave the task's feature 'options' out."
    if not all(option.strip() for option in options):
      raise ValueError(f"{where}: one of its options is empty: {options}. {way_out}")
    if row["targets"] not in options:
      not_there = f"its target {row['targets']!r} is none of its options {options}"
      raise ValueError(f"{where}: {not_there}. {way_out}")
    if len(options) == 1:  # it would be right whatever the model does
      raise ValueError(
        f"{where}: {options[0]!r} is its one option: give it at least two, or none at all."
      )
  for name in ("inputs", "targets"):
    if len(row.get(name, "")) > rows.MAX_LINE:
      raise ValueError(f"{where}: its {name} have more than {rows.MAX_LINE:,} characters.")


def number(task, split: str) -> int | None:
  """Returns how many examples there are, where that is known before they are read."""
  if cached := _cached(task, split):
    return cached.num_records
  if _is_cached(task):
    return task.get_cached_stats(split)["examples"]
  return task.num_input_examples(split)


def files(task, split: str) -> Files:
  """Returns the files on this machine that a split is read from, as far as they are known."""
  if cached := _cached(task, split):
    return Files([cached.info, cached.stats, *cached.shards()])
  if isinstance(task.source, RowsSource):
    return task.source.files
  if isinstance(task.source, seqio.FileDataSource):
    return Files(file for file in task.source.list_shards(split) if pathlib.Path(file).exists())
  return Files()


def _is_cached(task) -> bool:
  return task.supports_caching and task.cache_dir is not None


def _cached(task, split: str) -> seqio_cache.CachedSplit | None:
  """Returns a split of seqio's cache on this machine; None where it is elsewhere, or not there."""
  if not _is_cached(task) or not pathlib.Path(task.cache_dir).is_dir():
    return None
  return seqio_cache.CachedSplit(pathlib.Path(task.cache_dir), split)


def _names(task: str, spec: Mapping[str, tf.TensorSpec]) -> dict[str, str]:
  """Returns {field of a row: the task's feature that holds it}."""
  names = {field: _text_feature(spec, field) for field in ("inputs", "targets")}
  if names["targets"] is None or (names["inputs"] is None and "inputs" in spec):
    found = {name: f"{value.dtype.name}{list(value.shape)}" for name, value in spec.items()}
    raise ValueError(
      f"Task '{task}' has no text to make episodes of: it needs the text features 'inputs' "
      f"and 'targets' (or 'inputs_pretokenized' and 'targets_pretokenized', which seqio's tokenize "
      f"keeps); its features are {found}."
    )
  names = {field: name for field, name in names.items() if name is not None}
  for name, rank in (("options", 1), ("references", 1), ("definition", 0)):
    if name in spec and spec[name].dtype.name == "string" and spec[name].shape.rank == rank:
      names[name] = name
  return names


def _text_feature(spec: Mapping[str, tf.TensorSpec], field: str) -> str | None:
  for name in (f"{field}_pretokenized", field):
    if name in spec and spec[name].dtype.name == "string" and spec[name].shape.rank == 0:
      return name
  return None


def _rows(dataset: tf.data.Dataset) -> Iterator[dict[str, Any]]:
  # In batches: tf.data hands over single rows at a tenth of the speed.
  for batch in dataset.ragged_batch(_BATCH).as_numpy_iterator():
    columns = {
      field: column.tolist() if isinstance(column, np.ndarray) else column.to_list()
      for field, column in batch.items()
    }
    for row in zip(*columns.values(), strict=True):
      yield dict(zip(columns, row, strict=True))


def _decoded(value: Any) -> Any:
  if isinstance(value, list):
    return [text.decode() for text in value]
  return value.decode() if isinstance(value, bytes) else value
