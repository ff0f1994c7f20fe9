"""Prompt formats: rendering, piecewise encoding, JSON, errors."""

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from hyperjax.data import prompts
from hyperjax.data.prompts import FORMATS, PromptFormat
from tests.data.fakes import Bytes

SENTENCEPIECE_TEXT = "the wolf saw a wolf and the wolves saw the dogs: a dog: wolf: wolves "


@given(st.text(), st.text(min_size=1), st.sampled_from(sorted(FORMATS)))
def test_pieces_spell_the_rendered_text(source, target, name):
  prompt, vocabulary = FORMATS[name], Bytes()
  text = prompt.render_input({"input": source}) + prompt.render_target(target)
  pieces = prompt.encode_inputs(vocabulary, [source]) + prompt.encode_targets(vocabulary, [target])
  assert vocabulary.decode([i for ids in pieces for i in ids]) == text
  end = prompt.terminator_ids(vocabulary)
  assert tuple(pieces[1][-len(end) :]) == end


def test_an_empty_terminator_is_eos():
  assert FORMATS["eos"].terminator_ids(Bytes()) == (Bytes.eos_id,)
  assert FORMATS["eos"].encode_targets(Bytes(), ["x"])[0] == [ord("x") + 3, Bytes.eos_id]


@given(
  st.lists(st.sampled_from([1, 2]), max_size=6),
  st.lists(st.sampled_from([1, 2]), min_size=1, max_size=3),
)
def test_a_target_ends_early_where_decoding_it_would_stop_before_its_end(body, end):
  ids, made = body + end, []
  while made[-len(end) :] != end:
    made.append(ids[len(made)])
  assert prompts.ends_early(ids, end) == (made != ids)


def test_targets_that_no_answer_can_be_are_remarked_on():
  assert FORMATS["qa"].remark({"a": 0}) == ""
  assert FORMATS["qa"].remark({"a": 1200, "b": 0, "c": 3}) == (
    "No answer can be 1,203 of the targets, which hold what ends an answer, '\\n': 1,200 of a, "
    "3 of c; a format that ends with EOS has no such limit (gin: PROMPT='qa_eos')."
  )
  found = FORMATS["qa_eos"].remark({f"t{i}": 1 for i in range(8)})
  assert "answer, EOS: 1 of t0, " in found and "1 of t4 and 3 more tasks; take its text" in found


@pytest.mark.parametrize("ids, expected", [
  ([10, 11, 7, 8], [10, 11]),
  ([10, 11], [10, 11]),
  ([10, 0, 11, 7, 8], [10]),
  ([7, 8], []),
  ([8], [8]),
  ([], []),
])
def test_a_text_ends_before_terminator_or_eos(ids, expected):
  class Letters(Bytes):
    eos_id = 0

    def decode(self, ids):
      return " " + ",".join(map(str, ids))

  assert prompts.text_of(ids, (7, 8), Letters()) == ",".join(map(str, expected))


def test_braces_in_a_text_stay_as_they_are():
  assert FORMATS["qa"].render_input("{target} {0}") == "Q: {target} {0}\nA:"


class SentencePiece(Bytes):
  """A real SentencePiece model, which sets a space in front of every text.

  T5's removes extra white space: what ends a text, or a line, has no token.
  """

  def __init__(self, path, remove_extra_whitespaces=False):
    super().__init__()
    prefix = str(path / "model")
    (path / "text.txt").write_text("\n".join([SENTENCEPIECE_TEXT] * 20))
    sentencepiece.SentencePieceTrainer.train(
      input=str(path / "text.txt"), model_prefix=prefix, vocab_size=60, hard_vocab_limit=False,
      remove_extra_whitespaces=remove_extra_whitespaces, minloglevel=2,
    )  # fmt: skip
    self._model = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")

  def encode_batch(self, texts):
    return self._model.encode(list(texts))

  def decode(self, ids):
    return self._model.decode([int(i) for i in ids])


def test_a_target_gets_no_second_space_from_sentencepiece(tmp_path):
  vocabulary = SentencePiece(tmp_path)
  prompt = PromptFormat("test", input="a {input}:", target=" {target}", terminator="")
  source = prompt.encode_inputs(vocabulary, ["wolf"])[0]
  target = prompt.encode_targets(vocabulary, ["wolves"])[0][:-1]
  assert source + target == vocabulary.encode_batch(["a wolf: wolves"])[0]
  assert vocabulary.encode_batch([" wolves"])[0] != target  # what encoding it alone would give


@pytest.mark.parametrize("name", ["qa", "qa_blank_line", "newline", "arrow"])
def test_a_terminator_without_a_token_is_refused(tmp_path, name):
  vocabulary = SentencePiece(tmp_path, remove_extra_whitespaces=True)
  end = FORMATS[name].terminator
  message = (
    f"Prompt format '{name}': its terminator {end!r} has no token in this vocabulary (as line ends "
    "have none in T5's), so no target would have an end; use a format that ends with EOS (gin: "
    "PROMPT): short, qa_eos, eos."
  )
  for ask in (
    lambda: FORMATS[name].terminator_ids(vocabulary),
    lambda: FORMATS[name].encode_targets(vocabulary, ["wolves"]),
  ):
    with pytest.raises(ValueError) as error:
      ask()
    assert str(error.value) == message
  assert FORMATS["qa_eos"].terminator_ids(vocabulary) == (vocabulary.eos_id,)


def test_json_round_trip_and_unknown_fields():
  prompt = FORMATS["arrow"]
  assert PromptFormat.from_json(prompt.to_json()) == prompt
  with pytest.raises(ValueError, match="unknown field 'targets'.*'target'"):
    PromptFormat.from_json({**prompt.to_json(), "targets": ""})


def test_errors_name_field_and_nearest_format():
  with pytest.raises(ValueError, match=r"'bad'.*input template must contain \{input\}"):
    PromptFormat("bad", input="Q:")
  with pytest.raises(ValueError, match="'newlin'. Did you mean 'newline'"):
    prompts.get("newlin")
