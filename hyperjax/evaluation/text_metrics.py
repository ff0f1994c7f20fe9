"""Scores of answers as texts, from 0 to 1, as Super-NaturalInstructions defines them.

`exact_match_score` and `rouge_l_score` compare one answer with its references; the best reference
counts. `exact_match`, `rouge_l` and what `xlingual_rouge_l` returns are their means over a task's
answers, in the form of seqio's `metric_fns`; a task's targets are then lists of references.
The definitions are those of arXiv 2204.07705 (github.com/allenai/natural-instructions,
eval/automatic), which gives percentages.
"""

import functools
import string
from collections.abc import Callable, Sequence

from hyperjax import sources

XLINGUAL = "xlingual_rouge_l"
_TOKENIZER = "tokenizer.json"
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
      none. Else what `pieces` takes: its pieces are the words, without the mark of a space before
      them.
  """
  return float(_scorer(tokenizer).score_multi(references, prediction)["rougeL"].fmeasure)


def exact_match(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Returns the mean of `exact_match_score` over a task's answers."""
  return {"exact_match": _mean(exact_match_score, targets, predictions)}


def rouge_l(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Returns the mean of `rouge_l_score` over a task's answers: for English."""
  return {"rouge_l": _mean(rouge_l_score, targets, predictions)}


def xlingual_rouge_l(
  tokenizer: str,
) -> Callable[[Sequence[Sequence[str]], Sequence[str]], dict[str, float]]:
  """Returns the mean of `rouge_l_score` over the pieces of a tokenizer: for every language.

  Its name says which tokenizer: `xlingual_rouge_l:openai-community/gpt2`. Nothing is read before it
  is called.
  """

  def metric(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    score = functools.partial(rouge_l_score, tokenizer=tokenizer)
    return {XLINGUAL: _mean(score, targets, predictions)}

  metric.__name__ = f"{XLINGUAL}:{tokenizer}"
  return metric


def named(name: str) -> Callable[..., dict[str, float]] | None:
  """Returns the metric of a name that a manifest has; None where it is none of texts."""
  kind, _, tokenizer = name.partition(":")
  if kind == XLINGUAL:
    return xlingual_rouge_l(tokenizer)
  return {"exact_match": exact_match, "rouge_l": rouge_l}.get(name)


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

  words = None if tokenizer is None else pieces(tokenizer)
  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True, tokenizer=words)


@functools.cache
def pieces(source: str) -> "_Pieces":
  """Loads a byte-level BPE tokenizer.

  Args:
    source: a tokenizer.json, a folder with one, or a Hugging Face id, of which only that file is
      downloaded.

  Raises:
    FileNotFoundError: there is none.
    ValueError: the file is no tokenizer.
  """
  return _Pieces(source)


class _Pieces:
  """A tokenizer for rouge_score."""

  def __init__(self, source: str):
    import tokenizers

    path = sources.resolve(source, [_TOKENIZER])
    file = path / _TOKENIZER if path.is_dir() else path
    if not file.exists():
      raise FileNotFoundError(f"{source}: no {_TOKENIZER} in {path}; {XLINGUAL} needs one.")
    try:
      self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as e:  # the library has no class of its own for it
      raise ValueError(f"{file}: not a tokenizer of the tokenizers library: {e}") from e

  def tokenize(self, text: str) -> list[str]:
    """Returns the pieces of a text."""
    found = self._tokenizer.encode(text, add_special_tokens=False).tokens
    return [piece.lstrip("Ġ") for piece in found]  # how byte-level BPE writes a space
