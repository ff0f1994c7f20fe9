"""metaicl: the tasks and settings of MetaICL (Min et al. 2022, arXiv 2110.15943).

    config/hr_to_lr.json                        {"train": [...], "test": [...], ...}
    config/tasks/glue-rte.json                  {"task_type": "classification", ...}
    data/piqa/piqa_16384_100_train.jsonl        a training task
    data/glue-rte/glue-rte_16_13_train.jsonl    what a target task shows, drawn with seed 13
    data/glue-rte/glue-rte_16_13_test.jsonl     what it asks, the same with all seeds

`MetaICL(path)` registers the training tasks of a setting, `MetaICL(path, part="test")` its target
tasks, and a mixture `<name>` over them with equal rates. A target task has the splits `test` and
`support_<seed>` for each seed: an evaluation shows the one of its own seed. `path` is a checkout of
github.com/facebookresearch/MetaICL in which its own scripts have made `data/`. Nothing is read at
import.
"""

import dataclasses
import filecmp
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hyperjax.data import rows
from hyperjax.data.manifest import did_you_mean, digest, file_digest, set_lists
from hyperjax.tasks import fewshot, folders

KINDS = ("classification", "multi-choice", "free-form")
# What is done with options: they are ranked, or only name a task's labels, or are not read.
RANKED, LABELS, UNREAD = "ranked", "labels", "unread"
SEEDS = (100, 13, 21, 42, 87)
_TRAINING = "16384_100"  # examples and seed in the names of training tasks' files


class Task(NamedTuple):
  """One task.

  Attributes:
    kind: one of `KINDS`.
    files: {split: file}.
    tests: the files of what is asked, one for each seed; none of training tasks.
  """

  kind: str
  files: dict[str, pathlib.Path]
  tests: Sequence[pathlib.Path] = ()


