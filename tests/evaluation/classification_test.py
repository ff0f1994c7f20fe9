"""Accuracy and macro-F1 against answers computed by hand."""

import pytest

from hyperjax.evaluation.classification import accuracy, macro_f1

# targets, predictions, F1 of each class among the targets
CASES = {
  "all right": ("aabb", "aabb", [1, 1]),
  # a: 2 right of 2 predicted and 3 asked; b: 1 of 2 predicted and 1 asked
  "one wrong": ("aaab", "aabb", [4 / 5, 2 / 3]),
  "never predicted": ("aab", "aaa", [4 / 5, 0]),
  "all wrong": ("ab", "ba", [0, 0]),
  # c is no class of the targets: a has 1 right of 1 predicted and 2 asked
  "predicted only": ("aab", "acb", [2 / 3, 1]),
  "one class": ("aaaa", "aaab", [6 / 7]),
}


@pytest.mark.parametrize("case", CASES)
def test_macro_f1_averages_over_the_classes_of_the_targets(case):
  targets, predictions, f1 = CASES[case]
  found = macro_f1(list(targets), list(predictions))
  assert found == {"macro_f1": pytest.approx(sum(f1) / len(f1))}


def test_accuracy_is_the_share_of_answers_that_are_right():
  assert accuracy(["a", "b", "b", "c"], ["a", "b", "c", "d"]) == {"accuracy": 0.5}


def test_white_space_around_texts_does_not_count():
  assert accuracy(["not entailed\n"], [" not entailed"]) == {"accuracy": 1.0}
  assert macro_f1(["a ", "b"], ["a", " b"]) == {"macro_f1": 1.0}


def test_case_and_inner_white_space_count():
  assert accuracy(["a b", "a"], ["a  b", "A"]) == {"accuracy": 0.0}
