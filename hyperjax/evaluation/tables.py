"""Finished evaluations side by side: as tables, as Markdown and as CSV.

`Runs` is {name of a run: what its results.json holds}. The score of a method is the mean of every
task's own metric where the results hold it, else exact match; it is averaged over families where
the results are about that, else over tasks.
"""

import csv
import dataclasses
import functools
import html
import importlib.resources
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hyperjax.evaluation import metrics, plots

Results = Mapping[str, Any]
Runs = Mapping[str, Results]
# A text, a number, {"mean", "low", "high"} (the latter two None where a figure has no interval), or
# None where there is nothing to show.
Cell = str | int | float | Mapping[str, Any] | None

FIGURES = (
  "score", plots.OVER_FAMILIES, "score_worst_seed", "exact_match", "option_accuracy",
  "log_likelihood",
)  # fmt: skip
BOUNDS = ("mean", "low", "high")


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows under a header, with a title and a note above them."""

  title: str
  note: str
  header: Sequence[str]
  rows: Sequence[Sequence[Cell]]


def score(results: Results) -> str:
  """Returns which figure of a run is its score: the one over families, "score" or "exact_match"."""
  held = lambda figure: all(figure in method for method in results["methods"].values())
  if plots.main_figure(results) == plots.OVER_FAMILIES and held(plots.OVER_FAMILIES):
    return plots.OVER_FAMILIES
  return "score" if held("score") else "exact_match"


def scores(results: Results) -> dict[str, Mapping[str, float | None]]:
  """Returns {method: its score, with its interval}."""
  return {method: found[score(results)] for method, found in results["methods"].items()}


def grouped(results: Results, groups: str) -> dict[str, dict[str, float]]:
  """Returns {task or family: {method: its score}}; `groups` is "tasks" or "families"."""
  figure = plots.of_one_task(score(results))
  return {
    group: {method: found[figure] for method, found in methods.items() if figure in found}
    for group, methods in results[groups].items()
  }


def recovery(results: Results, method: str) -> Mapping[str, Any] | None:
  """Returns a method's recovery by the score; None where the results hold none."""
  return results["recoveries"].get(method, {}).get(score(results))


def metric(results: Results, task: str) -> str:
  """Returns the name of the metric that is a task's score."""
  return results.get("metrics", {}).get(task, "exact_match")


def data(results: Results) -> list[str]:
  """Returns the data sets of a run: the first parts of its tasks' names."""
  return sorted({task.split(".")[0] for task in results["tasks"]})


# ---- Tables -------------------------------------------------------------------------------------


def comparison(runs: Runs) -> Table:
  """A row per run and method."""
  figures = _figures(runs)
  header = ["run", "data", "method", *map(_words, figures), "recovery"]
  rows = [
    [run, ", ".join(data(results)), plots.label(method), *map(found.get, figures),
     recovery(results, method)]
    for run, results in runs.items()
    for method, found in results["methods"].items()
  ]  # fmt: skip
  note = (
    "Macro averages over tasks; in brackets 95% bootstrap intervals over tasks, in which versions "
    "of one task, such as the templates of a data set, are drawn together. Score: by the tasks' "
    "own metrics; over families: the mean over data sets (or categories) of the mean over their "
    "tasks; worst seed: of each task the lowest of its seeds. Recovery: what a method gains of "
    "that which reading the examples in context gains over zero-shot, by score (over families, "
    "where these are data sets with their templates), or by exact match where a run has no score. "
    "Each run's report.md defines its figures."
  )
  return Table("Methods", note, header, rows)


def per_group(runs: Runs, groups: str) -> Table:
  """A row per run and task or family, with the score of every method."""
  methods = plots.ordered(list(dict.fromkeys(m for r in runs.values() for m in r["methods"])))
  by_task = groups == "tasks"
  header = ["run", *(["task", "metric"] if by_task else ["family"]), *map(plots.label, methods)]
  rows = [
    [run, group, *([_words(metric(results, group))] if by_task else []), *map(found.get, methods)]
    for run, results in runs.items()
    for group, found in grouped(results, groups).items()
  ]
  return Table(groups.capitalize(), "The score: the mean over queries and seeds.", header, rows)


def published(runs: Runs) -> Table:
  """The figures that papers give for the data sets of the runs; without rows where there are none.

  A data set is known by how its name begins.
  """
  held = [name for results in runs.values() for name in data(results)]
  header = ["data", "system", "model", "metric", "value", "source"]
  rows = [
    [str(entry[name]) for name in header]
    for entry in _published()
    if any(name.startswith(entry["data"]) for name in held)
  ]
  note = (
    "In percent, and of other models, examples and prompts than the runs above: they tell what has "
    "been reached, not which method is better."
  )
  return Table("Published figures", note, header, rows)


@functools.cache
def _published() -> list[dict[str, Any]]:
  file = importlib.resources.files("hyperjax.evaluation") / "published.json"
  return json.loads(file.read_text(encoding="utf-8"))


def _figures(runs: Runs) -> list[str]:
  """The figures that any method of any run has."""
  held = {name for r in runs.values() for found in r["methods"].values() for name in found}
  return [figure for figure in FIGURES if figure in held]


def _words(name: str) -> str:
  return name.replace("_", " ")


# ---- Text ---------------------------------------------------------------------------------------


def text(cell: Cell, digits: int = 3) -> str:
  """Returns a cell as people read it, its numbers with so many digits behind the point."""
  if isinstance(cell, Mapping):
    if cell["mean"] is None:
      return "undefined"
    mean, *ends = (f"{cell[bound]:.{digits}f}" for bound in BOUNDS if cell[bound] is not None)
    return f"{mean} [{', '.join(ends)}]" if ends else mean
  if isinstance(cell, float):
    return f"{cell:.{digits}f}"
  return "" if cell is None else str(cell)


def markdown(table: Table) -> str:
  """Returns a table with its title and note."""
  rows = [[_escaped(text(cell)) for cell in row] for row in table.rows]
  lines = [table.header, ["---"] * len(table.header), *rows]
  drawn = "\n".join("| " + " | ".join(line) + " |" for line in lines)
  return f"## {table.title}\n\n{table.note}\n\n{drawn}\n"


def _escaped(words: str) -> str:
  """A text as one cell of a Markdown table: neither its bars nor its tags mean anything."""
  return " ".join(html.escape(words, quote=False).replace("|", "\\|").split())


def methods_csv(runs: Runs) -> str:
  """A row per run and method: every figure and the recovery in three columns each."""
  figures = [*_figures(runs), "recovery"]
  header = ["run", "data", "method", "tasks", "queries"]
  header += [f"{figure}_{bound}" for figure in figures for bound in BOUNDS]
  rows = []
  for run, results in runs.items():
    size = [len(results["tasks"]), results["num_queries"]]
    for method, found in results["methods"].items():
      cells = found | {"recovery": recovery(results, method)}
      bounds = [(cells.get(figure) or {}).get(bound) for figure in figures for bound in BOUNDS]
      rows.append([run, " ".join(data(results)), method, *size, *bounds])
  return _csv(header, rows)


def tasks_csv(runs: Runs) -> str:
  """A row per run, method, task and figure; the metric of a score is the task's own."""
  rows = (
    [run, method, metrics.family(task), task, figure,
     metric(results, task) if figure == "score" else figure, value]
    for run, results in runs.items()
    for task, methods in results["tasks"].items()
    for method, found in methods.items()
    for figure, value in found.items()
  )  # fmt: skip
  return _csv(["run", "method", "family", "task", "figure", "metric", "value"], rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  buffer = io.StringIO()
  csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
  return buffer.getvalue()
