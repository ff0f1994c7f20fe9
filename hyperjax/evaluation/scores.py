"""A task's own metric, computed from its records: what its source says that it is scored with.

A metric is known by its name: one of `METRICS`, or `xlingual_rouge_l:TOKENIZER`.
"""

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
  # As reports have it for all tasks: with case and punctuation, and the answer must have ended.
  "strict_match": lambda records: float(np.mean([r["exact_match"] for r in records])),
}
_NAMES = ", ".join([*METRICS, f"{text_metrics.XLINGUAL}:TOKENIZER"])
OF_OPTIONS = ("rank_classification", "accuracy", "macro_f1")


def choose(
  named: Mapping[str, Sequence[str]],
  overrides: Mapping[str, str] | None = None,
  *,
  with_options: Sequence[str] = (),
) -> dict[str, str]:
  """Returns {task: its metric}: the first that its source names and that can be computed, or
  'strict_match'.

  Args:
    named: {task: the metrics that its source names}.
    overrides: {a task, or the front part of some tasks' names up to a dot: metric}.
    with_options: the tasks whose every example has options.

  Raises:
    ValueError: an override names no task, no metric, or one of options for a task without; or the
      tokenizer of a metric is none.
    FileNotFoundError: the tokenizer of a metric is not to be had.
  """
  overrides = overrides or {}
  can = lambda task, metric: _is_known(metric) and (
    metric not in OF_OPTIONS or task in with_options
  )
  known = {
    task: next((m for m in names if can(task, m)), "strict_match") for task, names in named.items()
  }
  for prefix, metric in overrides.items():
    if not _is_known(metric):
      raise ValueError(f"unknown metric {metric!r} for {prefix!r}; known: {_NAMES}")
    tasks = [task for task in named if task == prefix or task.startswith(f"{prefix}.")]
    if not tasks:
      raise ValueError(f"a metric is given for {prefix!r}, which is no task and no front of one")
    known.update(dict.fromkeys(tasks, metric))
  for task, metric in known.items():
    if metric in OF_OPTIONS and task not in with_options:
      raise ValueError(
        f"{task!r} is to be scored with {metric}, which needs options; not all of its queries have "
        "any: give another metric for it (gin: METRICS)"
      )
    _check_tokenizer(task, metric)
  return known


def _is_known(metric: str) -> bool:
  return metric in METRICS or _tokenizer(metric) is not None


def _tokenizer(metric: str) -> str | None:
  """Returns the tokenizer that a metric's name has; None where it is of another kind."""
  kind, _, tokenizer = metric.partition(":")
  return tokenizer if kind == text_metrics.XLINGUAL else None


def _check_tokenizer(task: str, metric: str) -> None:
  tokenizer = _tokenizer(metric)
  if tokenizer is None:
    return
  try:
    if not tokenizer:
      raise ValueError("it names none")
    text_metrics.pieces(tokenizer)
  except (FileNotFoundError, ValueError) as e:
    raise type(e)(
      f"{task!r} is to be scored with {metric}, whose tokenizer is not to be had: {e}. Name it "
      f"(gin: METRICS = {{{task!r}: '{text_metrics.XLINGUAL}:FILE, FOLDER OR HUGGING FACE ID'}})"
    ) from e


def _metric(name: str) -> Callable[[Records], float]:
  return METRICS[name] if name in METRICS else _by_text(text_metrics.named(name))


def by_seed(records: Records, metrics: Mapping[str, str]) -> dict[tuple[str, int], float]:
  """Returns {(task, seed): the task's metric}."""
  groups: dict[tuple[str, int], list] = collections.defaultdict(list)
  for record in records:
    groups[record["task"], record["seed"]].append(record)
  return {key: _metric(metrics[key[0]])(members) for key, members in groups.items()}
