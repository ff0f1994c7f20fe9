"""Continuations: the texts whose likelihood under a query counts, its options and its target. A
query is read once; its continuations go on from it, and so does the model's own answer. Queries are
packed densely into batches of a few static shapes.

    a query's continuations                 lanes, mostly one: a query and what goes on from it
    the lanes of an episode, in one order   rows of at most `width`
    the rows of many episodes               batches, each of the smallest shape it fits

All lanes of a row share their episode's phi.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from hyperjax.core.batch import Continuations
from hyperjax.data import loader, shapes
from hyperjax.data.episodes import Episode, Query
from hyperjax.data.layouts import Layout
from hyperjax.data.shapes import BatchShape, Lengths

_MAX_SHAPES = 6
# A step of decoding takes about as long as so many tokens that are read at once.
_STEP_TOKENS = 4
# A program takes about as long to compile as so many tokens take to compute: a shape that saves
# fewer is not worth it.
_PROGRAM_TOKENS = 2**13
# Tokens that a lane may read behind its query: as many as the query has, but at least and at most
# these. More would save readings of the query; but each is scored against all others of its lane,
# and has logits of its own.
_LANE_TOKENS = (64, 256)


@dataclasses.dataclass(frozen=True, order=True)
class Sizes:
  """What a row needs, or a shape has room for, in tokens of one lane.

  Attributes:
    query: T, of a query's input.
    read: X, of continuations without their last tokens.
    targets: W, of continuations.
    answer: A, that the model itself may produce.
  """

  query: int
  read: int
  targets: int
  answer: int

  @property
  def tokens(self) -> int:
    """What it costs, in tokens that are read at once."""
    return self.query + self.read + _STEP_TOKENS * self.answer

  def __or__(self, other: "Sizes") -> "Sizes":
    """What holds both."""
    return Sizes(
      max(self.query, other.query), max(self.read, other.read),
      max(self.targets, other.targets), max(self.answer, other.answer),
    )  # fmt: skip

  def holds(self, other: "Sizes") -> bool:
    """Whether there is room for the other."""
    return self | other == self

  def rounded(self) -> "Sizes":
    """The static shape for it."""
    first = shapes.rounded(1, 1, self.query, self.targets)
    second = shapes.rounded(1, 1, self.read, self.answer)
    return Sizes(first.query, second.query, first.targets, second.targets)


def _largest(many: Iterable[Sizes]) -> Sizes:
  return functools.reduce(operator.or_, many)


@dataclasses.dataclass(frozen=True)
class Lane:
  """A query with some of its continuations.

  Attributes:
    column: the query's number in the episode.
    start, stop: the continuations' numbers among the query's.
    answer: tokens that its answer may have: 1 where the query has an earlier lane, which answers.
  """

  column: int
  start: int
  stop: int
  answer: int


@dataclasses.dataclass(frozen=True)
class Row:
  """Lanes of one episode, side by side.

  Attributes:
    source: the episode's number among those that are packed together.
    sizes: what the largest lanes need.
    lanes: those that answer before the others, the longest first.
  """

  source: int
  sizes: Sizes
  lanes: tuple[Lane, ...]


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
  """The lanes of a row: half of an episode's queries.

  More of them differ more in length (padding); fewer take more rows, each with a phi (memory).
  """
  return -(-num_queries // 2)


def rows(
  episode: Episode, width: int, layout: Layout, answer: int, source: int = 0
) -> list[Row]:
  """All queries and continuations of an episode in rows: first the lanes that answer, then the
  others, the longest first. `answer` is how many tokens an answer may have."""
  lanes = sorted(
    (
      found
      for column, query in enumerate(episode.queries)
      for found in _lanes(column, query, layout, answer)
    ),
    key=lambda found: _order(*found), reverse=True,
  )  # fmt: skip
  parts = [lanes[start : start + width] for start in range(0, len(lanes), width)]
  return [
    Row(source, _largest(sizes for _, sizes in part), tuple(lane for lane, _ in part))
    for part in parts
  ]


def _order(lane: Lane, sizes: Sizes) -> tuple[int, ...]:
  """Where a lane stands among its episode's.

  How long an answer may be plays no part: shapes are planned before that is known, and must be of
  the rows that are asked.
  """
  return (
    lane.start == 0, sizes.query + sizes.read, sizes.query, sizes.read, sizes.targets,
    lane.column, lane.start,
  )  # fmt: skip


def _lanes(
  column: int, query: Query, layout: Layout, answer: int
) -> Iterator[tuple[Lane, Sizes]]:
  """A query's lanes, and what each needs."""
  least, most = _LANE_TOKENS
  room = min(max(least, len(query.input)), most)
  lengths = [len(ids) for ids in of(query)]
  starts, read = [0], 0
  for number, length in enumerate(lengths):
    if number > starts[-1] and read + length - 1 > room:
      starts.append(number)
      read = 0
    read += length - 1
  for start, stop in itertools.pairwise([*starts, len(lengths)]):
    targets = sum(lengths[start:stop])
    own = 1 if start else answer
    sizes = Sizes(layout.length(len(query.input), 1), targets - (stop - start), targets, own)
    yield Lane(column, start, stop, own), sizes


