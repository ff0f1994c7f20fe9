"""rules: which letters of a word are written down, in which order, with which letter between them.

    TASKS["rules.spell_3.421"].examples()[0]        # {"input": "rdqx", "output": "xdr"}

A task is one value of one family's parameter, and there are hundreds: which rule holds can only be
read from examples. Outputs alone give away how many letters there are, the constant, and which
letters are the same one twice; the places follow only from which output belongs to which input.
Words are random letters: no knowledge helps, and a small byte-level model can learn to read the
rule. Names are `rules.<family>.<value>`; nothing is generated at import, and seqio is imported by
`register` only.

Reading a rule takes two things that are hard to learn at once: to see where a letter comes from,
and to do the same to the query. In the `marked` families each place of a word has letters of its
own, which gives the first away; they are for training only.

Held out are rules whose parts are trained on apart: of the families with a constant a fifth of the
values, drawn at random of those that write one letter of the word and of those that write two.
Every pair of places is trained on in `spell_2`, every constant in `always`. Of `HELD_OUT_FAMILIES`
nothing is trained on: there the form is new as well.
"""

from __future__ import annotations

import itertools
import math
import statistics
import string
from collections.abc import Callable, Collection, Iterable, Iterator

from hyperjax.tasks.lexical_task import Draws, LexicalTask, family_rates, mapped

# Part of every store's key: raise it whenever any example changes (the test holds the hash).
VERSION = "5"

HELD_OUT_FAMILIES = {
  "rules.around": "two letters around a constant; trained on are a constant before and behind",
}
_LETTERS = string.ascii_lowercase
_SIZE = 4  # letters of a word
_VALUES = 60  # of a family with a constant
_WORDS = 400  # drawn for each task

# Where letters of the word stand in the output: "{0}" is the first one picked, "{c}" the constant.
_WITH_CONSTANT = {"behind": "{0}{1}{c}", "before": "{c}{0}{1}", "around": "{0}{c}{1}"}


def _plain(draws: Draws) -> str:
  """A word of different letters: each letter of an output has one place to be from."""
  return "".join(draws.sample(_LETTERS, _SIZE))


def _marked(draws: Draws) -> str:
  """A word whose every place has letters of its own."""
  own = len(_LETTERS) // _SIZE
  return "".join(_LETTERS[place * own + draws.below(own)] for place in range(_SIZE))


def _places(size: int) -> list[tuple[int, ...]]:
  return list(itertools.product(range(_SIZE), repeat=size))


def _value(places: tuple[int, ...], constant: str = "") -> str:
  """The parameter as a name has it, counting from 1."""
  return "".join(str(place + 1) for place in places) + constant


def _rules() -> Iterator[tuple[str, str, Callable[[Draws], str], Callable[[str], str]]]:
  """Yields (family, value, how words are drawn, rule)."""
  for size in (1, 2, 3):
    for places in _places(size):
      rule = lambda w, places=places: "".join(w[place] for place in places)
      yield f"spell_{size}", _value(places), _plain, rule
      yield f"marked_{size}", _value(places), _marked, rule
  pairs = list(itertools.product(_places(2), _LETTERS))
  for family, form in _WITH_CONSTANT.items():
    for places, c in Draws(f"rules {family} values").sample(pairs, _VALUES):
      rule = lambda w, form=form, places=places, c=c: form.format(*(w[i] for i in places), c=c)
      yield family, _value(places, c), _plain, rule
  for c in _LETTERS:
    yield "always", c, _plain, lambda w, c=c: c


def _tasks() -> Iterator[LexicalTask]:
  for family, value, draw, rule in _rules():
    name = f"rules.{family}.{value}"
    yield LexicalTask(name, (name,), _generator(name, draw, rule))


def _generator(
  name: str, draw: Callable[[Draws], str], rule: Callable[[str], str]
) -> Callable[[], Iterator[tuple]]:
  """A generator over words of the task's own."""

  def generate():
    draws = Draws(f"{name} words")
    yield from mapped([draw(draws) for _ in range(_WORDS)], rule)()

  return generate


def letters(name: str) -> int:
  """How many different letters of the word a task writes down."""
  return len(set(name.rpartition(".")[2]) & set(string.digits))


def _held_out(tasks: Collection[LexicalTask]) -> Iterator[str]:
  for family in _WITH_CONSTANT:
    names = sorted((t.name for t in tasks if t.family == f"rules.{family}"), key=letters)
    for n, alike in itertools.groupby(names, letters):
      alike = list(alike)
      yield from Draws(f"{family} {n} held out").sample(alike, math.ceil(len(alike) / 5))


def guessing(names: Iterable[str]) -> float:
  """The exact match on tasks, on average, of a reader of outputs alone that guesses the places.

  Outputs alone give away the constant, where it stands, and which letters are the same one.
  """
  return statistics.mean(1 / math.perm(_SIZE, letters(name)) for name in names)


TASKS: dict[str, LexicalTask] = {task.name: task for task in _tasks()}
HELD_OUT_TASKS = tuple(_held_out(TASKS.values()))
TRAIN_TASKS = tuple(
  name for name, task in TASKS.items()
  if name not in HELD_OUT_TASKS and task.family not in HELD_OUT_FAMILIES
)


def register() -> None:
  """Registers all tasks, and the mixtures `rules_train` and `rules_held_out`, with seqio.

  Every task has the text features `inputs`, `targets` and `options` (empty); its one split is
  "train". In a mixture every family weighs the same. Registering twice is harmless.
  """
  from hyperjax.tasks import registry

  registry.add_lexical(TASKS)
  for mixture, names in (("rules_train", TRAIN_TASKS), ("rules_held_out", HELD_OUT_TASKS)):
    registry.add_mixture(mixture, family_rates(names))
