"""Reports of made-up records whose figures are known."""

import json
import math
import struct

import numpy as np
import pytest

from hyperjax.evaluation import plots, report

METHODS = (
  "in_context",
  "zero_shot",
  "gisting",
  "hyperllama",
  "other_task_support",
  "shuffled_outputs",
)
TASKS = ("a.x.1", "a.x.2", "a.y.1", "b")
# Of ten queries each method answers this many, in every task and seed.
RIGHT = {
  "zero_shot": 1,
  "in_context": 9,
  "gisting": 3,
  "hyperllama": 7,
  "other_task_support": 1,
  "shuffled_outputs": 2,
}


def record(method, task, seed, query, right):
  found = {
    "task": task,
    "query_id": query,
    "seed": seed,
    "input": f"Q: {task} | {query}\nA:",
    "target": f"answer {query}",
    "prediction": f"answer {query}" if right else "",
    "exact_match": int(right),
    "log_likelihood": -1.0 if right else -3.0,
    "tokens": 2,
  }
  return found | ({"option_correct": int(right)} if task == "b" else {})


def make(methods=METHODS, right=RIGHT, tasks=TASKS):
  return {
    m: [record(m, t, s, q, q < right[m]) for t in tasks for s in (0, 1) for q in range(10)]
    for m in methods
  }


def write(folder, records=None, **options):
  about = {"config": "X = 1\n", "command": "hyperjax evaluate --x", "base": "int8 weights"}
  return report.write(folder, records or make(), about=about, **options)


def shape(path):
  """Returns a PNG's width and height, from its header."""
  data = path.read_bytes()
  assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
  return struct.unpack(">II", data[16:24])


def test_results_follow_the_schema(tmp_path):
  returned = write(tmp_path / "new" / "report")
  results = json.loads((tmp_path / "new" / "report" / "results.json").read_text())
  assert results == returned
  assert set(results["methods"]) == set(METHODS)
  for method in METHODS:
    share = RIGHT[method] / 10
    found = results["methods"][method]
    assert found["exact_match"] == pytest.approx({"mean": share, "low": share, "high": share})
    assert found["log_likelihood"]["mean"] == pytest.approx(-1 * share - 3 * (1 - share))
    assert found["option_accuracy"]["mean"] == pytest.approx(share)
  assert results["recovery"]["exact_match"] == pytest.approx(
    {"mean": 0.75, "low": 0.75, "high": 0.75}
  )
  assert results["recoveries"]["gisting"]["exact_match"]["mean"] == pytest.approx(0.25)
  assert set(results["recoveries"]) == set(METHODS) - {"zero_shot", "in_context"}
  assert set(results["tasks"]) == set(TASKS)
  assert results["tasks"]["b"]["gisting"] == pytest.approx(
    {"exact_match": 0.3, "log_likelihood": -2.4, "option_accuracy": 0.3}
  )
  assert "option_accuracy" not in results["tasks"]["a.x.1"]["gisting"]
  assert set(results["families"]) == {"a.x", "a.y", "b"}
  assert results["seeds"] == [0, 1] and results["num_queries"] == 80
  rows = {(row["method"], row["task"], row["seed"]): row for row in results["by_seed"]}
  assert len(rows) == len(results["by_seed"]) == len(METHODS) * len(TASKS) * 2
  assert rows["gisting", "b", 1] == pytest.approx({
    "method": "gisting", "task": "b", "family": "b", "template": None, "seed": 1,
    "num_queries": 10, "exact_match": 0.3, "log_likelihood": -2.4, "option_accuracy": 0.3,
  })  # fmt: skip
  assert rows["hyperllama", "a.x.2", 0].keys() == rows["gisting", "b", 1].keys() - {
    "option_accuracy"
  }
  assert results["command"] == "hyperjax evaluate --x" and results["config"] == "X = 1\n"
  assert results["base"] == "int8 weights"
  assert {"jax", "numpy", "hyperjax", "python"} <= set(results["versions"])


def test_seeds_have_figures_of_their_own(tmp_path):
  """Seed 1 of one task answers nothing; the task's own figure is the mean."""
  records = make()
  for found in records["hyperllama"]:
    if (found["task"], found["seed"]) == ("a.y.1", 1):
      found["exact_match"] = 0
  results = write(tmp_path, records)
  values = {
    (row["task"], row["template"], row["seed"]): row["exact_match"]
    for row in results["by_seed"] if row["method"] == "hyperllama"
  }  # fmt: skip
  assert values["a.y.1", "1", 0] == pytest.approx(0.7) and values["a.y.1", "1", 1] == 0
  assert results["tasks"]["a.y.1"]["hyperllama"]["exact_match"] == pytest.approx(0.35)


def test_a_report_says_all(tmp_path):
  write(tmp_path, curve={"hyperllama": [(0, 0.1), (5, 0.6)]})
  text = (tmp_path / "report.md").read_text()
  assert "HyperLlama recovers 75% [75%, 75%] of what reading the examples in context gains" in text
  assert "| HyperLlama | 0.700 [0.700, 0.700] | 0.75 [0.75, 0.75] | -1.60 [-1.60, -1.60] |" in text
  assert "| a.x | 0.100 | 0.100 | 0.200 | 0.300 | 0.700 | 0.900 |" in text
  assert "`answer 0` ✓" in text and "(empty)" in text
  assert "`Q: a.x.1 \\| 0 ⏎ A:`" in text  # a bar would end the cell
  for words in ("hyperjax evaluate --x", "X = 1", "*sum* over the target's tokens", "curve.png"):
    assert words in text
  for line in text.splitlines():
    if line.startswith("| a.x.1 | `Q"):
      assert line.replace("\\|", "").count("|") == 10


