"""Episodes -> batches: padding, counts of what was cut, and a thread that works ahead."""

import dataclasses
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from hyperjax.core.batch import Batch, Support
from hyperjax.data.episodes import Episode, Query
from hyperjax.data.layouts import DECODER, Layout
from hyperjax.data.shapes import BatchShape, rounded


@dataclasses.dataclass(frozen=True)
class Counts:
  """Real tokens in a batch, all its slots, and what did not fit.

  Attributes:
    support_tokens: real tokens of the supports.
    query_tokens: real tokens of the queries.
    target_tokens: real target tokens, as many as weights of 1.
    slots: all places for support and query tokens.
    shots_dropped: examples left out at the far end of supports that were too long.
    supports_cut: supports of one example that was too long still; cut on the left.
    inputs_cut: query inputs cut on the left.
    targets_cut: query targets cut on the right: such a query has no terminator.
  """

  support_tokens: int = 0
  query_tokens: int = 0
  target_tokens: int = 0
  slots: int = 0
  shots_dropped: int = 0
  supports_cut: int = 0
  inputs_cut: int = 0
  targets_cut: int = 0

  def __add__(self, other: "Counts") -> "Counts":
    names = [field.name for field in dataclasses.fields(self)]
    return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})

  @property
  def padding(self) -> float:
    """The share of slots that hold nothing."""
    return 1 - (self.support_tokens + self.query_tokens) / self.slots if self.slots else 0.0


@dataclasses.dataclass(frozen=True)
class Info:
  """What a batch holds: the task of each row, and counts."""

  tasks: tuple[str, ...]
  counts: Counts


def fit(episodes: Sequence[Episode], layout: Layout = DECODER) -> BatchShape:
  """Returns the smallest (rounded) shape that cuts nothing of the episodes."""
  queries = [query for episode in episodes for query in episode.queries]
  return rounded(
    support=max(len(e.support) for e in episodes) + len(layout.end),
    queries=max(len(episode.queries) for episode in episodes),
    query=max(layout.length(len(q.input), len(q.target)) for q in queries),
    targets=max(len(q.target) for q in queries),
  )


def to_batch(
  episodes: Sequence[Episode], shape: BatchShape, layout: Layout = DECODER
) -> tuple[Batch, Counts]:
  """Puts episodes into one batch of numpy arrays.

  An over-long support loses whole examples at its far end (the first ones), then tokens on the left
  of the last one's input. An over-long query loses tokens on the left of its input; a target that
  is too long even so is cut on the right. All is counted. Rows for missing queries have length 1
  and weight 0.

  Args:
    episodes: B episodes of at most `shape.queries` queries.
    shape: the batch's sizes.
    layout: of the downstream model's queries.

  Raises:
    ValueError: an episode has more queries than fit, its definition does not fit, or a query has
      nothing to read before its target.
  """
  rows, most = len(episodes), shape.queries
  support = np.zeros([rows, shape.support], np.int32)
  support_length = np.zeros([rows], np.int32)
  pieces: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in episodes]
  targets = np.zeros([rows, most, shape.targets], np.int32)
  weights = np.zeros([rows, most, shape.targets], np.float32)
  dropped = supports_cut = inputs_cut = targets_cut = query_tokens = 0
  for row, episode in enumerate(episodes):
    if len(episode.queries) > most:
      raise ValueError(f"Task '{episode.task}': {len(episode.queries)} queries do not fit {shape}.")
    ids, lost, cut = _support(episode, shape.support - len(layout.end))
    ids = np.concatenate([ids, np.array(layout.end, np.int32)])
    dropped, supports_cut = dropped + lost, supports_cut + cut
    support[row, : len(ids)] = ids
    support_length[row] = len(ids)
    for column, query in enumerate(episode.queries):
      source, target, input_cut, target_cut = _query(query, episode.bos, shape, layout)
      if not len(source) and not layout.end:
        raise ValueError(
          f"Task '{episode.task}', query {query.id}: its input has no tokens, so that nothing "
          "stands before its target: name another PROMPT, whose input template has a text of its "
          "own."
        )
      inputs_cut, targets_cut = inputs_cut + input_cut, targets_cut + target_cut
      dropped += query.dropped
      pieces[row].append((source, target))
      query_tokens += layout.length(len(source), len(target))
      targets[row, column, : len(target)] = target
      weights[row, column, : len(target)] = 1
  batch = Batch(
    support=Support(support, support_length),
    query=layout.fill(pieces, (rows, most, shape.query), targets),
    targets=targets,
    weights=weights,
  )
  counts = Counts(
    int(support_length.sum()), query_tokens, int(weights.sum()),
    support.size + rows * most * shape.query, dropped, supports_cut, inputs_cut, targets_cut,
  )  # fmt: skip
  return batch, counts


