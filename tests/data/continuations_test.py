"""Continuations in rows and batches: every one once, with little padding, in planned shapes."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from hyperjax.data import continuations, layouts
from hyperjax.data.continuations import Lane, Sizes
from hyperjax.data.episodes import Episode, Query

DECODER = layouts.DECODER


def ids(size: int, start: int = 1) -> np.ndarray:
  return np.arange(start, start + size, dtype=np.int32)


def query(number: int, source: int, target: int, options=()) -> Query:
  """A query of so many tokens; its options' lengths; the target's tokens start at 1."""
  others = tuple(ids(size, 2 + i) for i, size in enumerate(options)) or None
  return Query(ids(source), ids(target), number, others)


def episode(*queries: Query) -> Episode:
  return Episode("t", ids(1), (ids(4),), queries, (0,), bos=True)


def test_a_target_among_the_options_is_not_asked_twice():
  own = dataclasses.replace(query(0, 3, 2), options=(ids(3), ids(2)))
  assert [x.tolist() for x in continuations.of(own)] == [[1, 2, 3], [1, 2]]
  assert continuations.target_number(own) == 1
  other = query(1, 3, 2, options=(4, 1))
  assert [len(x) for x in continuations.of(other)] == [4, 1, 2]
  assert continuations.target_number(other) == 2
  alone = query(2, 3, 2)
  assert [x.tolist() for x in continuations.of(alone)] == [[1, 2]]
  assert continuations.target_number(alone) == 0


def test_rows_hold_every_query_once_the_longest_first():
  one = episode(query(0, 5, 2, options=(1, 6)), query(1, 9, 3), query(2, 2, 1, options=(2,)))
  rows = continuations.rows(one, 2, DECODER, 5, source=7)
  # Read: 5 + 0+5+1, 9 + 2, 2 + 1+0.
  assert [row.sizes for row in rows] == [Sizes(9, 6, 9, 5), Sizes(2, 1, 3, 5)]
  assert [row.lanes for row in rows] == [
    (Lane(1, 0, 1, 5), Lane(0, 0, 3, 5)), (Lane(2, 0, 2, 5),)
  ]  # fmt: skip
  assert {row.source for row in rows} == {7}


def test_many_options_are_shared_out_over_lanes():
  """A lane reads as many tokens behind its query as that has, but at least 64 and at most 256."""
  many = query(0, 5, 1, options=(31, 33, 2, 66, 70, 3))
  rows = lambda one: continuations.rows(episode(one), 1, DECODER, 9)
  lanes = lambda one: [(lane, row.sizes) for row in rows(one) for lane in row.lanes]
  assert lanes(many) == [
    (Lane(0, 0, 3, 9), Sizes(5, 63, 66, 9)), (Lane(0, 4, 5, 1), Sizes(5, 69, 70, 1)),
    (Lane(0, 3, 4, 1), Sizes(5, 65, 66, 1)), (Lane(0, 5, 7, 1), Sizes(5, 2, 4, 1)),
  ]  # fmt: skip
  longer = dataclasses.replace(many, input=ids(130))
  assert [lane for lane, _ in lanes(longer)] == [Lane(0, 0, 4, 9), Lane(0, 4, 7, 1)]
  long = query(0, 900, 1, options=(100, 100, 100))
  assert [lane for lane, _ in lanes(long)] == [Lane(0, 0, 2, 9), Lane(0, 2, 4, 1)]


def test_lanes_share_rows_however_long_answers_may_be():
  """Shapes are planned without knowing it. Read: 48 + 64 three times, 100 + 4 five times."""
  many = Query(ids(48), ids(33, 2), 0, tuple(ids(33, 2 + i) for i in range(6)))
  one = episode(many, *(query(number, 100, 5) for number in range(1, 6)))
  for answer in (1, 33):
    rows = continuations.rows(one, 3, DECODER, answer)
    assert [[(lane.column, lane.start) for lane in row.lanes] for row in rows] == [
      [(0, 0), (5, 0), (4, 0)], [(3, 0), (2, 0), (1, 0)], [(0, 4), (0, 2)]
    ]  # fmt: skip
    assert [row.sizes for row in rows] == [
      Sizes(100, 64, 66, answer), Sizes(100, 4, 5, answer), Sizes(48, 64, 66, 1)
    ]  # fmt: skip


def test_a_row_is_half_as_wide_as_an_episode():
  assert [continuations.width(n) for n in (1, 2, 7, 10)] == [1, 1, 4, 5]


def test_few_rows_share_one_shape():
  found = continuations.plan({Sizes(10, 2, 3, 1): 4, Sizes(90, 5, 9, 6): 1}, width=5)
  assert found == (Sizes(92, 8, 12, 8),)


def test_many_rows_have_shapes_with_little_padding():
  draw = np.random.default_rng(0)
  sizes = [
    Sizes(int(a), int(b), int(b) + 3, 2)
    for a, b in zip(draw.integers(20, 200, 5000), draw.integers(1, 9, 5000), strict=True)
  ]
  planned = continuations.plan(Counter(sizes), width=5)
  assert len(planned) == 6 and list(planned) == sorted(planned)
  fitting = [next(s for s in planned if s.holds(size)) for size in sizes]
  assert sum(s.query for s in fitting) < 1.15 * sum(size.query for size in sizes)


def test_a_batch_ends_where_no_shape_holds_what_comes_next():
  """Many options behind short inputs, and few behind long ones."""
  counts = {Sizes(20, 12, 16, 1): 500, Sizes(80, 2, 4, 1): 500, Sizes(81, 1, 3, 1): 1}
  planned = continuations.plan(counts, width=2)
  assert planned == (Sizes(20, 12, 16, 4), Sizes(84, 4, 4, 4))
  row = lambda source, *sizes: continuations.Row(source, Sizes(*sizes, 1), (Lane(0, 0, 1, 1),))
  rows = [row(0, 20, 9, 12), row(1, 30, 1, 2), row(2, 18, 1, 2), row(3, 70, 3, 4), row(4, 5, 9, 12)]
  packed = list(continuations.pack(rows, planned, 2))
  assert [[r.source for r in part] for part, _ in packed] == [[3, 1], [0, 2], [4]]
  assert [shape for _, shape in packed] == [planned[1], planned[0], planned[0]]
  packed = list(continuations.pack(rows, planned, 3))
  assert [[r.source for r in part] for part, _ in packed] == [[3, 1], [0, 2, 4]]
  assert [shape for _, shape in packed] == [planned[1], planned[0]]


def test_batches_are_full_and_of_the_smallest_shape():
  row = lambda source, *sizes: continuations.Row(source, Sizes(*sizes, 1), (Lane(0, 0, 1, 1),))
  rows = [row(0, 5, 1, 2), row(1, 30, 2, 3), row(2, 7, 3, 4), row(3, 31, 2, 3), row(4, 6, 1, 2)]
  planned = (Sizes(8, 4, 4, 4), Sizes(32, 4, 4, 4))
  packed = list(continuations.pack(rows, planned, 2))
  assert [[r.source for r in part] for part, _ in packed] == [[3, 1], [2, 4], [0]]
  assert [shape for _, shape in packed] == [planned[1], planned[0], planned[0]]


@pytest.mark.parametrize("layout", [DECODER, layouts.EncoderDecoder((2,))], ids=["one", "two"])
def test_a_batch_holds_inputs_and_what_goes_on_from_them(layout):
  episodes = [episode(query(0, 4, 2, options=(1, 3)), query(1, 3, 1)), episode(query(1, 3, 2))]
  rows = [row for i, e in enumerate(episodes) for row in continuations.rows(e, 2, layout, 6, i)]
  batch, sources = continuations.fill(rows, episodes, Sizes(8, 4, 8, 8), 3, 2, layout)
  assert sources.tolist() == [0, 1, 0]  # filled up with the first row
  end = len(layout.end)
  assert batch.length.tolist() == [[4 + end, 3 + end], [3 + end, 1], [4 + end, 3 + end]]
  assert batch.tokens[0].tolist() == [
    [1, 2, 3, 4, *layout.end, *[0] * (4 - end)], [1, 2, 3, *layout.end, *[0] * (5 - end)]
  ]
  # Continuations (2), (3 4 5) and (1 2) behind the first query.
  assert batch.targets[0, 0].tolist() == [2, 3, 4, 5, 1, 2, 0, 0]
  assert batch.behind[0, 0].tolist() == [0, 0, 1, 2, 0, 3, 0, 0]
  assert batch.read[0, 0].tolist() == [3, 4, 1, 0]
  assert batch.text[0, 0].tolist() == [1, 1, 2, -1]
  assert batch.step[0, 0].tolist() == [1, 2, 1, 1]
  assert batch.limit.tolist() == [[6, 6], [6, 1], [6, 6]]
  assert batch.text[0, 1].tolist() == [-1] * 4 and batch.targets[0, 1, 0] == 1


def test_totals_are_of_a_lanes_continuations():
  many = query(0, 5, 1, options=(2, 3, 1))
  values = np.array([1, 2, 4, 8, 16, 32, 64, 128], np.float32)
  total = lambda *lane: continuations.totals(Lane(0, *lane, 1), many, values).tolist()
  assert total(0, 4) == [1 + 2, 4 + 8 + 16, 32, 64]
  assert total(1, 3) == [1 + 2 + 4, 8]
