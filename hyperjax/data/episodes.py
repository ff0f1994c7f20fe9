"""Episodes: a support of a few examples and queries of the same task, as pure functions of numbers.

A training episode follows from (seed, step, row) alone, so a run resumes exactly at any step, on
any number of hosts. Those of an evaluation are made in `eval_sets`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from hyperjax.data import layouts, schedule, shots, shuffling
from hyperjax.data.layouts import DECODER, Layout
from hyperjax.data.manifest import Manifest
from hyperjax.data.shapes import BatchShape, Groups, Lengths, assign, plan, rounded
from hyperjax.data.shots import NumShots
from hyperjax.data.store import EXAMPLES, Store


@dataclasses.dataclass(frozen=True)
class Query:
  """One query.

  Attributes:
    input: int32 ids of the input piece, BOS first where the vocabulary adds it.
    target: int32 ids of the target piece, terminator last.
    id: the example's index in its store (in CACLM: the window's).
    options: int32 ids of each option's target piece, None where the task has none.
    dropped: examples that its input had no room for (see `inline`).
  """

  input: np.ndarray
  target: np.ndarray
  id: int
  options: tuple[np.ndarray, ...] | None = None
  dropped: int = 0


@dataclasses.dataclass(frozen=True)
class Episode:
  """A support and its queries.

  Attributes:
    task: the task's name.
    head: int32 ids in front of the support: BOS where the vocabulary adds it, a definition.
    shots: int32 ids of each example of the support, input piece then target piece.
    queries: what is asked.
    support_ids: the examples' indices in their store.
    bos: whether head and inputs begin with BOS.
  """

  task: str
  head: np.ndarray
  shots: tuple[np.ndarray, ...]
  queries: tuple[Query, ...]
  support_ids: tuple[int, ...]
  bos: bool = False

  @property
  def support(self) -> np.ndarray:
    """int32 ids of the whole support."""
    return np.concatenate([self.head, *self.shots])


def inline(episode: Episode, size: int | None = None, layout: Layout = DECODER) -> Episode:
  """The episode whose queries hold the support in their own inputs: full attention over it.

  Args:
    episode: with its support apart.
    size: T that a query may need; whole examples are dropped at the far end; None: no limit.
    layout: of the downstream model's queries.
  """

  def whole(query: Query) -> Query:
    own = query.input[episode.bos :]
    first, length = 0, len(episode.support) + len(own)
    room = length if size is None else layout.room(size, len(query.target))
    while length > room and first < len(episode.shots):
      length -= len(episode.shots[first])
      first += 1
    joined = np.concatenate([episode.head, *episode.shots[first:], own])
    return dataclasses.replace(query, input=joined, dropped=first)

  return dataclasses.replace(
    episode, head=episode.head[:0], shots=(), queries=tuple(map(whole, episode.queries))
  )


def continued(episode: Episode) -> Episode:
  """The episode whose queries go on where the support ends, as in one text: with no second BOS."""
  queries = (dataclasses.replace(q, input=q.input[episode.bos :]) for q in episode.queries)
  return dataclasses.replace(episode, queries=tuple(queries))


@dataclasses.dataclass(frozen=True)
class EpisodeConfig:
  """How training episodes are made.

  Attributes:
    num_shots: examples in a support, or (low, high): drawn for each step between both; or
      `shots.PerClass`: so many of each class.
    num_queries: queries that share a support.
    shuffled: the share of episodes in which outputs change places, among the support's examples
      and among the queries (see `shuffling`): there an input does not tell its output. Without such
      episodes a task is given away by the kinds of its inputs and outputs, and the pairing need not
      be read. Episodes of a single query stay as they are.
    inline: each query holds the support in its own input, for models that read it there.
    include: tasks to use, or the front part of their names up to a dot; all, where empty.
    exclude: tasks to leave out, likewise.
    split: the split that episodes are made of.
    shapes: the batch shapes to use; empty: at most `max_buckets`, planned from the tasks' lengths.
    max_buckets: how many shapes to plan.
    limit: tokens of a support, a query, a target that no planned shape goes beyond, but for being
      rounded up.
  """

  num_shots: NumShots = 10
  num_queries: int = 8
  shuffled: float = 0.0
  inline: bool = False
  include: Sequence[str] = ()
  exclude: Sequence[str] = ()
  split: str = "train"
  shapes: Sequence[BatchShape] = ()
  max_buckets: int = 3
  limit: tuple[int, int, int] = (1024, 256, 64)

  def __post_init__(self):
    shots.bounds(self.num_shots)
    for name in ("num_queries", "max_buckets"):
      if getattr(self, name) < 1:
        raise ValueError(f"EpisodeConfig: {name} is {getattr(self, name)}; it must be at least 1.")
    if not 0 <= self.shuffled <= 1:
      raise ValueError(f"EpisodeConfig: shuffled is {self.shuffled}; it must be in 0..1.")
    if self.shuffled and self.num_queries == 1:
      raise ValueError(
        f"EpisodeConfig: shuffled is {self.shuffled} (gin: SHUFFLED), but with num_queries=1 no "
        "outputs of queries can change places: set it to 0, or NUM_QUERIES to 2 or more."
      )
    for shape in self.shapes:
      if shape.queries != self.num_queries:
        raise ValueError(f"EpisodeConfig: {shape} is not for num_queries={self.num_queries}.")

  @property
  def summary(self) -> str:
    """What an episode is, in a few words."""
    place = ", the support in each query's input" if self.inline else ""
    return f"{shots.summary(self.num_shots)}, {self.num_queries} queries{place}"

  @property
  def planned_within(self) -> tuple[int, int, int]:
    """`limit`, where queries hold the support with room for both."""
    support, query, targets = self.limit
    return (1, support + query, targets) if self.inline else self.limit

  @property
  def longest_support(self) -> int:
    """The most tokens that a support apart from its queries can have, whatever the tasks."""
    planned = rounded(self.limit[0], 1, 1, 1).support
    return max((shape.support for shape in self.shapes), default=planned)

  def largest(self, layout: Layout) -> BatchShape:
    """The shape of the largest batches that there can be, whatever the tasks."""
    del layout
    support, query, targets = self.planned_within
    planned = rounded(support, self.num_queries, query, targets)
    return max(self.shapes, key=lambda s: s.support + s.queries * s.query, default=planned)

  def stream(
    self, manifest: Manifest, *, seed: int, batch_size: int, layout: str = "decoder"
  ) -> "TrainStream":
    """The training episodes of a manifest's tasks."""
    kind = InlineStream if self.inline else TrainStream
    return kind(manifest, self, seed=seed, batch_size=batch_size, layout=layout)


