"""Token stores: the tokenised pieces of one task's split, memory-mapped. Free of TensorFlow.

    stores/<key>/
      meta.json      version, kind, counts, dtype, length statistics; written last
      tokens.bin     all pieces in a row; uint16 where the vocabulary allows, else uint32
      offsets.npy    [pieces + 1] int64
      examples.npy   [examples, 5] int64: input, target and definition piece (or -1), first option,
                     first reference
      options.npy    [...] int64: piece of every option
      references.bin, references.npy   texts that answers are compared with, and where each begins

A store of documents (language modelling) has pieces only: piece i is document i.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32

VERSION = 2
EXAMPLES = "examples"
DOCUMENTS = "documents"


class Store:
  """Read access to one store; files are mapped on first use."""

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)

  @functools.cached_property
  def meta(self) -> dict:
    file = self.path / "meta.json"
    if not file.exists():
      raise FileNotFoundError(f"{self.path} is not a complete token store: it has no meta.json.")
    meta = json.loads(file.read_text())
    if meta["version"] != VERSION:
      raise ValueError(
        f"{file}: store version {meta['version']}, this hyperjax reads {VERSION}: rebuild it."
      )
    return meta

  @property
  def kind(self) -> str:
    return self.meta["kind"]

  def __len__(self) -> int:
    """The number of examples, or of documents."""
    return self.meta["examples"]

  @functools.cached_property
  def _tokens(self):
    tokens = self.meta["tokens"]
    if not tokens:
      return np.zeros([0], self.meta["dtype"])
    return _mapped(np.memmap(self.path / "tokens.bin", self.meta["dtype"], "r", shape=(tokens,)))

  @functools.cached_property
  def offsets(self) -> np.ndarray:
    """[pieces + 1] int64, where each piece begins."""
    return _mapped(np.load(self.path / "offsets.npy", mmap_mode="r"))

  @functools.cached_property
  def _examples(self) -> np.ndarray:
    return _mapped(np.load(self.path / "examples.npy", mmap_mode="r"))

  @functools.cached_property
  def _options(self) -> np.ndarray:
    return _mapped(np.load(self.path / "options.npy", mmap_mode="r"))

  def piece(self, index: int) -> Int32[np.ndarray, " n"]:
    """Returns the tokens of a piece (of a document, in a store of documents)."""
    start, stop = self.offsets[index], self.offsets[index + 1]
    return self._tokens[start:stop].astype(np.int32)

  def window(self, document: int, start: int, length: int) -> Int32[np.ndarray, " n"]:
    """Returns `length` tokens of a document, from `start` on."""
    start += int(self.offsets[document])
    return self._tokens[start : start + length].astype(np.int32)

  def input_piece(self, index: int) -> int:
    """Returns the piece of an example's input: equal inputs share one."""
    return int(self._examples[index, 0])

  def target_piece(self, index: int) -> int:
    """Returns the piece of an example's target: equal targets share one."""
    return int(self._examples[index, 1])

  def input(self, index: int) -> Int32[np.ndarray, " n"]:
    return self.piece(self.input_piece(index))

  def target(self, index: int) -> Int32[np.ndarray, " n"]:
    return self.piece(self.target_piece(index))

  def definition(self, index: int) -> Int32[np.ndarray, " n"] | None:
    piece = int(self._examples[index, 2])
    return None if piece < 0 else self.piece(piece)

  def options(self, index: int) -> list[np.ndarray] | None:
    """Returns the target pieces of an example's options, None where it has none."""
    stop = self._examples[index + 1, 3] if index + 1 < len(self) else len(self._options)
    pieces = self._options[self._examples[index, 3] : stop]
    return [self.piece(int(piece)) for piece in pieces] or None

  @functools.cached_property
  def _references(self) -> np.ndarray:
    return _mapped(np.load(self.path / "references.npy", mmap_mode="r"))

  def references(self, index: int) -> list[str]:
    """Returns the texts that an answer is compared with, as the task has them; none: its target.

    Texts and not tokens: a tokenizer need not give back what it was given.
    """
    last = len(self._references) - 1
    stop = self._examples[index + 1, 4] if index + 1 < len(self) else last
    bounds = self._references[self._examples[index, 4] : stop + 1]
    with open(self.path / "references.bin", "rb") as file:
      file.seek(bounds[0])
      contents = file.read(bounds[-1] - bounds[0])
    return [
      contents[start - bounds[0] : end - bounds[0]].decode()
      for start, end in itertools.pairwise(bounds.tolist())
    ]


