"""Vocabularies of every kind against independent references; transformers needs no torch here."""

import json
import pathlib

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from hyperjax import sources
from hyperjax.data import vocabularies

CORPUS = [
  "The quick brown fox jumps over the lazy dog, 1984 times.",
  "Straße, naïve, façade: Grüße aus Köln!",
  "Q: two hundred\nA: 200\n\nQ: Paris\nA: France",
  "Was du heute kannst besorgen, das verschiebe nicht auf morgen.",
] * 20
TEXTS = ["the fox", " the fox ", "Q: Köln 42\nA:", "日本 😀\n\n", "", "a  b\tc"]


@pytest.fixture(scope="module")
def embedded():
  return vocabularies.load(sources.EMBEDDED)


@pytest.fixture(scope="module")
def llama_model(tmp_path_factory):
  """A SentencePiece model trained with Llama's settings."""
  prefix = tmp_path_factory.mktemp("llama") / "tokenizer"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS), model_prefix=str(prefix), vocab_size=400, model_type="bpe",
    byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True, split_digits=True,
  )
  return pathlib.Path(f"{prefix}.model")


@pytest.fixture(scope="module")
def t5_model(tmp_path_factory):
  """A SentencePiece model with T5's special tokens."""
  prefix = tmp_path_factory.mktemp("t5") / "spiece"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS), model_prefix=str(prefix), vocab_size=150, model_type="unigram",
    hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
  )
  return pathlib.Path(f"{prefix}.model")


def fast_folder(folder, *, adds_bos=True, settings=None):
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=350, special_tokens=["<s>", "</s>"], show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator(CORPUS, trainer)
  if adds_bos:
    tokenizer.post_processor = processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", 0)]
    )
  tokenizer.enable_truncation(3)
  tokenizer.enable_padding(length=9)
  tokenizer.save(str(folder / "tokenizer.json"))
  if settings is None:
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return folder


def test_the_embedded_tokenizer_splits_as_smollm2_does(embedded):
  assert (embedded.size, embedded.eos_id, embedded.bos_id) == (49152, 2, 1)
  assert not embedded.adds_bos
  hello, end = embedded.encode_batch(["Hello", "<|im_end|>"])
  assert (len(hello), end) == (1, [2])
  (digits,) = embedded.encode_batch(["20251"])
  assert [embedded.decode([i]) for i in digits] == list("20251")


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_decoding_what_was_encoded_gives_the_text(text, embedded):
  # SmolLM2's byte-level vocabulary lacks a few bytes (control characters, unused UTF-8 leads).
  pieces = embedded.tokenizer.pre_tokenizer.pre_tokenize_str(text)
  assume(all(embedded.tokenizer.token_to_id(c) is not None for piece, _ in pieces for c in piece))
  (ids,) = embedded.encode_batch([text])
  assert embedded.decode(ids) == text
  assert all(0 <= i < embedded.size for i in ids)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0▁")))
def test_llama_sentencepiece_decodes_to_the_text(text, llama_model):
  vocabulary = vocabularies.load(llama_model)
  (ids,) = vocabulary.encode_batch([text])
  assert vocabulary.decode(ids) == text


