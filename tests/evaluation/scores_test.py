"""Every task's own metric, against answers computed by hand."""

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from hyperjax.evaluation import figures, metrics, plots, report, scores


def record(task="a.x", seed=0, **more):
  return {"task": task, "seed": seed, "query_id": 0, "input": "?", "target": "yes",
          "prediction": "yes", "exact_match": 1, "log_likelihood": -1.0, **more}  # fmt: skip


def option(target: str, by_token: str, correct: int = 0, **more):
  return record(target=target, option_by_token=by_token, option_correct=correct, **more)


def test_the_first_metric_that_can_be_computed_is_chosen():
  named = {"a.x": ("other", "rouge_l", "exact_match"), "a.y": ("other",), "b.z": (),
           "c.v": ("accuracy",), "c.w": ("accuracy", "rouge_l")}  # fmt: skip
  assert scores.choose(named, with_options=["c.v"]) == {
    "a.x": "rouge_l", "a.y": "strict_match", "b.z": "strict_match", "c.v": "accuracy",
    "c.w": "rouge_l",
  }  # fmt: skip


def test_a_metric_is_given_for_a_task_or_for_all_of_a_front():
  named = {"a.x": ("rouge_l",), "a.y": ("rouge_l",), "ab.z": ("rouge_l",)}
  overrides = {"a": "rank_classification", "a.y": "accuracy"}
  assert scores.choose(named, overrides, with_options=["a.x", "a.y"]) == {
    "a.x": "rank_classification", "a.y": "accuracy", "ab.z": "rouge_l",
  }  # fmt: skip


@pytest.mark.parametrize("overrides, message", [
  ({"a.w": "rouge_l"}, "'a.w', which is no task"),
  ({"a.x": "rogue"}, "unknown metric 'rogue' for 'a.x'; known: exact_match, rouge_l"),
  ({"a": "macro_f1"}, "'a.x' is to be scored with macro_f1, which needs options"),
])  # fmt: skip
def test_a_wrong_override_is_named(overrides, message):
  with pytest.raises(ValueError, match=message):
    scores.choose({"a.x": ()}, overrides)


def test_a_metric_with_a_tokenizer(tmp_path):
  """A word is a piece: of "a b" and "b a", one piece of two is in order; stems are not taken."""
  words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "B": 2}, unk_token="a"))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  words.save(str(tmp_path / "words.json"))
  name = f"xlingual_rouge_l:{tmp_path / 'words.json'}"
  assert scores.choose({"a.x": (name, "exact_match")}) == {"a.x": name}
  assert scores.choose({"a.x": ("rouge_l",)}, {"a": name}) == {"a.x": name}
  records = [record(prediction="b a", references=["a b", "B"]), record(prediction="B", target="b")]
  assert scores.by_seed(records, {"a.x": name}) == {("a.x", 0): pytest.approx((1 / 2 + 0) / 2)}


@pytest.mark.parametrize("tokenizer, reason", [
  ("", "it names none"), (":nowhere.json", "no such file or folder"),
])  # fmt: skip
def test_a_metric_whose_tokenizer_is_not_to_be_had_is_an_error_and_not_another(tokenizer, reason):
  named = {"a.x": (f"xlingual_rouge_l{tokenizer}", "exact_match")}
  message = rf"'a.x' is to be scored with xlingual_rouge_l{tokenizer}, .*{reason}.*\(gin: METRICS"
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    scores.choose(named)
  for front in ("a.x", "a"):
    assert scores.choose(named, {front: "exact_match"}) == {"a.x": "exact_match"}


def test_texts_are_compared_with_references_or_with_the_target():
  records = [
    record(prediction="The cat!", references=["a dog", "the  cat"]),
    record(prediction="No"), record(prediction="Yes."),
  ]  # fmt: skip
  assert scores.by_seed(records, {"a.x": "exact_match"}) == {("a.x", 0): pytest.approx(2 / 3)}
  # "the cat sat" and "the cat": all of the reference, two thirds of the answer: F = 0.8.
  one = [record(prediction="the cat sat", references=["the cat"])]
  assert scores.by_seed(one, {"a.x": "rouge_l"}) == {("a.x", 0): pytest.approx(0.8)}


def test_options_are_ranked_by_their_sum_or_by_token():
  records = [option("yes", "no", 1), option("no", "no", 0), option("no", "yes", 0)]
  ranked = scores.by_seed(records, {"a.x": "rank_classification"})
  assert ranked == {("a.x", 0): pytest.approx(1 / 3)}
  assert scores.by_seed(records, {"a.x": "accuracy"}) == {("a.x", 0): pytest.approx(1 / 3)}
  # yes: never right, F1 0. no: 1 of 2 predicted, 1 of 2 found: F1 1/2.
  assert scores.by_seed(records, {"a.x": "macro_f1"}) == {("a.x", 0): pytest.approx(1 / 4)}


