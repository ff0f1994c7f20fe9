"""Batch shapes: planned with little padding, assigned by fit."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperjax.data.shapes import BatchShape, Lengths, assign, plan

LIMIT = (1024, 256, 64)
LENGTHS = st.builds(Lengths, st.integers(1, 1200), st.integers(2, 300), st.integers(1, 80))


def cost(groups, rates):
  return sum(
    sum(rates[task] for task in tasks) * (shape.support + shape.queries * shape.query)
    for shape, tasks in groups
  )


@given(st.lists(LENGTHS, min_size=1, max_size=7), st.integers(1, 3))
def test_a_plan_holds_all_tasks_and_is_the_cheapest_cut(lengths, buckets):
  lengths = {f"t{i}": length for i, length in enumerate(lengths)}
  rates = {task: 1.0 + i for i, task in enumerate(lengths)}
  groups = plan(lengths, rates, 4, buckets, LIMIT)
  assert sorted(task for _, tasks in groups for task in tasks) == sorted(lengths)
  assert 1 <= len(groups) <= buckets
  for shape, tasks in groups:
    for task in tasks:
      need = lengths[task]
      assert Lengths(*map(min, (need.support, need.query, need.targets), LIMIT)).within(shape)
  # Every other way to cut the same order costs as much or more.
  order = sorted(lengths, key=lambda t: (lengths[t].support + 4 * lengths[t].query, t))
  for count in range(min(buckets, len(order))):
    for cuts in itertools.combinations(range(1, len(order)), count):
      edges = [0, *cuts, len(order)]
      parts = [order[a:b] for a, b in zip(edges, edges[1:], strict=False)]
      other = [
        plan({t: lengths[t] for t in part}, rates, 4, 1, LIMIT)[0] for part in parts
      ]
      assert cost(groups, rates) <= cost(other, rates) + 1e-9


def test_sizes_are_rounded_up():
  groups = plan({"t": Lengths(33, 9, 5)}, {"t": 1.0}, 2, 3, LIMIT)
  assert groups == [(BatchShape(48, 2, 12, 8), ("t",))]


def test_a_task_goes_to_the_smallest_shape_that_holds_it():
  small, large = BatchShape(32, 2, 8, 4), BatchShape(64, 2, 16, 8)
  lengths = {"a": Lengths(32, 8, 4), "b": Lengths(33, 8, 4), "c": Lengths(999, 8, 4)}
  assert assign(lengths, [large, small]) == [(small, ("a",)), (large, ("b", "c"))]


def test_lengths_from_a_manifest_entry():
  statistics = lambda mean, std, p99, most: {"mean": mean, "std": std, "p99": p99, "max": most}
  entry = {"lengths": {
    "input": statistics(5.0, 0.0, 5, 5), "target": statistics(2.0, 0.5, 3, 4),
    "shot": statistics(7.0, 1.0, 9, 12), "definition": statistics(0.0, 0.0, 0, 0),
  }}  # fmt: skip
  assert Lengths.of(entry, 4, True) == Lengths(support=28 + 4 + 1, query=10, targets=4)


def test_shapes_are_positive():
  with pytest.raises(ValueError, match="query must be at least 1"):
    BatchShape(1, 1, 0, 1)
