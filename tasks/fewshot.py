"""fewshot: a folder of JSON or JSONL files of examples, one task a file. Bring your own tasks.

    [{"input": "wolf", "output": "wolves"}, ...]                    animals.json
    {"input": "Good film.", "output": "yes", "options": ["yes", "no"]}   one a line in reviews.jsonl

`Folder(path)` registers a task `<name>.<file stem>` per file and a mixture `<name>` over them, with
equal rates. Inputs, outputs and options are strings; numbers are taken as Python writes them
(3 -> "3"), anything else is an error. Nothing is read at import.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hyperjax.data import rows
from hyperjax.data.manifest import did_you_mean, digest, file_digest


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder of few-shot tasks.

  Attributes:
    path: the folder.
    include: file stems to take; all, where empty.
    exclude: file stems to leave out.
    name: name of the mixture and first part of the tasks' names.
  """

  path: str
  include: Sequence[str] = ()
  exclude: Sequence[str] = ()
  name: str = "fewshot"

  def __post_init__(self):
    object.__setattr__(self, "include", tuple(self.include))
    object.__setattr__(self, "exclude", tuple(self.exclude))

  def available(self) -> bool:
    return pathlib.Path(self.path).is_dir()

  def files(self) -> dict[str, pathlib.Path]:
    """Returns {task name: file}, in order of name."""
    return choose(self, (".json", ".jsonl"))

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task name: hash of its file}."""
    return {task: digest([task, file_digest(file)]) for task, file in self.files().items()}

  def register(self) -> None:
    """Registers the tasks and the mixture with seqio."""
    from hyperjax.tasks import registry

    files = self.files()
    for task, file in files.items():
      registry.add_examples(task, file, load)
    registry.add_mixture(self.name, dict.fromkeys(files, 1.0))


def choose(folder, suffixes: Sequence[str]) -> dict[str, pathlib.Path]:
  """Returns {task name: file} of a folder (with path, include, exclude, name), in order of name."""
  path = pathlib.Path(folder.path)
  if not path.is_dir():
    raise FileNotFoundError(f"Source '{folder.name}': there is no folder {path}.")
  stems: dict[str, pathlib.Path] = {}
  for file in sorted(path.iterdir()):
    if file.suffix in suffixes:
      if file.stem in stems:
        raise ValueError(f"{stems[file.stem]} and {file}: two files for one task.")
      stems[file.stem] = file
  if not stems:
    raise ValueError(f"{path}: no file ends in {' or '.join(suffixes)}.")
  for field in ("include", "exclude"):
    for stem in getattr(folder, field):
      if stem not in stems:
        hint = did_you_mean(stem, stems)
        raise ValueError(f"{path}: {field} names '{stem}', which is no file there.{hint}")
  include, exclude = folder.include or stems, folder.exclude
  tasks: dict[str, pathlib.Path] = {}
  for stem, file in stems.items():
    if stem not in include or stem in exclude:
      continue
    task = f"{folder.name}.{legal(stem)}"
    if task in tasks:
      raise ValueError(f"{tasks[task]} and {file}: both would be task '{task}'.")
    tasks[task] = file
  if not tasks:
    raise ValueError(f"{path}: include and exclude leave no task.")
  return tasks


def legal(stem: str) -> str:
  """Returns a file's stem as a part of a seqio name: other characters become `_`."""
  return re.sub(r"[^\w]", "_", stem, flags=re.ASCII)


def load(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads and checks one file.

  Returns:
    Dicts of `input` (str), `output` (str) and, where the file has them, `options` (list of str).

  Raises:
    ValueError: what is wrong, with file and line (JSONL) or row (JSON).
  """
  return [check(value, where) for where, value in rows.values(path)]


def check(value: Any, where: str) -> dict[str, Any]:
  """Checks one example as read from JSON; `where` opens each error's sentence."""
  rows.check_names(value, where, ("input", "output"), ("options",))
  example = {name: rows.text(value[name], f"{where}: {name}") for name in ("input", "output")}
  if not example["output"].strip():
    raise ValueError(f"{where}: the output is empty.")
  if value.get("options") is not None:
    options = value["options"]
    if not isinstance(options, list):
      raise ValueError(f"{where}: options must be a list, not {options!r}.")
    options = [rows.text(option, f"{where}: option {i}") for i, option in enumerate(options)]
    duplicates = sorted({option for option in options if options.count(option) > 1})
    if duplicates:
      raise ValueError(f"{where}: option {duplicates[0]!r} occurs twice.")
    if example["output"] not in options:
      raise ValueError(f"{where}: the output {example['output']!r} is none of its options.")
    example["options"] = options
  return example
