"""CACLM: context-augmented conditional language modelling, the task of hyperpretraining.

Phang et al. 2022 (arXiv:2211.12485). A window of text is cut into four; the hypermodel reads its
ends, the downstream model reads the second part and predicts the third:

    window    A A A A B B B B C C C C D D D D
    support   A A A A </s> D D D D              A and D, joined with EOS
    query     B B B B -> C C C C                no terminator is added: the text goes on

As everywhere, an episode is a pure function of (seed, step, row). Windows of a document follow one
another without overlap; where the first begins is drawn anew in each epoch.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from hyperjax.data import layouts, schedule
from hyperjax.data.episodes import Episode, Query
from hyperjax.data.layouts import Layout
from hyperjax.data.manifest import Manifest
from hyperjax.data.shapes import BatchShape, rounded
from hyperjax.data.store import DOCUMENTS, Store

CUTS = ("equal", "random")


@dataclasses.dataclass(frozen=True)
class CaclmConfig:
  """How windows are made.

  Attributes:
    window: tokens of a window.
    cuts: "equal": four parts of the same length; "random": three cuts drawn for each window, every
      part having at least a sixteenth of it.
    include: tasks to use, or the front part of their names up to a dot; all, where empty.
    exclude: tasks to leave out, likewise.
    split: the split to read.
  """

  window: int = 512
  cuts: str = "equal"
  include: Sequence[str] = ()
  exclude: Sequence[str] = ()
  split: str = "train"

  def __post_init__(self):
    if self.cuts not in CUTS:
      raise ValueError(f"CaclmConfig: cuts is '{self.cuts}'; allowed: {', '.join(CUTS)}.")
    if self.window < 16:
      raise ValueError(f"CaclmConfig: window is {self.window}; it must be at least 16.")

  @property
  def shortest(self) -> int:
    """The fewest tokens of a part."""
    return self.window // (4 if self.cuts == "equal" else 16)

  @property
  def summary(self) -> str:
    """What an episode is, in a few words."""
    return f"CACLM windows of {self.window} tokens, {self.cuts} cuts"

  def shape(self, layout: Layout, bos: int) -> BatchShape:
    """The one shape of all batches, where texts begin with `bos` tokens of their own."""
    window, shortest = self.window, self.shortest
    longest, both = window - 3 * shortest, window - 2 * shortest
    query = min(layout.length(bos + longest, longest), bos + both - 1)
    return rounded(both + 1 + bos + len(layout.end), 1, query, longest)

  def largest(self, layout: Layout) -> BatchShape:
    """The shape of the largest batches that there can be, whatever the vocabulary."""
    return self.shape(layout, 1)

  def stream(
    self, manifest: Manifest, *, seed: int, batch_size: int, layout: str = "decoder"
  ) -> "CaclmStream":
    """The training episodes of a manifest's documents."""
    return CaclmStream(manifest, self, seed=seed, batch_size=batch_size, layout=layout)


class CaclmStream:
  """CACLM episodes (one query each) of a manifest's document stores, by rate."""

  def __init__(
    self, manifest: Manifest, config: CaclmConfig, *, seed: int, batch_size: int,
    layout: str = "decoder",
  ):  # fmt: skip
    if batch_size < 1:
      raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    self.config, self.seed, self.batch_size = config, seed, batch_size
    self.layout = layouts.of(layout, manifest.vocabulary)
    self.tasks = manifest.select(config.include, config.exclude)
    self._windows = {
      task: _Windows(manifest.store(task, config.split), task, config.window)
      for task in self.tasks
    }
    self._visits = schedule.Blocks([manifest.rate(task) for task in self.tasks], seed, "caclm")
    vocabulary = manifest.vocabulary
    self._bos = np.array([vocabulary["bos_id"]] if vocabulary["adds_bos"] else [], np.int32)
    self._eos = np.array([vocabulary["eos_id"]], np.int32)

  @property
  def remark(self) -> str:
    """A sentence on documents that are too short for a window; "" where there are none."""
    short = {task: windows.short for task, windows in self._windows.items() if windows.short}
    if not short:
      return ""
    named = ", ".join(f"{count:,} of {task}" for task, count in itertools.islice(short.items(), 5))
    more = f" and {len(short) - 5:,} more tasks" if len(short) > 5 else ""
    return f"Documents shorter than WINDOW {self.config.window} are not read: {named}{more}."

  @property
  def shapes(self) -> tuple[BatchShape, ...]:
    """The one shape of all batches."""
    return (self.config.shape(self.layout, len(self._bos)),)

  def bucket(self, step: int) -> BatchShape:
    """Returns the shape of a step's batch."""
    del step
    return self.shapes[0]

  def episode(self, step: int, row: int) -> Episode:
    """Returns the episode of a row of the global batch."""
    if not 0 <= row < self.batch_size:
      raise IndexError(f"Row {row} is outside the batch of {self.batch_size}.")
    index, visit = self._visits(step * self.batch_size + row)
    task = self.tasks[index]
    windows = self._windows[task]
    epoch, within = divmod(visit, windows.count)
    number = schedule.Permutation(windows.count, self.seed, "windows", task, epoch)(within)
    tokens = windows(number, (self.seed, "shift", task, epoch))
    first, second, third = self._cut((self.seed, "cuts", step, row))
    joined = np.concatenate([tokens[:first], self._eos, tokens[third:]])
    query = Query(
      np.concatenate([self._bos, tokens[first:second]]), tokens[second:third], number
    )
    return Episode(task, self._bos, (joined,), (query,), (number,), bool(len(self._bos)))

  def _cut(self, parts: tuple) -> tuple[int, int, int]:
    shortest, window = self.config.shortest, self.config.window
    if self.config.cuts == "equal":
      return shortest, 2 * shortest, 3 * shortest
    spare = window - 4 * shortest
    cuts = np.sort(schedule.generator(*parts).integers(0, spare + 1, 3))
    return tuple(int(cut) + (i + 1) * shortest for i, cut in enumerate(cuts))


class _Windows:
  """The windows of one store, numbered across its documents."""

  def __init__(self, store: Store, task: str, size: int):
    if store.kind != DOCUMENTS:
      raise ValueError(
        f"Task '{task}' has inputs: it makes few-shot episodes, not CACLM windows of documents."
      )
    self._store, self._size = store, size
    self._lengths = store.lengths
    per_document = self._lengths // size
    self._ends = np.cumsum(per_document)
    self.count = int(self._ends[-1])
    self.short = int((per_document == 0).sum())
    if not self.count:
      raise ValueError(
        f"Task '{task}': none of its {len(store)} documents has a window of {size} tokens; the "
        f"longest has {self._lengths.max()}."
      )

  def __call__(self, number: int, parts: tuple) -> np.ndarray:
    """Returns a window's tokens; `parts` key where the first window of its document begins."""
    document = int(np.searchsorted(self._ends, number, side="right"))
    before = int(self._ends[document - 1]) if document else 0
    slack = int(self._lengths[document]) % self._size
    shift = schedule.key(*parts, document)[0] % (slack + 1)
    return self._store.window(document, shift + (number - before) * self._size, self._size)
