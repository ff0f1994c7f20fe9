"""Batch shapes: a few static sizes, so that nothing recompiles, with little padding."""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from hyperjax.data.layouts import DECODER, Layout

_MULTIPLES = (16, 4, 4)  # of support, query, target lengths
_MAX_CUTS = 48  # candidates for the border between two buckets


@dataclasses.dataclass(frozen=True, order=True)
class BatchShape:
  """The static sizes of a batch.

  Attributes:
    support: S, tokens of a support.
    queries: M, queries of an episode.
    query: T, tokens of an input (and of its target, where they lie in one sequence).
    targets: W, tokens of a target.
  """

  support: int
  queries: int
  query: int
  targets: int

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise ValueError(f"BatchShape: {field.name} must be at least 1, not {self}.")


@dataclasses.dataclass(frozen=True)
class Lengths:
  """What one task's episodes need, in tokens: support (nearly always), query and target."""

  support: int
  query: int
  targets: int

  @classmethod
  def of(
    cls, entry: Mapping[str, Any], num_shots: int, bos: bool, layout: Layout = DECODER
  ) -> "Lengths":
    """Derives them from a manifest entry: the support's mean and two standard deviations."""
    lengths = entry["lengths"]
    shot, target = lengths["shot"], lengths["target"]
    spread = 2 * math.sqrt(num_shots) * shot["std"]
    support = min(num_shots * shot["max"], math.ceil(num_shots * shot["mean"] + spread))
    return cls(
      support=support + lengths["definition"]["max"] + bos + len(layout.end),
      query=layout.usual(lengths) + bos,
      targets=target["max"],
    )

  def within(self, shape: "BatchShape | Lengths") -> bool:
    return (
      self.support <= shape.support and self.query <= shape.query and self.targets <= shape.targets
    )


Groups = list[tuple[BatchShape, tuple[Hashable, ...]]]


def assign(lengths: Mapping[str, Lengths], shapes: Sequence[BatchShape]) -> Groups:
  """Puts each task into the smallest of the given shapes that holds it, else into the largest."""
  by_size = sorted(shapes, key=lambda shape: _cost(shape, shape.queries))
  groups: dict[BatchShape, list[str]] = {shape: [] for shape in by_size}
  for task, length in lengths.items():
    fitting = [shape for shape in by_size if length.within(shape)]
    groups[fitting[0] if fitting else by_size[-1]].append(task)
  return [(shape, tuple(tasks)) for shape, tasks in groups.items() if tasks]


def sort(
  needs: Mapping[str, BatchShape], rates: Mapping[str, float], num_queries: int, max_shapes: int
) -> Groups:
  """Sorts tasks into at most `max_shapes` shapes of `num_queries` queries that hold all they need.

  Args:
    needs: {task: the smallest shape that cuts nothing of it}.
    rates: how often each task is computed.
  """
  lengths = {task: Lengths(need.support, need.query, need.targets) for task, need in needs.items()}
  most = tuple(max(getattr(n, f) for n in needs.values()) for f in ("support", "query", "targets"))
  return plan(lengths, rates, num_queries, max_shapes, most)


def plan(
  lengths: Mapping[Hashable, Lengths],
  rates: Mapping[Hashable, float],
  num_queries: int,
  max_buckets: int,
  limit: tuple[int, int, int],
) -> Groups:
  """Cuts the tasks, in order of size, into buckets with the fewest padded tokens.

  Returns:
    [(shape, tasks)], no bucket empty. Each shape is what its largest tasks need, up to `limit`
    (support, query, target tokens).
  """
  tasks = sorted(lengths, key=lambda task: (_cost(lengths[task], num_queries), task))
  count = len(tasks)
  stride = max(1, math.ceil(count / _MAX_CUTS))
  borders = sorted({*range(0, count, stride), count})

  def shape_of(start: int, stop: int) -> BatchShape:
    members = [lengths[task] for task in tasks[start:stop]]
    needs = [max(getattr(m, name) for m in members) for name in ("support", "query", "targets")]
    support, query, targets = map(min, needs, limit)
    return rounded(support, num_queries, query, targets)

  def cost_of(start: int, stop: int) -> float:
    share = sum(rates[task] for task in tasks[start:stop])
    return share * _cost(shape_of(start, stop), num_queries)

  cost = {
    (a, b): cost_of(a, b) for i, a in enumerate(borders) for b in borders[i + 1 :]
  }  # fmt: skip
  best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
  for _ in range(max_buckets):
    step = dict(best)
    for stop in borders[1:]:
      for start, (before, cuts) in best.items():
        if start < stop and before + cost[start, stop] < step.get(stop, (math.inf,))[0]:
          step[stop] = (before + cost[start, stop], [*cuts, start])
    best = step
  cuts = [*best[count][1], count]
  groups: dict[BatchShape, tuple[Hashable, ...]] = {}
  for start, stop in zip(cuts, cuts[1:], strict=False):
    shape = shape_of(start, stop)
    groups[shape] = groups.get(shape, ()) + tuple(sorted(tasks[start:stop]))
  return list(groups.items())


def _cost(shape: "BatchShape | Lengths", num_queries: int) -> int:
  """Tokens of one padded episode."""
  return shape.support + num_queries * shape.query


def rounded(support: int, queries: int, query: int, targets: int) -> BatchShape:
  """Returns the shape that has room for these sizes, rounded up to what computes well."""
  sizes = zip((support, query, targets), _MULTIPLES, strict=True)
  support, query, targets = (max(unit, -(-size // unit) * unit) for size, unit in sizes)
  return BatchShape(support, queries, query, targets)