def test_a_figure_is_of_a_seed_then_over_seeds():
  first = [option("yes", "yes"), option("no", "no")]  # F1 1
  second = [option("yes", "yes", seed=1), option("no", "yes", seed=1)]  # yes 2/3, no 0
  found = scores.by_seed([*first, *second], {"a.x": "macro_f1"})
  assert found == {("a.x", 0): 1.0, ("a.x", 1): pytest.approx(1 / 3)}
  assert metrics.by_task(found) == {"a.x": pytest.approx(2 / 3)}
  assert metrics.by_task(found, min) == {"a.x": pytest.approx(1 / 3)}


def made_up_seeds():
  """Two tasks and two seeds: of four queries a.x answers 3 and 1, a.y 2 and 4."""
  right = {("a.x", 13): 3, ("a.x", 100): 1, ("a.y", 13): 2, ("a.y", 100): 4}
  return [
    option("yes", "yes" if i < count else "no", task=task, seed=seed, query_id=i)
    for (task, seed), count in right.items() for i in range(4)
  ]  # fmt: skip


def summarised(records, **options):
  return figures.summarise(
    {method: records for method in ("zero_shot", "in_context", "hyperllama")},
    hypermodel="hyperllama", about=dict.fromkeys(("command", "config", "base"), ""),
    task_metrics=dict.fromkeys(("a.x", "a.y"), "accuracy"), **options,
  )  # fmt: skip


def test_the_mean_and_the_worst_of_the_seeds():
  """As MetaICL reports them: the worst seed is each task's own, then tasks are averaged."""
  results = summarised(made_up_seeds())
  found = results["methods"]["hyperllama"]
  assert found["score"]["mean"] == pytest.approx((3 / 4 + 1 / 4 + 2 / 4 + 4 / 4) / 4)
  worst = found["score_worst_seed"]
  assert worst["mean"] == pytest.approx((1 / 4 + 2 / 4) / 2)  # of seeds 100 and 13
  assert (worst["low"], worst["high"]) == (pytest.approx(1 / 4), pytest.approx(1 / 2))
  records = {method: made_up_seeds() for method in results["methods"]}
  text = report.markdown(results, records, [])
  assert "| method | score | recovery |" in text
  assert "| option accuracy | score, worst seed |" in text  # one family has no mean over families
  assert "| 0.375 [0.250, 0.500] |" in text and "Not asked" not in text
  one = summarised([r for r in made_up_seeds() if r["seed"] == 13])
  assert "score_worst_seed" not in one["methods"]["hyperllama"]
  assert "worst seed |" not in report.markdown(one, records, [])


def test_queries_that_were_not_asked_are_counted():
  results = summarised(made_up_seeds(), left_out={"a.x": 2, "a.y": 1})
  assert results["left_out"] == {"a.x": 2, "a.y": 1}
  text = report.markdown(results, {m: made_up_seeds() for m in results["methods"]}, [])
  assert "Not asked, since a support holds their input: 2 of a.x, 1 of a.y." in text


def test_a_report_is_about_the_tasks_own_metrics():
  """Zero-shot ranks half of the options right and writes none; the hypermodel writes all of them,
  and ranks no better. Where all metrics are exact match the report is about that."""
  right = {"zero_shot": (0, 1), "hyperllama": (0, 1), "in_context": (1, 1)}
  written = {"zero_shot": 0, "hyperllama": 1, "in_context": 1}
  records = {
    method: [option("yes", "yes", correct, task=task, exact_match=written[method])
             for task, correct in zip(("a.x", "a.y"), found, strict=True)]
    for method, found in right.items()
  }  # fmt: skip

  def results(metric):
    about = dict.fromkeys(("command", "config", "base"), "")
    task_metrics = dict.fromkeys(("a.x", "a.y"), metric)
    return figures.summarise(
      records, hypermodel="hyperllama", about=about, task_metrics=task_metrics
    )

  ranked = results("rank_classification")
  assert "score 0.500 zero-shot, 0.500 HyperLlama, 1.000 in context" in report.headline(ranked)
  assert "recovery is undefined" in report.headline(ranked)
  text = report.markdown(ranked, records, [])
  assert "## Score per task" in text and "| a.x | 0.000 | 0.000 | 1.000 |" in text
  plain = report.headline(results("strict_match"))
  assert "recovers 100%" in plain and "exact match 0.000 zero-shot, 1.000 HyperLlama" in plain


RANKED = {  # {task: {method: options right of 4}}
  "p3.rte.one": {"zero_shot": 0, "hyperllama": 2, "in_context": 4},
  "p3.rte.two": {"zero_shot": 0, "hyperllama": 1, "in_context": 2},
  "p3.rte.six": {"zero_shot": 0, "hyperllama": 0, "in_context": 3},
  "p3.cb.one": {"zero_shot": 1, "hyperllama": 2, "in_context": 3},
}  # fmt: skip


def templates(clusters=None, ranked=RANKED):
  """(results, records) of templates, four queries each."""
  records = {
    method: [
      option("yes", "yes", int(i < right[method]), task=task, query_id=i)
      for task, right in ranked.items() for i in range(4)
    ]
    for method in ("zero_shot", "in_context", "hyperllama")
  }  # fmt: skip
  results = figures.summarise(
    records, hypermodel="hyperllama", about=dict.fromkeys(("command", "config", "base"), ""),
    task_metrics=dict.fromkeys(ranked, "rank_classification"), clusters=clusters,
  )  # fmt: skip
  return results, records


