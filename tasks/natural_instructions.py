"""natural_instructions: Super-NaturalInstructions (arXiv 2204.07705), from a folder in its layout.

The folder is a clone of github.com/allenai/natural-instructions (`tasks/*.json` and
`splits/<track>/*.txt`), or holds task files alone (`track=None`). `TrainTasks` and `TestTasks`
register a task `<name>.<category>.<file stem>` per file and a mixture `<name>` over them, with
equal rates. Nothing is read at import.

A row's `targets` is the first of its outputs, its `references` are all of them. White space around
texts is dropped, as in Tk-Instruct. A task's first metric is its category's own: exact match for
six categories, ROUGE-L for the others; the other one follows.

Where an input holds "(A)", "(B)" and so on, at least two, in this order and each at the start or
behind white space, and the output is one of these letters, they are the row's `options`: so in the
subjects of MMLU and in COPA.
"""

import abc
import dataclasses
import functools
import os
import pathlib
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from hyperjax.data import rows, schedule
from hyperjax.data.manifest import did_you_mean, digest, file_digest
from hyperjax.evaluation import text_metrics
from hyperjax.tasks import folders

Row = Mapping[str, Any]

# The categories of the test tasks that the paper scores by exact match, as parts of names.
EXACT = frozenset({
  "Answerability_Classification", "Cause_Effect_Classification", "Coreference_Resolution",
  "Dialogue_Act_Recognition", "Textual_Entailment", "Word_Analogy",
})  # fmt: skip
# So many instances of a test task are asked, the first ones: they are put there to be balanced.
NUM_TESTED = 100
INSTANCES, POSITIVE_EXAMPLES = SUPPORTS = ("instances", "positive_examples")

_CATEGORY = re.compile(rb'"Categories"\s*:\s*\[\s*"([ !#-\[\]-~]+)"')
_OPTION = re.compile(r"(?<!\S)\(([A-Z])\)")