class TrainStream:
  """Training episodes of a manifest's tasks, by rate.

  Every step has one batch shape; its rows are episodes of the tasks that belong to that shape. Each
  visit to a task takes the next queries of a keyed permutation of its examples: every example is
  asked once in each epoch of its task.
  """

  def __init__(
    self, manifest: Manifest, config: EpisodeConfig, *, seed: int, batch_size: int,
    layout: str = "decoder",
  ):  # fmt: skip
    if batch_size < 1:
      raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    self.config, self.seed, self.batch_size = config, seed, batch_size
    self.layout = layouts.of(layout, manifest.vocabulary)
    self.tasks = manifest.select(config.include, config.exclude)
    manifest.fetch(self.tasks, config.split)
    self._sampler = {
      task: Sampler(manifest, task, config.split, config.split, config.num_shots,
                    config.num_queries)
      for task in self.tasks
    }  # fmt: skip
    rates = {task: manifest.rate(task) for task in self.tasks}
    lengths = {
      task: Lengths.of(manifest.split(task, config.split), sampler.supports.size, sampler.adds_bos,
                       self.layout)
      for task, sampler in self._sampler.items()
    }  # fmt: skip
    groups = self._plan(lengths, rates)
    self.buckets: tuple[tuple[BatchShape, tuple[str, ...]], ...] = tuple(groups)
    self._lengths = lengths
    if not config.inline:
      self._check_definitions(manifest)
    shares = [sum(rates[task] for task in tasks) for _, tasks in self.buckets]
    self._steps = schedule.Blocks(shares, seed, "bucket")
    self._visits = [
      schedule.Blocks([rates[task] for task in tasks], seed, "task", i)
      for i, (_, tasks) in enumerate(self.buckets)
    ]
    self._queries = {
      task: schedule.Epochs(sampler.num_queries_in_store, seed, "queries", task)
      for task, sampler in self._sampler.items()
    }

  def _plan(self, lengths: Mapping[str, Lengths], rates: Mapping[str, float]) -> Groups:
    """The tasks by batch shape."""
    c = self.config
    if c.shapes:
      return assign(lengths, c.shapes)
    return plan(lengths, rates, c.num_queries, c.max_buckets, c.limit)

  def _check_definitions(self, manifest: Manifest) -> None:
    """Refuses tasks whose definition leaves a support no room, as some step would."""
    for shape, task in ((shape, task) for shape, tasks in self.buckets for task in tasks):
      lengths, room = manifest.split(task, self.config.split)["lengths"], shape.support
      head = lengths["definition"]["max"] + self._sampler[task].adds_bos + len(self.layout.end)
      if head >= room:
        raise ValueError(
          f"Task '{task}': its definition has up to {head} tokens, and a support has {room} by "
          f"{self._bounds}: allow more, or leave out the task (exclude) or the definitions "
          "(NI_DEFINITION)."
        )

  @property
  def _bounds(self) -> str:
    c = self.config
    return "EpisodeConfig.shapes" if c.shapes else f"EPISODE_LIMIT {tuple(c.limit)}"

  @property
  def remark(self) -> str:
    """A sentence on tasks that batches have no room for; "" where there are none."""
    placed = [(self._lengths[task], s, task) for s, tasks in self.buckets for task in tasks]
    targets = [task for need, shape, task in placed if need.targets > shape.targets]
    inputs = [task for need, shape, task in placed if need.query > shape.query]
    cut = " and ".join(f"{part} of {len(tasks):,} tasks, such as {tasks[0]}"
                       for part, tasks in (("targets", targets), ("inputs", inputs)) if tasks)
    return cut and f"{self._bounds} cuts {cut}: targets lose their end, inputs their beginning."

  @property
  def shapes(self) -> tuple[BatchShape, ...]:
    """Every shape that a batch can have."""
    return tuple(shape for shape, _ in self.buckets)

  def bucket(self, step: int) -> BatchShape:
    """Returns the shape of a step's batch, the same on every host."""
    return self.buckets[self._steps(step)[0]][0]

  def num_shots(self, step: int) -> int:
    """Returns the number of examples (of each class) in this step's supports, on every host."""
    return shots.count(self.config.num_shots, self.seed, "shots", step)

  def episode(self, step: int, row: int) -> Episode:
    """Returns the episode of a row of the global batch."""
    if not 0 <= row < self.batch_size:
      raise IndexError(f"Row {row} is outside the batch of {self.batch_size}.")
    bucket, steps_before = self._steps(step)
    index, visit = self._visits[bucket](steps_before * self.batch_size + row)
    task = self.buckets[bucket][1][index]
    sampler = self._sampler[task]
    size = sampler.queries_per_episode
    query_ids = [self._queries[task](visit * size + i) for i in range(size)]
    parts = (self.seed, "support", step, row)
    generator = schedule.generator(self.seed, "shuffled", step, row)
    # A query with its true output beside a shuffled support would teach not to read the pairing.
    if size == 1 or generator.random() >= self.config.shuffled:
      return sampler.episode(query_ids, self.num_shots(step), parts)
    return sampler.shuffled_episode(query_ids, self.num_shots(step), parts, generator)


