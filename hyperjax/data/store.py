"""Token stores: the tokenised pieces of one task's split, memory-mapped. Free of TensorFlow.

    stores/<key>/
      meta.json      version, kind, counts, dtype, length statistics; written last
      tokens.bin     all pieces in a row; uint16 where the vocabulary allows, else uint32
      offsets.npy    [pieces + 1] int64
      examples.npy   [examples, 5] int64: input, target and definition piece (or -1), first option,
                     first reference
      options.npy    [...] int64: piece of every option
      references.bin, references.npy   texts that answers are compared with, and where each begins

A store of documents (language modelling) has pieces only: piece i is document i. The builder writes
it in shards, 00000/, 00001/, ..., each a store of documents itself; the meta.json beside them makes
them one. Examples are never sharded: equal tokens share a piece, and a shard knows only its own.
"""

import bisect
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int32, Int64

from hyperjax.data.numbering import Numbering

VERSION = 2
EXAMPLES = "examples"
DOCUMENTS = "documents"
# Half a GB or one: what an interrupted build of documents loses at most, and a file to copy.
_SHARD_TOKENS = 2**28


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Tokenised rows on their way into a store; `encode` makes them.

  Attributes:
    tokens: int32 ids of all pieces in a row.
    lengths: int64, of each piece.
    digests: what tells pieces apart, no two the same; None: documents, of which all are kept.
    examples, options: int64, as in a store; pieces, options and references count from 0.
    references: every reference's text in UTF-8.
    early: how many targets hold what ends them (see `prompts.ends_early`).
    alike: the first example of which two options have the same tokens, and these; None: none has.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  digests: Sequence[bytes] | None = None
  examples: np.ndarray | None = None
  options: np.ndarray | None = None
  references: Sequence[bytes] = ()
  early: int = 0
  alike: tuple[int, str, str] | None = None

  @property
  def kind(self) -> str:
    return DOCUMENTS if self.digests is None else EXAMPLES

  def __len__(self) -> int:
    """The number of examples, or of documents."""
    return len(self.lengths if self.examples is None else self.examples)


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
  def _parts(self) -> list["Store"]:
    """What holds the tokens: the shards, or the store itself."""
    shards = self.meta.get("shards")
    return [self] if shards is None else [Store(_shard(self.path, i)) for i in range(shards)]

  @functools.cached_property
  def _starts(self) -> list[int]:
    """How many tokens precede each part."""
    counts = [part.meta["tokens"] for part in self._parts]
    return list(itertools.accumulate(counts[:-1], initial=0))

  @functools.cached_property
  def _tokens(self) -> list[np.ndarray]:
    return [
      _mapped(np.memmap(part.path / "tokens.bin", part.meta["dtype"], "r"))
      if part.meta["tokens"] else np.zeros([0], part.meta["dtype"])
      for part in self._parts
    ]  # fmt: skip

  @functools.cached_property
  def _offsets(self) -> np.ndarray:
    if self._parts == [self]:
      return _mapped(np.load(self.path / "offsets.npy", mmap_mode="r"))
    parts = [part._offsets[1:] + s for part, s in zip(self._parts, self._starts, strict=True)]
    return np.concatenate([[0], *parts])

  @property
  def lengths(self) -> np.ndarray:
    """[pieces] int64, the tokens of each."""
    return np.diff(self._offsets)

  @functools.cached_property
  def _examples(self) -> np.ndarray:
    return _mapped(np.load(self.path / "examples.npy", mmap_mode="r"))

  @functools.cached_property
  def _options(self) -> np.ndarray:
    return _mapped(np.load(self.path / "options.npy", mmap_mode="r"))

  def piece(self, index: int) -> Int32[np.ndarray, " n"]:
    """Returns the tokens of a piece (of a document, in a store of documents)."""
    return self._read(int(self._offsets[index]), int(self._offsets[index + 1]))

  def window(self, document: int, start: int, length: int) -> Int32[np.ndarray, " n"]:
    """Returns `length` tokens of a document, from `start` on."""
    start += int(self._offsets[document])
    return self._read(start, start + length)

  def _read(self, start: int, stop: int) -> np.ndarray:
    """Returns a range of tokens that lies in one part."""
    part = bisect.bisect_right(self._starts, start) - 1
    first = self._starts[part]
    return self._tokens[part][start - first : stop - first].astype(np.int32)

  @property
  def pairs(self) -> Int64[np.ndarray, "examples 2"]:
    """The pieces of every example's input and target."""
    return self._examples[:, :2]

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
  """Writes one store; used through `writing`.

  Attributes:
    tokens: how many it has written.
  """

  def __init__(self, path: pathlib.Path, *, kind: str, dtype: np.dtype, source: str):
    self._path, self._kind, self._dtype, self._source = path, kind, dtype, source
    self._file = open(path / "tokens.bin", "wb")
    self._texts = open(path / "references.bin", "wb")
    self._pieces = Numbering()
    self._lengths: list[np.ndarray] = [np.zeros([0], np.int64)]
    self._examples: list[np.ndarray] = [np.zeros([0, 5], np.int64)]
    self._options: list[np.ndarray] = [np.zeros([0], np.int64)]
    self._references: list[np.ndarray] = [np.zeros([1], np.int64)]
    self.tokens = self._early = self._num_options = self._num_references = 0

  def add(self, chunk: Chunk) -> None:
    """Adds rows behind those that are there; of equal pieces only the first is kept.

    Raises:
      ValueError: a token id is too large for the vocabulary's size, or two options of an example
        have the same tokens: whichever a model prefers, it would be taken for the right one.
    """
    tokens, lengths = chunk.tokens, chunk.lengths
    if tokens.size and (tokens.min() < 0 or tokens.max() > np.iinfo(self._dtype).max):
      raise ValueError(f"Token ids {tokens.min()}..{tokens.max()} do not fit {self._dtype.name}.")
    if chunk.alike:
      number, *options = chunk.alike
      raise ValueError(
        f"{self._source}, example {sum(map(len, self._examples)) + number}: its options "
        f"{options[0]!r} and {options[1]!r} have the same tokens in this vocabulary, so no answer "
        "tells them apart: use another one (gin: VOCABULARY), mend the options, or leave the task "
        "out (exclude)."
      )
    if self._kind == EXAMPLES:
      known = len(self._pieces)
      places = np.append(self._pieces(chunk.digests), -1)  # the last one is for -1: no piece
      new = places[:-1] >= known
      tokens, lengths = tokens[np.repeat(new, lengths)], lengths[new]
      examples = chunk.examples + [0, 0, 0, self._num_options, self._num_references]
      examples[:, :3] = places[chunk.examples[:, :3]]
      self._examples.append(examples)
      self._options.append(places[chunk.options])
      self._references.append(_lengths(chunk.references))
      self._early += chunk.early
      self._num_options += len(chunk.options)
      self._num_references += len(chunk.references)
      self._texts.write(b"".join(chunk.references))
    self._file.write(tokens.astype(self._dtype))
    self._lengths.append(lengths)
    self.tokens += tokens.size

  def finish(self) -> None:
    """Writes the tables and, last, meta.json."""
    self.close()
    del self._pieces  # as large as the tables that follow
    lengths = np.concatenate(self._lengths)
    examples, options = np.concatenate(self._examples), np.concatenate(self._options)
    np.save(self._path / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    np.save(self._path / "examples.npy", examples)
    np.save(self._path / "options.npy", options)
    np.save(self._path / "references.npy", np.cumsum(np.concatenate(self._references)))
    if self._kind == DOCUMENTS:
      meta = _documents_meta(lengths, self._dtype.name)
    else:
      meta = _meta(EXAMPLES, len(examples), lengths, self._dtype.name) | {
        "distinct_inputs": len(np.unique(examples[:, 0])),
        "ends_early": self._early,  # older stores lack it
        "with_options": int(np.count_nonzero(np.diff(examples[:, 3], append=len(options)))),
        "lengths": {
          "input": _statistics(lengths[examples[:, 0]]),
          "target": _statistics(lengths[examples[:, 1]]),
          "shot": _statistics(lengths[examples[:, 0]] + lengths[examples[:, 1]]),
          "definition": _statistics(lengths[examples[examples[:, 2] >= 0, 2]]),
        },
      }
    _write_meta(self._path, meta)

  def close(self) -> None:
    self._file.close()
    self._texts.close()


@contextlib.contextmanager
def writing(
  path: str | os.PathLike, *, kind: str, vocabulary_size: int, source: str = "examples"
) -> Iterator[Writer]:
  """Yields a `Writer`; `path` comes into being at the end, whole, or not at all.

  `source` is where examples are from, for errors.
  """
  path = pathlib.Path(path)
  dtype = np.dtype(np.uint16 if vocabulary_size <= 2**16 else np.uint32)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  writer = Writer(temporary, kind=kind, dtype=dtype, source=source)
  try:
    yield writer
    writer.finish()
    if path.exists():
      shutil.rmtree(path)
    temporary.rename(path)
  finally:
    writer.close()
    shutil.rmtree(temporary, ignore_errors=True)


def write_documents(
  path: str | os.PathLike, chunks: Iterable[Chunk], *, vocabulary_size: int,
  check: Callable[[], None],
) -> None:  # fmt: skip
  """Writes a store of documents in shards; finished ones that are there already are kept.

  Args:
    path: the store.
    chunks: the documents behind those of `num_documents(path)`.
    vocabulary_size: as for `writing`.
    check: called before each shard comes into being; an error of it is raised.
  """
  path = pathlib.Path(path)
  shards = _finished(path)
  waiting = iter(chunks)
  for chunk in waiting:
    folder = _shard(path, len(shards))
    with writing(folder, kind=DOCUMENTS, vocabulary_size=vocabulary_size) as writer:
      writer.add(chunk)
      while writer.tokens < _SHARD_TOKENS and (more := next(waiting, None)):
        writer.add(more)
      check()
    shards.append(Store(folder))
  lengths = np.concatenate([shard.lengths for shard in shards])
  meta = _documents_meta(lengths, shards[0].meta["dtype"])
  _write_meta(path, {**meta, "shards": len(shards)})


def num_documents(path: str | os.PathLike) -> int:
  """Returns how many documents an interrupted `write_documents` has left in finished shards."""
  return sum(map(len, _finished(pathlib.Path(path))))


def _finished(path: pathlib.Path) -> list[Store]:
  numbers = itertools.takewhile(lambda i: complete(_shard(path, i)), itertools.count())
  return [Store(_shard(path, i)) for i in numbers]


def _shard(path: pathlib.Path, number: int) -> pathlib.Path:
  return path / f"{number:05}"


def complete(path: str | os.PathLike) -> bool:
  """Whether a finished store of this version stands at `path`."""
  file = pathlib.Path(path) / "meta.json"
  return file.exists() and json.loads(file.read_text())["version"] == VERSION


def _mapped(array: np.ndarray) -> np.ndarray:
  """The same map as a plain array: slices of `np.memmap` cost several times as much."""
  return array.view(np.ndarray)


def _lengths(values: Sequence) -> np.ndarray:
  return np.fromiter(map(len, values), np.int64, len(values))


def _meta(kind: str, rows: int, lengths: np.ndarray, dtype: str) -> dict:
  return {
    "version": VERSION, "kind": kind, "dtype": dtype, "examples": rows, "pieces": len(lengths),
    "tokens": int(lengths.sum()),
  }  # fmt: skip


def _documents_meta(lengths: np.ndarray, dtype: str) -> dict:
  meta = _meta(DOCUMENTS, len(lengths), lengths, dtype)
  return {**meta, "lengths": {"document": _statistics(lengths)}}


def _write_meta(path: pathlib.Path, meta: dict) -> None:
  temporary = path / f"meta.json.partial-{os.getpid()}"
  temporary.write_text(json.dumps(meta, indent=1))
  temporary.rename(path / "meta.json")


def _statistics(lengths: np.ndarray) -> dict:
  if not len(lengths):
    return {"mean": 0.0, "std": 0.0, "p99": 0, "max": 0}
  return {
    "mean": float(lengths.mean()), "std": float(lengths.std()),
    "p99": int(np.percentile(lengths, 99, method="higher")), "max": int(lengths.max()),
  }  # fmt: skip
