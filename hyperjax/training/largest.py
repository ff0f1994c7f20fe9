"""Looks for the largest batch that fits into memory, with as few compilations as it can."""

import dataclasses
import functools
import math
from collections.abc import Callable

# From the least memory to the least work that is done twice.
_REMAT = ("full", "dots", "none")
_TENSOR = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Choice:
  """A batch size, a mesh (data, fsdp, tensor) and a remat."""

  batch_size: int
  mesh: tuple[int, int, int]
  remat: str

  @property
  def flags(self) -> str:
    """As the command line has it."""
    data, fsdp, tensor = self.mesh
    return (
      f"--gin.BATCH_SIZE={self.batch_size} --gin.MESH_DATA={data} --gin.MESH_FSDP={fsdp} "
      f"--gin.MESH_TENSOR={tensor} --gin.REMAT={self.remat}"
    )


def choose(
  need: Callable[[Choice], float],
  limit: float,
  devices: int,
  heads: int,
  start: int,
  accumulate: int = 1,
) -> Choice | None:
  """The largest batch that fits; of the ways that it fits, the one that computes least twice.

  The parameters are over all devices (data 1): sharing them out less takes more memory for the
  same batch. Every tensor axis is tried at one step more than the largest batch so far, and
  searched only where that fits. The search itself is with full remat, which takes the least memory.

  Args:
    need: the bytes of a device that a choice needs; infinite where that is unknown, but too much.
    limit: the bytes that there are.
    devices: how many.
    heads: of the model's attention, which a tensor axis must divide.
    start: the batch size to look at first.
    accumulate: the parts that a batch is worked off in.

  Returns:
    None where nothing fits.
  """
  need, best = functools.cache(need), None
  for tensor in _TENSOR:
    if devices % tensor or heads % tensor:
      continue
    fsdp = devices // tensor
    unit = fsdp * accumulate
    choice = lambda n, m=(1, fsdp, tensor), u=unit: Choice(n * u, m, "full")
    first = max(1, start // unit)
    if best is not None:
      first = best.batch_size // unit + 1
      if need(choice(first)) > limit:
        continue
    most = largest(lambda n, c=choice: need(c(n)), limit, first)
    if most:
      best = choice(most)
  if best is None:
    return None
  for remat in reversed(_REMAT[1:]):
    again = dataclasses.replace(best, remat=remat)
    if need(again) <= limit:
      return again
  return best


def largest(need: Callable[[int], float], limit: float, start: int) -> int:
  """The largest n >= 1 with need(n) <= limit; 0 where there is none.

  Args:
    need: rises with n, about as a straight line.
    limit: what there is.
    start: the n to look at first.
  """
  found: dict[int, float] = {}
  low, high, n = 0, None, start
  while high is None or high - low > 1:
    found[n] = need(n)
    if found[n] <= limit:
      low = n
    else:
      high = n
    n = _next(found, limit, low, high)
  return low


def _next(found: dict[int, float], limit: float, low: int, high: int | None) -> int:
  """Where a line through the two largest known points meets the limit; else the middle, or twice
  as much."""
  known = [point for point in sorted(found.items()) if math.isfinite(point[1])][-2:]
  guess = 2 * low if high is None else (low + high) // 2
  if len(known) == 2 and known[1][1] > known[0][1]:
    (a, x), (b, y) = known
    guess = math.floor(a + (limit - x) * (b - a) / (y - x))
  return min(max(guess, low + 1), 4 * low if high is None else high - 1)
