"""Comparisons of made-up evaluations, as files and as what people read."""

import csv
import io
import json
import os

import pytest

from hyperjax import report as command
from hyperjax.evaluation import figures, tables
from tests.evaluation import report_test as made_up

FILES = {"families.png", "index.html", "runs.png", "table.csv", "table.md", "tasks.csv"}
TAG = "p3.cb.<script>alert(1)"


@pytest.fixture
def first(tmp_path):
  return evaluation(tmp_path / "first", made_up.make())


@pytest.fixture
def second(tmp_path):
  """One whose tasks have metrics of their own: 0.1 above exact match."""
  methods = ("zero_shot", "in_context", "hyperllama", "my_own")
  right = made_up.RIGHT | {"my_own": 5}
  folder = evaluation(
    tmp_path / "second", made_up.make(methods, right, ["p3.rte.1", TAG])
  )
  results = load(folder)
  results["metrics"] = {"p3.rte.1": "accuracy", TAG: "rouge_l"}
  for found in results["methods"].values():
    found["score"] = {k: v + 0.1 for k, v in found["exact_match"].items()}
  for groups in (results["tasks"], results["families"]):
    for methods in groups.values():
      for found in methods.values():
        found["score"] = found["exact_match"] + 0.1
  for method, recovered in results["recoveries"].items():
    recovered["score"] = recovered["exact_match"] | {"mean": 0.25 if method == "my_own" else 0.5}
  save(folder, results)
  return folder


def evaluation(folder, records):
  """A folder with what `report.write` writes of these records, less what is not read."""
  about = {"config": "X = 1\n", "command": "evaluate"}
  found = figures.summarise(records, hypermodel="hyperllama", about=about)
  folder.mkdir()
  save(folder, found)
  return folder


def load(folder):
  return json.loads((folder / "results.json").read_text())


def save(folder, results):
  (folder / "results.json").write_text(json.dumps(results))


def compare(*evaluations, out):
  return command.main([*map(str, evaluations), "--out", str(out)])


def rows(path):
  return list(csv.DictReader(io.StringIO(path.read_text())))


def test_every_file_is_written_and_the_page_is_named(first, second, tmp_path, capsys):
  assert compare(first, second, out=tmp_path / "new" / "out") == 0
  assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == FILES
  assert capsys.readouterr().out == f"{tmp_path / 'new' / 'out' / 'index.html'}\n"
  wide, tall = made_up.shape(tmp_path / "new" / "out" / "families.png")
  assert wide > 500 and tall > 200


def test_a_row_per_run_and_method(first, second, tmp_path):
  assert compare(first, second, out=tmp_path / "out") == 0
  found = rows(tmp_path / "out" / "table.csv")
  assert [(row["run"], row["method"]) for row in found] == [
    *(("first", method) for method in load(first)["methods"]),
    *(("second", method) for method in ("zero_shot", "hyperllama", "in_context", "my_own")),
  ]
  ours = found[4]
  assert (ours["run"], ours["data"], ours["tasks"], ours["queries"]) == ("first", "a b", "4", "80")
  assert float(ours["exact_match_mean"]) == pytest.approx(0.7)
  assert float(ours["recovery_low"]) == pytest.approx(0.75)
  assert ours["score_mean"] == "" and float(ours["option_accuracy_mean"]) == pytest.approx(0.7)
  assert ours["option_accuracy_high"] == ""  # of one task
  mine = found[-1]
  assert (mine["data"], mine["option_accuracy_mean"]) == ("p3", "")
  assert float(mine["score_mean"]) == pytest.approx(0.6)
  assert float(mine["recovery_mean"]) == 0.25  # of the score, not of exact match
  assert found[0]["recovery_mean"] == ""  # zero-shot has none


def test_the_worst_seed_has_a_column(first, second, tmp_path):
  results = load(second)
  for found in results["methods"].values():
    found["score_worst_seed"] = {k: v - 0.05 for k, v in found["score"].items()}
  save(second, results)
  assert compare(first, second, out=tmp_path / "out") == 0
  found = rows(tmp_path / "out" / "table.csv")
  assert float(found[-1]["score_worst_seed_mean"]) == pytest.approx(0.55)
  assert found[0]["score_worst_seed_mean"] == ""
  text = (tmp_path / "out" / "table.md").read_text()
  assert "| method | score | score worst seed | exact match |" in text
  assert "| my own | 0.600 [0.600, 0.600] | 0.550 [0.550, 0.550] |" in text


