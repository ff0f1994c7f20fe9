"""Figures against hand-computed answers, a plain-loop bootstrap and exact properties."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from hyperjax.evaluation import metrics

VALUES = st.dictionaries(
  st.text("abcdef", min_size=1, max_size=3), st.floats(0, 1), min_size=1, max_size=8
)
FEW = hypothesis.settings(max_examples=20, deadline=None)


def records(task, seed, values, field="exact_match"):
  return [{"task": task, "seed": seed, "query_id": i, field: v} for i, v in enumerate(values)]


@pytest.mark.parametrize(
  ("prediction", "target", "expected"),
  [("a", "a", 1), (" a\n", "a", 1), ("A", "a", 0), ("", "a", 0), ("a b", "a  b", 0), ("", " ", 1)],
)
def test_exact_match(prediction, target, expected):
  assert metrics.exact_match(prediction, target) == expected


@pytest.mark.parametrize(
  ("task", "expected"),
  [("lexical.plural.irregular", "lexical.plural"), ("a.b", "a"), ("alone", "alone"), (".x", ".x")],
)
def test_family(task, expected):
  assert metrics.family(task) == expected


def test_seeds_are_averaged_per_task_first():
  # Seed 0 has four queries (mean 0.25), seed 1 one (mean 1): pooled it would be 0.4.
  found = metrics.by_seed(records("t", 1, [1]) + records("t", 0, [1, 0, 0, 0]), "exact_match")
  assert found == {("t", 0): 0.25, ("t", 1): 1.0}
  assert metrics.by_task(found) == {"t": 0.625}


def test_tasks_count_alike_whatever_their_number_of_queries():
  found = metrics.by_task(
    metrics.by_seed(records("big", 0, [1] * 99) + records("a", 0, [0]), "exact_match")
  )
  assert list(found) == ["a", "big"]
  assert metrics.macro(found).mean == 0.5


def test_records_without_the_field_are_left_out():
  some = records("t", 0, [1, 0], "option_correct") + records("u", 0, [1])
  some.append({"task": "t", "seed": 0, "option_correct": None})
  assert metrics.by_seed(some, "option_correct") == {("t", 0): 0.5}


def test_by_family():
  values = {"x.a.1": 0.0, "x.a.2": 1.0, "x.b.1": 0.25, "alone": 0.75}
  assert metrics.by_family(values) == {"alone": 0.75, "x.a": 0.5, "x.b": 0.25}


def test_interval_of_two_tasks_is_their_range():
  # A resample of two tasks has both the same with probability 1/4 each: over 2.5%.
  assert metrics.macro({"a": 0.0, "b": 1.0}) == (0.5, 0.0, 1.0)


def test_one_task_has_no_interval():
  assert metrics.macro({"a": 0.3}) == (0.3, None, None)
  found = metrics.recovery({"a": 0.3}, {"a": 0.1}, {"a": 0.5})
  assert not found.defined and found.gain == (0.4, None, None)


# ---- Clusters -----------------------------------------------------------------------------------


def test_versions_of_one_thing_are_drawn_together():
  """Ten templates of one data set tell no more of other data sets than one of them does."""
  values = {"a.0": 0.0, "b.0": 1.0}
  copied = {f"{task[0]}.{i}": value for task, value in values.items() for i in range(10)}
  clusters = {task: task[0] for task in copied}
  assert metrics.macro(copied, clusters) == metrics.macro(values) == (0.5, 0.0, 1.0)
  apart = metrics.macro(copied)  # 1.96 x 0.5 / sqrt(20) = 0.22
  assert (apart.low, apart.high) == pytest.approx((0.3, 0.7), abs=0.06)


def test_a_resample_weighs_clusters_by_their_tasks():
  """Three tasks at 0 and one at 1. Of the resamples of two clusters a quarter has the large one
  twice (0), a quarter the small one twice (1), and a half both: (3 x 0 + 1) / 4."""
  values = {"big.1": 0.0, "big.2": 0.0, "big.3": 0.0, "small": 1.0}
  clusters = {task: "big" for task in values if task.startswith("big")}
  draws = metrics._draws(values, clusters, 0)
  means, counts = np.unique(draws @ [0, 0, 0, 1] / draws.sum(axis=1), return_counts=True)
  assert means.tolist() == [0.0, 0.25, 1.0]
  assert counts / metrics.SAMPLES == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
  assert metrics.macro(values, clusters) == (0.25, 0.0, 1.0)


def test_one_cluster_has_no_interval():
  values = {"a.1": 0.25, "a.2": 0.75}
  clusters = dict.fromkeys(values, "a")
  assert metrics.macro(values, clusters) == (0.5, None, None)
  gain = {task: value + 0.125 for task, value in values.items()}
  assert metrics.difference(gain, values, clusters) == (0.125, None, None)
  assert not metrics.recovery(gain, values, gain, clusters).defined
  assert metrics.recovery(gain, values, gain).defined


def test_recovery_over_clusters_agrees_with_a_plain_loop():
  rng = np.random.default_rng(5)
  tasks = [f"{c}.{i}" for c, size in zip("abcdefgh", (1, 9, 2, 5, 1, 3, 4, 2), strict=True)
           for i in range(size)]  # fmt: skip
  zero, context, ours = (
    {task: rng.uniform(low, high) + 0.02 * ord(task[0]) - 2 for task in tasks}
    for low, high in ((0, 0.1), (0.4, 0.6), (0.1, 0.5))
  )
  ratios = []
  for draw in np.random.default_rng(9).integers(8, size=(4000, 8)):
    chosen = [task for i in draw for task in tasks if task[0] == "abcdefgh"[i]]
    gain = sum(context[t] - zero[t] for t in chosen)
    ratios.append(sum(ours[t] - zero[t] for t in chosen) / gain)
  found = metrics.recovery(ours, zero, context, {task: task[0] for task in tasks})
  assert (found.low, found.high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.01)


def test_a_family_has_a_cluster_where_all_its_tasks_have_the_same():
  tasks = ["p.rte.1", "p.rte.2", "p.cb.1", "q.1", "q.2", "alone"]
  clusters = {"p.rte.1": "RTE", "p.rte.2": "RTE", "p.cb.1": "CB", "q.1": "x"}
  assert metrics.family_clusters(tasks, clusters) == {
    "p.rte": "RTE", "p.cb": "CB", "alone": "alone"
  }  # fmt: skip


def test_interval_agrees_with_the_normal_approximation():
  values = np.random.default_rng(1).normal(0.4, 0.1, size=400)
  found = metrics.macro({str(i): v for i, v in enumerate(values)})
  half = 1.96 * values.std() / 20
  assert found.high - found.mean == pytest.approx(half, rel=0.05)
  assert found.mean - found.low == pytest.approx(half, rel=0.05)


@FEW
@hypothesis.given(VALUES)
def test_interval_contains_the_mean_and_lies_within_the_values(values):
  mean, low, high = metrics.macro(values)
  if len(values) == 1:
    assert (low, high) == (None, None)
    return
  assert min(values.values()) - 1e-12 <= low <= high <= max(values.values()) + 1e-12
  assert low - 1e-12 <= mean <= high + 1e-12
  assert metrics.macro(values) == (mean, low, high)
  assert metrics.macro(dict(reversed(values.items()))) == (mean, low, high)


def test_difference_is_paired():
  left = {"a": 0.1, "b": 0.6, "c": 0.9}
  found = metrics.difference({task: value + 0.05 for task, value in left.items()}, left)
  assert found == pytest.approx((0.05, 0.05, 0.05))


def test_recovery_by_hand():
  zero, context = {"a": 0.0, "b": 0.2}, {"a": 0.5, "b": 0.7}
  found = metrics.recovery({"a": 0.25, "b": 0.6}, zero, context)
  assert found.mean == pytest.approx((0.25 + 0.4) / 1.0)
  assert found.gain == pytest.approx((0.5, 0.5, 0.5))
  assert (found.low, found.high) == pytest.approx((0.5, 0.8))
  assert found.defined


def test_recovery_is_a_ratio_of_averages_not_an_average_of_ratios():
  zero, context = {"a": 0.0, "b": 0.0}, {"a": 0.1, "b": 0.9}
  found = metrics.recovery({"a": 0.1, "b": 0.0}, zero, context)
  assert found.mean == pytest.approx(0.1)


def test_recovery_resamples_numerator_and_denominator_together():
  # Recovery is one half in every task, so a paired bootstrap has no width at all.
  rng = np.random.default_rng(0)
  zero = {str(i): v for i, v in enumerate(rng.uniform(0, 0.1, 30))}
  context = {task: value + g for (task, value), g in zip(
    zero.items(), rng.uniform(0.05, 0.9, 30), strict=True)}
  half = {task: (zero[task] + context[task]) / 2 for task in zero}
  assert metrics.recovery(half, zero, context)[:3] == pytest.approx((0.5, 0.5, 0.5))


def test_recovery_agrees_with_a_plain_loop():
  rng = np.random.default_rng(3)
  zero, context, ours = ({str(i): v for i, v in enumerate(rng.uniform(low, high, 12))}
                         for low, high in ((0, 0.1), (0.3, 0.9), (0.1, 0.6)))
  tasks = sorted(zero)
  ratios = []
  for draw in np.random.default_rng(9).integers(12, size=(4000, 12)):
    chosen = [tasks[i] for i in draw]
    gain = sum(context[t] - zero[t] for t in chosen)
    ratios.append(sum(ours[t] - zero[t] for t in chosen) / gain)
  found = metrics.recovery(ours, zero, context)
  assert (found.low, found.high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.01)


def test_the_ends_recover_nothing_and_all():
  zero, context = {"a": 0.0, "b": 0.1}, {"a": 0.5, "b": 0.4}
  assert metrics.recovery(zero, zero, context)[:3] == (0, 0, 0)
  assert metrics.recovery(context, zero, context)[:3] == (1, 1, 1)


@pytest.mark.parametrize(
  "context", [{"a": 0.5, "b": 0.1}, {"a": 0.2, "b": 0.2}, {"a": 0.1, "b": 0.0}]
)
def test_recovery_is_undefined_where_context_may_not_help(context):
  zero = {"a": 0.2, "b": 0.2}
  found = metrics.recovery({"a": 0.3, "b": 0.3}, zero, context)
  assert not found.defined
  assert all(math.isnan(value) for value in found[:3])
  assert found.gain.low <= 0


def test_a_log_likelihood_recovers_too():
  zero, context = {"a": -8.0, "b": -9.0}, {"a": -2.0, "b": -3.0}
  assert metrics.recovery({"a": -5.0, "b": -6.0}, zero, context).mean == pytest.approx(0.5)


def test_different_tasks_are_refused():
  with pytest.raises(ValueError, match="different tasks; these are not in all: b, c"):
    metrics.recovery({"a": 1.0, "b": 1.0}, {"a": 0.0, "c": 0.0}, {"a": 1.0, "b": 1.0})


def test_no_task_is_refused():
  with pytest.raises(ValueError, match="no task to average over"):
    metrics.macro({})