@dataclasses.dataclass(frozen=True)
class _Tasks(folders.Folder, abc.ABC):
  """What both sources share.

  Attributes:
    path: the clone, or the folder of task files.
    include, exclude, name: see `folders.Folder`.
    track: the folder of `splits/` that lists the tasks; None: all task files. What its
      excluded_tasks.txt lists is left out.
    definition: whether rows have their task's definition.
    rouge_tokenizer: of ROUGE-L, what `text_metrics.pieces` takes; the track 'xlingual' needs one,
      its own is GPT-2's ('openai-community/gpt2'). It is part of the metric's name in a manifest.
  """

  name: str = ""
  track: str | None = "default"
  definition: bool = True
  rouge_tokenizer: str | None = None

  suffixes = (".json",)
  listed: ClassVar[str]

  def __post_init__(self):
    super().__post_init__()
    if self.track == "xlingual" and self.rouge_tokenizer is None:
      raise ValueError(
        "natural_instructions: the track 'xlingual' is scored over a tokenizer's pieces: set "
        "rouge_tokenizer, for the published figures to 'openai-community/gpt2'."
      )

  @abc.abstractmethod
  def splits(self, file: pathlib.Path) -> dict[str, list[Row]]:
    """Returns the rows of each split of a task file."""

  def read(self, file: pathlib.Path, split: str) -> Iterator[Row]:
    """Yields the rows of a split, as they are registered."""
    for row in self.splits(file)[split]:
      yield row if self.definition else {**row, "definition": ""}

  @property
  def folder(self) -> pathlib.Path:
    tasks = pathlib.Path(self.path) / "tasks"
    return tasks if tasks.is_dir() else tasks.parent

  def stems(self) -> dict[str, pathlib.Path]:
    """Returns {stem: file} of the track's tasks.

    Raises:
      ValueError: an unknown track, or a list of tasks that names one that has no file.
    """
    stems = super().stems()
    if self.track is None:
      return stems
    splits = pathlib.Path(self.path) / "splits"
    tracks = sorted(track.name for track in splits.glob("*") if track.is_dir())
    if self.track not in tracks:
      raise ValueError(
        f"{splits}: there is no track '{self.track}' among {tracks}; a folder of task files alone "
        f"has track=None.{did_you_mean(self.track, tracks)}"
      )
    wanted = _listed(splits / self.track / self.listed, stems)
    # Its names are not looked up: a task may be excluded that has no file any more.
    excluded = splits / self.track / "excluded_tasks.txt"
    wanted -= {line.strip() for _, line in rows.lines(excluded)}
    return {stem: file for stem, file in stems.items() if stem in wanted}

  def part(self, file: pathlib.Path) -> str:
    return f"{folders.legal(category(file))}.{folders.legal(file.stem)}"

  @property
  def taken(self) -> dict[str, Any]:
    """What decides which rows are taken from a file, and how: a part of fingerprints."""
    taken = dataclasses.asdict(self)
    for field in ("path", "include", "exclude", "rouge_tokenizer"):
      del taken[field]
    return taken

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task name: hash of its file and of what is taken from it}."""
    return {
      task: digest([task, file_digest(file), self.taken]) for task, file in self.files().items()
    }

  def register(self) -> None:
    """Registers the tasks and the mixture with seqio; every file is read and checked."""
    from hyperjax.tasks import registry

    files = self.files()
    for task, file in files.items():
      counts = {split: len(found) for split, found in self.splits(file).items()}
      registry.add_rows(
        task, file, {split: functools.partial(self.read, file, split) for split in counts},
        metric_fns=self._metrics(task), postprocess_fn=with_references, counts=counts,
      )  # fmt: skip
    registry.add_mixture(self.name, dict.fromkeys(files, 1.0))

  def _metrics(self, task: str) -> list[Callable]:
    rouge = text_metrics.rouge_l
    if self.rouge_tokenizer is not None:
      rouge = text_metrics.xlingual_rouge_l(self.rouge_tokenizer)
    exact = task.split(".")[-2] in EXACT
    return [text_metrics.exact_match, rouge] if exact else [rouge, text_metrics.exact_match]


@dataclasses.dataclass(frozen=True)
class TrainTasks(_Tasks):
  """The training tasks, each with the split `train`.

  Attributes:
    name: as in `folders.Folder`; "": `ni_<track>`, or `ni` of a folder of task files alone.
    max_instances: at most so many of a task, drawn at random as in Tk-Instruct (its first ones may
      be of one kind), the same ones wherever its file is read; None: all.
    path, include, exclude, track, definition, rouge_tokenizer: see `_Tasks`.
  """

  max_instances: int | None = 100

  listed = "train_tasks.txt"

  def __post_init__(self):
    super().__post_init__()
    own = "ni" if self.track is None else f"ni_{self.track}"
    object.__setattr__(self, "name", self.name or own)
    if self.max_instances is not None and self.max_instances < 1:
      raise ValueError(f"TrainTasks: max_instances is {self.max_instances}; at least 1 is needed.")

  @property
  def taken(self) -> dict[str, Any]:
    # Stores of all instances are called as they were when the first ones were taken.
    return super().taken if self.max_instances is None else {**super().taken, "drawn": True}

  def splits(self, file: pathlib.Path) -> dict[str, list[Row]]:
    """Returns the rows of each split of a task file."""
    instances = load(file).instances
    if self.max_instances is not None:
      order = schedule.Permutation(len(instances), "natural_instructions", file.stem)
      instances = [instances[order(i)] for i in range(min(self.max_instances, order.n))]
    return {"train": instances}


@dataclasses.dataclass(frozen=True)
class TestTasks(_Tasks):
  """The test tasks: their first 100 instances are `test`, what supports are drawn from is `train`.

  Attributes:
    support: `train` holds a task's other instances ('instances'), and a task that has none has no
      such split; or it holds the task's positive examples ('positive_examples').
    path, include, exclude, name, track, definition, rouge_tokenizer: see `_Tasks`.
  """

  name: str = "natural_instructions_test"
  support: str = INSTANCES

  listed = "test_tasks.txt"

  def __post_init__(self):
    super().__post_init__()
    if self.support not in SUPPORTS:
      hint = did_you_mean(self.support, SUPPORTS)
      raise ValueError(f"TestTasks: support is '{self.support}', not one of {SUPPORTS}.{hint}")

  def splits(self, file: pathlib.Path) -> dict[str, list[Row]]:
    """Returns the rows of each split of a task file."""
    examples, instances = load(file)
    splits = {"test": instances[:NUM_TESTED]}
    if self.support == POSITIVE_EXAMPLES:
      if not examples:
        raise ValueError(f"{file}: it has no positive examples, and support is '{self.support}'.")
      splits["train"] = examples
    elif instances[NUM_TESTED:]:
      splits["train"] = instances[NUM_TESTED:]
    return splits


class Contents(NamedTuple):
  """The rows of a task file."""

  positive_examples: list[Row]
  instances: list[Row]


def load(path: str | os.PathLike) -> Contents:
  """Reads and checks one task file.

  Raises:
    ValueError: what is wrong, with the file and the number of the example or instance.
  """
  document = rows.document(path)
  definition = _texts(_field(document, "Definition", path), f"{path}: Definition")[0]
  examples = [
    _row(record, [_field(record, "output", where)], definition, where)
    for where, record in _records(document, "Positive Examples", path)
  ]
  instances: dict[str, Row] = {}
  for where, record in _records(document, "Instances", path):
    identity = _text(_field(record, "id", where), f"{where}: id")
    if identity in instances:
      raise ValueError(f"{where}: its id {identity!r} occurs twice.")
    instances[identity] = _row(record, _field(record, "output", where), definition, where)
  if not instances:
    raise ValueError(f"{path}: it has no instances.")
  return Contents(examples, list(instances.values()))


def category(path: str | os.PathLike) -> str:
  """Returns the first of a task file's categories, without parsing its thousands of instances."""
  found = _CATEGORY.search(pathlib.Path(path).read_bytes())
  if not found:
    raise ValueError(f"{path}: it has no 'Categories', a list of names in ASCII.")
  return found[1].decode()


