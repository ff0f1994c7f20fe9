"""Vocabularies: Hugging Face fast tokenizers, SentencePiece models, those inside GGUF files, bytes.

All encode in batches, piece by piece, without special tokens; `prompts` adds those. Encoding pieces
apart is not encoding their concatenation: a Llama 2 SentencePiece model sets a space before each
piece ('ab' and 'c' become '▁ab' and '▁c'). Training and serving both encode piece by piece, so
they agree, and decoding one piece's ids returns that piece.
"""

import abc
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from hyperjax import sources

__all__ = [
  "BYTES", "ByteVocabulary", "FastVocabulary", "SentencePieceVocabulary", "Vocabulary",
  "check_fits", "load",
]

_TOKENIZER = "tokenizer.json"
_SENTENCEPIECE = ("tokenizer.model", "spiece.model")  # as Llama 2 and as T5 call it
_TOKENIZER_CONFIG = "tokenizer_config.json"

BYTES = "bytes"
_BYTE_TOKENIZER = "ByT5Tokenizer"
_BYTE_SPECIALS = ("<pad>", "</s>", "<unk>")


class Vocabulary(abc.ABC):
  """Text to token ids and back.

  Attributes:
    size: number of ids; a model may have more rows than that, never fewer.
    eos_id: ends a text.
    bos_id: starts a text, where there is such a token.
    adds_bos: whether the tokenizer itself puts BOS before each text when used as its makers mean.
    adds_eos: whether it likewise puts EOS behind each text.
    fingerprint: sha256 of the serialised tokenizer, eos_id, bos_id and adds_bos.
  """

  size: int
  eos_id: int
  bos_id: int | None
  adds_bos: bool
  adds_eos: bool
  fingerprint: str

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without special tokens around them."""

  @abc.abstractmethod
  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; special tokens show where the tokenizer can write them, and ids from `size`
    on, which only a model has, do not."""

  @abc.abstractmethod
  def save(self, folder: pathlib.Path) -> None:
    """Writes the files that transformers.AutoTokenizer reads into an existing folder."""

  def _known(self, ids: Sequence[int]) -> list[int]:
    """Those that have a text: models with more rows than the vocabulary has ids may emit others."""
    return [int(i) for i in ids if i < self.size]

  def _finish(self, serialised: bytes) -> None:
    if self.adds_bos and self.bos_id is None:
      raise ValueError("the tokenizer is set to add a BOS token, but names none")
    settings = json.dumps([self.eos_id, self.bos_id, self.adds_bos]).encode()
    self.fingerprint = hashlib.sha256(serialised + settings).hexdigest()


def check_fits(name: str, vocabulary: Vocabulary, embeddings: int, model: str = "") -> None:
  """Checks that a model of so many embeddings has one for every id of a vocabulary.

  Raises:
    ValueError: it has not.
  """
  if vocabulary.size > embeddings:
    raise ValueError(
      f"the vocabulary {name} has {vocabulary.size} tokens, the model {model} only {embeddings} "
      "embeddings: name the model's own vocabulary (VOCABULARY)"
    )


