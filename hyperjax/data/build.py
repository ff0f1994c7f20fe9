"""Builds token stores and a manifest from seqio tasks.

    hyperjax data --gin_file=models/smollm2_135m.gin --gin_file=data/lexical.gin \\
      --gin_file=runs/data.gin --out data/lexical
"""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.progress
import seqio

from hyperjax import storage
from hyperjax.data import manifest as manifest_lib
from hyperjax.data import registering, task_rows, vocabularies
from hyperjax.data import store as store_lib
from hyperjax.data.encode import Encoder
from hyperjax.data.manifest import DataConfig, Manifest
from hyperjax.data.rows_source import Files, RowsSource

# Rows, and about how many characters, that are encoded at once: a process has some in waiting.
_CHUNK = 4096
_CHUNK_CHARACTERS = 2**20


def build(config: DataConfig, out: str | os.PathLike, *, vocabulary=None) -> Manifest:
  """Builds a data folder and returns its manifest.

  Stores that are there already under the same key are kept, and of a store of documents the shards
  that are finished: an interrupted build goes on where it stopped, and a changed task is rebuilt
  alone. The manifest is written last. Random preprocessors are frozen at one draw.

  One process reads rows and writes stores, store after store; all cores tokenise (see `encode`), of
  short stores several at once. A script of yours that calls this does so below
  `if __name__ == "__main__":`, since the processes that tokenise import it.

  Args:
    config: what to build.
    out: the data folder.
    vocabulary: a loaded vocabulary, instead of `vocabularies.load(config.vocabulary)`.

  Raises:
    ValueError: a task, split or row is not as it must be, or a file changes while it is read; what
      was finished before it stays.
  """
  vocabulary = vocabularies.load(config.vocabulary) if vocabulary is None else vocabulary
  return _Plan.of(config, pathlib.Path(out), vocabulary).work_off()


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
    ValueError: a vocabulary has more tokens than the model has embeddings, or `out` is an address.
  """
  copied = "build into a folder, then copy it: gcloud storage rsync --recursive (docs/pods.md)"
  storage.check_address(out, "--out", copied)
  loaded = {config.vocabulary: vocabularies.load(config.vocabulary) for config in parts.values()}
  for name, vocabulary in loaded.items():
    if model is not None:
      vocabularies.check_fits(name, vocabulary, model.vocab_size, source)
  # All are planned before the first is built, which may take hours.
  plans = [
    _Plan.of(config, pathlib.Path(out) / part, loaded[config.vocabulary])
    for part, config in parts.items()
  ]
  for plan in plans:
    plan.work_off()


def _splits(config: DataConfig, tasks: Iterable[Any]) -> list[tuple[Any, str]]:
  chosen = []
  for task in tasks:
    splits = [split for split in config.splits if split in task.splits]
    if not splits:
      raise ValueError(
        f"Task '{task.name}' has none of the splits {list(config.splits)}: {list(task.splits)}. "
        "Name one that it has (gin: train/ or held_out/manifest.DataConfig.splits, for data/c4.gin "
        "C4_HELD_OUT_SPLITS)."
      )
    splits += manifest_lib.prepared(task.splits).values()
    chosen.extend((task, split) for split in splits)
  return chosen


def _key(task: str, split: str, config: DataConfig, vocabulary, source: str) -> str:
  return manifest_lib.digest(
    [store_lib.VERSION, task, split, vocabulary.fingerprint, config.prompt.to_json(),
     config.feature_lengths and dict(config.feature_lengths), config.max_examples, source]
  )[:24]  # fmt: skip


@dataclasses.dataclass(eq=False)
class _Job:
  """A store to be built.

  Attributes:
    task, split: seqio's.
    source: the fingerprint of its source.
    path: the store.
    files: what the rows are read from.
    rows: how many have been read.
    total: how many there are, where that is known.
  """

  task: seqio.Task
  split: str
  source: str
  path: pathlib.Path
  files: Files
  rows: int = 0
  total: int | None = None

  @property
  def name(self) -> str:
    return f"{self.task.name} {self.split}"

  @property
  def fraction(self) -> float | None:
    """How much of it has been read, where that is known."""
    source = self.task.source
    known = [source.fraction if isinstance(source, RowsSource) else None,
             self.rows / self.total if self.total else None]  # fmt: skip
    return max((fraction for fraction in known if fraction is not None), default=None)

  def read(self, config: DataConfig) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yields what the store lacks, in pieces of some length, and [] at the end."""
    self.rows = store_lib.num_documents(self.path)
    self.total = config.max_examples or task_rows.number(self.task, self.split)
    rows = task_rows.texts(self.task, self.split, config.feature_lengths)
    try:
      for chunk in _chunks(itertools.islice(rows, self.rows, config.max_examples)):
        for number, row in enumerate(chunk, self.rows):
          task_rows.check(row, f"{task_rows.place(self.task, self.split)}, example {number}")
        self.rows += len(chunk)
        yield chunk
    except Exception:
      self.files.check()  # what is wrong with a file that is being written is not the point
      raise
    if not self.rows:
      raise ValueError(f"Task '{self.task.name}', split '{self.split}': it yields no examples.")
    yield []

  def write(self, chunks: Iterator[store_lib.Chunk], vocabulary_size: int) -> None:
    first = list(itertools.islice(chunks, 1))  # none: documents whose shards are all there
    chunks = itertools.chain(first, chunks)
    if first and first[0].kind == store_lib.EXAMPLES:
      with store_lib.writing(
        self.path, kind=store_lib.EXAMPLES, vocabulary_size=vocabulary_size,
        source=task_rows.place(self.task, self.split),
      ) as writer:  # fmt: skip
        for chunk in chunks:
          writer.add(chunk)
        self.files.check()
    else:
      store_lib.write_documents(
        self.path, chunks, vocabulary_size=vocabulary_size, check=self.files.check
      )


