"""Draws finished results as PNG bytes: exact match and recovery per task, curves over training."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Curve = Mapping[str, Sequence[Sequence[int | float]]]  # {method: (minutes, exact match) pairs}
_Style = Mapping[str, Mapping[str, str]]  # {method: colour and marker}
_Bounds = Mapping[str, float | None]  # {"mean", "low", "high"}, the latter two None together

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
MARKERS = ["|", "x", "+", "s", "o", "D", "^", "v", "*"]
OVER_FAMILIES = "score_over_families"
SMALL_GAIN = 0.05  # a task in which in-context gains less has no recovery worth drawing
RECOVERY_RANGE = (-0.5, 1.5)


def label(method: str) -> str:
  """Returns a method's name for people."""
  return LABELS.get(method, method.replace("_", " "))


def ordered(methods: Sequence[str]) -> list[str]:
  """Returns methods in the order of reports: baselines, controls, systems, in-context, others."""
  return [m for m in LABELS if m in methods] + [m for m in methods if m not in LABELS]


def _style(methods: Sequence[str]) -> _Style:
  names = dict.fromkeys([*LABELS, *methods])
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


def _bars(axes: Axes, scores: Mapping[str, _Bounds], style: _Style) -> None:
  """Draws a bar per method, from top to bottom, with its interval."""
  methods = ordered(list(scores))[::-1]
  for row, method in enumerate(methods):
    found = scores[method]
    axes.barh(row, found["mean"], color=style[method]["color"], height=0.62)
    ends = [found["low"], found["high"]] if has_interval(found) else []
    axes.plot(ends, [row] * len(ends), color="black", linewidth=1.5)
    axes.text(max([found["mean"], *ends]) + 0.01, row, f"{found['mean']:.3f}", va="center")
  axes.set_yticks(range(len(methods)), [label(m) for m in methods])
  axes.set_xlim(0, 1)
  _clean(axes, "x")


def _dots(
  axes: Axes, scores: Mapping[str, Mapping[str, float]], methods: Sequence[str], style: _Style
) -> None:
  """Draws a row per task or family, from bottom to top, with a mark per method."""
  for row, found in enumerate(scores.values()):
    ends = [min(found.values()), max(found.values())]
    axes.plot(ends, [row, row], color="#dddddd", linewidth=2, zorder=1)
  marks = {"linestyle": "", "markersize": 7, "markeredgewidth": 1.6, "clip_on": False}
  for method in methods:
    rows = {row: found[method] for row, found in enumerate(scores.values()) if method in found}
    axes.plot(list(rows.values()), list(rows), label=label(method), **marks, **style[method])
  axes.set_yticks(range(len(scores)), list(scores), fontsize=9, parse_math=False)
  axes.set_xlim(-0.02, 1.02)
  axes.set_ylim(-0.6, len(scores) - 0.4)
  _clean(axes, "x")


def has_interval(figure: _Bounds) -> bool:
  """Whether a figure has an interval: one of a single cluster of tasks has none."""
  return None not in (figure["low"], figure["high"])


def intervals(results: Mapping[str, Any]) -> str:
  """Returns what the intervals of an evaluation are over, for people."""
  clusters = results.get("clusters", {})
  number = len({clusters.get(task, task) for task in results["tasks"]})
  if number < 2:
    return f"no intervals over one {'cluster of tasks' if clusters else 'task'}"
  return f"95% intervals over {f'{number} clusters of tasks' if clusters else 'tasks'}"


def main_figure(results: Mapping[str, Any]) -> str:
  """Returns what a report is about: what the results say, the mean over families for one; else
  "score", where a task's own metric is no exact match, or "exact_match"."""
  if "main_figure" in results:
    return results["main_figure"]
  own = set(results.get("metrics", {}).values()) - {"strict_match"}
  return "score" if own and "score" in results["recovery"] else "exact_match"


def of_one_task(figure: str) -> str:
  """Returns the figure of single tasks and families that a mean over families is made of."""
  return "score" if figure == OVER_FAMILIES else figure


def words(figure: str) -> str:
  """Returns what people call a figure."""
  return figure.replace("_", " ")


