"""Builds token stores and a manifest from seqio tasks: with `tasks/`, all that imports seqio."""

import collections
import importlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import rich.console
import rich.progress
import seqio

from hyperjax.data import manifest as manifest_lib
from hyperjax.data import store as store_lib
from hyperjax.data import vocabularies
from hyperjax.data.manifest import DataConfig, Manifest
from hyperjax.data.rows_source import RowsSource, filled

# Examples encoded in one call: enough for the tokenizer's threads, little enough for memory.
_CHUNK = 4096
_UNDECLARED = "undeclared"


def build(config: DataConfig, out: str | os.PathLike, *, vocabulary=None) -> Manifest:
  """Builds a data folder and returns its manifest.

  Stores that are there already under the same key are kept: an interrupted build goes on where it
  stopped, and a changed task is rebuilt alone. The manifest is written last. Random preprocessors
  are frozen at one draw.

  Args:
    config: what to build.
    out: the data folder.
    vocabulary: a loaded vocabulary, instead of `vocabularies.load(config.vocabulary)`.
  """
  out = pathlib.Path(out)
  console = rich.console.Console(stderr=True)
  vocabulary = vocabularies.load(config.vocabulary) if vocabulary is None else vocabulary
  fingerprints, registered = register(config)
  rates = _rates(config.mixture_or_task_name)
  jobs = _jobs(config, [seqio.get_mixture_or_task(name) for name in rates])
  entries = collections.defaultdict(dict)
  built = 0
  progress = rich.progress.Progress(
    rich.progress.TextColumn("{task.description:<40}"),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TimeRemainingColumn(),
    console=console,
  )
  with progress:
    bar = progress.add_task("", total=len(jobs))
    for task, split in jobs:
      progress.update(bar, description=f"{task.name} {split}")
      source = fingerprints.get(task.name) or _source_fingerprint(task)
      key = _key(task.name, split, config, vocabulary, source)
      path = out / "stores" / key
      if not store_lib.complete(path):
        _write(task, split, config, vocabulary, path)
        built += 1
      meta = store_lib.Store(path).meta
      if not meta["examples"]:
        raise ValueError(f"Task '{task.name}', split '{split}': it yields no examples.")
      entries[task.name][split] = {
        "store": f"stores/{key}", "source": source,
        **{name: value for name, value in meta.items() if name not in ("version", "dtype")},
      }  # fmt: skip
      progress.advance(bar)
  values = {
    "version": manifest_lib.VERSION,
    "mixture": config.mixture_or_task_name,
    "tasks": {
      name: {"rate": rates[name], "metrics": _metrics(name), "splits": entries[name]}
      for name in rates
    },
    "registered": registered,
    "vocabulary": {
      name: getattr(vocabulary, name)
      for name in ("fingerprint", "size", "eos_id", "bos_id", "adds_bos", "adds_eos")
    },
    "prompt": config.prompt.to_json(),
    "feature_lengths": config.feature_lengths and dict(config.feature_lengths),
    "config": config.portable(),
    "config_hash": config.hash(),
  }
  temporary = out / f"{manifest_lib.FILE}.partial-{os.getpid()}"
  temporary.write_text(json.dumps(values, indent=1))
  temporary.rename(out / manifest_lib.FILE)
  console.print(
    f"{out}: {len(rates)} tasks, {len(jobs)} stores ({built} built, {len(jobs) - built} kept). "
    "Random preprocessors, if any, are frozen at one draw."
  )
  return Manifest.load(out)


