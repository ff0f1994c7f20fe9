"""What a lexical task is, and the few tools that all lexical generators share.

A generator is a function without arguments that yields `(input, output)` or
`(input, output, options)`. It runs on first use, never at import; `LexicalTask.examples` makes a
well-formed data set of whatever it yields.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

MAX_EXAMPLES = 400


@dataclasses.dataclass(frozen=True, eq=False)
class LexicalTask:
  """One mapping from short texts to short texts.

  Attributes:
    name: `lexical.<family>.<task>`; what stands before the last dot is the family.
    tables: the mappings that the outputs come from, `babel.languages.fr` or `rule.list.first`. No
      table of a held-out task is a table of a training task.
    generate: yields the raw examples.
    has_options: whether every example lists the outputs to choose from.
  """

  name: str
  tables: tuple[str, ...]
  generate: Callable[[], Iterable[tuple]]
  has_options: bool = False

  @property
  def family(self) -> str:
    """The name up to its last dot."""
    return self.name.rpartition(".")[0]

  def examples(self) -> list[dict]:
    """The task's examples: distinct inputs, at most `MAX_EXAMPLES`, in a fixed shuffled order.

    An input that came with two different outputs is ambiguous and is left out, as is an example
    with an empty side. The list is made once per process; do not change it.
    """
    return _examples(self)


@functools.cache
def _examples(task: LexicalTask) -> list[dict]:
  by_input: dict[str, dict | None] = {}
  for source, target, *options in task.generate():
    source, target = (unicodedata.normalize("NFC", text).strip() for text in (source, target))
    if not source or not target:
      continue
    example = {"input": source, "output": target}
    if options:
      example["options"] = list(options[0])
    known = by_input.setdefault(source, example)
    if known is not None and known["output"] != target:
      by_input[source] = None
  kept = [example for example in by_input.values() if example is not None]
  # A hash and not `random.shuffle`: adding one word then changes one example, not the whole order.
  kept.sort(key=lambda e: hashlib.sha256(f"{task.name}\0{e['input']}".encode()).digest())
  return kept[:MAX_EXAMPLES]


def family_rates(names: Iterable[str]) -> dict[str, float]:
  """Mixing rates under which every family weighs the same, and so do the tasks within a family."""
  names = tuple(names)
  families = {name: name.rpartition(".")[0] for name in names}
  sizes = collections.Counter(families.values())
  return {name: 1 / sizes[families[name]] for name in names}


class Draws:
  """Random draws that are the same with every Python: only `random()` is promised to be stable."""

  def __init__(self, key: str):
    self._random = random.Random(key)

  def below(self, n: int) -> int:
    return int(self._random.random() * n)

  def choice(self, items: Sequence):
    return items[self.below(len(items))]

  def sample(self, items: Sequence, n: int) -> list:
    """`n` distinct members of `items`, in random order."""
    pool = list(dict.fromkeys(items))
    return [pool.pop(self.below(len(pool))) for _ in range(n)]


def mapped(
  items: Iterable[str], rule: Callable[[str], str | None]
) -> Callable[[], Iterator[tuple]]:
  """A generator of `(item, rule(item))`, without the items for which the rule has no answer."""

  def generate():
    for item in items:
      output = rule(item)
      if output is not None:
        yield item, output

  return generate


def inverted(generate: Callable[[], Iterable[tuple]]) -> Callable[[], Iterator[tuple]]:
  """The generator's examples with input and output exchanged."""

  def swap():
    for source, target, *_ in generate():
      yield target, source

  return swap
