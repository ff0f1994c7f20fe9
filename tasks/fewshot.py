"""fewshot: a folder of JSON or JSONL files of examples, one task a file. Bring your own tasks.

    [{"input": "wolf", "output": "wolves"}, ...]                    animals.json
    {"input": "Good film.", "output": "yes", "options": ["yes", "no"]}   one a line in reviews.jsonl

`Folder(path)` registers a task `<name>.<file stem>` per file and a mixture `<name>` over them, with
equal rates. Inputs, outputs and options are strings; numbers are taken as Python writes them
(3 -> "3"), anything else is an error. Nothing is read at import.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from hyperjax.data import rows
from hyperjax.data.manifest import digest, file_digest
from hyperjax.tasks import folders


@dataclasses.dataclass(frozen=True)
class Folder(folders.Folder):
  """A folder of few-shot tasks; see `folders.Folder` for its fields."""

  name: str = "fewshot"

  suffixes = (".json", ".jsonl")

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


def load(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """Reads and checks one file.

  Yields:
    Dicts of `input` (str), `output` (str) and, where the file has them, `options` (list of str).

  Raises:
    ValueError: what is wrong, with file and line (JSONL) or row (JSON).
  """
  return (check(value, where) for where, value in rows.values(path))


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
    if not all(option.strip() for option in options):
      raise ValueError(f"{where}: an option is empty.")
    duplicates = sorted({option for option in options if options.count(option) > 1})
    if duplicates:
      raise ValueError(f"{where}: option {duplicates[0]!r} occurs twice.")
    if example["output"] not in options:
      raise ValueError(f"{where}: the output {example['output']!r} is none of its options.")
    example["options"] = options
  return example
