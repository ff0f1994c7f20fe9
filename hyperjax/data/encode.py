"""Rows of text -> chunks of tokens, on all cores.

Free of TensorFlow: the processes that do it start from this file, in a second and with little
memory. What they return does not depend on how many they are.
"""

import array
import collections
import concurrent.futures
import functools
import gc
import hashlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hyperjax import children
from hyperjax.data.prompts import PromptFormat, ends_early
from hyperjax.data.store import Chunk

Rows = Sequence[Mapping[str, Any]]

# Characters that are encoded here before processes are started: about as long as it takes to start.
_FEW = 2**22


def encode(rows: Rows, vocabulary, prompt: PromptFormat) -> Chunk:
  """Tokenises rows as `RowsSource` describes them, every optional feature being there.

  Args:
    rows: all with "inputs", or all without (documents).
    vocabulary: see `vocabularies.Vocabulary`.
    prompt: how examples are written.
  """
  if not rows or "inputs" not in rows[0]:
    texts = [row["targets"] for row in rows]
    return Chunk(*_joined(vocabulary.encode_batch(texts) if texts else []))
  wanted = {
    "input": ([row["inputs"] for row in rows], prompt.encode_inputs),
    "target": ([t for row in rows for t in [row["targets"], *row["options"]]],
               prompt.encode_targets),
    "definition": ([row["definition"] for row in rows if row["definition"]],
                   prompt.encode_definitions),
  }  # fmt: skip
  # Equal tokens are one piece, whatever their texts: to a model they are the same.
  ids, numbers, pieces = [], {}, {}
  for kind, (texts, encoder) in wanted.items():
    texts = list(dict.fromkeys(texts))
    pieces[kind] = {}
    for text, piece in zip(texts, encoder(vocabulary, texts) if texts else (), strict=True):
      pieces[kind][text] = numbers.setdefault(_digest(kind, piece), len(ids))
      if pieces[kind][text] == len(ids):
        ids.append(piece)
  definitions = {**pieces["definition"], "": -1}
  examples = np.array([
    [pieces["input"][row["inputs"]] for row in rows],
    [pieces["target"][row["targets"]] for row in rows],
    [definitions[row["definition"]] for row in rows],
    _firsts([len(row["options"]) for row in rows]),
    _firsts([len(row["references"]) for row in rows]),
  ], np.int64).T  # fmt: skip
  options = [pieces["target"][option] for row in rows for option in row["options"]]
  references = [text.encode() for row in rows for text in row["references"]]
  end = list(prompt.terminator_ids(vocabulary))
  early = {piece for piece in set(pieces["target"].values()) if ends_early(ids[piece], end)}
  return Chunk(
    *_joined(ids), list(numbers), examples, np.array(options, np.int64), references,
    early=sum(pieces["target"][row["targets"]] in early for row in rows),
    alike=_alike(rows, pieces["target"]),
  )  # fmt: skip


def _alike(rows: Rows, pieces: Mapping[str, int]) -> tuple[int, str, str] | None:
  """The number of the first row of which two options are one piece, and these."""
  for number, row in enumerate(rows):
    known: dict[int, str] = {}
    for option in row["options"]:
      if pieces[option] in known:
        return number, known[pieces[option]], option
      known[pieces[option]] = option
  return None


def _joined(ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  lengths = np.fromiter(map(len, ids), np.int64, len(ids))
  return np.fromiter(itertools.chain.from_iterable(ids), np.int32, lengths.sum()), lengths


def _firsts(counts: Sequence[int]) -> list[int]:
  return list(itertools.accumulate(counts[:-1], initial=0))


def _digest(kind: str, ids: Sequence[int]) -> bytes:
  return hashlib.blake2b(array.array("i", ids), digest_size=16, person=kind.encode()).digest()


class Encoder:
  """Tokenises with a process for each core; a context manager that ends them.

  Little text is tokenised in this process: there the processes would take longer to start.
  """

  def __init__(self, vocabulary, prompt: PromptFormat):
    self._encode = functools.partial(encode, vocabulary=vocabulary, prompt=prompt)
    self._processes = _cores()
    self._pool: concurrent.futures.Executor | None = None
    self._seen = 0

  def __enter__(self) -> "Encoder":
    return self

  def __exit__(self, *_) -> None:
    if self._pool:
      self._pool.shutdown(cancel_futures=True)

  def map(self, items: Iterable[Rows]) -> Iterator[Chunk]:
    """Yields the chunk of each of `items`, in order, while the next ones are in work.

    An error of `items` is raised behind what precedes it.
    """
    items = iter(items)
    end, waiting = None, collections.deque()
    while waiting or not end:
      while not end and len(waiting) <= 2 * self._processes:
        try:
          waiting.append(self._submit(next(items)))
        except Exception as e:
          end = e
      if waiting:
        yield waiting.popleft().result()
    if not isinstance(end, StopIteration):
      raise end

  def _submit(self, rows: Rows) -> concurrent.futures.Future:
    if self._pool is None and self._seen < _FEW:
      self._seen += sum(len(row["targets"]) + len(row.get("inputs", "")) for row in rows)
      future = concurrent.futures.Future()
      future.set_result(self._encode(rows))
      return future
    if self._pool is None:
      # Spawned, not forked: TensorFlow's threads do not survive a fork.
      self._pool = concurrent.futures.ProcessPoolExecutor(
        self._processes, multiprocessing.get_context("spawn"), _start, (self._encode,)
      )
    return self._pool.submit(_work, rows)


def _cores() -> int:
  """How many cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _start(function) -> None:
  """Makes a process ready: one thread, Ctrl-C is its parent's affair, and it ends with that."""
  global _function
  _function = function
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  gc.disable()  # nothing here has cycles, and looking for them takes a third of the time
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  children.end_with_parent()


def _work(rows: Rows) -> Chunk:
  return _function(rows)