def tasks(results: Mapping[str, Any], hypermodel: str) -> bytes:
  """Draws a row per task: the main figure of every method (left), the hypermodel's recovery
  (right)."""
  per_task, main = results["tasks"], of_one_task(main_figure(results))
  methods = ordered(list(results["methods"]))
  by_gain = sorted(per_task, key=lambda t: per_task[t]["in_context"][main])
  style, figure = _style(methods), Figure(figsize=(11, 1.6 + 0.27 * len(by_gain)))
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
  scores = {task: {m: per_task[task][m][main] for m in methods} for task in by_gain}
  _dots(left, scores, methods, style)
  left.set_xlabel(words(main))
  left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
  low, high = RECOVERY_RANGE
  for row, task in enumerate(by_gain):
    zero, context, ours = (
      per_task[task][m][main] for m in ("zero_shot", "in_context", hypermodel)
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
  _clean(right, "x")
  figure.subplots_adjust(wspace=0.04)
  return _png(figure)


def summary(results: Mapping[str, Any]) -> bytes:
  """Draws the macro-averaged main figure of every method with its interval."""
  main = main_figure(results)
  methods = {m: found[main] for m, found in results["methods"].items()}
  figure = Figure(figsize=(7, 0.9 + 0.42 * len(methods)))
  axes = figure.subplots()
  _bars(axes, methods, _style(list(methods)))
  axes.set_xlabel(f"macro {words(main)}, {len(results['tasks'])} tasks, {intervals(results)}")
  return _png(figure)


def runs(scores: Mapping[str, Mapping[str, _Bounds]]) -> bytes:
  """Draws a panel per run: the score of every method with its interval.

  Args:
    scores: {run: {method: {"mean", "low", "high"}}}.
  """
  style = _style([method for methods in scores.values() for method in methods])
  figure, panels = _panels({run: 0.42 * len(methods) for run, methods in scores.items()}, 7.0)
  for axes, methods in zip(panels, scores.values(), strict=True):
    _bars(axes, methods, style)
  panels[-1].set_xlabel("score, 95% intervals")
  return _png(figure)


def families(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> bytes:
  """Draws a panel per run: a row per family with the score of every method.

  Args:
    scores: {run: {family: {method: mean}}}.
  """
  methods = [m for found in scores.values() for family in found.values() for m in family]
  methods = ordered(list(dict.fromkeys(methods)))
  style = _style(methods)
  figure, panels = _panels({run: 0.27 * len(found) for run, found in scores.items()}, 8.0)
  for axes, found in zip(panels, scores.values(), strict=True):
    _dots(axes, found, methods, style)
  panels[-1].set_xlabel("score")
  place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 2.5}
  panels[0].legend(ncols=3, frameon=False, fontsize=9, **place)
  return _png(figure)


def _panels(heights: Mapping[str, float], width: float) -> tuple[Figure, list[Axes]]:
  """Returns a figure of titled panels below one another, {title: height in inches}."""
  gap, tall = 0.45, list(heights.values())
  figure = Figure(figsize=(width, sum(tall) + gap * (len(tall) - 1)))
  panels = figure.subplots(
    len(tall), sharex=True, squeeze=False, height_ratios=tall,
    gridspec_kw={"top": 1, "bottom": 0, "hspace": gap * len(tall) / sum(tall)},
  )[:, 0]  # fmt: skip
  for axes, title in zip(panels, heights, strict=True):
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
  return figure, list(panels)


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
      if has_interval(points[0][field]):
        axes.fill_between(at, low, high, color=style[method]["color"], alpha=0.1, linewidth=0)
    axes.set_xlabel("steps of tuning on the task")
    axes.set_ylabel(f"{field.replace('_', ' ')}, mean of {len(results['tasks'])} tasks")
    _clean(axes, "both")
  figure.axes[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=9)
  return _png(figure)


def over_minutes(
  lines: Iterable[Mapping[str, int | float | None]], figure: str = "held_out/exact_match"
) -> list[tuple[float, float]]:
  """Returns (minutes, figure) pairs of the lines of a metrics.jsonl that have both.

  Step 0 is at 0 minutes.
  """
  pairs = []
  for line in lines:
    minutes = line.get("minutes", None if line["step"] else 0.0)
    if minutes is not None and line.get(figure) is not None:
      pairs.append((minutes, line[figure]))
  return pairs


def curve(results: Mapping[str, Any], points: Curve) -> bytes:
  """Draws exact match against minutes of training, with zero-shot and in-context as lines.

  Args:
    results: what figures.summarise returns.
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
