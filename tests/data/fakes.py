"""Test doubles for data: a byte vocabulary, and data folders written without seqio."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from hyperjax.data import store as store_lib
from hyperjax.data.encode import encode
from hyperjax.data.manifest import VERSION, Manifest
from hyperjax.data.prompts import PromptFormat
from hyperjax.data.vocabularies import Vocabulary


class Bytes(Vocabulary):
  """Bytes as ids 3..258, BOS 1, EOS 2; texts end with EOS where they do not begin with BOS."""

  size, eos_id, bos_id = 259, 2, 1

  def __init__(self, adds_bos: bool = False):
    self.adds_bos, self.fingerprint = adds_bos, f"bytes-{adds_bos}"
    self.adds_eos = not adds_bos

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [[byte + 3 for byte in text.encode()] for text in texts]

  def decode(self, ids) -> str:
    return bytes(int(i) - 3 for i in ids if i > 2).decode(errors="replace")

  def save(self, folder) -> None:
    raise NotImplementedError


class Cased(Bytes):
  """Bytes of small letters: texts that differ in case alone have the same tokens."""

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return super().encode_batch([text.lower() for text in texts])


PROMPT = PromptFormat("short", input="{input}=", target="{target}", terminator=";")


def filled(row: Mapping) -> dict:
  """A row as `RowsSource` has them, every optional feature being there."""
  empty = {"options": [], "references": [], "definition": ""}
  return {**empty, **row, "inputs": row["input"], "targets": row["output"]}


def write_examples(path, rows: Sequence[Mapping], vocabulary=None, prompt=PROMPT) -> dict:
  """Writes a store of {"input", "output"[, "options", "references", "definition"]}: its meta."""
  vocabulary = vocabulary or Bytes()
  with store_lib.writing(
    path, kind=store_lib.EXAMPLES, vocabulary_size=vocabulary.size
  ) as writer:
    if rows:
      writer.add(encode(list(map(filled, rows)), vocabulary, prompt))
  return store_lib.Store(path).meta


def chunk(documents: Sequence[Sequence[int]]) -> store_lib.Chunk:
  """Documents on their way into a store."""
  tokens = np.array([token for document in documents for token in document], np.int32)
  return store_lib.Chunk(tokens, np.array(list(map(len, documents)), np.int64))


def write_documents(path, documents: Sequence[Sequence[int]], size: int = 259) -> dict:
  with store_lib.writing(path, kind=store_lib.DOCUMENTS, vocabulary_size=size) as writer:
    writer.add(chunk(documents))
  return store_lib.Store(path).meta


def write_folder(
  folder: pathlib.Path, tasks: Mapping[str, Sequence | Mapping[str, Sequence]], *,
  rates: Mapping[str, float] | None = None, adds_bos: bool = False,
) -> Manifest:
  """Writes a data folder; a task is a list of examples (dicts) or of documents (lists of ids).

  Such a list is its split `train`; {split: list} gives it others.
  """
  vocabulary = Bytes(adds_bos)
  values = {
    "version": VERSION, "mixture": "made_up", "tasks": {}, "prompt": PROMPT.to_json(),
    "vocabulary": {name: getattr(vocabulary, name)
                   for name in ("fingerprint", "size", "eos_id", "bos_id", "adds_bos", "adds_eos")},
  }  # fmt: skip
  for name, given in tasks.items():
    entry = {"rate": rates[name] if rates else 1 / len(tasks), "splits": {}}
    for split, rows in (given if isinstance(given, Mapping) else {"train": given}).items():
      path = folder / "stores" / f"{name}-{split}"
      documents = not isinstance(rows[0], Mapping)
      meta = (
        write_documents(path, rows, 2**16) if documents else write_examples(path, rows, vocabulary)
      )
      entry["splits"][split] = {"store": f"stores/{path.name}", "source": "", **meta}
    values["tasks"][name] = entry
  (folder / "manifest.json").write_text(json.dumps(values))
  return Manifest.load(folder)


def numbered(count: int, prefix: str = "") -> list[dict]:
  """Makes `count` examples with different inputs and outputs."""
  return [{"input": f"{prefix}{i}", "output": f"out{i}"} for i in range(count)]
