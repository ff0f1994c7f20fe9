"""Who comes when: pure functions of (seed, position). The ground that stateless data stands on."""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

_MASK = 2**64 - 1
_ROUNDS = 6
_MAX_BLOCK = 2**16


def key(*parts: int | str) -> tuple[int, int]:
  """Returns 128 bits that depend on all parts, the same in every process and on every machine."""
  digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
  return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def generator(*parts: int | str) -> np.random.Generator:
  """Returns a counter-based generator keyed by the parts."""
  return np.random.Generator(np.random.Philox(key=np.array(key(*parts), np.uint64)))


class Permutation:
  """A keyed permutation of range(n) in constant memory, evaluated at single positions.

  A Feistel network over a rectangle a x b that barely covers n; positions beyond n are walked on.
  So an epoch over a billion windows costs nothing to set up or to enter in the middle.
  """

  def __init__(self, n: int, *parts: int | str):
    if n < 1:
      raise ValueError(f"A permutation needs at least one element, not {n}.")
    self.n = n
    self._a = int(np.ceil(np.sqrt(n)))
    self._b = -(-n // self._a)
    low, high = key(*parts)
    self._keys = [_mix(low + i * high) for i in range(_ROUNDS)]

  def __call__(self, position: int) -> int:
    """Returns the element at a position in range(n)."""
    if not 0 <= position < self.n:
      raise IndexError(f"Position {position} is outside range({self.n}).")
    while True:
      left, right = divmod(position, self._b)
      for i in range(0, _ROUNDS, 2):
        left = (left + _mix(self._keys[i] ^ right)) % self._a
        right = (right + _mix(self._keys[i + 1] ^ left)) % self._b
      position = left * self._b + right
      if position < self.n:
        return position


def _mix(x: int) -> int:
  """SplitMix64's finaliser."""
  x = (x + 0x9E3779B97F4A7C15) & _MASK
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
  return x ^ (x >> 31)


class Epochs:
  """An endless sequence over range(n): one keyed permutation after another."""

  def __init__(self, n: int, *parts: int | str):
    self.n, self._parts = n, parts
    self._epoch = functools.lru_cache(maxsize=4)(lambda e: Permutation(n, *parts, e))

  def __call__(self, position: int) -> int:
    epoch, within = divmod(position, self.n)
    return self._epoch(epoch)(within)


class Blocks:
  """An endless sequence of choices in exact shares, with the number of each one's visits.

  Cut into blocks; in each block choice i stands `counts[i]` times (its share, by largest remainder,
  at least once), in an order keyed by the block. So at any position it is known without looking
  back how often each choice has come before.
  """

  def __init__(self, rates: Sequence[float], *parts: int | str):
    rates = np.asarray(rates, float)
    if not len(rates) or (rates <= 0).any():
      raise ValueError(f"Rates must be above 0, not {rates.tolist()}.")
    shares = rates / rates.sum()
    wanted = min(_MAX_BLOCK, max(4 * len(shares), int(np.ceil(4 / shares.min()))))
    self.counts = apportion(shares, max(wanted, len(shares)))
    self.size = int(self.counts.sum())
    self._parts = parts
    self._block = functools.lru_cache(maxsize=8)(self._make_block)

  def __call__(self, position: int) -> tuple[int, int]:
    """Returns (choice, how many times it came before this position)."""
    block, within = divmod(position, self.size)
    order, rank = self._block(block)
    choice = int(order[within])
    return choice, block * int(self.counts[choice]) + int(rank[within])

  def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.repeat(np.arange(len(self.counts)), self.counts)
    order = order[generator(*self._parts, block).permutation(self.size)]
    rank = np.empty_like(order)
    by_choice = np.argsort(order, kind="stable")
    rank[by_choice] = np.concatenate([np.arange(count) for count in self.counts])
    return order, rank


def apportion(shares: np.ndarray, size: int) -> np.ndarray:
  """Returns whole numbers, at least 1, in proportion to the shares (largest remainder)."""
  exact = shares * size
  counts = np.maximum(np.floor(exact).astype(np.int64), 1)
  order = np.argsort(-(exact - np.floor(exact)), kind="stable")
  short = size - int(counts.sum())
  if short > 0:
    counts[order[:short]] += 1
  return counts
