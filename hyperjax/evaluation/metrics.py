"""From scored queries to figures: per task, per family, macro-averaged, with intervals over tasks.

The unit of generalisation is the task, so a figure is a macro average (every task counts alike,
whatever its number of queries) and its interval is a bootstrap over tasks. Tasks that are versions
of one thing, such as the templates of a data set, are no independent draws: they are a cluster,
which is drawn with all its members. `Clusters` is {task: its cluster}; a task that it does not name
is a cluster of its own. A record is a dict with at least "task", "seed" and the field that is
averaged.
"""

import collections
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Clusters = Mapping[str, str]
_APART: Clusters = types.MappingProxyType({})

SAMPLES = 10_000  # bootstrap resamples
COVERAGE = 0.95


class Interval(NamedTuple):
  """A figure and its bootstrap interval over clusters of tasks; None for one cluster, which tells
  nothing of others."""

  mean: float
  low: float | None
  high: float | None


class Recovery(NamedTuple):
  """How much of in-context's gain over zero-shot a method reaches; 1 is all of it.

  All three figures are NaN where the gain has no interval that is wholly above 0: there may be
  nothing to recover, least of all where reading the examples in context does harm.
  """

  mean: float
  low: float
  high: float
  gain: Interval  # in-context - zero-shot, the denominator

  @property
  def defined(self) -> bool:
    return not math.isnan(self.mean)


def exact_match(prediction: str, target: str) -> int:
  """Returns 1 where two texts are equal up to white space around them, else 0."""
  return int(prediction.strip() == target.strip())


def family(task: str) -> str:
  """Returns a task's family: its name before the last dot, or the name itself without one."""
  return task.rpartition(".")[0] or task


def by_seed(
  records: Sequence[Mapping[str, Any]], field: str
) -> dict[tuple[str, int], float]:
  """Returns {(task, seed): mean over queries}.

  Records without the field are left out (options, for instance, exist in some tasks only), and so
  are tasks and seeds of which no record has it.
  """
  groups: dict[tuple[str, int], list[float]] = collections.defaultdict(list)
  for record in records:
    if record.get(field) is not None:
      groups[record["task"], record["seed"]].append(float(record[field]))
  return {key: float(np.mean(values)) for key, values in groups.items()}


def by_task(
  values: Mapping[tuple[str, int], float], reduce: Callable[[Sequence[float]], float] = np.mean
) -> dict[str, float]:
  """Returns {task: mean over seeds} of {(task, seed): value}, sorted by task; `reduce=min` for the
  worst seed."""
  groups: dict[str, list[float]] = collections.defaultdict(list)
  for (task, _), value in sorted(values.items()):
    groups[task].append(value)
  return {task: float(reduce(members)) for task, members in groups.items()}


def by_family(values: Mapping[str, float]) -> dict[str, float]:
  """Returns {family: mean over its tasks} of {task: value}."""
  groups = collections.defaultdict(list)
  for task, value in values.items():
    groups[family(task)].append(value)
  return {name: float(np.mean(members)) for name, members in sorted(groups.items())}


def family_clusters(tasks: Iterable[str], clusters: Clusters) -> dict[str, str]:
  """Returns {family: the cluster that all its tasks are of} of the families that have one."""
  found: dict[str, set[str]] = collections.defaultdict(set)
  for task in tasks:
    found[family(task)].add(clusters.get(task, task))
  return {name: min(members) for name, members in found.items() if len(members) == 1}


def macro(values: Mapping[str, float], clusters: Clusters = _APART, *, seed: int = 0) -> Interval:
  """Returns the mean over tasks of {task: value}, with its interval."""
  array = _aligned(values)[0]
  draws = _draws(values, clusters, seed)
  resampled = None if draws is None else draws @ array / draws.sum(axis=1)
  return _interval(float(array.mean()), resampled)


def difference(
  left: Mapping[str, float], right: Mapping[str, float], clusters: Clusters = _APART, *,
  seed: int = 0,
) -> Interval:  # fmt: skip
  """Returns the macro average of left - right, both of the same resampled tasks."""
  a, b = _aligned(left, right)
  return macro(dict(zip(sorted(left), (a - b).tolist(), strict=True)), clusters, seed=seed)


def recovery(
  method: Mapping[str, float],
  zero_shot: Mapping[str, float],
  in_context: Mapping[str, float],
  clusters: Clusters = _APART,
  *,
  seed: int = 0,
) -> Recovery:
  """Returns (method - zero_shot) / (in_context - zero_shot), a ratio of macro averages.

  Numerator and denominator are of the same resampled tasks.

  Raises:
    ValueError: the three are not over the same tasks.
  """
  ours, low, high = _aligned(method, zero_shot, in_context)
  gain = difference(in_context, zero_shot, clusters, seed=seed)
  if gain.low is None or gain.low <= 0:
    return Recovery(math.nan, math.nan, math.nan, gain)
  draws = _draws(method, clusters, seed)
  # A resample without any gain has no ratio and is left out.
  with np.errstate(divide="ignore", invalid="ignore"):
    ratios = (draws @ (ours - low)) / (draws @ (high - low))
  interval = _interval(float((ours - low).mean() / gain.mean), ratios[np.isfinite(ratios)])
  return Recovery(*interval, gain)


def _aligned(*values: Mapping[str, float]) -> list[Float[np.ndarray, " tasks"]]:
  """Returns the values of mappings over the same tasks as arrays, in the tasks' order."""
  first, *others = values
  if not first:
    raise ValueError("there is no task to average over.")
  for other in others:
    if set(other) != set(first):
      names = ", ".join(sorted(set(other) ^ set(first)))
      raise ValueError(f"methods were evaluated on different tasks; these are not in all: {names}.")
  return [np.array([mapping[task] for task in sorted(first)], np.float64) for mapping in values]


def _draws(
  tasks: Iterable[str], clusters: Clusters, seed: int
) -> Int[np.ndarray, "samples tasks"] | None:
  """Returns how often each bootstrap resample has each of the sorted tasks, the same for every
  figure of a report; None for one cluster.

  As many clusters are drawn as there are, each with all its tasks.
  """
  names = [clusters.get(task, task) for task in sorted(tasks)]
  which = np.unique(names, return_inverse=True)[1]
  number = int(which.max()) + 1
  if number < 2:
    return None
  drawn = np.random.default_rng(seed).integers(number, size=(SAMPLES, number))
  drawn += number * np.arange(SAMPLES)[:, None]
  times = np.bincount(drawn.ravel(), minlength=SAMPLES * number).reshape(SAMPLES, number)
  return times[:, which]


def _interval(mean: float, resampled: Float[np.ndarray, " samples"] | None) -> Interval:
  if resampled is None:
    return Interval(mean, None, None)
  tail = (1 - COVERAGE) / 2
  low, high = np.quantile(resampled, [tail, 1 - tail])
  return Interval(mean, float(low), float(high))
