"""Draws finished results as PNG bytes: exact match and recovery per task, curves over training."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Curve = Mapping[str, Sequence[Sequence[int | float]]]  # {method: (minutes, exact match) pairs}

LABELS = {
  "zero_shot": "zero-shot",
  "other_task_support": "φ of another task",
  "shuffled_outputs": "φ of shuffled outputs",
  "in_context_shuffled": "in-context, shuffled outputs",
  "gisting": "gisting",
  "hyperllama": "HyperLlama",
  "in_context": "in-context",
}
# Okabe and Ito's colours, told apart by most colour-blind readers; shapes differ as well.
COLOURS = ["#999999", "#CC79A7", "#E69F00", "#56B4E9", "#D55E00", "#444444", "#009E73", "#0072B2"]
MARKERS = ["|", "x", "+", "s", "o", "D", "^", "v"]
SMALL_GAIN = 0.05  # a task in which in-context gains less has no recovery worth drawing
RECOVERY_RANGE = (-0.5, 1.5)


def label(method: str) -> str:
  """Returns a method's name for people."""
  return LABELS.get(method, method.replace("_", " "))


def ordered(methods: Sequence[str]) -> list[str]:
  """Returns methods in the order of reports: baselines, controls, systems, in-context, others."""
  return [m for m in LABELS if m in methods] + [m for m in methods if m not in LABELS]


def _style(methods: Sequence[str]) -> dict[str, dict[str, str]]:
  names = [*LABELS, *(m for m in methods if m not in LABELS)]
  return {
    name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
    for i, name in enumerate(names)
  }


def _png(figure: Figure) -> bytes:
  buffer = io.BytesIO()
  FigureCanvasAgg(figure)
  figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", facecolor="white")
  return buffer.getvalue()


def _clean(axes: Axes, grid: str) -> None:
  axes.grid(axis=grid, color="#e5e5e5")
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)


def tasks(results: Mapping[str, Any], hypermodel: str) -> bytes:
  """Draws a row per task: exact match of every method (left), the hypermodel's recovery (right)."""
  per_task, methods = results["tasks"], ordered(list(results["methods"]))
  by_gain = sorted(per_task, key=lambda t: per_task[t]["in_context"]["exact_match"])
  style, rows = _style(methods), range(len(by_gain))
  figure = Figure(figsize=(11, 1.6 + 0.27 * len(by_gain)))
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
  for row, task in enumerate(by_gain):
    scores = [per_task[task][method]["exact_match"] for method in methods]
    left.plot([min(scores), max(scores)], [row, row], color="#dddddd", linewidth=2, zorder=1)
  for method in methods:
    scores = [per_task[task][method]["exact_match"] for task in by_gain]
    left.plot(
      scores,
      rows,
      linestyle="",
      markersize=7,
      markeredgewidth=1.6,
      label=label(method),
      clip_on=False,
      **style[method],
    )
  left.set_yticks(rows, by_gain, fontsize=9)
  left.set_xlim(-0.02, 1.02)
  left.set_xlabel("exact match")
  left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
  low, high = RECOVERY_RANGE
  for row, task in enumerate(by_gain):
    zero, context, ours = (
      per_task[task][m]["exact_match"] for m in ("zero_shot", "in_context", hypermodel)
    )
    if context - zero < SMALL_GAIN:
      right.text(0.02, row, "in-context gains too little", fontsize=7, color="#777777", va="center")
      continue
    value = (ours - zero) / (context - zero)
    right.barh(row, min(max(value, low), high), color=style[hypermodel]["color"], height=0.6)
    if not low <= value <= high:
      right.text(min(max(value, low), high), row, f" {value:.1f}", fontsize=7, va="center")
  right.axvline(0, color="#444444", linewidth=0.8)
  right.axvline(1, color="#444444", linewidth=0.8, linestyle="--")
  right.set_xlim(low, high)
  right.set_xticks([-0.5, 0, 0.5, 1, 1.5], ["", "0", "0.5", "1", "1.5"])
  right.set_xlabel(f"recovery of {label(hypermodel)} (1 = in-context)")
  left.set_ylim(-0.6, len(by_gain) - 0.4)
  for axes in (left, right):
    _clean(axes, "x")
  figure.subplots_adjust(wspace=0.04)
  return _png(figure)


