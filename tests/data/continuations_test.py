"""Continuations in rows and batches: every one once, with little padding, in planned shapes."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from hyperjax.data import continuations, layouts
from hyperjax.data.episodes import Episode, Query
from hyperjax.data.shapes import BatchShape

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


def test_rows_hold_every_continuation_once_the_longest_first():
  one = episode(query(0, 5, 2, options=(1, 6)), query(1, 9, 3), query(2, 2, 1, options=(2,)))
  rows = continuations.rows(one, 2, DECODER, source=7)
  # T is input + continuation - 1: 9+3-1, 5+6-1, 5+2-1, 5+1-1, 2+2-1, 2+1-1.
  assert [(row.query, row.targets) for row in rows] == [(11, 6), (6, 2), (3, 2)]
  assert [row.places for row in rows] == [
    ((1, 0), (0, 1)), ((0, 2), (0, 0)), ((2, 0), (2, 1))
  ]  # fmt: skip
  assert {row.source for row in rows} == {7}


def test_a_row_is_a_third_as_wide_as_an_episode():
  assert [continuations.width(n) for n in (1, 2, 6, 10)] == [1, 1, 2, 3]


def test_few_rows_share_one_shape():
  [shape] = continuations.plan({(10, 2): 4, (90, 5): 1}, width=5)
  assert shape == BatchShape(16, 5, 92, 8)


def test_many_rows_have_shapes_with_little_padding():
  draw = np.random.default_rng(0)
  sizes = list(zip(draw.integers(20, 200, 5000).tolist(), draw.integers(1, 9, 5000).tolist(),
                   strict=True))  # fmt: skip
  planned = continuations.plan(Counter(sizes), width=5)
  assert len(planned) == 6
  assert list(planned) == sorted(planned, key=lambda s: (s.query, s.targets))
  fitting = [next(s for s in planned if t <= s.query and w <= s.targets) for t, w in sizes]
  assert sum(s.query for s in fitting) < 1.15 * sum(t for t, _ in sizes)


def test_a_shape_fits_all_that_the_ones_before_it_fit():
  """Long targets behind short inputs: a batch may hold both kinds."""
  planned = continuations.plan({(20, 12): 500, (80, 2): 500, (81, 1): 1}, width=2)
  assert [(s.query, s.targets) for s in planned] == [(20, 12), (84, 12)]


def test_batches_are_full_and_of_the_smallest_shape():
  row = lambda source, query, targets: continuations.Row(source, query, targets, ((0, 0),))
  rows = [row(0, 5, 1), row(1, 30, 2), row(2, 7, 3), row(3, 31, 2), row(4, 6, 1)]
  planned = (BatchShape(16, 1, 8, 4), BatchShape(16, 1, 32, 4))
  packed = list(continuations.pack(rows, planned, 2))
  assert [[r.source for r in part] for part, _ in packed] == [[3, 1], [2, 4], [0]]
  assert [shape for _, shape in packed] == [planned[1], planned[0], planned[0]]


@pytest.mark.parametrize("layout", [DECODER, layouts.EncoderDecoder((2,))], ids=["one", "two"])
def test_a_batch_holds_inputs_and_continuations_and_no_support(layout):
  episodes = [episode(query(0, 4, 2, options=(1, 3))), episode(query(1, 3, 2))]
  rows = [row for i, e in enumerate(episodes) for row in continuations.rows(e, 2, layout, i)]
  shape = BatchShape(16, 2, 8, 4)
  batch, sources = continuations.fill(rows, episodes, shape, 4, layout)
  assert sources.tolist() == [0, 0, 1, 0]  # filled up with the first row
  assert batch.weights.sum(-1).tolist() == [[3, 2], [1, 0], [2, 0], [3, 2]]
  assert batch.targets[0].tolist() == [[3, 4, 5, 0], [1, 2, 0, 0]]
  assert (batch.query.tokens[0, :, :4] == ids(4)).all()
  assert batch.support.length.tolist() == [len(layout.end)] * 4
