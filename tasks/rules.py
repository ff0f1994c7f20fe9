"""rules: rewriting rules over short lower-case words, each of many parameter values.

    TASKS["rules.suffix.ka"].examples()[0]          # {"input": "wolf", "output": "wolfka"}

A task is one value of one family's parameter, and there are hundreds: which rule holds can only be
read from examples. They are small enough for a byte-level model that is trained within half an hour
on two cores, and need no knowledge of words. Names are `rules.<family>.<value>`; nothing is
generated at import, and seqio is imported by `register` only.

Held out are whole families (`HELD_OUT_FAMILIES`) and every fifth value of the other families that
have more than `FEW` values, except of `always`, whose one answer is too easy to be counted. All
were fixed before the first model was trained on them.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterable, Iterator, Sequence

from hyperjax.tasks import lexical_words
from hyperjax.tasks.lexical_task import Draws, LexicalTask, family_rates, mapped

# Part of every store's key: raise it whenever any example changes (the test holds the hash).
VERSION = "1"

HELD_OUT_FAMILIES = {
  "rules.wrap": "something before and something behind; trained on are each of them alone",
  "rules.second_tag": "the second letter and a syllable; trained on are the first and the last",
}
FEW = 10
_VALUES = 60  # of a family whose parameter is a syllable
_WORDS = 150  # of each task

WORDS = sorted({
  word
  for word in (*lexical_words.NOUNS, *lexical_words.VERBS, *lexical_words.ADJECTIVES)
  if 3 <= len(word) <= 6
})  # fmt: skip
_CONSONANTS, _VOWELS = "bdfghjklmnprstvwz", "aeiou"
SYLLABLES = tuple(c + v for c in _CONSONANTS for v in _VOWELS)


def _values(family: str, pool: Sequence[str] = SYLLABLES) -> list[str]:
  """The family's own values of a parameter."""
  return Draws(f"rules {family} values").sample(pool, min(_VALUES, len(pool)))


def _lists(name: str, size: int) -> list[str]:
  """Lists of different short words."""
  draws = Draws(f"rules {name} lists")
  short = [word for word in WORDS if len(word) <= 4]
  return [" ".join(draws.sample(short, size)) for _ in range(_WORDS)]


def _replace(word: str, old: str, new: str) -> str | None:
  return word.replace(old, new) if old in word else None


def _rules() -> Iterator[tuple[str, str, Callable[[str], str | None]]]:
  """Yields (family, value, rule) over single words."""
  syllables: dict[str, Callable[[str, str], str]] = {
    "suffix": lambda w, x: w + x,
    "prefix": lambda w, x: x + w,
    "first_tag": lambda w, x: w[0] + x,
    "last_tag": lambda w, x: w[-1] + x,
    "second_tag": lambda w, x: w[1] + x,
    "tag_first": lambda w, x: x + w[0],
    "start_tag": lambda w, x: w[:2] + x,
    "always": lambda w, x: x + x[::-1],
  }
  for family, rule in syllables.items():
    for value in _values(family):
      yield family, value, lambda w, x=value, rule=rule: rule(w, x)
  pairs = [a + b for a, b in itertools.permutations(string.ascii_lowercase, 2)]
  for value in _values("wrap", pairs):
    yield "wrap", value, lambda w, x=value: x[0] + w + x[1]
  common = [a + b for a in "aeiorstln" for b in string.ascii_lowercase if a != b]
  for value in _values("replace", common):
    yield "replace", value, lambda w, x=value: _replace(w, *x)
  for k in range(3):
    yield "letter", f"{k + 1}", lambda w, k=k: w[k]
    yield "letter", f"last_{k + 1}", lambda w, k=k: w[-1 - k]
    yield "drop", f"{k + 1}", lambda w, k=k: w[:k] + w[k + 1 :]
    yield "double", f"{k + 1}", lambda w, k=k: w[: k + 1] + w[k:]
  yield "drop", "last", lambda w: w[:-1]
  yield "double", "last", lambda w: w + w[-1]
  yield "rotate", "left", lambda w: w[1:] + w[0]
  yield "rotate", "right", lambda w: w[-1] + w[:-1]


def _list_rules() -> Iterator[tuple[str, str, Callable[[str], str]]]:
  """Yields (family, value, rule) over lists of two words."""
  yield "pick", "1", lambda text: text.split()[0]
  yield "pick", "2", lambda text: text.split()[1]
  yield "pick", "swapped", lambda text: " ".join(text.split()[::-1])
  yield "pick", "joined", lambda text: text.replace(" ", "")
  for k in (1, 2):
    for value in _values(f"pick_{k}_suffix"):
      yield f"pick_{k}_suffix", value, lambda text, k=k, x=value: text.split()[k - 1] + x


def _tasks() -> Iterator[LexicalTask]:
  for family, value, rule in _rules():
    name = f"rules.{family}.{value}"
    yield LexicalTask(name, (f"rule.{family}.{value}",), _generator(name, rule))
  for family, value, rule in _list_rules():
    name = f"rules.{family}.{value}"
    generate = lambda name=name, rule=rule: mapped(_lists(name, 2), rule)()
    yield LexicalTask(name, (f"rule.{family}.{value}",), generate)


def _generator(name: str, rule: Callable[[str], str | None]) -> Callable[[], Iterator[tuple]]:
  """A generator over the task's own words, among those that the rule applies to."""

  def generate():
    words = [word for word in WORDS if rule(word)]
    chosen = Draws(f"{name} words").sample(words, min(_WORDS, len(words)))
    yield from mapped(chosen, rule)()

  return generate


def _held_out(tasks: Iterable[LexicalTask]) -> Iterator[str]:
  by_family: dict[str, list[str]] = {}
  for task in tasks:
    by_family.setdefault(task.family, []).append(task.name)
  for family, names in by_family.items():
    if len(names) > FEW and family != "rules.always":
      yield from names[::5]


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
