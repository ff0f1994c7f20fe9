"""Scores of texts against answers worked out by hand."""

import pathlib
import subprocess
import sys

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from hyperjax import sources
from hyperjax.evaluation import text_metrics
from hyperjax.evaluation.text_metrics import exact_match_score, rouge_l_score


@pytest.mark.parametrize(
  ("prediction", "references", "expected"),
  [
    ("The cat", ["the cat"], 1),
    (" the,  CAT!\n", ["dog", "The cat."], 1),
    ("don't", ["dont"], 1),
    ("cat", ["the cat"], 0),  # articles stay
    ("“cat”", ["cat"], 0),  # ASCII punctuation alone is dropped
    ("thecat", ["the cat"], 0),
    ("", ["cat"], 0),
    ("?", ["!"], 1),
  ],
)
def test_exact_match(prediction, references, expected):
  assert exact_match_score(prediction, references) == expected


@pytest.mark.parametrize(
  ("prediction", "references", "expected"),
  [
    # Stems: the cat are run home, a cat run home. 3 in common: P = 3/5, R = 3/4.
    ("The cats are running home.", ["a cat runs home"], 2 / 3),
    ("The cats are running home.", ["something else", "a cat runs home", "home"], 2 / 3),
    ("b a", ["a b"], 0.5),
    # Not contiguous: a c e, P = 1, R = 3/5.
    ("a c e", ["a b c d e"], 0.75),
    ("YES", ["yes!"], 1),
    ("", ["yes"], 0),
    ("你好", ["你好"], 0),  # no word in a-z and 0-9
  ],
)
def test_rouge_l(prediction, references, expected):
  assert rouge_l_score(prediction, references) == pytest.approx(expected)


@pytest.fixture
def tokenizer(tmp_path):
  """A byte-level BPE of one merge: a space and a `b` are one piece."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {piece: i for i, piece in enumerate([*alphabet, "Ġb"])}
  bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "b")]))
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.save(str(tmp_path / "tokenizer.json"))
  return str(tmp_path)


@pytest.mark.parametrize(
  ("prediction", "references", "expected"),
  [
    ("b", ["a b"], 2 / 3),  # the mark of the space before b is dropped: P = 1, R = 1/2
    ("B", ["b"], 0),
    ("你", ["你好"], 2 / 3),  # three bytes of six
    ("runs", ["running", "run"], 6 / 7),  # no stems; three letters of four, and all of three
  ],
)
def test_rouge_l_of_a_tokenizers_pieces(tokenizer, prediction, references, expected):
  for source in (tokenizer, f"{tokenizer}/tokenizer.json"):
    assert rouge_l_score(prediction, references, source) == pytest.approx(expected)


def test_a_tasks_score_is_the_mean_over_its_answers(tokenizer):
  targets, predictions = [["a b"], ["x", "a"]], ["b a", "A."]
  assert text_metrics.exact_match(targets, predictions) == {"exact_match": 0.5}
  assert text_metrics.rouge_l(targets, predictions) == {"rouge_l": 0.75}
  xlingual = text_metrics.xlingual_rouge_l(tokenizer)
  assert xlingual.__name__ == f"xlingual_rouge_l:{tokenizer}"
  found = xlingual([["a b"], ["你"]], ["b", "你"])
  assert found == {"xlingual_rouge_l": pytest.approx(5 / 6)}
  with pytest.raises(ValueError, match="longer than"):
    text_metrics.rouge_l(targets, predictions[:1])


def test_of_a_hub_only_the_tokenizer_is_taken(tokenizer, monkeypatch):
  asked = []
  download = lambda name, files: asked.append((name, files)) or pathlib.Path(tokenizer)
  monkeypatch.setattr(sources, "_download", download)
  assert rouge_l_score("b", ["a b"], "made/up") == pytest.approx(2 / 3)
  assert asked == [("made/up", ["tokenizer.json"])]


def test_a_tokenizer_that_is_not_to_be_had_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere.json"):
    text_metrics.pieces(str(tmp_path / "nowhere.json"))
  with pytest.raises(FileNotFoundError, match=f"no tokenizer.json in {tmp_path}"):
    text_metrics.pieces(str(tmp_path))
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer of the tokenizers lib"):
    text_metrics.pieces(str(tmp_path))


def test_scoring_needs_no_tensorflow():
  code = (
    "import sys; from hyperjax.evaluation import text_metrics as t; "
    "assert not {'nltk', 'rouge_score', 'tokenizers'} & set(sys.modules); "
    "assert t.rouge_l_score('a', ['a']) == 1; "
    "sys.exit(bool({'tensorflow', 'seqio', 'transformers', 'jax'} & set(sys.modules)))"
  )
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