def _support(episode: Episode, most: int) -> tuple[np.ndarray, int, int]:
  """Returns the support's ids, how many examples were dropped, and 1 if the last one was cut."""
  room = most - len(episode.head)
  lengths = [len(shot) for shot in episode.shots]
  first, total = 0, sum(lengths)
  while total > room and first < len(lengths) - 1:
    total -= lengths[first]
    first += 1
  ids = np.concatenate([episode.head, *episode.shots[first:]])
  if len(ids) <= most:
    return ids, first, 0
  if room < 1:
    raise ValueError(
      f"Task '{episode.task}': its definition has {len(episode.head)} tokens, a support {most}."
    )
  return np.concatenate([episode.head, ids[len(ids) - room :]]), first, 1


def _query(
  query: Query, bos: bool, shape: BatchShape, layout: Layout
) -> tuple[np.ndarray, np.ndarray, int, int]:
  """Returns the input and target that fit, and for each 1 if it was cut."""
  source = query.input
  target = query.target[: layout.longest_target(shape.query, shape.targets)]
  room = layout.room(shape.query, len(target))
  cut = len(source) > room
  if cut:
    keep = source[:1] if bos and room > 1 else source[:0]
    source = np.concatenate([keep, source[len(source) - (room - len(keep)) :]])
  return source, target, int(cut), int(len(target) < len(query.target))


@runtime_checkable
class Stream(Protocol):
  """What a `Loader` reads: `episodes.TrainStream`, `caclm.CaclmStream`."""

  batch_size: int
  layout: Layout
  remark: str  # on what batches leave out; "" for nothing

  def bucket(self, step: int) -> BatchShape: ...

  def episode(self, step: int, row: int) -> Episode: ...


class Loader:
  """Iterates (step, Batch of numpy arrays, Info); a thread prepares the next ones.

  The position is one integer, the step; a loader that starts at step n gives what another one gives
  from its n-th step on. Used as a context manager it ends its thread.
  """

  def __init__(
    self,
    stream: Stream,
    *,
    start_step: int = 0,
    stop_step: int | None = None,
    rows: Sequence[int] | None = None,
    prefetch: int = 2,
  ):
    """Starts to read.

    Args:
      stream: what to read.
      start_step: the first step.
      stop_step: the step before which to end; None: never.
      rows: this host's rows of the global batch; None: all.
      prefetch: batches to prepare ahead.
    """
    self._stream = stream
    self._rows = range(stream.batch_size) if rows is None else rows
    self._queue: queue.Queue = queue.Queue(max(1, prefetch))
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._work, args=(start_step, stop_step), name="hyperjax-loader", daemon=True
    )
    self._thread.start()

  def load(self, step: int) -> tuple[Batch, Info]:
    """Returns the batch of any step, at once."""
    episodes = [self._stream.episode(step, row) for row in self._rows]
    batch, counts = to_batch(episodes, self._stream.bucket(step), self._stream.layout)
    return batch, Info(tuple(episode.task for episode in episodes), counts)

  def __iter__(self) -> Iterator[tuple[int, Batch, Info]]:
    while not self._stop.is_set():
      item = self._queue.get()
      if item is None:
        return
      if isinstance(item, BaseException):
        raise item
      yield item

  def __enter__(self) -> "Loader":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Ends the thread; nothing can be read afterwards."""
    self._stop.set()
    while self._thread.is_alive():
      self._drain()
      self._thread.join(0.01)

  def _drain(self) -> None:
    while not self._queue.empty():
      self._queue.get_nowait()

  def _work(self, step: int, stop_step: int | None) -> None:
    try:
      while not self._stop.is_set() and (stop_step is None or step < stop_step):
        self._put((step, *self.load(step)))
        step += 1
      self._put(None)
    except Exception as error:  # surfaces where the batches are read
      self._put(error)

  def _put(self, item) -> None:
    while not self._stop.is_set():
      try:
        return self._queue.put(item, timeout=0.1)
      except queue.Full:
        continue