def test_sentencepiece_ids_are_the_processors_own(llama_model, t5_model):
  for path, settings_ in ((llama_model, (2, 1, True)), (t5_model, (1, None, False))):
    vocabulary = vocabularies.load(path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert vocabulary.encode_batch(TEXTS) == [reference.encode(t) for t in TEXTS]
    assert (vocabulary.eos_id, vocabulary.bos_id, vocabulary.adds_bos) == settings_
    assert vocabulary.size == reference.get_piece_size()


@pytest.mark.parametrize("kind", ["embedded", "llama", "t5", "bytes"])
def test_ids_that_only_a_model_has_show_no_text(kind, embedded, llama_model, t5_model):
  """T5's table has 128 rows more than its vocabulary, with sentinels among them."""
  sources = {"llama": llama_model, "t5": t5_model, "bytes": "bytes"}
  vocabulary = embedded if kind == "embedded" else vocabularies.load(sources[kind])
  (ids,) = vocabulary.encode_batch(["the fox"])
  beyond = [vocabulary.size, vocabulary.size + 127]
  assert vocabulary.decode([*ids[:1], beyond[0], *ids[1:], beyond[1]]) == vocabulary.decode(ids)
  assert vocabulary.decode(beyond) == ""


def test_llama_sentencepiece_puts_a_space_before_each_piece(llama_model):
  vocabulary = vocabularies.load(llama_model)
  apart = vocabulary.encode_batch(["the", "fox"])
  assert vocabulary.decode(sum(apart, [])) == "the fox"


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_bytes_decode_to_the_text(text):
  vocabulary = vocabularies.load("bytes")
  (ids,) = vocabulary.encode_batch([text])
  assert vocabulary.decode(ids) == text
  assert len(ids) == len(text.encode()) and all(3 <= i < vocabulary.size for i in ids)


def test_bytes_are_numbered_as_byt5_does(tmp_path):
  vocabulary = vocabularies.load("bytes")
  assert vocabulary.encode_batch(TEXTS) == [
    transformers.ByT5Tokenizer(extra_ids=0)(text, add_special_tokens=False)["input_ids"]
    for text in TEXTS
  ]
  assert (vocabulary.size, vocabulary.eos_id, vocabulary.bos_id) == (259, 1, None)
  assert vocabulary.adds_eos and not vocabulary.adds_bos
  replaced = "<pad></s><unk>a\N{REPLACEMENT CHARACTER}"
  assert vocabulary.decode([0, 1, 2, 3 + ord("a"), 3 + 0xFF]) == replaced


def test_a_folder_of_byt5_is_read_as_bytes(tmp_path):
  transformers.ByT5Tokenizer().save_pretrained(tmp_path)
  assert vocabularies.load(tmp_path).fingerprint == vocabularies.load("bytes").fingerprint


def test_a_folders_settings_count(tmp_path):
  vocabulary = vocabularies.load(fast_folder(tmp_path))
  assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.adds_bos) == (0, 1, True)
  (ids,) = vocabulary.encode_batch(["The quick brown fox, 1984 times"])
  assert len(ids) > 9, "padding and truncation of the file must not apply"
  assert vocabulary.decode(ids) == "The quick brown fox, 1984 times"
  by_file = vocabularies.load(tmp_path / "tokenizer.json")
  assert by_file.fingerprint == vocabulary.fingerprint


def test_bos_follows_the_post_processor_unless_the_settings_say(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "b").mkdir()
  tokens = {"bos_token": "<s>", "eos_token": "</s>"}
  plain = vocabularies.load(fast_folder(tmp_path / "a", adds_bos=False, settings=tokens))
  told = fast_folder(tmp_path / "b", adds_bos=False, settings={**tokens, "add_bos_token": True})
  assert not plain.adds_bos
  assert vocabularies.load(told).adds_bos
  assert vocabularies.load(told).fingerprint != plain.fingerprint


@pytest.mark.parametrize("kind", ["embedded", "fast", "llama", "bytes"])
def test_transformers_reads_what_is_saved(kind, tmp_path, embedded, llama_model):
  (tmp_path / "source").mkdir()
  vocabulary = {
    "embedded": lambda: embedded,
    "fast": lambda: vocabularies.load(fast_folder(tmp_path / "source")),
    "llama": lambda: vocabularies.load(llama_model),
    "bytes": lambda: vocabularies.load("bytes"),
  }[kind]()
  out = tmp_path / "out"
  out.mkdir()
  vocabulary.save(out)
  theirs = transformers.AutoTokenizer.from_pretrained(out)
  start = [vocabulary.bos_id] if vocabulary.adds_bos else []
  end = [vocabulary.eos_id] if vocabulary.adds_eos else []
  # transformers' Llama tokenizer differs from SentencePiece where a text starts with a space.
  texts = [t for t in TEXTS if kind != "llama" or not t.startswith(" ")]
  for text, ids in zip(texts, vocabulary.encode_batch(texts), strict=True):
    assert theirs(text)["input_ids"] == start + ids + end, text
  assert theirs.eos_token_id == vocabulary.eos_id
  assert vocabularies.load(out).fingerprint == vocabulary.fingerprint


