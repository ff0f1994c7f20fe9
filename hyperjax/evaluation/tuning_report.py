"""From curves over tuning steps to results.json, report.md and curves.png."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hyperjax import storage
from hyperjax.evaluation import figures, metrics, plots

# [{"step", "exact_match", "log_likelihood"}].
Curve = Sequence[Mapping[str, int | float]]
# {method: {task: [curve of each seed]}}.
Cells = Mapping[str, Mapping[str, Sequence[Curve]]]

FIELDS = ("exact_match", "log_likelihood")


def stored(file: pathlib.Path, make: Callable[[], Curve]) -> Curve:
  """Reads a curve back, or makes and stores it."""
  if file.exists():
    return json.loads(file.read_text())
  curve = make()
  storage.write_whole(file, json.dumps(curve).encode())
  return curve


def write(
  folder: str | os.PathLike, cells: Cells, about: Mapping[str, str], clusters: metrics.Clusters
) -> dict[str, Any]:
  """Writes the report of a tuning run; returns what results.json holds. `about` and `clusters` are
  as in `report.write`."""
  results = {**summarise(cells, clusters), **about, "versions": figures.versions()}
  files = {
    "curves.png": plots.steps(results),
    "report.md": markdown(results).encode(),
    "results.json": (json.dumps(results, indent=2, allow_nan=False) + "\n").encode(),
  }
  for name, content in files.items():
    storage.write_whole(pathlib.Path(folder) / name, content)
  print(table(results))
  return results


def summarise(cells: Cells, clusters: metrics.Clusters) -> dict[str, Any]:
  """Macro averages over tasks at every step, with 95% bootstrap intervals over their clusters.

  A task's figure is its mean over seeds.
  """
  methods = {}
  for method, tasks in cells.items():
    first = next(iter(tasks.values()))[0]
    methods[method] = [
      {
        "step": int(point["step"]),
        **{
          field: metrics.macro({
            task: float(np.mean([curve[index][field] for curve in curves]))
            for task, curves in tasks.items()
          }, clusters)._asdict()
          for field in FIELDS
        },
      }
      for index, point in enumerate(first)
    ]
  per_task = {
    task: {method: tasks[task] for method, tasks in cells.items()}
    for task in next(iter(cells.values()))
  }
  return {"methods": methods, "tasks": per_task}


def table(results: Mapping[str, Any]) -> str:
  """Exact match of every method at every step, as a Markdown table."""
  steps = sorted({p["step"] for points in results["methods"].values() for p in points})
  lines = [
    "| exact match after step | " + " | ".join(map(str, steps)) + " |",
    "|---" * (len(steps) + 1) + "|",
  ]
  for method, points in results["methods"].items():
    by_step = {p["step"]: f"{p['exact_match']['mean']:.3f}" for p in points}
    cells = " | ".join(by_step.get(step, "") for step in steps)
    lines.append(f"| {plots.label(method)} | {cells} |")
  return "\n".join(lines)


def markdown(results: Mapping[str, Any]) -> str:
  """The report."""
  return "\n".join([
    "# Tuning on single tasks",
    "",
    f"`{results['command']}`",
    "",
    table(results),
    "",
    "![curves](curves.png)",
    "",
    "Exact match by teacher forcing (which equals greedy decoding), macro-averaged over "
    f"{len(results['tasks'])} tasks; the queries asked are never tuned on. Step 0 is the start. "
    f"The frozen model: {results['base']}.",
    "",
  ])