def test_the_table_is_printed(tmp_path, capsys):
  write(tmp_path)
  printed = capsys.readouterr().out
  assert "Held-out: 4 tasks, 80 queries" in printed
  (line,) = [line for line in printed.splitlines() if "HyperLlama" in line]
  assert line.split() == "HyperLlama 0.700 [0.700, 0.700] 0.75 [0.75, 0.75] -1.60".split()
  assert max(map(len, printed.splitlines())) <= 80


def test_pictures_grow_with_the_tasks_and_nothing_else_is_left(tmp_path):
  write(tmp_path, curve={"hyperllama": [(0, 0.1), (5, 0.6)], "gisting": [(1, 0.2)]})
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "curve.png",
    "methods.png",
    "records.jsonl",
    "report.md",
    "results.json",
    "tasks.png",
  ]
  many = make(tasks=[f"task.{i}" for i in range(40)])
  write(tmp_path / "many", many)
  assert shape(tmp_path / "many" / "tasks.png")[1] > 2 * shape(tmp_path / "tasks.png")[1]
  assert min(shape(tmp_path / "curve.png")) > 300
  assert not (tmp_path / "many" / "curve.png").exists()


def test_records_come_back(tmp_path):
  records = make()
  write(tmp_path, records)
  assert report.read_records(tmp_path) == records


def test_methods_stand_in_a_fixed_order(tmp_path):
  records = make() | {"lora_tuning": make()["gisting"]}
  results = write(tmp_path, records)
  assert list(results["methods"]) == [
    "zero_shot",
    "other_task_support",
    "shuffled_outputs",
    "gisting",
    "hyperllama",
    "in_context",
    "lora_tuning",
  ]
  assert plots.label("lora_tuning") == "lora tuning"


def test_another_hypermodel(tmp_path):
  results = write(tmp_path, hypermodel="gisting")
  assert results["recovery"]["exact_match"]["mean"] == pytest.approx(0.25)
  assert "gisting recovers 25%" in (tmp_path / "report.md").read_text()


def test_an_undefined_recovery_is_said_not_hidden(tmp_path):
  results = write(tmp_path, make(right=RIGHT | {"in_context": 1}))
  found = results["recovery"]["exact_match"]
  assert found["mean"] is None and found["low"] is None
  assert found["note"] == (
    "undefined: in-context - zero-shot is 0.000 [0.000, 0.000], not wholly above 0"
  )
  assert found["note"] in (tmp_path / "report.md").read_text()
  assert "NaN" not in (tmp_path / "results.json").read_text()


@pytest.mark.parametrize("method", ["zero_shot", "in_context", "hyperllama"])
def test_a_missing_method_is_named(tmp_path, method):
  records = make([m for m in METHODS if m != method])
  with pytest.raises(ValueError, match=f"method '{method}' has no records; the report needs it"):
    write(tmp_path, records)
  assert not list(tmp_path.iterdir())


def test_methods_must_have_answered_the_same_queries(tmp_path):
  records = make()
  del records["gisting"][3]
  with pytest.raises(ValueError, match=r"'gisting' and 'hyperllama' did not answer the same .*79 "
                     r"and 80.*\('a.x.1', 0, 3, 'answer 3'\)"):
    write(tmp_path, records)


def test_methods_must_not_repeat_queries(tmp_path):
  records = make()
  records["gisting"].append(records["gisting"][0])
  with pytest.raises(ValueError, match=r"81 and 80\); the first difference is repeated ones"):
    write(tmp_path, records)


def test_intervals_are_over_tasks(tmp_path):
  rng = np.random.default_rng(0)
  tasks = [f"t.{i}" for i in range(30)]
  records = {}
  for method, level in (("zero_shot", 0.1), ("hyperllama", 0.4), ("in_context", 0.6)):
    shares = dict(zip(tasks, np.clip(rng.normal(level, 0.15, 30), 0, 1), strict=True))
    records[method] = [
      record(method, task, 0, q, q < round(shares[task] * 40)) for task in tasks for q in range(40)
    ]
  results = write(tmp_path, records)
  found = results["methods"]["hyperllama"]["exact_match"]
  values = [task["hyperllama"]["exact_match"] for task in results["tasks"].values()]
  assert found["mean"] == pytest.approx(np.mean(values))
  half = 1.96 * np.std(values) / math.sqrt(30)
  assert found["high"] - found["mean"] == pytest.approx(half, rel=0.1)


def test_a_curve_is_of_the_metrics_that_have_minutes_and_the_figure():
  lines = [
    {"step": 0, "held_out/exact_match": 0.125},
    {"step": 1, "loss": 2.0, "minutes": 0.1},
    {"step": 2, "minutes": 0.5, "held_out/exact_match": 0.25},
    {"step": 3, "minutes": 1.5, "held_out/exact_match": None},
    {"step": 4, "minutes": 2.5, "held_out/exact_match": 0.5},
  ]
  assert plots.over_minutes(lines) == [(0.0, 0.125), (0.5, 0.25), (2.5, 0.5)]