def plan(counts: Mapping[Sizes, int], width: int) -> tuple[Sizes, ...]:
  """The shapes in which rows are computed, the shortest first.

  Args:
    counts: {what a row needs: how many rows do}.
    width: lanes of a row.

  Returns:
    Shapes, of which each row fits at least one.
  """
  lengths = {sizes: Lengths(1, sizes.tokens, sizes.targets) for sizes in counts}
  limit = (1, max(s.tokens for s in counts), max(s.targets for s in counts))
  rates = {sizes: float(count) for sizes, count in counts.items()}
  chosen, tokens = None, 0
  for most in range(1, _MAX_SHAPES + 1):
    groups = [members for _, members in shapes.plan(lengths, rates, 1, most, limit)]
    found = [_largest(members).rounded() for members in groups]
    needed = width * sum(
      shape.tokens * sum(map(counts.get, members))
      for shape, members in zip(found, groups, strict=True)
    )
    if chosen is not None and tokens - needed < _PROGRAM_TOKENS * (len(found) - len(chosen)):
      break
    chosen, tokens = found, needed
  return tuple(sorted({*chosen}, key=lambda shape: (shape.tokens, shape)))


def pack(
  waiting: Sequence[Row], planned: Sequence[Sizes], size: int
) -> Iterator[tuple[list[Row], Sizes]]:
  """Batches of at most `size` rows, the longest first, and their shapes.

  A batch has fewer rows at the end, and where no shape holds it and the next row.
  """
  fitting = lambda rows: next(
    (i for i, s in enumerate(planned) if s.holds(_largest(row.sizes for row in rows))), None
  )
  order = sorted(
    waiting, key=lambda row: (fitting([row]), row.sizes.tokens, row.sizes), reverse=True
  )
  while order:
    part = order[:size]
    while fitting(part) is None:
      part.pop()
    yield part, planned[fitting(part)]
    del order[: len(part)]


def fill(
  part: Sequence[Row], episodes: Sequence[Episode], shape: Sizes, batch_size: int, width: int,
  layout: Layout,
) -> tuple[Continuations, np.ndarray]:  # fmt: skip
  """A batch, filled up with its first row, and the rows' sources [B].

  Args:
    part: at most B rows.
    episodes: all that they come from.
    shape: holds them.
    batch_size, width: B and M.
    layout: of the queries.
  """
  filled = [*part, *[part[0]] * (batch_size - len(part))]
  inputs = BatchShape(1 + len(layout.end), width, shape.query, 1)
  batch, _ = loader.to_batch([_asked(row, episodes[row.source]) for row in filled], inputs, layout)
  read, text, targets, behind = (
    np.full([batch_size, width, places], value, np.int32)
    for places, value in ((shape.read, 0), (shape.read, -1), (shape.targets, 0), (shape.targets, 0))
  )
  step, limit = np.ones_like(read), np.ones([batch_size, width], np.int32)
  for number, row in enumerate(filled):
    for place, lane in enumerate(row.lanes):
      limit[number, place] = lane.answer
      first = begin = 0  # in `targets` and in `read`
      texts = of(episodes[row.source].queries[lane.column])[lane.start : lane.stop]
      for name, ids in enumerate(texts):
        stop, end = first + len(ids), begin + len(ids) - 1
        targets[number, place, first:stop] = ids
        behind[number, place, first + 1 : stop] = np.arange(begin, end) + 1
        read[number, place, begin:end] = ids[:-1]
        text[number, place, begin:end] = name
        step[number, place, begin:end] = np.arange(1, len(ids))
        first, begin = stop, end
  sources = np.array([row.source for row in filled], np.int32)
  tokens, length = batch.query.prompts()
  return Continuations(tokens, length, read, text, step, targets, behind, limit), sources


def _asked(row: Row, episode: Episode) -> Episode:
  """The row as an episode without a support, each query with the first token of a target."""
  queries = (episode.queries[lane.column] for lane in row.lanes)
  return dataclasses.replace(
    episode, head=episode.head[:0], shots=(),
    queries=tuple(dataclasses.replace(query, target=query.target[:1]) for query in queries),
  )  # fmt: skip


def totals(lane: Lane, query: Query, values: np.ndarray) -> np.ndarray:
  """Log-likelihoods of a lane's continuations from their tokens' [W], as `fill` puts them."""
  lengths = [len(ids) for ids in of(query)[lane.start : lane.stop]]
  starts = np.cumsum([0, *lengths])
  return np.add.reduceat(values[: starts[-1]], starts[:-1])