def test_a_report_averages_templates_then_data_sets():
  results, records = templates()
  found = results["methods"]["hyperllama"]
  assert found["score"]["mean"] == pytest.approx((2 + 1 + 0 + 2) / 16)
  assert found["score_over_families"]["mean"] == pytest.approx((1 / 4 + 1 / 2) / 2)
  # Of two families a resample may have one twice.
  assert found["score_over_families"]["low"] == pytest.approx(1 / 4)
  assert results["tasks"]["p3.rte.one"]["hyperllama"]["score"] == 1 / 2
  [row] = [
    row for row in results["by_seed"]
    if (row["method"], row["task"]) == ("zero_shot", "p3.cb.one")
  ]  # fmt: skip
  assert row == {
    "method": "zero_shot", "task": "p3.cb.one", "family": "p3.cb", "template": "one", "seed": 0,
    "num_queries": 4, "exact_match": row["exact_match"], "log_likelihood": row["log_likelihood"],
    "option_accuracy": 1 / 4, "score": 1 / 4,
  }  # fmt: skip
  # Without a source that says that they are templates, they are tasks.
  assert results["main_figure"] == "score" and results["clusters"] == {}
  text = report.markdown(results, records, [])
  assert "| method | score | recovery |" in text and "score over families" in text


def test_where_tasks_are_templates_a_report_is_about_their_data_sets():
  clusters = {task: task.rpartition(".")[0] for task in RANKED}
  results, records = templates(clusters)
  assert results["main_figure"] == "score_over_families" and results["clusters"] == clusters
  # Zero-shot (0 + 1/4) / 2, HyperLlama (1/4 + 1/2) / 2, in-context (3/4 + 3/4) / 2.
  expected = ((1 / 4 + 1 / 2) - 1 / 4) / (3 / 2 - 1 / 4)
  for found in (results["recovery"], results["recoveries"]["hyperllama"]):
    # Of one data set alone: RTE recovers (1/4) / (3/4), CB (1/4) / (2/4).
    assert found["score_over_families"] == pytest.approx(
      {"mean": expected, "low": 1 / 3, "high": 1 / 2}
    )
  per_task = results["recovery"]["score"]
  assert per_task["mean"] == pytest.approx((5 - 1) / (12 - 1))
  # Data sets are drawn, not templates: the ends are those of one data set.
  assert (per_task["low"], per_task["high"]) == pytest.approx((1 / 3, 1 / 2))
  assert report.headline(results) == (
    "On 4 held-out tasks in 2 families, HyperLlama recovers 40% [33%, 50%] of what reading the "
    "examples in context gains: score over families 0.125 zero-shot, 0.375 HyperLlama, 0.750 in "
    "context."
  )
  text = report.markdown(results, records, [])
  assert "| method | score over families | recovery | log-likelihood | exact match |" in text
  assert "| HyperLlama | 0.375 [0.250, 0.500] | 0.40 [0.33, 0.50] |" in text
  assert "## Score per family" in text and "| p3.rte | 0.000 | 0.250 | 0.750 |" in text
  assert "## Score per task" in text and "| p3.rte.two | 0.000 | 0.250 | 0.500 |" in text
  assert report.table(results).title == (
    "Held-out: 4 tasks, 16 queries; 95% intervals over 2 clusters of tasks"
  )
  assert min(map(len, (plots.summary(results), plots.tasks(results, "hyperllama")))) > 1000


def test_categories_are_no_clusters():
  """Tasks of a category are tasks: the mean over categories is a figure among others."""
  results, _ = templates({"p3.rte.one": "x", "p3.rte.two": "x"})
  assert results["main_figure"] == "score"
  assert results["clusters"] == {"p3.rte.one": "x", "p3.rte.two": "x"}


@pytest.mark.parametrize("names, note", [
  (["p3.cb.one"], "undefined: one task has no interval"),
  (["p3.rte.one", "p3.rte.two"], "undefined: 2 tasks that are versions of one have no interval"),
])  # fmt: skip
def test_what_one_task_or_data_set_recovers_has_no_bounds(names, note):
  results, records = templates(dict.fromkeys(names, "x"), {name: RANKED[name] for name in names})
  found = results["methods"]["in_context"]
  assert found["score"] == {"mean": 3 / 4, "low": None, "high": None}
  assert "score_over_families" not in found
  assert {recovered["note"] for recovered in results["recovery"].values()} == {note}
  assert f"held-out task{'s' * (len(names) > 1)}, recovery is {note}: " in report.headline(results)
  text = report.markdown(results, records, [])
  assert "| in-context | 0.750 |  |" in text and "[" not in text.split("##")[0].split("![")[0]
  assert "no intervals over one " in report.table(results).title
  assert len(plots.summary(results)) > 1000