class FastVocabulary(Vocabulary):
  """A tokenizer of the `tokenizers` library.

  Args:
    tokenizer: padding and truncation are switched off.
    eos_token: must be one of its tokens.
    bos_token: the same, or None.
    adds_bos: where None, what the tokenizer's own post-processor does.
    extra: further entries of tokenizer_config.json, such as the chat template.
  """

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    *,
    eos_token: str,
    bos_token: str | None = None,
    adds_bos: bool | None = None,
    extra: Mapping[str, Any] | None = None,
  ):
    tokenizer.no_padding()
    tokenizer.no_truncation()
    self.tokenizer = tokenizer
    self.size = tokenizer.get_vocab_size(with_added_tokens=True)
    self.eos_id = self._id(eos_token)
    self.bos_id = None if bos_token is None else self._id(bos_token)
    if adds_bos is None:
      adds_bos = self.bos_id is not None and tokenizer.encode("a").ids[0] == self.bos_id
    self.adds_bos = adds_bos
    self.adds_eos = tokenizer.encode("a").ids[-1] == self.eos_id
    self._config = {
      **(extra or {}),
      "tokenizer_class": "PreTrainedTokenizerFast",
      "add_bos_token": adds_bos,
      "bos_token": bos_token,
      "eos_token": eos_token,
      "clean_up_tokenization_spaces": False,
    }
    self._finish(tokenizer.to_str().encode())

  def _id(self, token: str) -> int:
    found = self.tokenizer.token_to_id(token)
    if found is None:
      raise ValueError(f"the special token {token!r} is not in the tokenizer's vocabulary")
    return found

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [e.ids for e in encoded]

  def decode(self, ids: Sequence[int]) -> str:
    return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

  def save(self, folder: pathlib.Path) -> None:
    folder = pathlib.Path(folder)
    self.tokenizer.save(str(folder / _TOKENIZER))
    text = json.dumps(self._config, indent=2, ensure_ascii=False)
    (folder / _TOKENIZER_CONFIG).write_text(text + "\n", encoding="utf-8")


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model as Llama 2 and T5 have it.

  Args:
    path: the .model file.
    adds_bos: where None, whether the model has a BOS token at all: Llama's has, and puts it before
      each text; T5's has not, and puts EOS behind each text.

  Of a saved one, transformers 5 gives the same ids except where a text itself starts with a space:
  SentencePiece sets a second one before it, transformers does not.
  """

  def __init__(self, path: pathlib.Path, adds_bos: bool | None = None):
    import sentencepiece

    self.path = path
    self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    self.size = self._model.get_piece_size()
    self.eos_id, bos = self._model.eos_id(), self._model.bos_id()
    if self.eos_id < 0:
      raise ValueError(f"{path} has no EOS token")
    self.bos_id = bos if bos >= 0 else None
    self.adds_bos = self.bos_id is not None if adds_bos is None else adds_bos
    self.adds_eos = self.bos_id is None
    self._finish(self._model.serialized_model_proto())

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self._model.encode(list(texts), num_threads=1)  # as fast; builders are many

  def decode(self, ids: Sequence[int]) -> str:
    return self._model.decode(self._known(ids))

  def save(self, folder: pathlib.Path) -> None:
    folder = pathlib.Path(folder)
    shutil.copyfile(self.path, folder / _SENTENCEPIECE[self.bos_id is None])

    def piece(i):
      return None if i is None or i < 0 else self._model.id_to_piece(i)

    config = {
      "tokenizer_class": "T5Tokenizer" if self.bos_id is None else "LlamaTokenizer",
      "add_bos_token": self.adds_bos,
      "add_eos_token": self.adds_eos,
      "bos_token": piece(self.bos_id),
      "eos_token": piece(self.eos_id),
      "unk_token": piece(self._model.unk_id()),
      "pad_token": piece(self._model.pad_id()),
      "legacy": False,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / _TOKENIZER_CONFIG).write_text(text + "\n", encoding="utf-8")


class ByteVocabulary(Vocabulary):
  """The bytes of UTF-8, numbered as ByT5 does (arXiv 2105.13626): <pad>, </s>, <unk>, then bytes.

  ByT5's sentinels, behind the bytes, are no part of it: nothing here makes them.
  """

  def __init__(self):
    self.size = len(_BYTE_SPECIALS) + 256
    self.eos_id, self.bos_id = _BYTE_SPECIALS.index("</s>"), None
    self.adds_bos, self.adds_eos = False, True
    self._finish(BYTES.encode())

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [[byte + len(_BYTE_SPECIALS) for byte in text.encode()] for text in texts]

  def decode(self, ids: Sequence[int]) -> str:
    first = len(_BYTE_SPECIALS)
    known = self._known(ids)
    pieces = [_BYTE_SPECIALS[i].encode() if i < first else bytes([i - first]) for i in known]
    return b"".join(pieces).decode(errors="replace")

  def save(self, folder: pathlib.Path) -> None:
    pad, eos, unk = _BYTE_SPECIALS
    config = {
      "tokenizer_class": _BYTE_TOKENIZER, "extra_ids": 0, "pad_token": pad, "eos_token": eos,
      "unk_token": unk,
    }  # fmt: skip
    text = json.dumps(config, indent=2)
    (pathlib.Path(folder) / _TOKENIZER_CONFIG).write_text(text + "\n", encoding="utf-8")


def load(source: str | pathlib.Path) -> Vocabulary:
  """The vocabulary of a model source, or of a tokenizer file.

  Args:
    source: BYTES, what `sources.resolve` takes, or the path of a tokenizer.json or of a
      SentencePiece model (*.model). Settings beside it (tokenizer_config.json) count.

  Raises:
    FileNotFoundError: no such source, or a folder without a tokenizer.
    ValueError: a tokenizer of an unknown kind, or one that names no EOS token.
  """
  if source == BYTES:
    return ByteVocabulary()
  path = sources.resolve(source)
  if path.is_dir():
    if _settings(path).get("tokenizer_class") == _BYTE_TOKENIZER:
      return ByteVocabulary()
    found = [path / n for n in (_TOKENIZER, *_SENTENCEPIECE) if (path / n).exists()]
    if not found:
      raise FileNotFoundError(
        f"{path} holds none of {_TOKENIZER}, {', '.join(_SENTENCEPIECE)}; it is not a tokenizer's "
        "folder"
      )
    path = found[0]
  if path.suffix == ".gguf":
    return _from_gguf(path)
  if path.suffix == ".model":
    return SentencePieceVocabulary(path, _settings(path.parent).get("add_bos_token"))
  if path.suffix == ".json":
    return _from_json(path)
  raise ValueError(
    f"vocabulary {str(path)!r}: unknown kind of file; allowed are a folder, {_TOKENIZER}, a "
    "SentencePiece *.model and *.gguf"
  )


def _settings(folder: pathlib.Path) -> dict[str, Any]:
  """tokenizer_config.json over special_tokens_map.json, tokens as plain strings."""
  out: dict[str, Any] = {}
  for name in ("special_tokens_map.json", _TOKENIZER_CONFIG):
    if (folder / name).exists():
      out |= sources.read_json(folder / name)
  return {k: v.get("content", v) if isinstance(v, dict) else v for k, v in out.items()}


def _from_json(path: pathlib.Path) -> FastVocabulary:
  settings = _settings(path.parent)
  if settings.get("eos_token") is None:
    raise ValueError(f"{path} has no {_TOKENIZER_CONFIG} beside it that names an 'eos_token'")
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises no other kind
    raise ValueError(f"{path} is damaged: {error}") from error
  kept = ("chat_template", "model_max_length", "pad_token", "unk_token")
  return FastVocabulary(
    tokenizer,
    eos_token=settings["eos_token"],
    bos_token=settings.get("bos_token"),
    adds_bos=settings.get("add_bos_token"),
    extra={k: settings[k] for k in kept if settings.get(k) is not None},
  )


# What GGUF says of a byte-level BPE is only the name of its pre-tokenizer.
_LLAMA3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_byte_level = functools.partial(pre_tokenizers.ByteLevel, add_prefix_space=False)


def _smollm():
  return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


def _llama3():
  split = pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_SPLIT), "isolated")
  return pre_tokenizers.Sequence([split, _byte_level(use_regex=False)])


# name -> (pre-tokenizer, whether merges are skipped for whole words of the vocabulary, adds BOS)
_PRE_TOKENIZERS = {
  "gpt-2": (_byte_level, False, False),
  "smollm": (_smollm, False, False),
  "llama-bpe": (_llama3, True, True),
}
_CONTROL, _USER_DEFINED = 3, 4


def _from_gguf(path: pathlib.Path) -> FastVocabulary:
  """Builds the tokenizer that a GGUF file's metadata describes, as llama.cpp understands it."""
  metadata = sources.gguf_header(path).metadata

  def get(key, default=None):
    return metadata.get(f"tokenizer.ggml.{key}", default)

  if get("model") != "gpt2":
    raise ValueError(
      f"{path}: tokenizer.ggml.model is {get('model')!r}; of GGUF only 'gpt2' (byte-level BPE) is "
      "read: name the model's Hugging Face folder instead"
    )
  if get("pre") not in _PRE_TOKENIZERS:
    raise ValueError(
      f"{path}: tokenizer.ggml.pre is {get('pre')!r}; known pre-tokenizers: "
      f"{sorted(_PRE_TOKENIZERS)}; name the model's Hugging Face folder instead"
    )
  pre_tokenizer, ignore_merges, default_bos = _PRE_TOKENIZERS[get("pre")]
  tokens = get("tokens")
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(m.split(" ", 1)) for m in get("merges")],
      ignore_merges=ignore_merges,
    )
  )
  tokenizer.pre_tokenizer = pre_tokenizer()
  tokenizer.decoder = decoders.ByteLevel()
  added = [
    tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
    for token, kind in zip(tokens, get("token_type"), strict=True)
    if kind in (_CONTROL, _USER_DEFINED)
  ]
  tokenizer.add_tokens(added)

  def named(key):
    return None if get(key) is None else tokens[get(key)]

  if named("eos_token_id") is None:
    raise ValueError(f"{path} lacks tokenizer.ggml.eos_token_id")
  bos = named("bos_token_id")
  adds_bos = get("add_bos_token", default_bos)
  if adds_bos and bos is not None:
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, get("bos_token_id"))]
    )
  extra = {
    "unk_token": named("unknown_token_id"),
    "pad_token": named("padding_token_id"),
    "chat_template": metadata.get("tokenizer.chat_template"),
  }
  return FastVocabulary(
    tokenizer,
    eos_token=named("eos_token_id"),
    bos_token=bos,
    adds_bos=adds_bos,
    extra={k: v for k, v in extra.items() if v is not None},
  )