def summary(results: Mapping[str, Any]) -> bytes:
  """Draws the macro-averaged exact match of every method with its interval."""
  methods = ordered(list(results["methods"]))
  style, figure = _style(methods), Figure(figsize=(7, 0.9 + 0.42 * len(methods)))
  axes = figure.subplots()
  for row, method in enumerate(reversed(methods)):
    found = results["methods"][method]["exact_match"]
    axes.barh(row, found["mean"], color=style[method]["color"], height=0.62)
    axes.plot([found["low"], found["high"]], [row, row], color="black", linewidth=1.5)
    axes.text(max(found["high"], found["mean"]) + 0.01, row, f"{found['mean']:.3f}", va="center")
  axes.set_yticks(range(len(methods)), [label(m) for m in reversed(methods)])
  axes.set_xlim(0, 1)
  axes.set_xlabel(f"macro exact match over {len(results['tasks'])} tasks, 95% intervals over tasks")
  _clean(axes, "x")
  return _png(figure)


def steps(results: Mapping[str, Any]) -> bytes:
  """Draws each method's macro averages against the steps that it was tuned for.

  Args:
    results: {"methods": {method: [{"step", "exact_match": {"mean", "low", "high"},
      "log_likelihood": ...}]}, "tasks": [names]}.
  """
  methods = results["methods"]
  style, figure = _style(list(methods)), Figure(figsize=(11, 4.2))
  for axes, field in zip(
    figure.subplots(1, 2), ("exact_match", "log_likelihood"), strict=True
  ):
    for method, points in methods.items():
      at = [point["step"] for point in points]
      mean, low, high = ([p[field][k] for p in points] for k in ("mean", "low", "high"))
      axes.plot(at, mean, label=label(method), markersize=5, linewidth=1.6, **style[method])
      axes.fill_between(at, low, high, color=style[method]["color"], alpha=0.1, linewidth=0)
    axes.set_xlabel("steps of tuning on the task")
    axes.set_ylabel(f"{field.replace('_', ' ')}, mean of {len(results['tasks'])} tasks")
    _clean(axes, "both")
  figure.axes[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=9)
  return _png(figure)


def curve(results: Mapping[str, Any], points: Curve) -> bytes:
  """Draws exact match against minutes of training, with zero-shot and in-context as lines.

  Args:
    results: what report.summarise returns.
    points: {method or name: (minutes, exact match) pairs}.
  """
  style, figure = _style([*results["methods"], *points]), Figure(figsize=(7, 4.2))
  axes = figure.subplots()
  for method, dashes in (("in_context", "--"), ("zero_shot", ":")):
    height = results["methods"][method]["exact_match"]["mean"]
    axes.axhline(height, linestyle=dashes, color="#333333", linewidth=1.2)
    axes.annotate(
      f"{label(method)} {height:.3f}",
      (1, height),
      xycoords=("axes fraction", "data"),
      xytext=(-4, 3),
      textcoords="offset points",
      ha="right",
      fontsize=9,
    )
  for name, pairs in points.items():
    minutes, scores = zip(*sorted(map(tuple, pairs)), strict=True)
    axes.plot(minutes, scores, label=label(name), markersize=5, linewidth=1.6, **style[name])
  axes.set_xlabel("minutes of training")
  axes.set_ylabel("macro exact match")
  axes.set_xlim(left=0)
  axes.set_ylim(bottom=0)
  axes.margins(y=0.12)
  axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=9)
  _clean(axes, "both")
  return _png(figure)
