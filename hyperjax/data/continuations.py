"""Continuations: the texts whose likelihood under a query counts, its options and its target. They
are packed densely into batches of a few static shapes.

    the continuations of an episode, longest first     rows of at most `width`
    the rows of many episodes, longest first           batches, each of the smallest shape it fits

In a row each continuation is a query of its own; all of a row share their episode's phi.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hyperjax.core.batch import Batch
from hyperjax.data import loader, shapes
from hyperjax.data.episodes import Episode, Query
from hyperjax.data.layouts import Layout
from hyperjax.data.shapes import BatchShape, Lengths

_MAX_SHAPES = 6
# A program takes about as long to compile as so many tokens take to compute: a shape that saves
# fewer is not worth it.
_PROGRAM_TOKENS = 2**13


@dataclasses.dataclass(frozen=True)
class Row:
  """Continuations of one episode, side by side.

  Attributes:
    source: the episode's number among those that are packed together.
    query, targets: T and W that the longest of them need.
    places: of each, its query's number in the episode and its own among the query's.
  """

  source: int
  query: int
  targets: int
  places: tuple[tuple[int, int], ...]


def of(query: Query) -> tuple[np.ndarray, ...]:
  """The query's options and, where it is none of them, its target behind them."""
  options = query.options or ()
  return options if _find(query.target, options) is not None else (*options, query.target)


def target_number(query: Query) -> int:
  """Which of its continuations the query's target is."""
  return _find(query.target, of(query))


def _find(target: np.ndarray, options: Sequence[np.ndarray]) -> int | None:
  return next((i for i, ids in enumerate(options) if np.array_equal(ids, target)), None)


def width(num_queries: int) -> int:
  """The continuations of a row: a third of an episode's queries.

  More of them differ more in length (padding); fewer take more rows, each with a phi (memory).
  """
  return max(1, num_queries // 3)


def rows(episode: Episode, width: int, layout: Layout, source: int = 0) -> list[Row]:
  """All continuations of an episode in rows, the longest first."""
  sizes = sorted(
    (
      (layout.length(len(query.input), len(ids)), len(ids), (column, number))
      for column, query in enumerate(episode.queries)
      for number, ids in enumerate(of(query))
    ),
    reverse=True,
  )
  parts = [sizes[start : start + width] for start in range(0, len(sizes), width)]
  return [
    Row(source, *(max(size[i] for size in part) for i in range(2)), tuple(p for _, _, p in part))
    for part in parts
  ]


def plan(counts: Mapping[tuple[int, int], int], width: int) -> tuple[BatchShape, ...]:
  """The shapes in which rows are computed, the shortest first.

  Args:
    counts: {(T, W) that a row needs: how many rows do}.
    width: continuations of a row.

  Returns:
    Shapes with room for every row. Whatever fits a shape fits those behind it.
  """
  limit = (1, *(max(size[i] for size in counts) for i in range(2)))
  lengths = {size: Lengths(1, *size) for size in counts}
  rates = {size: float(count) for size, count in counts.items()}
  chosen, tokens = None, 0
  for most in range(1, _MAX_SHAPES + 1):
    found = shapes.plan(lengths, rates, 1, most, limit)
    needed = width * sum(shape.query * sum(map(counts.get, sizes)) for shape, sizes in found)
    if chosen is not None and tokens - needed < _PROGRAM_TOKENS * (len(found) - len(chosen)):
      break
    chosen, tokens = found, needed
  longest, out = 1, []
  for shape, _ in sorted(chosen, key=lambda found: found[0].query):
    longest = max(longest, shape.targets)
    out.append(dataclasses.replace(shape, queries=width, targets=longest))
  return tuple(out)


def pack(
  waiting: Sequence[Row], planned: Sequence[BatchShape], size: int
) -> Iterator[tuple[list[Row], BatchShape]]:
  """Batches of `size` rows (the last one may have fewer), the longest first, and their shapes."""
  order = sorted(waiting, key=lambda row: (row.query, row.targets), reverse=True)
  for start in range(0, len(order), size):
    part = order[start : start + size]
    query, targets = max(row.query for row in part), max(row.targets for row in part)
    yield part, next(s for s in planned if query <= s.query and targets <= s.targets)


def fill(
  part: Sequence[Row], episodes: Sequence[Episode], shape: BatchShape, size: int, layout: Layout
) -> tuple[Batch, np.ndarray]:
  """A batch of exactly `size` rows, filled up with the first one, and their sources [size].

  Its supports are empty: phi is made before.
  """
  filled = [*part, *[part[0]] * (size - len(part))]
  asked = [_asked(row, episodes[row.source]) for row in filled]
  sources = np.array([row.source for row in filled], np.int32)
  return loader.to_batch(asked, shape, layout)[0], sources


def _asked(row: Row, episode: Episode) -> Episode:
  """The row as an episode without a support."""
  queries = tuple(
    dataclasses.replace(episode.queries[column], target=of(episode.queries[column])[number])
    for column, number in row.places
  )
  return dataclasses.replace(episode, head=episode.head[:0], shots=(), queries=queries)
