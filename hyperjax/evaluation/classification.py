"""Scores of answers to classification tasks: functions of texts that a task names as its metrics.

White space around targets and predictions does not count. Figures are from 0 to 1.
"""

from collections.abc import Sequence

from sklearn import metrics


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Returns the share of predictions that are their target."""
  gold, answers = _stripped(targets), _stripped(predictions)
  return {"accuracy": float(metrics.accuracy_score(gold, answers))}


def rank_classification(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Returns the share of predictions that are their target, as T0 scores it (arXiv 2110.08207).

  It is `accuracy`; predictions are the options of the largest summed log-probability.
  """
  return {"rank_classification": accuracy(targets, predictions)["accuracy"]}


def macro_f1(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Returns the mean F1 of the classes that occur among the targets, as MetaICL scores it.

  A class that is never predicted has F1 0; one that is no target counts as a wrong answer only.
  Source: `MetaICLData.evaluate` in github.com/facebookresearch/MetaICL.
  """
  gold, answers = _stripped(targets), _stripped(predictions)
  f1 = metrics.f1_score(gold, answers, labels=sorted(set(gold)), average="macro")
  return {"macro_f1": float(f1)}


def _stripped(texts: Sequence[str]) -> list[str]:
  return [text.strip() for text in texts]