def test_where_tasks_are_templates_the_score_is_over_their_data_sets(second, tmp_path):
  """RTE has two templates and CB one: 0.3 and 0.6 is what papers average, to 0.45."""
  results = load(second)
  results["main_figure"] = "score_over_families"
  for found in results["methods"].values():
    found["score_over_families"] = {"mean": 0.45, "low": 0.3, "high": 0.6}
  for recovered in (results["recovery"], *results["recoveries"].values()):
    recovered["score_over_families"] = {"mean": 0.125, "low": 0.0, "high": 0.25}
  save(second, results)
  assert compare(second, out=tmp_path / "out") == 0
  mine = rows(tmp_path / "out" / "table.csv")[-1]
  bounds = [mine[f"score_over_families_{bound}"] for bound in ("mean", "low", "high")]
  assert list(map(float, bounds)) == [0.45, 0.3, 0.6]
  assert float(mine["recovery_mean"]) == 0.125
  text = (tmp_path / "out" / "table.md").read_text()
  assert "| method | score | score over families | exact match |" in text
  assert "| my own | 0.600 [0.600, 0.600] | 0.450 [0.300, 0.600] |" in text
  assert "| 0.125 [0.000, 0.250] |" in text
  assert tables.scores(results)["my_own"]["mean"] == 0.45  # what runs.png shows
  assert tables.grouped(results, "tasks")["p3.rte.1"]["my_own"] == pytest.approx(0.6)
  page = (tmp_path / "out" / "index.html").read_text()
  assert "score over families</button>" in page and "in 2 families, HyperLlama recovers 12%" in page


def test_what_has_no_interval_is_shown_without(tmp_path):
  alone = evaluation(tmp_path / "alone", made_up.make(tasks=["b"]))
  assert compare(alone, out=tmp_path / "out") == 0
  assert "| HyperLlama | 0.700 | 0.700 | -1.600 | undefined |" in (
    tmp_path / "out" / "table.md"
  ).read_text()
  ours = rows(tmp_path / "out" / "table.csv")[4]
  assert (ours["method"], ours["exact_match_low"], ours["recovery_mean"]) == ("hyperllama", "", "")
  assert float(ours["exact_match_mean"]) == pytest.approx(0.7)


def test_a_row_per_task_and_figure(first, second, tmp_path):
  assert compare(first, second, out=tmp_path / "out") == 0
  found = {
    (row["run"], row["method"], row["task"], row["figure"]): row
    for row in rows(tmp_path / "out" / "tasks.csv")
  }
  row = found["second", "my_own", TAG, "score"]
  assert (row["family"], row["metric"]) == ("p3.cb", "rouge_l")
  assert float(row["value"]) == pytest.approx(0.6)
  assert found["second", "my_own", TAG, "log_likelihood"]["metric"] == "log_likelihood"
  assert float(found["first", "gisting", "b", "option_accuracy"]["value"]) == pytest.approx(0.3)
  assert ("first", "gisting", "a.x.1", "option_accuracy") not in found


def test_the_markdown_table(first, second, tmp_path):
  assert compare(f"a|b={first}", second, out=tmp_path / "out") == 0
  text = (tmp_path / "out" / "table.md").read_text()
  assert "| run | data | method | score | exact match | option accuracy | log likelihood |" in text
  own, likelihood = "0.600 [0.600, 0.600] | 0.500 [0.500, 0.500] |  | ", "-2.000 [-2.000, -2.000]"
  assert f"| second | p3 | my own | {own}{likelihood} | 0.250 [0.500, 0.500] |" in text
  assert "| a\\|b | a, b | HyperLlama |  | 0.700 [0.700, 0.700] |" in text
  assert "![runs.png](runs.png)" in text


def test_published_figures_stand_beside_runs_on_the_same_data(first, second, tmp_path):
  assert compare(first, out=tmp_path / "ours") == 0
  assert "Published" not in (tmp_path / "ours" / "table.md").read_text()
  assert "Published" not in (tmp_path / "ours" / "index.html").read_text()
  assert compare(second, out=tmp_path / "both") == 0
  text = (tmp_path / "both" / "table.md").read_text()
  assert "## Published figures" in text and "natural_instructions" not in text
  assert "| p3 | HyperT5-Prefix | T5 XL | accuracy, RTE | 79.5" in text


