"""From the scored queries of all methods to results.json, report.md, plots and a table.

Every method answers the same queries, each query is one record:
{"task", "query_id", "seed", "input", "target", "prediction", "exact_match", "log_likelihood",
"tokens"[, "references"][, "option_correct", "option_by_token"]}.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table

from hyperjax import storage
from hyperjax.evaluation import figures, metrics, plots, tables
from hyperjax.evaluation.figures import Records

# {figure: its column, behind those of the main one}
OTHERS = {
  "exact_match": "exact match",
  "option_accuracy": "option accuracy",
  "score": "score",
  plots.OVER_FAMILIES: "score over families",
  "score_worst_seed": "score, worst seed",
}
SAMPLES_PER_TASK = 2

DEFINITIONS = """\
- **Exact match**: the prediction, decoded greedily up to the terminator, equals the target, both \
without white space around them.
- **Log-likelihood**: the mean over queries of the *sum* over the target's tokens, its terminator \
included, of the natural log-probability.
- **Option accuracy**: the share of queries whose right option is the likeliest, over the tasks \
that have options.
- **Score**: every task's own metric, which its source names ("metrics" in results.json), from 0 \
to 1; its mean over families counts every family (a data set, a category) alike; for the worst \
seed every task counts with the lowest of its seeds' scores.
- Every figure is a **macro average**: the mean over queries within a task and a seed, then over \
seeds, then over tasks; a score over families: over the tasks of each family, then over families. \
In brackets: a 95% bootstrap interval over tasks, or families (10 000 resamples).
- **Clusters** ("clusters" in results.json): tasks that are versions of one thing, such as the \
templates of a data set or copies of a task with other labels, are no independent tasks, and the \
bootstrap draws them together. One task or cluster alone has no interval. Where every family is a \
cluster, the report is about the score over families, as papers are.
- **Recovery** = (method - zero-shot) / (in-context - zero-shot), a ratio of macro averages: of \
the score over families, where the report is about that; else of the score, where a task's metric \
is another than exact match; else of exact match. Numerator and denominator are of the same \
resampled tasks. It is undefined where the denominator has no interval that is wholly above 0.
- **Zero-shot** reads the query alone. Where a task's instruction stands in front of its examples, \
as in Super-NaturalInstructions, zero-shot lacks it with them, so that recovery is of what both \
give. Where it stands in the query, as in P3, zero-shot has it.
- All methods answered the same queries with the same supports. **φ of another task** and **φ of \
shuffled outputs** are controls: the hypermodel read the support of another task, its instruction \
included, or this task's inputs with each other's outputs, behind this task's own instruction. \
**in-context, shuffled outputs**: the model itself read the latter, which shows how much of these \
tasks their instructions, inputs and outputs give away without the pairing.
"""


def write(
  folder: str | os.PathLike,
  records: Records,
  *,
  hypermodel: str = "hyperllama",
  about: Mapping[str, str],
  curve: plots.Curve | None = None,
  task_metrics: Mapping[str, str] | None = None,
  left_out: Mapping[str, int] | None = None,
  clusters: metrics.Clusters | None = None,
) -> dict[str, Any]:
  """Writes a report and prints its table; returns what results.json holds.

  Files: results.json, records.jsonl (every query of every method), report.md, methods.png,
  tasks.png and, with a curve, curve.png. Each is written whole or not at all, results.json last.

  Args:
    folder: where to; created where it does not exist.
    records: {method: records}; zero_shot, in_context and the hypermodel have to be among them.
    hypermodel: the method that "recovery" is about.
    about: where the figures come from: "command", the command line; "config", its gin
      configuration; "base", what the frozen model was stored and computed in.
    curve: {method: (minutes of training, macro exact match) pairs}.
    task_metrics: {task: its own metric}, as `scores.choose` returns it.
    left_out: {task: how many of its queries were not asked}.
    clusters: {task: what it is one of several versions of}: they are resampled together.

  Raises:
    ValueError: a method is missing, or methods did not answer the same queries.
  """
  results = figures.summarise(
    records, hypermodel=hypermodel, about=about, task_metrics=task_metrics, left_out=left_out,
    clusters=clusters,
  )  # fmt: skip
  images = {"methods.png": plots.summary(results), "tasks.png": plots.tasks(results, hypermodel)}
  if curve:
    images["curve.png"] = plots.curve(results, curve)
  files = {name: image for name, image in images.items()}
  files["records.jsonl"] = _lines(records)
  files["report.md"] = markdown(results, records, list(images)).encode()
  files["results.json"] = (json.dumps(results, indent=2, allow_nan=False) + "\n").encode()
  for name, content in files.items():
    storage.write_whole(pathlib.Path(folder) / name, content)
  rich.console.Console().print(table(results))
  return results


def read_records(folder: str | os.PathLike) -> dict[str, list[dict[str, Any]]]:
  """Returns {method: records} from a report's records.jsonl."""
  records: dict[str, list[dict[str, Any]]] = {}
  with open(pathlib.Path(folder) / "records.jsonl") as file:
    for line in file:
      record = json.loads(line)
      records.setdefault(record.pop("method"), []).append(record)
  return records


# ---- For people ---------------------------------------------------------------------------------