class InlineStream(TrainStream):
  """The same episodes, each query with the support in its own input."""

  def _plan(self, lengths: Mapping[str, Lengths], rates: Mapping[str, float]) -> Groups:
    c = self.config
    joined = {t: Lengths(1, n.support + n.query, n.targets) for t, n in lengths.items()}
    if c.shapes:
      return assign(joined, c.shapes)
    return plan(joined, rates, c.num_queries, c.max_buckets, c.planned_within)

  def episode(self, step: int, row: int) -> Episode:
    """Returns the episode of a row of the global batch."""
    return inline(super().episode(step, row), self.bucket(step).query, self.layout)


class Sampler:
  """Makes the episodes of one task.

  Attributes:
    queries_per_episode: `num_queries`, or fewer where the task has too few examples for them.
    supports: what its supports are drawn from.
  """

  def __init__(
    self, manifest: Manifest, task: str, query_split: str, support_split: str,
    num_shots: NumShots | None, num_queries: int,
  ):  # fmt: skip
    """Episodes of queries of one split and supports of another, or the same one.

    `num_shots=None`: a support is the whole of its split.

    Raises:
      ValueError: the task is language modelling, or has too few examples.
    """
    for split in {query_split, support_split}:
      if manifest.split(task, split)["kind"] != EXAMPLES:
        raise ValueError(
          f"Task '{task}' is language modelling (targets only): it has no few-shot episodes. Use "
          "it with CACLM."
        )
    self.task = task
    self.queries: Store = manifest.store(task, query_split)
    self.support: Store = manifest.store(task, support_split)
    self.supports = shots.Supports(num_shots, self.support)
    scarcest, same = self.supports.scarcest, query_split == support_split
    least = self.supports.most + same
    if scarcest.distinct < least:
      raise ValueError(
        f"Task '{task}' has too few examples for num_shots={num_shots}: split '{support_split}' "
        f"has {scarcest.words}; it needs at least {least} (gin: NUM_SHOTS; or leave the task out)."
      )
    self.num_queries_in_store = len(self.queries)
    spare = scarcest.distinct - self.supports.most if same else num_queries
    self.queries_per_episode = min(num_queries, spare, len(self.queries))
    vocabulary = manifest.vocabulary
    self._bos = [vocabulary["bos_id"]] if vocabulary["adds_bos"] else []

  @property
  def adds_bos(self) -> bool:
    """Whether head and inputs begin with BOS."""
    return bool(self._bos)

  def query(self, index: int) -> Query:
    """Returns an example as a query."""
    options = self.queries.options(index)
    return Query(
      input=self._with_bos(self.queries.input(index)),
      target=self.queries.target(index),
      id=int(index),
      options=None if options is None else tuple(options),
    )

  def draw(self, query_ids: Sequence[int], num_shots: int | None, parts: tuple) -> list[int]:
    """Draws a support without the queries' inputs; see `shots.Supports.draw`."""
    taken = (self.queries.input(index).tobytes() for index in query_ids)
    try:
      return self.supports.draw(taken, num_shots, parts)
    except ValueError as error:
      raise ValueError(f"Task '{self.task}': {error}") from None

  def episode(self, query_ids: Sequence[int], num_shots: int, parts: tuple) -> Episode:
    """Returns the episode of given queries; `parts` key the draw of its support."""
    support = self.draw(query_ids, num_shots, parts)
    targets = [self.support.target(index) for index in support]
    queries = tuple(self.query(index) for index in query_ids)
    return self.assemble(support, targets, queries)

  def shuffled_episode(
    self, query_ids: Sequence[int], num_shots: int, parts: tuple, generator: np.random.Generator
  ) -> Episode:
    """As `episode`, with outputs that change places among the support and among the queries."""
    support = self.draw(query_ids, num_shots, parts)
    moved = shuffling.targets(self.queries, query_ids, generator)
    queries = tuple(
      dataclasses.replace(self.query(index), target=target)
      for index, target in zip(query_ids, moved, strict=True)
    )
    targets = shuffling.targets(self.support, support, generator)
    return self.assemble(support, targets, queries)

  def assemble(
    self, support: Sequence[int], targets: Sequence[np.ndarray], queries: tuple[Query, ...]
  ) -> Episode:
    """Returns the episode of a support with given targets."""
    definition = self.support.definition(support[0])
    head = self._with_bos(np.zeros([0], np.int32) if definition is None else definition)
    shots = tuple(
      np.concatenate([self.support.input(index), target])
      for index, target in zip(support, targets, strict=True)
    )
    return Episode(self.task, head, shots, queries, tuple(support), self.adds_bos)

  def _with_bos(self, ids: np.ndarray) -> np.ndarray:
    return np.concatenate([np.array(self._bos, np.int32), ids])