def build_parts(
  *, parts: Mapping[str, DataConfig], out: str, model: Any = None, source: str = ""
) -> None:
  """Builds the data folders of a run: one in `out` for each part.

  Args:
    parts: {name: what to build}, such as 'train' and 'held_out'.
    out: the folder that DATA_DIR names in training.
    model: a downstream model's configuration, whose embedding table must hold every token id.
    source: what that model is called, for the error.

  Raises:
    ValueError: a vocabulary has more tokens than the model has embeddings.
  """
  loaded = {config.vocabulary: vocabularies.load(config.vocabulary) for config in parts.values()}
  for name, vocabulary in loaded.items():
    if model is not None:
      vocabularies.check_fits(name, vocabulary, model.vocab_size, source)
  for part, config in parts.items():
    build(config, pathlib.Path(out) / part, vocabulary=loaded[config.vocabulary])


def register(config: DataConfig) -> tuple[dict[str, str], dict[str, list[str]]]:
  """Registers the tasks of a configuration's modules and sources.

  Returns:
    {task: fingerprint of its source}, and {source name: its tasks}.
  """
  fingerprints = {}
  for name in config.task_modules:
    before = set(seqio.TaskRegistry.names())
    module = importlib.import_module(name)
    if hasattr(module, "register"):
      module.register()
    version = f"{name}:{getattr(module, 'VERSION', _UNDECLARED)}"
    new = set(seqio.TaskRegistry.names()) - before
    _OWNERS.setdefault(name, set()).update(new)
    fingerprints.update(dict.fromkeys(_OWNERS[name], version))
  registered = {}
  for source in config.sources:
    source.register()
    ours = source.fingerprints()
    fingerprints.update(ours)
    registered[source.name] = sorted(ours)
  return fingerprints, registered


# {task module: tasks that it registered}: a second build in one process finds them registered.
_OWNERS: dict[str, set[str]] = {}


def _rates(name: str) -> dict[str, float]:
  """Returns {task: share} of a task or mixture, the shares' sum being 1."""
  known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
  if name not in known:
    raise ValueError(
      f"No task or mixture '{name}' is registered.{manifest_lib.did_you_mean(name, known)} "
      "Name the module or source that registers it in task_modules or sources."
    )
  provider = seqio.get_mixture_or_task(name)
  if isinstance(provider, seqio.Task):
    return {name: 1.0}
  rates = {task.name: float(provider.get_rate(task)) for task in provider.tasks}
  total = sum(rates.values())
  return {task: rate / total for task, rate in sorted(rates.items()) if rate > 0}


def _metrics(task: str) -> list[str]:
  """Returns the names of the functions that a task is scored with, as seqio has them."""
  functions = seqio.TaskRegistry.get(task).metric_fns
  return [getattr(fn, "func", fn).__name__ for fn in functions]


def _jobs(config: DataConfig, tasks: Iterable[Any]) -> list[tuple[Any, str]]:
  jobs = []
  found = set()
  for task in tasks:
    splits = [split for split in config.splits if split in task.splits]
    if not splits:
      raise ValueError(
        f"Task '{task.name}' has none of the splits {list(config.splits)}: {list(task.splits)}."
      )
    found.update(splits)
    jobs.extend((task, split) for split in splits)
  return jobs


def _source_fingerprint(task) -> str:
  """Identifies the source of a task that nobody vouches for."""
  source = task.source
  if isinstance(source, seqio.TfdsDataSource | seqio.FileDataSource):
    return manifest_lib.digest([str(source)])
  return _UNDECLARED


def _key(task: str, split: str, config: DataConfig, vocabulary, source: str) -> str:
  return manifest_lib.digest(
    [store_lib.VERSION, task, split, vocabulary.fingerprint, config.prompt.to_json(),
     config.feature_lengths and dict(config.feature_lengths), config.max_examples, source]
  )[:24]  # fmt: skip


def _write(task, split: str, config: DataConfig, vocabulary, path: pathlib.Path) -> None:
  rows = texts(task, split, config.feature_lengths)
  rows = itertools.islice(rows, config.max_examples)
  first = next(rows, None)
  kind = store_lib.EXAMPLES if first is None or "inputs" in first else store_lib.DOCUMENTS
  rows = itertools.chain([] if first is None else [first], rows)
  with store_lib.writing(path, kind=kind, vocabulary_size=vocabulary.size) as writer:
    while chunk := list(itertools.islice(rows, _CHUNK)):
      if kind == store_lib.DOCUMENTS:
        for ids in vocabulary.encode_batch([row["targets"] for row in chunk]):
          writer.add_document(ids)
      else:
        _write_examples(writer, chunk, config.prompt, vocabulary, f"{task.name} {split}")