def _chunks(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
  chunk, characters = [], 0
  for row in rows:
    chunk.append(row)
    characters += len(row["targets"]) + len(row.get("inputs", ""))
    if len(chunk) == _CHUNK or characters >= _CHUNK_CHARACTERS:
      yield chunk
      chunk, characters = [], 0
  if chunk:
    yield chunk


class _Bars:
  """Progress: of all stores, and of the one in work."""

  def __init__(self, stores: int, kept: int):
    self._progress = rich.progress.Progress(
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.TextColumn("{task.fields[amount]}"),
      rich.progress.TimeElapsedColumn(),
      rich.progress.TimeRemainingColumn(),
      console=rich.console.Console(stderr=True),
    )
    self._stores, self._done = stores, kept
    self._all = self._progress.add_task(
      "stores", total=stores, completed=kept, amount=f"{kept}/{stores}"
    )

  def __enter__(self) -> "_Bars":
    self._progress.start()
    return self

  def __exit__(self, *_) -> None:
    self._progress.stop()

  def counted(self, job: _Job, chunks: Iterable[store_lib.Chunk]) -> Iterator[store_lib.Chunk]:
    """Yields the chunks of a store and shows where it stands."""
    bar = self._progress.add_task(job.name, total=None, amount="")
    rows = tokens = 0
    for chunk in chunks:
      yield chunk
      rows, tokens = rows + len(chunk), tokens + chunk.tokens.size
      done = job.fraction
      self._progress.update(
        bar, total=None if done is None else 1, completed=done or 0,
        amount=f"{rows:,} rows, {tokens:,} tokens",
      )  # fmt: skip
      self._progress.update(self._all, completed=self._done + (done or 0))
    self._progress.remove_task(bar)
    self._done += 1
    self._progress.update(self._all, completed=self._done, amount=f"{self._done}/{self._stores}")


@dataclasses.dataclass(eq=False)
class _Plan:
  """A data folder to be built.

  Attributes:
    jobs: its stores.
    values: what its manifest says beside the stores' own numbers.
  """

  config: DataConfig
  out: pathlib.Path
  vocabulary: Any
  jobs: Sequence[_Job]
  values: Mapping[str, Any]

  @classmethod
  def of(cls, config: DataConfig, out: pathlib.Path, vocabulary: Any) -> "_Plan":
    """Registers the tasks and looks at their splits; reads no rows."""
    registered = registering.register(config)
    name = registering.mixture(config)
    shares = registering.rates(name)
    jobs = []
    for task, split in _splits(config, [seqio.get_mixture_or_task(task) for task in shares]):
      source = registered.fingerprints.get(task.name) or registering.source_fingerprint(task)
      version = registered.versions.get(task.name, source)
      identity = source if version == source else manifest_lib.digest([source, version])
      key = _key(task.name, split, config, vocabulary, identity)
      files = task_rows.files(task, split)
      jobs.append(_Job(task, split, source, out / "stores" / key, files))
    values = {
      "version": manifest_lib.VERSION,
      "mixture": name,
      "tasks": {
        task: {"rate": share, "metrics": registering.metrics(task)}
        for task, share in shares.items()
      },
      # Not with the tasks, whose entries name stored answers: a rebuilt manifest keeps those.
      "clusters": {t: name for t, name in registered.clusters.items() if t in shares},
      "registered": registered.tasks,
      "modules": registering.identities(config),
      "vocabulary": {
        name: getattr(vocabulary, name)
        for name in ("fingerprint", "size", "eos_id", "bos_id", "adds_bos", "adds_eos")
      },
      "prompt": config.prompt.to_json(),
      "feature_lengths": config.feature_lengths and dict(config.feature_lengths),
      "config": config.portable(),
      "config_hash": config.hash(),
    }
    return cls(config, out, vocabulary, jobs, values)

  def work_off(self) -> Manifest:
    """Writes what is missing of the stores, and then the manifest."""
    missing = [job for job in self.jobs if not store_lib.complete(job.path)]
    kept = len(self.jobs) - len(missing)
    with (
      _Bars(len(self.jobs), kept) as bars,
      Encoder(self.vocabulary, self.config.prompt) as encoder,
    ):
      chunks = encoder.map(rows for job in missing for rows in job.read(self.config))
      for job in missing:
        chunks_of_job = itertools.takewhile(len, chunks)
        job.write(bars.counted(job, chunks_of_job), self.vocabulary.size)
    splits = collections.defaultdict(dict)
    for job in self.jobs:
      meta = store_lib.Store(job.path).meta
      splits[job.task.name][job.split] = {
        "store": f"stores/{job.path.name}", "source": job.source,
        **{key: value for key, value in meta.items() if key not in ("version", "dtype", "shards")},
      }  # fmt: skip
    tasks = {task: {**x, "splits": splits[task]} for task, x in self.values["tasks"].items()}
    early = {job.name: splits[job.task.name][job.split].get("ends_early", 0) for job in self.jobs}
    file = self.out / manifest_lib.FILE
    storage.write_whole(file, json.dumps({**self.values, "tasks": tasks}, indent=1))
    rich.console.Console(stderr=True).print(
      f"{self.out}: {len(tasks)} tasks, {len(self.jobs)} stores ({len(missing)} built, "
      f"{kept} kept). Random preprocessors, if any, are frozen at one draw. "
      f"{self.config.prompt.remark(early)}"
    )
    return Manifest.load(self.out)