@dataclasses.dataclass(frozen=True)
class MetaICL:
  """The tasks of one part of a setting.

  Attributes:
    path: the checkout.
    setting: a file in its folder `config`, such as 'hr_to_lr' or 'class_to_class'.
    part: 'train', or target tasks: 'test' or 'unseen_domain_test'.
    include: tasks to take, as the setting calls them; all, where empty.
    exclude: tasks to leave out; of any part, so that one list serves all.
    options: whether training tasks have their options, which symbol tuning reads their labels from.
      Nothing ranks them, and MetaICL's own files have some twice, or empty.
    seeds: which draws of the target tasks' examples, of `SEEDS`; none: they only have a test split.
    k: how many examples a target task shows.
    name: name of the mixture and first part of the tasks' names; "": `metaicl_<setting>`, and
      `metaicl_<setting>_<part>` of target tasks.
  """

  path: str
  setting: str = "hr_to_lr"
  part: str = "train"
  include: Sequence[str] = ()
  exclude: Sequence[str] = ()
  options: bool = False
  seeds: Sequence[int] = SEEDS
  k: int = 16
  name: str = ""

  def __post_init__(self):
    set_lists(self, "include", "exclude", "seeds")
    if not set(self.seeds) <= set(SEEDS):
      raise ValueError(f"MetaICL: seeds is {self.seeds}; MetaICL draws with {SEEDS}.")
    part = "" if self.part == "train" else f"_{self.part}"
    object.__setattr__(self, "name", self.name or f"metaicl_{self.setting}{part}")

  def available(self) -> bool:
    return (pathlib.Path(self.path) / "data").is_dir()

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task name: hash of its kind and its files}."""
    return {
      name: digest([name, task.kind, *map(file_digest, task.files.values())])
      for name, task in self.tasks().items()
    }

  def register(self) -> None:
    """Registers the tasks and the mixture with seqio.

    Classification is scored by macro-F1, all else by accuracy, as in MetaICL.

    Raises:
      ValueError: a target task is asked other examples with one seed than with another.
    """
    from hyperjax.evaluation import classification
    from hyperjax.tasks import registry

    tasks = self.tasks()
    use = RANKED if self.part != "train" else LABELS if self.options else UNREAD
    for name, task in tasks.items():
      for other in task.tests[1:]:
        if not filecmp.cmp(task.tests[0], other, shallow=False):
          raise ValueError(
            f"{task.tests[0]} and {other} differ, though every seed is asked the same: make them "
            "again, or name one of these seeds alone."
          )
      splits = {split: functools.partial(load, file, use) for split, file in task.files.items()}
      classes = task.kind == "classification"
      metric = classification.macro_f1 if classes else classification.accuracy
      registry.add_rows(
        name, self.path, splits, metric_fns=[metric], files=[*task.files.values()]
      )
    registry.add_mixture(self.name, dict.fromkeys(tasks, 1.0))

  def tasks(self) -> dict[str, Task]:
    """Returns {task name: task}, in the setting's order.

    Raises:
      FileNotFoundError: a file is missing; says what makes it.
      ValueError: an unknown setting, part, name or kind of task, none that is left, or a file that
        is not as MetaICL has it.
    """
    root = pathlib.Path(self.path)
    file = root / "config" / f"{self.setting}.json"
    settings = [file.stem for file in sorted(file.parent.glob("*.json"))]
    if self.setting not in settings:
      raise ValueError(
        f"{file.parent}: no setting '{self.setting}'; it has {settings}."
        f"{did_you_mean(self.setting, settings)}"
      )
    parts = _object(file)
    members = parts.get(self.part)
    if not (isinstance(members, list) and members and all(isinstance(m, str) for m in members)):
      raise ValueError(
        f"{file}: '{self.part}' is no list of tasks there; it has {sorted(parts)}."
        f"{did_you_mean(self.part, parts)}"
      )
    every = (task for part in parts.values() if isinstance(part, list) for task in part)
    known = {task for task in every if isinstance(task, str)}
    folders.check_names(self, known, file, "task")
    include = self.include or members
    members = [task for task in members if task in include and task not in self.exclude]
    if not members:
      raise ValueError(f"{file}: include and exclude leave no task of '{self.part}'.")
    names = folders.unique((f"{self.name}.{folders.legal(task)}", task) for task in members)
    return {name: self._task(root, task) for name, task in names.items()}

  def _task(self, root: pathlib.Path, task: str) -> Task:
    config = root / "config" / "tasks" / f"{task}.json"
    kind = _object(config).get("task_type")
    if kind not in KINDS:
      raise ValueError(f"{config}: task_type is {kind!r}; it must be one of {KINDS}.")
    folder = root / "data" / task
    if self.part == "train":
      files, tests = {"train": folder / f"{task}_{_TRAINING}_train.jsonl"}, []
      goal = "--do_train"
    else:
      stems = {seed: f"{task}_{self.k}_{seed}" for seed in self.seeds or SEEDS[:1]}
      tests = [folder / f"{stem}_test.jsonl" for stem in stems.values()]
      files = {"test": tests[0]}
      files |= {f"support_{s}": folder / f"{stems[s]}_train.jsonl" for s in self.seeds}
      goal = f"--do_test --test_k {self.k}"
    for file in (*files.values(), *tests):
      if not file.exists():
        raise FileNotFoundError(
          f"{file} is missing. MetaICL makes it, in its folder preprocess: "
          f"python {_script(task)} {goal}"
        )
    return Task(kind, files, tests)


def _script(task: str) -> str:
  """What makes a task's files."""
  if task.startswith("unifiedqa:"):
    return "unifiedqa.py"
  return f"_build_gym.py --build{' --inst' if task.startswith('inst:') else ''}"


def load(path: str | os.PathLike, use: str = RANKED) -> Iterator[dict[str, Any]]:
  """Reads and checks one file of examples.

  Args:
    path: the file.
    use: `RANKED`: at least two options are needed; `LABELS`: none is, and those that are empty or
      there already are left out, and one alone; `UNREAD`: whatever they are, examples have none.

  Yields:
    Dicts of `inputs`, `targets` and `options`, which is empty where answers are free.

  Raises:
    ValueError: what is wrong, with file and line.
  """
  return (_row(value, where, use) for where, value in rows.values(path))


def _row(value: Any, where: str, use: str) -> dict[str, Any]:
  rows.check_names(value, where, ("task", "input", "output", "options"))
  example = {"input": value["input"], "output": value["output"]}
  options = [] if use == UNREAD else value["options"]
  if use == LABELS and isinstance(options, list):
    texts = [rows.text(option, f"{where}: option {i}") for i, option in enumerate(options)]
    options = [*dict.fromkeys(option for option in texts if option.strip())]
  if options != []:
    example["options"] = options
  example = fewshot.check(example, where)
  options = example.get("options", [])
  if len(options) < 2:
    if use == RANKED:
      raise ValueError(f"{where}: {len(options)} options, where at least 2 are due.")
    options = []  # one alone are no labels
  return {"inputs": example["input"], "targets": example["output"], "options": options}


def _object(path: pathlib.Path) -> dict[str, Any]:
  """Reads a file that holds one JSON object."""
  value = rows.document(path)
  if not isinstance(value, dict):
    raise ValueError(f"{path} must hold an object, not {value!r}.")
  return value
