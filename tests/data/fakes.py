"""Test doubles for data: a byte vocabulary, and data folders written without seqio."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from hyperjax.data import store as store_lib
from hyperjax.data.manifest import VERSION, Manifest
from hyperjax.data.prompts import PromptFormat


class Bytes:
  """Bytes as ids 3..258, BOS 1, EOS 2; texts end with EOS where they do not begin with BOS."""

  size, eos_id, bos_id = 259, 2, 1

  def __init__(self, adds_bos: bool = False):
    self.adds_bos, self.fingerprint = adds_bos, f"bytes-{adds_bos}"
    self.adds_eos = not adds_bos

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [[byte + 3 for byte in text.encode()] for text in texts]

  def decode(self, ids) -> str:
    return bytes(int(i) - 3 for i in ids if i > 2).decode()


PROMPT = PromptFormat("short", input="{input}=", target="{target}", terminator=";")


def write_examples(path, rows: Sequence[Mapping], vocabulary=None, prompt=PROMPT) -> dict:
  """Writes a store of {"input", "output"[, "options", "references", "definition"]}: its meta."""
  vocabulary = vocabulary or Bytes()
  with store_lib.writing(
    path, kind=store_lib.EXAMPLES, vocabulary_size=vocabulary.size
  ) as writer:

    def piece(kind: str, text: str) -> int:
      known = writer.known(kind, text)
      encode = {"input": prompt.encode_inputs, "target": prompt.encode_targets,
                "definition": prompt.encode_definitions}[kind]  # fmt: skip
      return (
        writer.add_piece(kind, text, encode(vocabulary, [text])[0]) if known is None else known
      )

    for row in rows:
      source, target = piece("input", row["input"]), piece("target", row["output"])
      definition = piece("definition", row["definition"]) if "definition" in row else -1
      options = [piece("target", option) for option in row.get("options", [])]
      writer.add_example(source, target, definition, options, row.get("references", ()))
  return store_lib.Store(path).meta


def write_documents(path, documents: Sequence[Sequence[int]], size: int = 259) -> dict:
  with store_lib.writing(path, kind=store_lib.DOCUMENTS, vocabulary_size=size) as writer:
    for document in documents:
      writer.add_document(document)
  return store_lib.Store(path).meta


def write_folder(
  folder: pathlib.Path, tasks: Mapping[str, Sequence], *, rates: Mapping[str, float] | None = None,
  adds_bos: bool = False,
) -> Manifest:
  """Writes a data folder; a task is a list of examples (dicts) or of documents (lists of ids)."""
  vocabulary = Bytes(adds_bos)
  values = {
    "version": VERSION, "mixture": "made_up", "tasks": {}, "prompt": PROMPT.to_json(),
    "vocabulary": {name: getattr(vocabulary, name)
                   for name in ("fingerprint", "size", "eos_id", "bos_id", "adds_bos", "adds_eos")},
  }  # fmt: skip
  for name, rows in tasks.items():
    path = folder / "stores" / name
    documents = not isinstance(rows[0], Mapping)
    meta = (
      write_documents(path, rows, 2**16) if documents else write_examples(path, rows, vocabulary)
    )
    values["tasks"][name] = {
      "rate": rates[name] if rates else 1 / len(tasks),
      "splits": {"train": {"store": f"stores/{name}", "source": "", **meta}},
    }
  (folder / "manifest.json").write_text(json.dumps(values))
  return Manifest.load(folder)


def numbered(count: int, prefix: str = "") -> list[dict]:
  """Makes `count` examples with different inputs and outputs."""
  return [{"input": f"{prefix}{i}", "output": f"out{i}"} for i in range(count)]
