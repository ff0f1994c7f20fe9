"""Which examples a support holds: so many drawn from a store, so many of each class, or all."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from hyperjax.data import schedule
from hyperjax.data.store import Store


@dataclasses.dataclass(frozen=True)
class PerClass:
  """So many examples of each class, as symbol tuning shows them (arXiv 2305.08298).

  The classes of a task are the different targets in the split that its supports are drawn from.

  Attributes:
    count: examples of each, or (low, high): drawn between both, the same for all classes.
  """

  count: int | tuple[int, int] = 4

  def __post_init__(self):
    bounds(self)


# Examples in all, or (low, high): drawn between both; or of each class.
NumShots = int | tuple[int, int] | PerClass


def bounds(num_shots: NumShots | None) -> tuple[int, int]:
  """Returns (fewest, most) examples in all, or of each class.

  Raises:
    ValueError: they are not 1 <= fewest <= most, or not given.
  """
  given = num_shots.count if isinstance(num_shots, PerClass) else num_shots
  low, high = (given, given) if isinstance(given, int) else given or (0, 0)
  if not 1 <= low <= high:
    raise ValueError(f"num_shots is {num_shots}; want 1 <= low <= high.")
  return low, high


def count(num_shots: NumShots, *key: int | str) -> int:
  """Returns how many examples a support has in all, or of each class; `key` draws it."""
  low, high = bounds(num_shots)
  return low + schedule.key(*key)[0] % (high - low + 1)


def summary(num_shots: NumShots) -> str:
  """Returns what a support holds, in a few words."""
  low, high = bounds(num_shots)
  words = f"{low} shots" if low == high else f"{low} to {high} shots"
  return f"{words} of each class" if isinstance(num_shots, PerClass) else words


@dataclasses.dataclass(frozen=True)
class Pool:
  """Examples of which a support takes as many as of every other pool.

  Attributes:
    ids: their indices in the store.
    distinct: how many different inputs they have that no other pool has.
    words: what they are, for errors.
    key: ends the key of a draw from them.
  """

  ids: Sequence[int] | np.ndarray
  distinct: int
  words: str
  key: tuple[int, ...] = ()


class Supports:
  """The supports that a store gives.

  Attributes:
    most: examples that the largest ones take of each pool.
    size: examples that they have in all.
    scarcest: the pool with the fewest inputs.
  """

  def __init__(self, num_shots: NumShots | None, store: Store):
    """Supports of so many examples; None: the whole store in its order, also equal inputs."""
    self._store, self._pools = store, None
    if num_shots is None:
      self.most = self.size = len(store)
      self.scarcest = Pool((), self.size, f"{self.size} examples, all of them in the support")
      return
    if isinstance(num_shots, PerClass):
      self._pools = _ByClass(store)
      self.scarcest = self._pools[int(self._pools.distinct.argmin())]
    else:
      distinct = store.meta["distinct_inputs"]
      words = f"{len(store)} examples with {distinct} different inputs"
      self.scarcest = Pool(range(len(store)), distinct, words)
      self._pools = [self.scarcest]
    self.most = bounds(num_shots)[1]
    self.size = self.most * len(self._pools)

  def draw(self, taken: Iterable[bytes], number: int | None, key: tuple) -> list[int]:
    """Returns a support: `number` examples of each pool, with different inputs, in random order.

    Args:
      taken: inputs that it must not have; not asked for where a support is the whole store.
      number: None where a support is the whole store.
      key: draws it.

    Raises:
      ValueError: there are not as many examples with other inputs.
    """
    if self._pools is None:
      return list(range(self.size))
    taken, chosen = set(taken), []
    for pool in self._pools:
      chosen += self._take(pool, taken, number, (*key, *pool.key))
    if len(self._pools) == 1:
      return chosen
    order = schedule.Permutation(len(chosen), *key, "order")
    return [chosen[order(position)] for position in range(len(chosen))]

  def _take(self, pool: Pool, taken: set[bytes], number: int, key: tuple) -> list[int]:
    """Takes examples of a pool in keyed order, and adds their inputs to `taken`."""
    order, chosen = schedule.Permutation(len(pool.ids), *key), []
    for position in range(order.n):
      index = int(pool.ids[order(position)])
      content = self._store.input(index).tobytes()
      if content not in taken:
        taken.add(content)
        chosen.append(index)
        if len(chosen) == number:
          return chosen
    raise ValueError(f"only {len(chosen)} of {number} examples differ from the queries.")


class _ByClass(Sequence[Pool]):
  """The pools of a store's classes, each made as it is asked for: free texts are as many.

  Attributes:
    distinct: of each pool.
  """

  def __init__(self, store: Store):
    # An input with two targets may be drawn for either, so neither class can count on it.
    pairs = np.unique(store.pairs, axis=0)
    alone = pairs[np.bincount(pairs[:, 0])[pairs[:, 0]] == 1]
    targets = store.pairs[:, 1]
    self._ids = np.argsort(targets, kind="stable")
    self._pieces, self._starts = np.unique(targets[self._ids], return_index=True)
    places = np.searchsorted(self._pieces, alone[:, 1])
    self.distinct = np.bincount(places, minlength=len(self._pieces))

  def __len__(self) -> int:
    return len(self._pieces)

  def __getitem__(self, index: int) -> Pool:
    piece, distinct = int(self._pieces[index]), int(self.distinct[index])
    stop = self._starts[index + 1] if index + 1 < len(self) else None
    ids = self._ids[self._starts[index] : stop]
    words = (
      f"{len(ids)} examples of the class of example {ids[0]}, with {distinct} different "
      "inputs that no other class has"
    )
    return Pool(ids, distinct, words, (piece,))
