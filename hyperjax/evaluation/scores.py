"""A task's own metric, computed from its records: what its source says that it is scored with."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hyperjax.evaluation import classification, text_metrics

Records = Sequence[Mapping[str, Any]]


def _by_text(metric: Callable) -> Callable[[Records], float]:
  """Decoded answers against references, or against the target where a task has none."""

  def score(records: Records) -> float:
    references = [r.get("references") or [r["target"]] for r in records]
    return next(iter(metric(references, [r["prediction"] for r in records]).values()))

  return score


def _by_option(metric: Callable) -> Callable[[Records], float]:
  """The likeliest options by token against targets."""

  def score(records: Records) -> float:
    answers = [r["option_by_token"] for r in records]
    return next(iter(metric([r["target"] for r in records], answers).values()))

  return score


# {name of a metric function: the figure of one task and seed, from 0 to 1}
METRICS: Mapping[str, Callable[[Records], float]] = {
  "exact_match": _by_text(text_metrics.exact_match),
  "rouge_l": _by_text(text_metrics.rouge_l),
  "rank_classification": lambda records: float(np.mean([r["option_correct"] for r in records])),
  "accuracy": _by_option(classification.accuracy),
  "macro_f1": _by_option(classification.macro_f1),
}


def choose(
  named: Mapping[str, Sequence[str]], overrides: Mapping[str, str] | None = None
) -> dict[str, str]:
  """Returns {task: its metric}: the first that its source names and `METRICS` has.

  Args:
    named: {task: the metrics that its source names}.
    overrides: {a task, or the front part of some tasks' names up to a dot: metric}.

  Raises:
    ValueError: an override names no task or no metric.
  """
  overrides = overrides or {}
  known = {task: next((m for m in names if m in METRICS), None) for task, names in named.items()}
  for prefix, metric in overrides.items():
    if metric not in METRICS:
      raise ValueError(f"unknown metric {metric!r} for {prefix!r}; known: {', '.join(METRICS)}")
    tasks = [task for task in named if task == prefix or task.startswith(f"{prefix}.")]
    if not tasks:
      raise ValueError(f"a metric is given for {prefix!r}, which is no task and no front of one")
    known.update(dict.fromkeys(tasks, metric))
  return {task: metric for task, metric in known.items() if metric is not None}


def by_task(records: Records, metrics: Mapping[str, str]) -> dict[str, float]:
  """Returns {task: its metric, mean over seeds} of the tasks that have one.

  Raises:
    ValueError: a metric of options for a task without.
  """
  groups: dict[tuple[str, int], list] = collections.defaultdict(list)
  for record in records:
    if record["task"] in metrics:
      groups[record["task"], record["seed"]].append(record)
  found: dict[str, list[float]] = collections.defaultdict(list)
  for (task, _), members in sorted(groups.items()):
    try:
      found[task].append(METRICS[metrics[task]](members))
    except KeyError as error:
      raise ValueError(
        f"{task!r} is scored with {metrics[task]}, which needs options; its queries have none: "
        "give another metric for it (gin: METRICS)"
      ) from error
  return {task: float(np.mean(values)) for task, values in found.items()}
