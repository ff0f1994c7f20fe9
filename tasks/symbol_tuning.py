"""symbol_tuning: classification with arbitrary labels (Wei et al. 2023, arXiv 2305.08298).

    SymbolTuning(fewshot.Folder("tasks"))   # symbols.fewshot.films.0: "yes" is "XKB", "no" is "731"

Where labels say nothing, what they stand for can only be read from examples. The tasks of another
source are registered in several copies `<name>.<task>.<number>`, each with symbols of its own, and
a mixture `<name>` over them with equal rates. Symbols are fixed in copies and not drawn for each
episode because a copy is then a task like any other: stores, references, scores and lists need to
know nothing of symbols. Copies are cheap: each holds other examples of its task, at most `examples`
of a split, and only a short task's are shown again.

Symbols are integers, letters (base 26) and words, a third each. Nothing is read at import.
"""

import collections
import dataclasses
import functools
import hashlib
import heapq
import itertools
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hyperjax.data import source as source_lib
from hyperjax.data.manifest import did_you_mean, digest, family
from hyperjax.tasks import lexical_words
from hyperjax.tasks.lexical_task import Draws

# Part of every store's key: raise it whenever any symbol changes (the test holds the hash).
VERSION = "1"

LABELS = ("symbols", "unseen_symbols", "own", "flipped")
_TRAINING = 10_000  # integers and letters from here on are for evaluation only
_ALL = 100_000


@dataclasses.dataclass(frozen=True)
class SymbolTuning:
  """The classification tasks of a source, with other labels.

  A task is classification where its targets and options are 2 to `max_classes` different texts in
  all its splits together; without options, each of them must be the target of several examples.

  Attributes:
    source: registers the tasks, such as `fewshot.Folder` or `metaicl.MetaICL`.
    labels: 'symbols' for training; 'unseen_symbols', of which none is among those; the task's 'own'
      labels; or 'flipped', its own in each other's place, of the tasks that have two.
    instructions: whether definitions stay.
    copies: how many of each task.
    examples: at most so many of each split in a copy.
    max_classes: a task with more labels is not taken.
    min_per_class: nor is a copy that shows a label with fewer different inputs of its own; what is
      shown is of the split `train`, where there is one, else of any split.
    name: name of the mixture and first part of the tasks' names.
  """

  source: Any
  labels: str = "symbols"
  instructions: bool = False
  copies: int = 16
  examples: int = 400
  max_classes: int = 20
  min_per_class: int = 0
  name: str = "symbols"

  def __post_init__(self):
    if self.labels not in LABELS:
      hint = did_you_mean(self.labels, LABELS)
      raise ValueError(f"SymbolTuning: labels is {self.labels!r}; want one of {LABELS}.{hint}")
    for field, low, high in (
      ("copies", 1, 10_000), ("examples", 2, 10**9), ("max_classes", 2, _TRAINING),
      ("min_per_class", 0, 10**9),
    ):  # fmt: skip
      if not low <= getattr(self, field) <= high:
        raise ValueError(
          f"SymbolTuning: {field} is {getattr(self, field)}; it must be in {low}..{high}."
        )

  def available(self) -> bool:
    return self.source.available()

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task name: hash} of all copies that can be.

    Those that are not of classification tasks, which shows as the tasks are read, are among them.
    """
    how = [VERSION, self.labels, self.instructions, self.examples]
    return {
      self._name(task, copy): digest([task, copy, fingerprint, *how])
      for task, fingerprint in self.source.fingerprints().items()
      for copy in range(self.copies)
    }

  def cluster(self, task: str) -> str:
    """Returns what the task is that this is a copy of, or what that one is a version of."""
    return source_lib.cluster(self.source, family(task).removeprefix(f"{self.name}."))

  def register(self) -> None:
    """Registers the source's tasks, the copies, and the mixture with seqio.

    Raises:
      ValueError: none of the source's tasks is taken, or none has the instructions asked for.
    """
    import seqio

    from hyperjax.data import task_rows
    from hyperjax.evaluation import classification
    from hyperjax.tasks import registry

    most = 2 if self.labels == "flipped" else self.max_classes

    # Copies of one task are built one after the other.
    @functools.lru_cache(maxsize=4)
    def read(task: str, split: str) -> tuple[Sequence[Mapping[str, Any]], Labels]:
      labels = Labels(most)
      rows = labels.watch(task_rows.texts(seqio.TaskRegistry.get(task), split))
      return _first(self.copies * self.examples, task, rows), labels

    self.source.register()
    rates, instructed = {}, False
    for task in self.source.fingerprints():
      splits = seqio.TaskRegistry.get(task).splits
      watched = [task_rows.files(seqio.TaskRegistry.get(task), split) for split in splits]
      found = {split: read(task, split) for split in splits}
      seen = [labels for _, labels in found.values()]
      instructed |= any(labels.instructed for labels in seen)
      labels = classes(seen)
      if not 2 <= len(labels) <= most:
        continue
      for copy in range(self.copies):
        name = self._name(task, copy)
        rows = {
          split: functools.partial(self._copy, read, task, split, copy, labels) for split in splits
        }
        shown = ["train"] if "train" in rows else rows
        if min(fewest(rows[split]()) for split in shown) < self.min_per_class:
          continue
        registry.add_rows(
          name, getattr(self.source, "path", self.source.name), rows,
          metric_fns=[classification.accuracy],
          files=[path for files in watched for path in files.paths],
          counts={split: min(self.examples, len(rows)) for split, (rows, _) in found.items()},
        )  # fmt: skip
        rates[name] = 1.0
      for files in watched:  # the labels are those of the files that are built from
        files.check()
    if not rates:
      raise ValueError(
        f"Source '{self.name}': of the tasks of source '{self.source.name}' none is "
        f"classification with {'2' if self.labels == 'flipped' else f'2 to {self.max_classes}'} "
        f"labels, each with at least {self.min_per_class} examples in a copy."
      )
    if self.instructions and not instructed:
      raise ValueError(
        f"Source '{self.name}': instructions are asked for, and no task of source "
        f"'{self.source.name}' has a definition: set instructions to False."
      )
    registry.add_mixture(self.name, rates)

  def _name(self, task: str, copy: int) -> str:
    return f"{self.name}.{task}.{copy}"

  def _copy(
    self, read: Callable, task: str, split: str, copy: int, labels: Sequence[str]
  ) -> Iterator[dict[str, Any]]:
    """Yields a copy's rows of a split: the next ones after those of the copy before."""
    rows, _ = read(task, split)
    new = self.relabelling(task, copy, labels)
    for i in range(min(self.examples, len(rows))):
      row = rows[(copy * self.examples + i) % len(rows)]
      yield {
        "inputs": row["inputs"],
        "targets": new[row["targets"]],
        "options": [new[option] for option in row["options"] or labels],
        "definition": row["definition"] if self.instructions else "",
      }

  def relabelling(self, task: str, copy: int, labels: Sequence[str]) -> dict[str, str]:
    """Returns {label: what stands for it in a copy of a task}; a function of its arguments."""
    if self.labels == "own":
      return {label: label for label in labels}
    if self.labels == "flipped":
      return dict(zip(labels, reversed(labels), strict=True))
    draws = Draws(f"symbols {task} {copy}")
    known = {label.casefold() for label in labels}
    new = {}
    for label in labels:
      while label not in new:
        symbol = draws.choice(draws.choice(tables(self.labels == "unseen_symbols")))
        if symbol.casefold() not in known:
          new[label] = symbol
          known.add(symbol.casefold())
    return new