def test_every_published_figure_has_a_source():
  data = ("p3", "natural_instructions", "metaicl", "symbol_tuning")
  runs = {name: {"tasks": {f"{name}_test.a": {}}} for name in data}
  table = tables.published(runs)
  assert {row[0] for row in table.rows} == set(data)
  assert all(0 < float(row[4]) < 100 and row[5] for row in table.rows)
  assert len({tuple(row[:4]) for row in table.rows}) == len(table.rows)


def test_an_undefined_recovery_is_said(tmp_path):
  flat = evaluation(tmp_path / "flat", made_up.make(right=made_up.RIGHT | {"in_context": 1}))
  assert compare(flat, out=tmp_path / "out") == 0
  assert "| undefined |" in (tmp_path / "out" / "table.md").read_text()
  assert {row["recovery_mean"] for row in rows(tmp_path / "out" / "table.csv")} == {""}


# ---- What it refuses ----------------------------------------------------------------------------


def test_names(first, tmp_path, monkeypatch):
  os.makedirs(tmp_path / "x=y")
  os.replace(first / "results.json", tmp_path / "x=y" / "results.json")
  monkeypatch.chdir(tmp_path)
  assert list(command.read(["./x=y", "mine=x=y"])) == ["x=y", "mine"]
  with pytest.raises(ValueError, match="x=y and x=y are both called 'x=y'; call one otherwise: "
                     "other=x=y"):
    command.read(["./x=y", "./x=y"])


BROKEN = [
  (lambda r: r.pop("seeds"), "lacks 'results.seeds'"),
  (lambda r: r["methods"]["gisting"].pop("exact_match"), "lacks 'results.methods.gisting.exact_m"),
  (lambda r: r["methods"].pop("zero_shot"), "lacks 'zero_shot'"),
  (lambda r: r.update(tasks=[1]), r"results.tasks is \[1\]"),
  (lambda r: r["tasks"]["b"]["gisting"].update(exact_match="1"), "gisting.exact_match is '1'"),
  (lambda r: r["recovery"]["exact_match"].update(mean=float("nan")), "exact_match.mean is nan"),
  (lambda r: r.update(main_figure=["score"]), r"results.main_figure is \['score'\]"),
  (lambda r: r.update(main_figure="score"), "lacks 'score'"),
  (lambda r: r.update(metrics={"b": ["accuracy"]}), r"results.metrics.b is \['accuracy'\]"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN)
def test_what_no_evaluation_wrote_is_named(first, spoil, message):
  results = load(first)
  spoil(results)
  save(first, results)
  with pytest.raises(ValueError, match=f"first/results.json is no results.json of hyperjax evaluate"
                     f": .*{message}.*; give that command again"):
    command.read([str(first)])


def refused(capsys, *evaluations, out):
  assert compare(*evaluations, out=out) == 1
  error = capsys.readouterr().err
  assert error.startswith("hyperjax report: ") and error.count("\n") == 1
  return error


def test_refusals_leave_nothing_behind(first, tmp_path, capsys):
  out, broken = tmp_path / "out", tmp_path / "broken"
  assert f"{broken}/results.json does not exist" in refused(capsys, first, broken, out=out)
  broken.mkdir()
  for text in ("{", "[1]", "\xff"):
    (broken / "results.json").write_text(text, encoding="latin-1")
    error = refused(capsys, first, broken, out=out)
    assert f"{broken}/results.json is no results.json of hyperjax evaluate" in error
  assert "both called 'first'" in refused(capsys, first, first, out=out)
  assert not out.exists()


def test_a_file_is_no_folder_to_write_to(first, tmp_path, capsys):
  (tmp_path / "file").write_text("mine")
  assert "file is a file; name a folder" in refused(capsys, first, out=tmp_path / "file")
  assert "file" in refused(capsys, first, out=tmp_path / "file" / "below")
  assert (tmp_path / "file").read_text() == "mine"


def test_the_page_is_written_last(first, tmp_path, monkeypatch):
  assert list(command.files(command.read([str(first)])))[-1] == "index.html"
  monkeypatch.setattr(tables, "tasks_csv", lambda runs: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    compare(first, out=tmp_path / "out")
  assert not (tmp_path / "out").exists()