def _write_examples(writer, chunk, prompt, vocabulary, where: str) -> None:
  start = len(writer)
  for offset, row in enumerate(chunk):
    if not row["targets"].strip():
      raise ValueError(f"{where}, example {start + offset}: its target is empty.")
  by_kind = {
    "input": ([row["inputs"] for row in chunk], prompt.encode_inputs),
    "target": ([t for row in chunk for t in [row["targets"], *row["options"]]],
               prompt.encode_targets),
    "definition": ([row["definition"] for row in chunk if row["definition"]],
                   prompt.encode_definitions),
  }  # fmt: skip
  for kind, (wanted, encode) in by_kind.items():
    new = [text for text in dict.fromkeys(wanted) if writer.known(kind, text) is None]
    for text, ids in zip(new, encode(vocabulary, new) if new else [], strict=True):
      writer.add_piece(kind, text, ids)
  for row in chunk:
    definition = writer.known("definition", row["definition"]) if row["definition"] else -1
    writer.add_example(
      writer.known("input", row["inputs"]),
      writer.known("target", row["targets"]),
      definition,
      [writer.known("target", option) for option in row["options"]],
      row["references"],
    )


def texts(task, split: str, lengths: Mapping[str, int] | None = None) -> Iterator[dict[str, Any]]:
  """Yields a seqio task's examples as text, before tokenisation.

  Returns:
    Dicts with `inputs` (absent where the task has none: language modelling), `targets`, `options`
    and `references` (lists) and `definition` ("" where there is none).
  """
  if isinstance(task.source, RowsSource) and not task.preprocessors:
    yield from map(filled, task.source.rows(split))  # ten times as fast as by way of TensorFlow
    return
  dataset = task.get_dataset(lengths, split, shuffle=False, num_epochs=1, use_cached=False)
  spec = dataset.element_spec
  names = {field: _text_feature(spec, field) for field in ("inputs", "targets")}
  if names["targets"] is None or (names["inputs"] is None and "inputs" in spec):
    found = {name: f"{value.dtype.name}{list(value.shape)}" for name, value in spec.items()}
    raise ValueError(
      f"Task '{task.name}' has no text to make episodes of: it needs the text features 'inputs' "
      f"and 'targets' (or 'inputs_pretokenized' and 'targets_pretokenized', which seqio's tokenize "
      f"keeps); its features are {found}."
    )
  names = {field: name for field, name in names.items() if name is not None}
  for name, rank in (("options", 1), ("references", 1), ("definition", 0)):
    if name in spec and spec[name].dtype.name == "string" and spec[name].shape.rank == rank:
      names[name] = name
  # In batches: tf.data hands over single rows at a tenth of the speed.
  dataset = dataset.map(lambda row: {field: row[name] for field, name in names.items()})
  for batch in dataset.ragged_batch(_CHUNK).as_numpy_iterator():
    columns = {field: column.tolist() if isinstance(column, np.ndarray) else column.to_list()
               for field, column in batch.items()}  # fmt: skip
    for row in zip(*columns.values(), strict=True):
      example = filled(dict(zip(columns, row, strict=True)))
      yield {
        field: [v.decode() for v in value] if isinstance(value, list)
        else value.decode() if isinstance(value, bytes) else value
        for field, value in example.items()
      }  # fmt: skip


def _text_feature(spec: Mapping[str, Any], field: str) -> str | None:
  for name in (f"{field}_pretokenized", field):
    if name in spec and spec[name].dtype.name == "string" and spec[name].shape.rank == 0:
      return name
  return None