class Writer:
  """Writes one store; used through `writing`."""

  def __init__(self, path: pathlib.Path, *, kind: str, dtype: np.dtype):
    self._path, self._kind, self._dtype = path, kind, dtype
    self._file = open(path / "tokens.bin", "wb")
    self._texts = open(path / "references.bin", "wb")
    self._lengths: list[int] = []
    self._pieces: dict[bytes, int] = {}
    self._examples: list[tuple[int, int, int, int, int]] = []
    self._options: list[int] = []
    self._references: list[int] = [0]

  def known(self, kind: str, text: str) -> int | None:
    """Returns the piece that holds this text, if there is one."""
    return self._pieces.get(_digest(kind, text))

  def add_piece(self, kind: str, text: str, ids: Sequence[int]) -> int:
    """Adds a piece and returns its index. Pieces are unique by kind and text."""
    index = self._pieces[_digest(kind, text)] = len(self._lengths)
    self._append(ids)
    return index

  def add_document(self, ids: Sequence[int]) -> None:
    self._append(ids)

  def add_example(
    self,
    source: int,
    target: int,
    definition: int,
    options: Sequence[int],
    references: Sequence[str] = (),
  ) -> None:
    """Adds an example of known pieces (definition -1: none)."""
    first = len(self._references) - 1
    self._examples.append((source, target, definition, len(self._options), first))
    self._options.extend(options)
    for text in references:
      contents = text.encode()
      self._texts.write(contents)
      self._references.append(self._references[-1] + len(contents))

  def __len__(self) -> int:
    return len(self._examples) if self._kind == EXAMPLES else len(self._lengths)

  def _append(self, ids: Sequence[int]) -> None:
    array = np.asarray(ids, np.int64)
    if array.size and (array.min() < 0 or array.max() > np.iinfo(self._dtype).max):
      raise ValueError(f"Token ids {array.min()}..{array.max()} do not fit {self._dtype.name}.")
    self._file.write(array.astype(self._dtype).tobytes())
    self._lengths.append(len(array))

  def finish(self) -> dict:
    """Writes the tables and, last, meta.json; returns the latter's values."""
    self.close()
    lengths = np.asarray(self._lengths, np.int64)
    examples = np.asarray(self._examples, np.int64).reshape(-1, 5)
    np.save(self._path / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(self._path / "examples.npy", examples)
    np.save(self._path / "options.npy", np.asarray(self._options, np.int64))
    np.save(self._path / "references.npy", np.asarray(self._references, np.int64))
    meta = {
      "version": VERSION, "kind": self._kind, "dtype": self._dtype.name,
      "examples": len(self), "pieces": len(lengths), "tokens": int(lengths.sum()),
    }  # fmt: skip
    if self._kind == EXAMPLES:
      meta["distinct_inputs"] = len(np.unique(examples[:, 0]))
      meta["lengths"] = {
        "input": _statistics(lengths[examples[:, 0]]),
        "target": _statistics(lengths[examples[:, 1]]),
        "shot": _statistics(lengths[examples[:, 0]] + lengths[examples[:, 1]]),
        "definition": _statistics(lengths[examples[examples[:, 2] >= 0, 2]]),
      }
    else:
      meta["lengths"] = {"document": _statistics(lengths)}
    (self._path / "meta.json").write_text(json.dumps(meta, indent=1))
    return meta

  def close(self) -> None:
    self._file.close()
    self._texts.close()


@contextlib.contextmanager
def writing(path: str | os.PathLike, *, kind: str, vocabulary_size: int) -> Iterator[Writer]:
  """Yields a `Writer`; `path` comes into being at the end, whole, or not at all."""
  path = pathlib.Path(path)
  dtype = np.dtype(np.uint16 if vocabulary_size <= 2**16 else np.uint32)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  writer = Writer(temporary, kind=kind, dtype=dtype)
  try:
    yield writer
    writer.finish()
    if path.exists():
      shutil.rmtree(path)
    temporary.rename(path)
  finally:
    writer.close()
    shutil.rmtree(temporary, ignore_errors=True)


def complete(path: str | os.PathLike) -> bool:
  """Whether a finished store of this version stands at `path`."""
  file = pathlib.Path(path) / "meta.json"
  return file.exists() and json.loads(file.read_text())["version"] == VERSION


def _mapped(array: np.ndarray) -> np.ndarray:
  """The same map as a plain array: slices of `np.memmap` cost several times as much."""
  return array.view(np.ndarray)


def _digest(kind: str, text: str) -> bytes:
  return hashlib.blake2b(f"{kind}\0{text}".encode(), digest_size=16).digest()


def _statistics(lengths: np.ndarray) -> dict:
  if not len(lengths):
    return {"mean": 0.0, "std": 0.0, "p99": 0, "max": 0}
  return {
    "mean": float(lengths.mean()), "std": float(lengths.std()),
    "p99": int(np.percentile(lengths, 99, method="higher")), "max": int(lengths.max()),
  }  # fmt: skip
