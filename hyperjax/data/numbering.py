"""Numbers distinct digests as they come: as a dict would, in less memory."""

from collections.abc import Sequence

import numpy as np

_STEP = 2**16


class Numbering:
  """{digest of 16 bytes: number}; its length is the next number.

  Numbers are in an open-addressed table: a digest's is at the place that its first bytes name, or
  at the first one behind it that was free.
  """

  def __init__(self):
    self._digests = np.empty([2**10, 2], np.int64)  # by their numbers
    self._table = np.full([2**11], -1)
    self._count = 0

  def __len__(self) -> int:
    return self._count

  def __call__(self, digests: Sequence[bytes]) -> np.ndarray:
    """Returns their numbers; those that are not known get the next ones. No two are the same."""
    asked = np.frombuffer(b"".join(digests), np.int64).reshape(-1, 2)
    while self._count + len(asked) > len(self._digests):
      self._grow()
    numbers = np.full([len(asked)], -1)
    left, places = np.arange(len(asked)), self._place(asked[:, 0])
    while left.size:
      there = self._table[places]
      full = np.flatnonzero(there >= 0)
      there, left, places = there[full], left[full], places[full]
      same = self._digests[there] == asked[left]
      same = same[:, 0] & same[:, 1]
      numbers[left[same]] = there[same]
      left, places = left[~same], self._place(places[~same] + 1)
    new = np.flatnonzero(numbers < 0)
    numbers[new] = np.arange(self._count, self._count + len(new))
    self._digests[numbers[new]] = asked[new]
    self._count += len(new)
    self._insert(numbers[new])
    return numbers

  def _grow(self) -> None:
    self._digests = np.concatenate([self._digests, np.empty_like(self._digests)])
    self._table = np.full([2 * len(self._digests)], -1)
    for start in range(0, self._count, _STEP):
      self._insert(np.arange(start, min(start + _STEP, self._count)))

  def _insert(self, numbers: np.ndarray) -> None:
    places = self._place(self._digests[numbers, 0])
    while numbers.size:
      free = self._table[places] < 0
      self._table[places[free]] = numbers[free]  # of several at one place, the last one stays
      out = self._table[places] != numbers
      numbers, places = numbers[out], self._place(places[out] + 1)

  def _place(self, values: np.ndarray) -> np.ndarray:
    return values & (len(self._table) - 1)
