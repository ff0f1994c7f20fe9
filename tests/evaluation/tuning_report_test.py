"""Curves over tuning steps, against averages computed by hand."""

from hyperjax.evaluation import tuning_report


def curve(*matches):
  """Exact match at steps 0, 1 and so on."""
  return [
    {"step": step, "exact_match": match, "log_likelihood": -match}
    for step, match in enumerate(matches)
  ]


CELLS = {
  "lora": {
    "a.0": [curve(0.0, 0.5), curve(0.0, 1.0)], "a.1": [curve(0.25, 0.75)], "b": [curve(0.5, 0.0)],
  }
}  # fmt: skip
ABOUT = {"command": "hyperjax tune", "config": "X = 1", "base": "float32"}


def test_a_point_is_averaged_over_seeds_then_tasks_whose_versions_are_drawn_together(tmp_path):
  results = tuning_report.write(tmp_path, CELLS, ABOUT, {"a.0": "a", "a.1": "a"})
  first, last = results["methods"]["lora"]
  # Of the two clusters alone: a has (0 + 0.25) / 2 at first and 0.75 at last, b 0.5 and 0.
  assert first["exact_match"] == {"mean": 0.25, "low": 0.125, "high": 0.5}
  assert last["exact_match"] == {"mean": 0.5, "low": 0.0, "high": 0.75}
  assert last["log_likelihood"] == {"mean": -0.5, "low": -0.75, "high": 0.0}
  assert "| lora | 0.250 | 0.500 |" in (tmp_path / "report.md").read_text()


def test_one_task_is_drawn_without_intervals(tmp_path):
  alone = {"lora": {"b": CELLS["lora"]["b"]}}
  results = tuning_report.write(tmp_path, alone, ABOUT, {})
  assert results["methods"]["lora"][0]["exact_match"] == {"mean": 0.5, "low": None, "high": None}
  assert (tmp_path / "curves.png").stat().st_size > 1000
