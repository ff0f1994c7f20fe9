"""What a data folder holds (`Manifest`) and what it is built from (`DataConfig`).

Free of TensorFlow and seqio: training and evaluation read data folders through this file only.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hyperjax import storage
from hyperjax.data import source as source_lib
from hyperjax.data import store as store_lib
from hyperjax.data.prompts import PromptFormat

VERSION = 2
FILE = "manifest.json"
_SAMPLE = 2**16
COPIES = "~/.cache/hyperjax/stores"


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What to build.

  Attributes:
    mixture_or_task_name: a registered seqio task or mixture; None: the last source's own, or,
      without sources, the one task that the modules register.
    vocabulary: what `vocabularies.load` takes.
    prompt: how examples are written.
    task_modules: modules that register tasks; imported by the builder only. If a module has a
      function `register` that needs no argument, it is called, once. Each module's
      `task_modules.identity` is part of the keys of the stores that they register.
    sources: objects that register tasks (`source.Source`), such as `fewshot.Folder`.
    splits: splits to build, where a task has them; `support_<seed>` are built beside any.
    feature_lengths: passed to the tasks as seqio's `sequence_length`.
    max_examples: at most so many examples (or documents) per task and split, the first ones.
  """

  mixture_or_task_name: str | None
  vocabulary: str
  prompt: PromptFormat = PromptFormat()
  task_modules: Sequence[str] = ()
  sources: Sequence[Any] = ()
  splits: Sequence[str] = ("train", "validation", "test")
  feature_lengths: Mapping[str, int] | None = None
  max_examples: int | None = None

  def __post_init__(self):
    set_lists(self, "task_modules", "sources", "splits")
    if self.mixture_or_task_name is None and self.sources:
      object.__setattr__(self, "mixture_or_task_name", self.sources[-1].name)
    if not self.splits:
      raise ValueError("DataConfig: splits is empty.")
    if self.max_examples is not None and self.max_examples < 1:
      raise ValueError(f"DataConfig: max_examples is {self.max_examples}; it must be at least 1.")

  @property
  def title(self) -> str:
    """What is built, for people."""
    return self.mixture_or_task_name or f"the task of {', '.join(self.task_modules)}"

  def to_json(self) -> dict:
    """Returns plain JSON values; a source becomes its class and its fields."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    values["prompt"] = self.prompt.to_json()
    values["feature_lengths"] = dict(self.feature_lengths) if self.feature_lengths else None
    values["sources"] = list(map(source_lib.to_json, self.sources))
    return json.loads(json.dumps(values, default=os.fspath))

  @classmethod
  def from_json(cls, values: Mapping) -> "DataConfig":
    """Returns the configuration that `to_json` wrote."""
    sources = list(map(source_lib.from_json, values["sources"]))
    return cls(**{**values, "sources": sources, "prompt": PromptFormat.from_json(values["prompt"])})

  def portable(self) -> dict:
    """Returns what is built, free of where its files lie (the manifest holds fingerprints)."""
    values = self.to_json()
    del values["vocabulary"]
    for source in values["sources"]:
      source_lib.forget_locations(source)
    return values

  def hash(self) -> str:
    """Returns a hash of `portable`."""
    return digest(self.portable())


@dataclasses.dataclass(frozen=True)
class Manifest:
  """A built data folder.

  One in a bucket has a folder of the local disk, into which a store is copied when it is first
  opened: a host copies the tasks and splits that it reads.

  Attributes:
    folder: where it lies.
    values: the contents of manifest.json: {"version", "mixture", "tasks": {name: {"rate",
      "metrics", "splits": {split: {"store", "kind", "examples", "tokens", "source", ...}}}},
      "vocabulary", "prompt", "feature_lengths", "config", "config_hash", "modules": {task module:
      `task_modules.identity`, None if unknown}, "clusters": see `cluster`}; older ones lack the
      last two.
    address: the bucket's folder that it is copied from; None where it lies on the local disk.
  """

  folder: pathlib.Path
  values: Mapping[str, Any] = dataclasses.field(repr=False)
  address: str | None = None

  @classmethod
  def load(cls, folder: str | os.PathLike, copies: str | os.PathLike = COPIES) -> "Manifest":
    """Opens a data folder; what is read of one in a bucket is copied below `copies`."""
    file = storage.folder(folder) / FILE
    if not file.exists():
      raise FileNotFoundError(
        f"{folder} is not a finished data folder: it has no {FILE}.{_parts(folder)}"
      )
    values = json.loads(file.read_text())
    if values.get("version") != VERSION:
      raise ValueError(
        f"{file}: version {values.get('version')}, this hyperjax reads {VERSION}: rebuild it."
      )
    if not storage.in_bucket(folder):
      return cls(pathlib.Path(folder), values)
    # By address, and stores by what they were built from: none is taken for another.
    address = os.fspath(storage.folder(folder))
    return cls(pathlib.Path(copies).expanduser() / digest(address)[:16], values, address)

  @property
  def identity(self) -> str:
    """What stands for all that it holds, wherever it lies: tasks, rates, and what stores are of."""
    return digest({
      name: [task["rate"], {split: entry["store"] for split, entry in task["splits"].items()}]
      for name, task in self.values["tasks"].items()
    })

  @property
  def place(self) -> str:
    """Where it lies, for messages: the bucket's address of one in a bucket."""
    return self.address or str(self.folder)

  @property
  def tasks(self) -> tuple[str, ...]:
    return tuple(self.values["tasks"])

  @property
  def vocabulary(self) -> Mapping[str, Any]:
    return self.values["vocabulary"]

  @functools.cached_property
  def prompt(self) -> PromptFormat:
    return PromptFormat.from_json(self.values["prompt"])

  def rate(self, task: str) -> float:
    return self._task(task)["rate"]

  def cluster(self, task: str) -> str:
    """Returns what the task is one of several versions of, as its source says: a data set whose
    template it is, a task that it is a copy of; the task itself where no source says anything."""
    self._task(task)
    return self.values.get("clusters", {}).get(task, task)

  def metrics(self, task: str) -> tuple[str, ...]:
    """Returns the names of the metrics that the task's source names, its own first."""
    return tuple(self._task(task).get("metrics", ()))

  def splits(self, task: str) -> tuple[str, ...]:
    return tuple(self._task(task)["splits"])

  def split(self, task: str, split: str) -> Mapping[str, Any]:
    """Returns the manifest's entry for a task's split; an unknown one is an error."""
    splits = self._task(task)["splits"]
    if split not in splits:
      raise ValueError(f"Task '{task}' has no split '{split}' in {self.place}: {list(splits)}.")
    return splits[split]

  def store(self, task: str, split: str) -> store_lib.Store:
    """Opens a task's store.

    Raises:
      ValueError: it lies elsewhere than in the data folder.
    """
    name = self._store(task, split)
    if self.address is not None:
      storage.copy_folder(f"{self.address}/{name}", self.folder / name)
    return _open(str(self.folder / name))

  def fetch(self, tasks: Iterable[str], split: str) -> None:
    """Copies tasks' stores of examples from a bucket, many at once: opened one after another, they
    are copied so. Those of documents are few and large."""
    if self.address is not None:
      kinds = {task: self.split(task, split)["kind"] for task in tasks}
      names = [self._store(t, split) for t, kind in kinds.items() if kind == store_lib.EXAMPLES]
      storage.copy_folders({f"{self.address}/{name}": self.folder / name for name in names})

  def _store(self, task: str, split: str) -> str:
    """The folder of a store, below the data folder."""
    name = self.split(task, split)["store"]
    parts = pathlib.PurePosixPath(name).parts
    if len(parts) != 2 or parts[0] != "stores" or parts[1] == "..":  # whoever wrote the manifest
      raise ValueError(f"{self.place}: task '{task}' names {name!r}, no folder in its stores.")
    return name

  def select(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the tasks named by `include` (all, where empty) less those named by `exclude`.

    A name is a task or the front part of some, up to a dot (`lexical.plural`). A name that matches
    nothing is an error.
    """
    include, exclude = listed("include", include), listed("exclude", exclude)
    chosen = set().union(*map(self._matches, include)) if include else set(self.tasks)
    chosen -= set().union(*map(self._matches, exclude))
    if not chosen:
      raise ValueError(f"{self.place}: include {include} and exclude {exclude} leave no task.")
    return tuple(task for task in self.tasks if task in chosen)

  def _matches(self, name: str) -> set[str]:
    found = {task for task in self.tasks if task == name or task.startswith(name + ".")}
    if not found:
      raise ValueError(f"{self.place}: no task '{name}'.{did_you_mean(name, self.tasks)}")
    return found

  def _task(self, task: str) -> Mapping[str, Any]:
    if task not in self.values["tasks"]:
      raise ValueError(f"{self.place}: no task '{task}'.{did_you_mean(task, self.tasks)}")
    return self.values["tasks"][task]


# One open store per process: each holds its maps.
_open = functools.lru_cache(maxsize=None)(store_lib.Store)


def listed(name: str, values: Any) -> tuple:
  """Returns the values of a list; what is none is an error, a text too: its letters would be taken
  for values."""
  if isinstance(values, str) or not isinstance(values, Iterable):
    raise ValueError(f"{name} must be a list, not {values!r}.")
  return tuple(values)


def set_lists(config: Any, *fields: str) -> None:
  """Makes tuples of fields of a frozen dataclass, which hold lists, as `listed` does."""
  for field in fields:
    name = f"{type(config).__name__}: {field}"
    object.__setattr__(config, field, listed(name, getattr(config, field)))


def family(task: str) -> str:
  """Returns a task's name before its last dot; a name without a dot is its own family."""
  return task.rpartition(".")[0] or task


def prepared(splits: Iterable[str]) -> dict[int, str]:
  """Returns {seed: split} of the splits `support_<seed>`: what an evaluation of that seed shows."""
  found = {split: re.fullmatch(r"support_(\d+)", split) for split in splits}
  return {int(match[1]): split for split, match in found.items() if match}


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns " Did you mean '...'?" with the nearest known name, "" where there is none."""
  near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
  return f" Did you mean '{near[0]}'?" if near else ""


def _parts(folder: str | os.PathLike) -> str:
  """Names the data folders in a folder that is none itself, such as the one of `hyperjax data`."""
  files = [] if storage.in_bucket(folder) else sorted(pathlib.Path(folder).glob(f"*/{FILE}"))
  return f" Those in it are {', '.join(str(f.parent) for f in files)}." if files else ""


def digest(values: Any) -> str:
  """Returns a hash of JSON values."""
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | os.PathLike) -> str:
  """Returns a hash of a file's name, size and contents."""
  state = os.stat(path)
  changed = state.st_mtime_ns, state.st_ctime_ns, state.st_ino
  return _file_digest(os.path.abspath(path), state.st_size, changed)


# Training and held-out tasks may be of one file, and a builder asks before and after it registers.
@functools.cache
def _file_digest(path: str, size: int, changed: tuple[int, ...]) -> str:
  del changed
  with open(path, "rb") as file:
    contents = hashlib.file_digest(file, "sha256").hexdigest()
  return digest([os.path.basename(path), size, contents])


def sample_digest(path: str | os.PathLike) -> str:
  """Returns a hash of a file's name, size, and first and last 64 KiB: for corpora.

  The last bytes of a .gz file depend on all of its contents.
  """
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    first = file.read(_SAMPLE)
    file.seek(max(len(first), size - _SAMPLE))
    contents = hashlib.sha256(first + file.read()).hexdigest()
  return digest([os.path.basename(path), size, contents])
