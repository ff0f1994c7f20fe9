"""The few calls with which sources register with seqio. Imports seqio: import it late."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import seqio

from hyperjax.data.rows_source import FEATURES, Row, RowsSource
from hyperjax.tasks.lexical_task import LexicalTask


def text_feature() -> seqio.Feature:
  """Returns seqio's description of a feature that is one text."""
  return FEATURES["targets"]


def add(name: str, path: str | os.PathLike, source: seqio.DataSource, **options: Any) -> None:
  """Registers a task over a source of texts.

  Args:
    name: the task's.
    path: the file or folder that its rows come from: a task may be registered twice over the same
      one, never over another.
    source: seqio's.
    options: of `seqio.Task`.
  """
  path = pathlib.Path(path).resolve()
  if name in seqio.TaskRegistry.names():
    if _FILES.get(name) != path:
      raise ValueError(
        f"Task '{name}' is registered already, from {_FILES.get(name, 'elsewhere')}, not from "
        f"{path}: give the folder another name."
      )
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(name, source, **options)
  _FILES[name] = path


def add_rows(
  name: str,
  path: str | os.PathLike,
  splits: Mapping[str, Callable[[], Iterable[Row]]],
  *,
  metric_fns: Sequence[Callable] = (),
  postprocess_fn: Callable | None = None,
  documents: bool = False,
  files: Sequence[str | os.PathLike] = (),
  counts: Mapping[str, int] | None = None,
) -> None:
  """Registers a task over functions that yield the rows of its splits; see `RowsSource`.

  Args:
    name, path: see `add`.
    splits: {split: its rows}.
    metric_fns, postprocess_fn: seqio's; the metrics' names are recorded with built data.
    documents: rows have "targets" alone.
    files: what must not change while it is read; `path` is one of them if it is a file.
    counts: {split: how many rows}, of the splits of which that is known.
  """
  files = [*files, *([path] if pathlib.Path(path).is_file() else [])]
  source = RowsSource(splits, documents=documents, files=files, counts=counts)
  add(
    name, path, source, preprocessors=[], output_features=source.features,
    metric_fns=list(metric_fns), postprocess_fn=postprocess_fn,
  )  # fmt: skip


def add_examples(
  name: str, path: str | os.PathLike, load: Callable[[os.PathLike], Iterable[Mapping[str, Any]]]
) -> None:
  """Registers a task over one file of `{"input", "output"[, "options"]}`, read by `load`."""
  add_rows(name, path, {"train": lambda: map(_row, load(path))})


def add_documents(name: str, path: str | os.PathLike, load: Callable[[], Sequence[str]]) -> None:
  """Registers a language modelling task over one file's documents."""
  rows = lambda: ({"targets": document} for document in load())
  add_rows(name, path, {"train": rows}, documents=True)


def add_lexical(tasks: Mapping[str, LexicalTask]) -> None:
  """Registers tasks {name: task} that are generated on first use; those known already are kept."""
  for name, task in tasks.items():
    if name not in seqio.TaskRegistry.names():
      source = RowsSource({"train": functools.partial(_generated, task)})
      seqio.TaskRegistry.add(name, source, preprocessors=[], output_features=source.features)


def _generated(task: LexicalTask) -> Iterator[Row]:
  return map(_row, task.examples())


def _row(example: Mapping[str, Any]) -> Row:
  return {
    "inputs": example["input"], "targets": example["output"],
    "options": example.get("options", []),
  }  # fmt: skip


def add_mixture(name: str, rates: Mapping[str, float]) -> None:
  """Registers a mixture; a mixture of this name with other rates is replaced."""
  if name in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove(name)
  seqio.MixtureRegistry.add(name, list(rates.items()))


# {task: file or folder that it is registered over}
_FILES: dict[str, pathlib.Path] = {}
