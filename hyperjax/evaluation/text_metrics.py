"""Scores of answers as texts, from 0 to 1, as Super-NaturalInstructions defines them.

`exact_match_score` and `rouge_l_score` compare one answer with its references; the best reference
counts. `exact_match`, `rouge_l` and `xlingual_rouge_l` are their means over a task's answers, in
the form of seqio's `metric_fns`; a task's targets are then lists of references.
The definitions are those of arXiv 2204.07705 (github.com/allenai/natural-instructions,
eval/automatic), which gives percentages.
"""

import functools
import string
from collections.abc import Callable, Sequence

from hyperjax import sources

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match_score(prediction: str, references: Sequence[str]) -> float:
  """Returns 1 where an answer is a reference up to case, ASCII punctuation and white space."""
  return float(_normalised(prediction) in map(_normalised, references))


def rouge_l_score(
  prediction: str, references: Sequence[str], tokenizer: str | None = None
) -> float:
  """Returns the F-measure of the longest common subsequence of words, as rouge_score has it.

  Args:
    prediction: the answer.
    references: what it is compared with, at least one.
    tokenizer: None: the words are runs of a-z and 0-9 in lower case, stemmed; other scripts have
      none. Else where a byte-level BPE tokenizer comes from (what `sources.resolve` takes, or a
      tokenizer.json): its pieces are the words, without the mark of a space before them.
  """
  return float(_scorer(tokenizer).score_multi(references, prediction)["rougeL"].fmeasure)


def exact_match(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Returns the mean of `exact_match_score` over a task's answers."""
  return {"exact_match": _mean(exact_match_score, targets, predictions)}


def rouge_l(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Returns the mean of `rouge_l_score` over a task's answers: for English."""
  return {"rouge_l": _mean(rouge_l_score, targets, predictions)}


def xlingual_rouge_l(
  targets: Sequence[Sequence[str]], predictions: Sequence[str], *, tokenizer: str
) -> dict[str, float]:
  """Returns the mean of `rouge_l_score` over the pieces of a tokenizer: for every language."""
  score = functools.partial(rouge_l_score, tokenizer=tokenizer)
  return {"xlingual_rouge_l": _mean(score, targets, predictions)}


def _normalised(text: str) -> str:
  return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())


def _mean(
  score: Callable[[str, Sequence[str]], float],
  targets: Sequence[Sequence[str]],
  predictions: Sequence[str],
) -> float:
  scores = [score(p, references) for p, references in zip(predictions, targets, strict=True)]
  return sum(scores) / len(scores)


@functools.cache
def _scorer(tokenizer: str | None):
  # Late: it brings nltk, and nltk whatever of scipy and scikit-learn is installed.
  from rouge_score import rouge_scorer

  pieces = None if tokenizer is None else _Pieces(tokenizer)
  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True, tokenizer=pieces)


class _Pieces:
  """A tokenizer for rouge_score."""

  def __init__(self, source: str):
    import tokenizers

    path = sources.resolve(source)
    file = path / "tokenizer.json" if path.is_dir() else path
    self._tokenizer = tokenizers.Tokenizer.from_file(str(file))

  def tokenize(self, text: str) -> list[str]:
    pieces = self._tokenizer.encode(text, add_special_tokens=False).tokens
    return [piece.lstrip("Ġ") for piece in pieces]  # how byte-level BPE writes a space