def test_the_chat_template_survives(tmp_path, embedded):
  embedded.save(tmp_path)
  saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert "<|im_start|>" in saved["chat_template"]


def gguf_with(monkeypatch, tmp_path, **changes):
  real = sources.gguf_header(sources.resolve(sources.EMBEDDED))
  changed = {f"tokenizer.ggml.{k}": v for k, v in changes.items()}
  metadata = {k: v for k, v in {**real.metadata, **changed}.items() if v is not None}
  header = sources.GgufHeader(metadata, real.tensors)
  monkeypatch.setattr(sources, "gguf_header", lambda path: header)
  path = tmp_path / "m.gguf"
  path.touch()
  return path


@pytest.mark.parametrize(("changes", "message"), [
  ({"pre": "qwen2"}, r"tokenizer.ggml.pre is 'qwen2'.*'smollm'"),
  ({"model": "llama"}, "tokenizer.ggml.model is 'llama'"),
  ({"eos_token_id": None}, "lacks tokenizer.ggml.eos_token_id"),
])
def test_a_gguf_tokenizer_of_another_kind_is_refused(changes, message, monkeypatch, tmp_path):
  with pytest.raises(ValueError, match=message):
    vocabularies.load(gguf_with(monkeypatch, tmp_path, **changes))


def test_a_gguf_llama3_tokenizer_adds_bos_and_keeps_up_to_three_digits(monkeypatch, tmp_path):
  path = gguf_with(monkeypatch, tmp_path, pre="llama-bpe", add_bos_token=None)
  vocabulary = vocabularies.load(path)
  assert vocabulary.adds_bos
  split = vocabulary.tokenizer.pre_tokenizer.pre_tokenize_str("it's 12345\n\n x")
  assert [s for s, _ in split] == ["it", "'s", "Ġ", "123", "45", "ĊĊ", "Ġx"]


def test_a_sentencepiece_model_without_eos_is_refused(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS), model_prefix=str(tmp_path / "endless"), vocab_size=150,
    model_type="unigram", hard_vocab_limit=False, eos_id=-1,
  )
  with pytest.raises(ValueError, match="endless.model has no EOS token"):
    vocabularies.load(tmp_path / "endless.model")


def test_what_is_not_a_tokenizer_is_refused(tmp_path):
  message = "none of tokenizer.json, tokenizer.model, spiece.model"
  with pytest.raises(FileNotFoundError, match=message):
    vocabularies.load(tmp_path)
  fast_folder(tmp_path, settings={"bos_token": "<s>"})
  with pytest.raises(ValueError, match="names an 'eos_token'"):
    vocabularies.load(tmp_path)
  fast_folder(tmp_path, settings={"eos_token": "<end>"})
  with pytest.raises(ValueError, match="'<end>' is not in the tokenizer's vocabulary"):
    vocabularies.load(tmp_path)
  fast_folder(tmp_path, settings={"eos_token": "</s>", "add_bos_token": True})
  with pytest.raises(ValueError, match="is set to add a BOS token, but names none"):
    vocabularies.load(tmp_path)
  for name in ("tokenizer_config.json", "tokenizer.json"):
    fast_folder(tmp_path, settings={"eos_token": "</s>"})
    whole = (tmp_path / name).read_text()
    (tmp_path / name).write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{name} is damaged: "):
      vocabularies.load(tmp_path)
  (tmp_path / "words.txt").touch()
  with pytest.raises(ValueError, match="unknown kind of file"):
    vocabularies.load(tmp_path / "words.txt")
