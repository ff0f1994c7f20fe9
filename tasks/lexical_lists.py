"""Tasks on short lists of words: positions, order, categories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hyperjax.tasks import lexical_words as words
from hyperjax.tasks.lexical_task import Draws, LexicalTask

COUNT = 320
CATEGORY = {word: name for name, members in words.CATEGORIES.items() for word in members}
# Animals are held out as a category: they are no one's answer and no one's distractor elsewhere.
MEMBERS = [word for word, name in CATEGORY.items() if name != "animal"]
PLAIN = sorted({*words.NOUNS, *words.ADJECTIVES, *MEMBERS, *words.OBJECTS})


def _lists(key: str, size: int, pool: Sequence[str] = PLAIN) -> Iterator[list[str]]:
  draws = Draws(key)
  for _ in range(COUNT):
    yield draws.sample(pool, size)


def _chosen(key: str, size: int, rule, pool=PLAIN, joint=", ") -> Callable[[], Iterator[tuple]]:
  """Lists of which the rule chooses one member, or None where it has no single answer."""

  def generate():
    for members in _lists(key, size, pool):
      answer = rule(members)
      if answer is not None:
        yield joint.join(members), answer, members

  return generate


def _rewritten(key: str, size: int, rule) -> Callable[[], Iterator[tuple]]:
  return lambda: ((", ".join(members), rule(members)) for members in _lists(key, size))


def _one_by(measure, best) -> Callable[[list[str]], str | None]:
  def rule(members):
    scores = [measure(member) for member in members]
    return members[scores.index(best(scores))] if scores.count(best(scores)) == 1 else None

  return rule


def _picked(key: str, category: str, size: int, others: Sequence[str]):
  """Lists with one member of the category among `size - 1` others."""

  def generate():
    draws = Draws(key)
    pool = [word for word in others if CATEGORY.get(word) != category]
    for _ in range(COUNT):
      answer = draws.choice(words.CATEGORIES[category])
      members = draws.sample(pool, size - 1)
      members.insert(draws.below(size), answer)
      yield ", ".join(members), answer, members

  return generate


def _named(categories: Sequence[str]) -> Callable[[], Iterator[tuple]]:
  return lambda: (
    (word, category, list(categories))
    for category in categories for word in words.CATEGORIES[category]
  )


def _repeated() -> Iterator[tuple]:
  draws = Draws("repeated")
  for members in _lists("repeated members", 3):
    answer = members[draws.below(3)]
    at = draws.below(4)
    yield ", ".join([*members[:at], answer, *members[at:]]), answer, members


def _counted() -> Iterator[tuple]:
  draws = Draws("counted")
  for _ in range(COUNT):
    size = 1 + draws.below(5)
    yield ", ".join(draws.sample(PLAIN, size)), str(size), ["1", "2", "3", "4", "5"]


def tasks() -> Iterator[LexicalTask]:
  """All tasks of this module; nothing is generated yet."""

  def task(name, generate, table, has_options=True):
    return LexicalTask(f"lexical.{name}", (table,), generate, has_options)

  for name, at in (("first", 0), ("second", 1), ("third", 2)):
    for size in (3, 4, 5):
      # The third of three would be the held-out "last".
      if at + 1 < size:
        yield task(f"list_position.{name}_of_{size}",
                   _chosen(f"{name} {size}", size, lambda members, at=at: members[at]),
                   f"rule.list.{name}")
  for size in (3, 4, 5):
    yield task(f"list_end.last_of_{size}", _chosen(f"last {size}", size, lambda m: m[-1]),
               "rule.list.last")
  yield task("list_end.last_word", _chosen("last word", 4, lambda m: m[-1], joint=" "),
             "rule.list.last")

  for name, size, measure, best in (
    ("alphabetically_first", 3, str, min), ("alphabetically_last", 3, str, max),
    ("longest", 3, len, max), ("shortest", 3, len, min), ("longer", 2, len, max),
  ):
    yield task(f"list_order.{name}", _chosen(name, size, _one_by(measure, best)),
               f"rule.list.{name}")
  for name, size, rule in (
    ("sorted", 3, lambda m: ", ".join(sorted(m))), ("swapped", 2, lambda m: ", ".join(m[::-1])),
    ("reversed", 3, lambda m: ", ".join(m[::-1])), ("without_first", 3, lambda m: ", ".join(m[1:])),
    ("first_two", 4, lambda m: ", ".join(m[:2])), ("and", 2, " and ".join), ("or", 2, " or ".join),
    ("spaces", 3, " ".join), ("arrow", 2, " > ".join),
    ("quoted", 2, lambda m: " ".join(f'"{word}"' for word in m)),
  ):
    yield task(f"list_rewriting.{name}", _rewritten(name, size, rule), f"rule.list.{name}", False)
  yield task("list_counts.items", _counted, "rule.list.count")
  yield task("list_counts.repeated", _repeated, "rule.list.repeated")

  for category in ("fruit", "color", "profession", "vehicle", "clothing", "body part",
                   "instrument", "sport", "vegetable"):
    yield task(f"picking.{category.replace(' ', '_')}",
               _picked(category, category, 3, MEMBERS), f"category.{category}")
  for size in (3, 4):
    yield task(f"picking_animals.animal_of_{size}",
               _picked(f"animal {size}", "animal", size, words.OBJECTS), "category.animal")
  yield task("picking_animals.among_all", _picked("animal all", "animal", 3, MEMBERS),
             "category.animal")
  for names in (
    ("fruit", "color", "vehicle"), ("profession", "sport", "instrument"),
    ("clothing", "body part", "furniture"), ("vegetable", "drink", "tool"),
    ("color", "profession"), ("fruit", "body part", "sport", "vehicle"),
  ):
    yield task("category_names." + "_".join(n.replace(" ", "_") for n in names), _named(names),
               "category.names")
