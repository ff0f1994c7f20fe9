"""lexical: the embedded default tasks, made from CLDR, num2words, inflect, lemminflect and rules.

    TASKS["lexical.plurals.plural"].examples()[0]   # {"input": "wolf", "output": "wolves"}

    python -m hyperjax.tasks.lexical                # prints the families

Names are `lexical.<family>.<task>`. Whole families are held out: see `lexical_held_out`. Nothing is
generated at import, and seqio is imported by `register` only.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable

from hyperjax.tasks import (
  lexical_letters,
  lexical_lists,
  lexical_morphology,
  lexical_names,
  lexical_numbers,
  lexical_sentences,
)
from hyperjax.tasks.lexical_held_out import HELD_OUT_FAMILIES
from hyperjax.tasks.lexical_task import LexicalTask

# Part of every store's key: raise it whenever any example changes (the test holds the hash).
VERSION = "1"

_MODULES = (
  lexical_names, lexical_numbers, lexical_morphology, lexical_letters, lexical_lists,
  lexical_sentences,
)
TASKS: dict[str, LexicalTask] = {
  task.name: task for module in _MODULES for task in module.tasks()
}
HELD_OUT_TASKS = tuple(name for name, task in TASKS.items() if task.family in HELD_OUT_FAMILIES)
TRAIN_TASKS = tuple(name for name in TASKS if name not in HELD_OUT_TASKS)


def rates(names: Iterable[str]) -> dict[str, float]:
  """Mixing rates under which every family weighs the same, and so do the tasks within a family."""
  names = tuple(names)
  sizes = collections.Counter(TASKS[name].family for name in names)
  return {name: 1 / sizes[TASKS[name].family] for name in names}


def table() -> str:
  """The families as a Markdown table, with how many tasks and examples each has."""
  rows = ["| family | tasks | examples | example | |", "|---|---|---|---|---|"]
  for family in dict.fromkeys(task.family for task in TASKS.values()):
    tasks = [task for task in TASKS.values() if task.family == family]
    example = tasks[0].examples()[0]
    count = sum(len(task.examples()) for task in tasks)
    rows.append(
      f"| {family.removeprefix('lexical.')} | {len(tasks)} | {count}"
      f" | `{example['input']}` → `{example['output']}`"
      f" | {'held out' if family in HELD_OUT_FAMILIES else ''} |"
    )
  return "\n".join(rows)


def _dataset(split: str, shuffle_files: bool, seed: int | None = None, *, task: LexicalTask):
  """What seqio's function source calls; the order is already a shuffled one."""
  import tensorflow as tf

  del split, shuffle_files, seed

  def rows():
    for example in task.examples():
      options = example.get("options", [])
      yield {"inputs": example["input"], "targets": example["output"], "options": options}

  shapes = {"inputs": [], "targets": [], "options": [None]}
  return tf.data.Dataset.from_generator(
    rows, output_signature={name: tf.TensorSpec(shape, tf.string) for name, shape in shapes.items()}
  )


def register() -> None:
  """Registers all tasks, and the mixtures `lexical_train` and `lexical_held_out`, with seqio.

  Every task has the text features `inputs`, `targets` and `options`; its one split is "train".
  `options` is an empty list where a task has no closed set of answers: seqio mixes only tasks that
  have the same features. Registering twice is harmless. Nothing is generated before a data set is
  asked for.
  """
  import seqio
  import tensorflow as tf

  text = functools.partial(
    seqio.Feature, seqio.PassThroughVocabulary(size=0), add_eos=False, dtype=tf.string
  )
  features = {"inputs": text(rank=0), "targets": text(rank=0), "options": text(rank=1)}
  for name, task in TASKS.items():
    if name in seqio.TaskRegistry.names():
      continue
    source = seqio.FunctionDataSource(functools.partial(_dataset, task=task), splits=("train",))
    seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=features)
  for mixture, names in (("lexical_train", TRAIN_TASKS), ("lexical_held_out", HELD_OUT_TASKS)):
    if mixture not in seqio.MixtureRegistry.names():
      seqio.MixtureRegistry.add(mixture, list(rates(names).items()))


if __name__ == "__main__":
  print(table())