def options(inputs: str, target: str) -> list[str]:
  """Returns the letters of an input's options; none, where the target is not among them."""
  letters: list[str] = []
  for letter in _OPTION.findall(inputs):
    if letter == chr(ord("A") + len(letters)):
      letters.append(letter)
  return letters if len(letters) > 1 and target in letters else []


def with_references(
  text: str, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> str | list[str]:
  """A seqio `postprocess_fn`: a target becomes the list of its references."""
  return [reference.decode() for reference in example["references"]] if is_target else text


def _row(record: Any, outputs: Any, definition: str, where: str) -> Row:
  inputs = _text(_field(record, "input", where), f"{where}: input")
  references = _texts(outputs, f"{where}: output")
  return {
    "inputs": inputs, "targets": references[0], "references": references,
    "options": options(inputs, references[0]), "definition": definition,
  }  # fmt: skip


def _records(document: Any, name: str, path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
  """Yields (place, record) of a list of a task file."""
  records = _list(_field(document, name, path), f"{path}: {name}")
  for number, record in enumerate(records, 1):
    yield f"{path}, {name} {number}", record


def _field(record: Any, name: str, where: str | os.PathLike) -> Any:
  if not isinstance(record, dict):
    raise ValueError(f"{where}: an object is expected, not {reprlib.repr(record)}.")
  if name not in record:
    raise ValueError(f"{where}: the field '{name}' is missing.{did_you_mean(name, record)}")
  return record[name]


def _list(value: Any, where: str) -> list:
  if not isinstance(value, list):
    raise ValueError(f"{where} must be a list, not {reprlib.repr(value)}.")
  return value


def _texts(values: Any, where: str) -> list[str]:
  texts = [_text(value, where) for value in _list(values, where)]
  if not texts or "" in texts:
    raise ValueError(f"{where} is empty.")
  return texts


def _text(value: Any, where: str) -> str:
  if not isinstance(value, str):
    raise ValueError(f"{where} must be a text, not {reprlib.repr(value)}.")
  return rows.text(value, where).strip()


def _listed(file: pathlib.Path, stems: Mapping[str, pathlib.Path]) -> set[str]:
  """Returns the tasks of a file of `splits/`, one a line."""
  names = {where: line.strip() for where, line in rows.lines(file)}
  for where, name in names.items():
    if name and name not in stems:
      raise ValueError(f"{where}: there is no file of task '{name}'.{did_you_mean(name, stems)}")
  return set(names.values())