@dataclasses.dataclass
class Labels:
  """What the rows of a split have for labels, found as they are read.

  Attributes:
    most: how many labels a task may have.
    targets: {target: how many rows have it}.
    options: of all rows.
    instructed: whether a row has a definition.
    none: whether a row is of no classification: of a document, or with one label too many.
  """

  most: int
  targets: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  options: set[str] = dataclasses.field(default_factory=set)
  instructed: bool = False
  none: bool = False

  def watch(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yields the rows, up to the first that is of no classification."""
    for row in rows:
      self.instructed |= bool(row["definition"])
      self.targets[row["targets"]] += 1
      self.options.update(row["options"])
      if "inputs" not in row or max(len(self.targets), len(self.options)) > self.most:
        self.none = True
        return
      yield row


def classes(splits: Sequence[Labels]) -> list[str]:
  """Returns the labels of a classification task, sorted; none where its splits are not of one."""
  if any(labels.none for labels in splits):
    return []
  targets = sum((labels.targets for labels in splits), collections.Counter())
  options = set().union(*(labels.options for labels in splits))
  if not options and min(targets.values(), default=0) < 2:
    return []
  return sorted(options.union(targets))


def fewest(rows: Iterable[Mapping[str, Any]]) -> int:
  """Returns the fewest inputs that any label of a task has and no other label."""
  labels = collections.defaultdict(set)
  for row in rows:
    labels[row["inputs"]].add(row["targets"])
  counts = dict.fromkeys(itertools.chain.from_iterable(labels.values()), 0)
  for found in labels.values():
    if len(found) == 1:
      counts[min(found)] += 1
  return min(counts.values(), default=0)


@functools.cache
def tables(unseen: bool) -> tuple[tuple[str, ...], ...]:
  """Returns the symbols for training or the unseen ones: integers, letters and words."""
  numbers = range(_TRAINING, _ALL) if unseen else range(_TRAINING)
  words = (word for word in sorted(set(_WORDS)) if _half(word) == unseen)
  return tuple(map(str, numbers)), tuple(map(letters, numbers)), tuple(words)


def letters(number: int) -> str:
  """Returns a number from 0 on in base 26: A, B, ..., Z, AA, AB, ..."""
  text = ""
  number += 1
  while number:
    number, digit = divmod(number - 1, 26)
    text = string.ascii_uppercase[digit] + text
  return text


_WORDS = (
  *lexical_words.VERBS, *lexical_words.NOUNS, *lexical_words.ADJECTIVES, *lexical_words.OBJECTS,
  *itertools.chain.from_iterable(lexical_words.CATEGORIES.values()),
)  # fmt: skip


def _half(word: str) -> int:
  """Which half of the words a word is in. A hash, so that a new word moves no other."""
  return hashlib.sha256(word.encode()).digest()[0] % 2


def _first(
  count: int, task: str, rows: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
  """The first rows in an order of their inputs' hashes: files are often sorted by class.

  No others are held: copies show no more of them, and start over where there are fewer.
  """
  key = lambda row: hashlib.sha256(f"{task}\0{row['inputs']}".encode()).digest()
  return heapq.nsmallest(count, rows, key)
