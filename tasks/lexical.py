"""lexical: the embedded default tasks, made from CLDR, num2words, inflect, lemminflect and rules.

    TASKS["lexical.plurals.plural"].examples()[0]   # {"input": "queen", "output": "queens"}

    python -m hyperjax.tasks.lexical                # prints the families

Names are `lexical.<family>.<task>`. Whole families are held out: see `lexical_held_out`. Nothing is
generated at import, and seqio is imported by `register` only.
"""

from __future__ import annotations

from hyperjax.tasks import (
  lexical_letters,
  lexical_lists,
  lexical_morphology,
  lexical_names,
  lexical_numbers,
  lexical_sentences,
)
from hyperjax.tasks.lexical_held_out import HELD_OUT_FAMILIES
from hyperjax.tasks.lexical_task import LexicalTask, family_rates

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


def register() -> None:
  """Registers all tasks, and the mixtures `lexical_train` and `lexical_held_out`, with seqio.

  Every task has the text features `inputs`, `targets` and `options`; its one split is "train".
  `options` is an empty list where a task has no closed set of answers: seqio mixes only tasks that
  have the same features. Registering twice is harmless. Nothing is generated before a data set is
  asked for.
  """
  from hyperjax.tasks import registry

  registry.add_lexical(TASKS)
  for mixture, names in (("lexical_train", TRAIN_TASKS), ("lexical_held_out", HELD_OUT_TASKS)):
    registry.add_mixture(mixture, family_rates(names))


if __name__ == "__main__":
  print(table())