def _rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Returns the header and the rows of the main table: the main figure first."""
  main = plots.main_figure(results)
  held = {name for found in results["methods"].values() for name in found}
  others = [name for name in OTHERS if name in held - {main}]
  header = ["method", plots.words(main), "recovery", "log-likelihood", *map(OTHERS.get, others)]
  rows = []
  for method, found in results["methods"].items():
    recovered = results["recoveries"].get(method, {})
    row = [plots.label(method), tables.text(found[main]), tables.text(recovered.get(main), 2)]
    row += [tables.text(found["log_likelihood"], 2)]
    row += [tables.text(found.get(name)) for name in others]
    rows.append(row)
  return header, rows


def table(results: Mapping[str, Any]) -> rich.table.Table:
  """Returns the main table for a terminal of 80 columns."""
  header, rows = _rows(results)
  size = f"{len(results['tasks'])} tasks, {results['num_queries']} queries"
  drawn = rich.table.Table(
    title=f"Held-out: {size}; {plots.intervals(results)}",
    box=rich.box.SIMPLE_HEAD,
    show_edge=False,
    padding=0,
  )
  for i, name in enumerate([*header[:3], "log-lik."]):
    drawn.add_column(name, justify="right" if i else "left", no_wrap=bool(i))
  for method, row in zip(results["methods"], rows, strict=True):
    likelihood = row[3].split(" [")[0]
    style = "bold" if method == results["hypermodel"] else None
    drawn.add_row(*row[:3], likelihood, style=style)
  return drawn


def headline(results: Mapping[str, Any]) -> str:
  """Returns the result in one sentence."""
  main, name = plots.main_figure(results), plots.label(results["hypermodel"])
  recovered = results["recovery"][main]
  means = {method: found[main]["mean"] for method, found in results["methods"].items()}
  if recovered["mean"] is None:
    share = f"recovery is {recovered['note']}"
  else:
    share = (
      f"{name} recovers {recovered['mean']:.0%} [{recovered['low']:.0%}, {recovered['high']:.0%}] "
      "of what reading the examples in context gains"
    )
  size = f"{len(results['tasks'])} held-out task{'s' * (len(results['tasks']) > 1)}"
  if main == plots.OVER_FAMILIES:
    size += f" in {len(results['families'])} families"
  return (
    f"On {size}, {share}: {plots.words(main)} "
    f"{means['zero_shot']:.3f} zero-shot, {means[results['hypermodel']]:.3f} {name}, "
    f"{means['in_context']:.3f} in context."
  )


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _group_table(results: Mapping[str, Any], key: str, name: str) -> str:
  methods, main = list(results["methods"]), plots.of_one_task(plots.main_figure(results))
  rows = [
    [group, *(f"{found[m][main]:.3f}" for m in methods)]
    for group, found in results[key].items()
  ]
  return _markdown_table([name, *map(plots.label, methods)], rows)


def _samples(results: Mapping[str, Any], records: Records) -> str:
  """Returns a table of the first queries of each task with every method's prediction."""
  methods = list(results["methods"])
  seed = results["seeds"][0]
  found: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
  for method in methods:
    for record in records[method]:
      if record["seed"] == seed:
        found.setdefault((record["task"], record["query_id"]), {})[method] = record
  rows, shown = [], dict.fromkeys(results["tasks"], 0)
  for (task, _), answers in sorted(found.items()):
    if shown[task] < SAMPLES_PER_TASK:
      shown[task] += 1
      first = answers[methods[0]]
      marked = [_code(answers[m]["prediction"]) + " ✓" * answers[m]["exact_match"] for m in methods]
      rows.append([task, _code(first["input"]), _code(first["target"]), *marked])
  return _markdown_table(["task", "input", "target", *map(plots.label, methods)], rows)


def _code(text: str, limit: int = 80) -> str:
  """Returns a text as code in one cell of a Markdown table."""
  line = " ⏎ ".join(text.strip().splitlines()).replace("|", "\\|").replace("`", "'")
  line = line if len(line) <= limit else line[: limit - 1] + "…"
  return f"`{line}`" if line else "(empty)"


def markdown(results: Mapping[str, Any], records: Records, images: Sequence[str]) -> str:
  """Returns report.md."""
  (header, rows), main = _rows(results), plots.of_one_task(plots.main_figure(results))
  log_likelihood = results["recovery"]["log_likelihood"]
  used = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
  seeds = ", ".join(map(str, results["seeds"]))
  left_out = ", ".join(f"{count} of {task}" for task, count in results["left_out"].items())
  parts = [
    "# Held-out tasks",
    headline(results),
    _markdown_table(header, rows),
    f"{results['num_queries']} queries of {len(results['tasks'])} tasks in "
    f"{len(results['families'])} families; evaluation seeds: {seeds}. Recovery by log-likelihood: "
    f"{tables.text(log_likelihood, 2)}. The frozen model: {results['base']}.",
    *(f"Recovery by {plots.words(figure)} is {found['note']}."
      for figure, found in results["recovery"].items() if "note" in found),
    *([f"Not asked, since a support holds their input: {left_out}."] if left_out else []),
    *(f"![{name.removesuffix('.png')}]({name})" for name in images),
    "## How each figure is defined",
    DEFINITIONS.rstrip(),
    f"## {plots.words(main).capitalize()} per family",
    _group_table(results, "families", "family"),
    f"## {plots.words(main).capitalize()} per task",
    _group_table(results, "tasks", "task"),
    "## Sample predictions",
    f"The first {SAMPLES_PER_TASK} queries of each task; ✓ marks an exact match.",
    _samples(results, records),
    "## How this was made",
    f"```\n{results['command']}\n```",
    used,
    f"<details><summary>Configuration</summary>\n\n```\n{results['config'].strip()}\n```\n"
    "\n</details>",
  ]
  return "\n\n".join(parts) + "\n"


def _lines(records: Records) -> Iterator[bytes]:
  """Yields the lines of records.jsonl; all together they may take more memory than the records."""
  for method, found in records.items():
    for record in found:
      yield json.dumps({"method": method, **record}, ensure_ascii=False).encode() + b"\n"
