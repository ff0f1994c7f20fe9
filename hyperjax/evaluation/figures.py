"""From the scored queries of all methods to what results.json holds: every figure as plain data.

The form of a record is in `report`.
"""

import collections
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import hyperjax
from hyperjax.evaluation import metrics, plots, scores

Records = Mapping[str, Sequence[Mapping[str, Any]]]

# {figure: field of a record}
FIGURES = {
  "exact_match": "exact_match",
  "log_likelihood": "log_likelihood",
  "option_accuracy": "option_correct",
}
RECOVERED = ("exact_match", "log_likelihood", "score", plots.OVER_FAMILIES)
# What an evaluation adds to the methods that it is given: what a report needs, and controls.
NEEDED = ZERO_SHOT, IN_CONTEXT = ("zero_shot", "in_context")
CONTROLS = OTHER_TASK, SHUFFLED, IN_CONTEXT_SHUFFLED = (
  "other_task_support", "shuffled_outputs", "in_context_shuffled"
)  # fmt: skip
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def summarise(
  records: Records,
  *,
  hypermodel: str,
  about: Mapping[str, str],
  task_metrics: Mapping[str, str] | None = None,
  left_out: Mapping[str, int] | None = None,
  clusters: metrics.Clusters | None = None,
) -> dict[str, Any]:
  """Returns all figures, and what they are `about`, as plain JSON data; an undefined recovery is
  null with a "note", and so are the ends of an interval that there is none of.

  The mean over families is there where they are fewer than the tasks and more than one. It is the
  main figure where each family is one cluster, such as a data set with its templates: papers
  average over these.
  """
  check(records, hypermodel)
  clusters = {task: name for task, name in (clusters or {}).items() if name != task}
  methods = plots.ordered(list(records))
  # {figure: {method: {(task, seed): value}}}
  cells = {
    figure: {m: found for m in methods if (found := metrics.by_seed(records[m], field))}
    for figure, field in FIGURES.items()
  }
  if task_metrics:
    cells["score"] = {m: scores.by_seed(records[m], task_metrics) for m in methods}
  # {figure: {method: {task: value}}}
  values = {
    figure: {m: metrics.by_task(found) for m, found in by_method.items()}
    for figure, by_method in cells.items()
  }
  tasks = sorted(values["exact_match"][hypermodel])
  families = sorted({metrics.family(task) for task in tasks})
  seeds = sorted({record["seed"] for record in records[hypermodel]})
  averaged = dict(values)
  if task_metrics and 1 < len(families) < len(tasks):
    averaged[plots.OVER_FAMILIES] = {m: metrics.by_family(v) for m, v in values["score"].items()}
  if task_metrics and len(seeds) > 1:
    worst = {m: metrics.by_task(found, min) for m, found in cells["score"].items()}
    averaged["score_worst_seed"] = worst
  of_families = metrics.family_clusters(tasks, clusters)
  # {figure: the clusters of what it is averaged over}
  drawn = dict.fromkeys(averaged, clusters) | {plots.OVER_FAMILIES: of_families}
  recoveries = {
    method: {
      figure: _recovery(found[method], found[ZERO_SHOT], found[IN_CONTEXT], drawn[figure])
      for figure, found in averaged.items()
      if figure in RECOVERED
    }
    for method in methods
    if method not in NEEDED
  }
  results = {
    "methods": {
      method: {
        figure: metrics.macro(found[method], drawn[figure])._asdict()
        for figure, found in averaged.items()
        if method in found
      }
      for method in methods
    },
    "metrics": dict(task_metrics or {}),
    "left_out": dict(left_out or {}),
    "clusters": clusters,
    "recovery": recoveries[hypermodel],
    "recoveries": recoveries,
    "families": _per_group(values, methods, families, True),
    "tasks": _per_group(values, methods, tasks, False),
    "by_seed": _per_seed(cells, records[hypermodel]),
    "hypermodel": hypermodel,
    **about,
    "versions": versions(),
    "seeds": seeds,
    "num_queries": len(records[hypermodel]),
  }
  # Each family has a cluster of its own, such as a data set.
  main = plots.OVER_FAMILIES in averaged and len(set(of_families.values())) == len(families)
  return results | {"main_figure": plots.OVER_FAMILIES if main else plots.main_figure(results)}


def check(records: Records, hypermodel: str) -> None:
  """Raises ValueError unless all methods answered the same queries and the needed ones did."""
  for method in (*NEEDED, hypermodel):
    if not records.get(method):
      raise ValueError(f"method '{method}' has no records; the report needs it.")
  asked = {
    method: sorted((r["task"], r["seed"], r["query_id"], r["target"]) for r in given)
    for method, given in records.items()
  }
  for method, queries in asked.items():
    if queries != asked[hypermodel]:
      counts = f"{len(queries)} and {len(asked[hypermodel])}"
      different = sorted(set(queries) ^ set(asked[hypermodel])) or ["repeated ones"]
      raise ValueError(
        f"'{method}' and '{hypermodel}' did not answer the same queries ({counts}); the first "
        f"difference is {different[0]}."
      )


def _recovery(
  method: Mapping[str, float], zero_shot: Mapping[str, float], in_context: Mapping[str, float],
  clusters: metrics.Clusters,
) -> dict[str, Any]:  # fmt: skip
  found = metrics.recovery(method, zero_shot, in_context, clusters)
  if found.defined:
    return {"mean": found.mean, "low": found.low, "high": found.high}
  gain = found.gain
  if gain.low is not None:
    why = (
      f"in-context - zero-shot is {gain.mean:.3f} [{gain.low:.3f}, {gain.high:.3f}], not wholly "
      "above 0"
    )
  elif len(method) == 1:
    why = "one task has no interval"
  else:
    why = f"{len(method)} tasks that are versions of one have no interval"
  return {"mean": None, "low": None, "high": None, "note": f"undefined: {why}"}


def _per_group(
  values: Mapping[str, Mapping[str, Mapping[str, float]]],
  methods: Sequence[str],
  groups: Sequence[str],
  families: bool,
) -> dict[str, dict[str, dict[str, float]]]:
  """Returns {task or family: {method: {figure: mean}}}."""
  grouped = {
    figure: {m: metrics.by_family(v) if families else v for m, v in found.items()}
    for figure, found in values.items()
  }
  return {
    group: {
      method: {
        figure: found[method][group]
        for figure, found in grouped.items()
        if group in found.get(method, {})
      }
      for method in methods
    }
    for group in groups
  }


def _per_seed(
  cells: Mapping[str, Mapping[str, Mapping[tuple[str, int], float]]],
  asked: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Returns a row for every method, task and seed: all figures, and what the task's name says.

  A task is called by its family (a data set, a category), a dot and, last, its template; without a
  dot it is a family of its own, whose template is null.
  """
  counts = collections.Counter((record["task"], record["seed"]) for record in asked)
  return [
    {
      "method": method, "task": task, "family": metrics.family(task),
      "template": task.rpartition(".")[2] if "." in task else None, "seed": seed,
      "num_queries": counts[task, seed],
      **{
        figure: found[method][task, seed]
        for figure, found in cells.items()
        if (task, seed) in found.get(method, {})
      },
    }
    for method in cells["exact_match"]
    for task, seed in sorted(counts)
  ]  # fmt: skip


def versions() -> dict[str, str]:
  """Returns the versions of what computed the figures."""
  found = {"hyperjax": hyperjax.__version__, "python": platform.python_version()}
  return found | {name: importlib.metadata.version(name) for name in LIBRARIES}
