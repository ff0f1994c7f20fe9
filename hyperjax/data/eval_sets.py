"""Evaluation sets: the same episodes for every method, in a few static shapes."""

import bisect
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hyperjax.core.batch import Batch, Support
from hyperjax.data import continuations, layouts, loader, shapes, shots
from hyperjax.data import episodes as episodes_lib
from hyperjax.data.episodes import Episode
from hyperjax.data.eval_episodes import Lazy, eval_episodes, left_out, other_tasks, query_split
from hyperjax.data.layouts import Layout
from hyperjax.data.manifest import Manifest, set_lists
from hyperjax.data.shapes import BatchShape
from hyperjax.data.shots import NumShots


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Which queries are asked, under which supports.

  Attributes:
    num_shots: examples in a support, or (low, high): drawn for each support between both; or
      `shots.PerClass`: so many of each class. None: all examples of the split that supports come
      from, in their order. Queries whose inputs supports need are left out (see `left_out`).
    num_queries: queries that share a support.
    max_queries: queries per task; None for all.
    seeds: one evaluation each; a seed draws the supports, the queries stay. Of a task that has
      splits `support_<seed>` it chooses one.
    include: tasks (or the front part of their names up to a dot); all, where empty.
    exclude: tasks to leave out.
    batch_size: supports that are read at once, and rows of half an episode's queries.
    max_shapes: static shapes to sort the tasks into.
    max_new_tokens: of an answer; None: the longest target or option of its task, enough to tell
      whether an answer is its target, not to score an answer that goes on.
  """

  num_shots: NumShots | None = 10
  num_queries: int = 10
  max_queries: int | None = 100
  seeds: Sequence[int] = (0,)
  include: Sequence[str] = ()
  exclude: Sequence[str] = ()
  batch_size: int = 8
  max_shapes: int = 2
  max_new_tokens: int | None = None

  def __post_init__(self):
    set_lists(self, "seeds", "include", "exclude")
    if self.num_shots is not None:
      shots.bounds(self.num_shots)
    for name in ("num_queries", "batch_size", "max_shapes"):
      if getattr(self, name) < 1:
        raise ValueError(f"EvalConfig.{name} must be at least 1, not {getattr(self, name)}")
    for name in ("max_queries", "max_new_tokens"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"EvalConfig.{name} must be at least 1, or None, not {value}")
    if not self.seeds:
      raise ValueError("EvalConfig.seeds is empty")


@dataclasses.dataclass(frozen=True)
class Group:
  """Episodes that share one static shape.

  Attributes:
    tasks: {task: tokens of its longest target or option}: whose episodes they are, in this order.
    shape: of their batches.
    episodes: drawn as they are read; none is kept.
    layout: of the downstream model's queries.
    continuations: the shapes in which queries are asked.
  """

  tasks: Mapping[str, int]
  shape: BatchShape
  episodes: Sequence[Episode]
  layout: Layout
  continuations: tuple[continuations.Sizes, ...]

  def num_batches(self, batch_size: int) -> int:
    """How many batches hold all episodes."""
    return -(-len(self.episodes) // batch_size)


@dataclasses.dataclass
class _Needs:
  """What some episodes need so that nothing of them is cut: S, T and W; a support and a query of it
  together; {what a row of queries needs: how many do}; and how many episodes they are."""

  support: int = 1
  query: int = 1
  targets: int = 1
  both: int = 1
  rows: Counter[continuations.Sizes] = dataclasses.field(default_factory=Counter)
  episodes: int = 0

  def add(self, episode: Episode, width: int, layout: Layout) -> None:
    """Counts one episode in."""
    rows = Counter(r.sizes.rounded() for r in continuations.rows(episode, width, layout, 1))
    longest = [(query, max(map(len, continuations.of(query)))) for query in episode.queries]
    support, query = (
      len(episode.support), max(layout.length(len(query.input), size) for query, size in longest)
    )  # fmt: skip
    one = _Needs(
      support + len(layout.end), query, max(size for _, size in longest), support + query, rows, 1
    )
    self.include(one)

  def include(self, other: "_Needs") -> None:
    """Counts the other's episodes in."""
    for name in ("support", "query", "targets", "both"):
      setattr(self, name, max(getattr(self, name), getattr(other, name)))
    self.rows.update(other.rows)
    self.episodes += other.episodes

  def answering(self, most: int | None) -> "_Needs":
    """The same with answers of at most so many tokens; as many as W where None."""
    rows: Counter[continuations.Sizes] = Counter()
    for sizes, count in self.rows.items():
      answer = self.targets if most is None else most
      rows[dataclasses.replace(sizes, answer=answer).rounded()] += count
    return dataclasses.replace(self, rows=rows)


@dataclasses.dataclass(frozen=True)
class Plan:
  """Tasks sorted into at most `max_shapes` shapes that cut nothing.

  The shapes of queries and continuations are the same for all seeds and controls of a
  configuration, unless `inline`.

  Attributes:
    manifest, config, other_support, inline, continued: as `plan` was given them.
    layout: of the downstream model's queries.
    groups: without their episodes.
    tokens: {task: the most that a support and one of its queries have together, the query with its
      longest target or option}.
  """

  manifest: Manifest
  config: EvalConfig
  layout: Layout
  other_support: bool
  inline: bool
  continued: bool
  groups: Sequence[Group]
  tokens: Mapping[str, int]

  def draw(self, seed: int, *, shuffle_outputs: bool = False) -> list[Group]:
    """The episodes of one seed.

    Args:
      seed: draws the supports.
      shuffle_outputs: control: outputs of each support change places.
    """
    others = _others(self.manifest, self.config) if self.other_support else {}
    return [
      dataclasses.replace(group, episodes=_joined([
        _drawn(self.manifest, task, self.config, seed, self.inline, self.continued,
               shuffle_outputs=shuffle_outputs, support_task=others.get(task))
        for task in group.tasks
      ]))
      for group in self.groups
    ]  # fmt: skip


def plan(
  manifest: Manifest,
  config: EvalConfig,
  *,
  layout: str = "decoder",
  other_support: bool = False,
  inline: bool = False,
  continued: bool = False,
) -> Plan:
  """Reads all episodes of all seeds once, one after another, and plans their shapes.

  Args:
    manifest: the data folder.
    config: what is asked.
    layout: of the downstream model's queries, its `config.layout`.
    other_support: control: each task's supports come from another task.
    inline: the support stands in each query's own input.
    continued: queries go on where their support ends, as for models that read it in context.
  """
  laid = layouts.of(layout, manifest.vocabulary)
  width = continuations.width(config.num_queries)

  def needs(others: Mapping[str, str]) -> dict[str, _Needs]:
    found = {}
    for task in manifest.select(config.include, config.exclude):
      found[task] = _Needs()
      for seed in config.seeds:
        for episode in _drawn(
          manifest, task, config, seed, inline, continued, support_task=others.get(task)
        ):
          found[task].add(episode, width, laid)
    return {task: need.answering(config.max_new_tokens) for task, need in found.items()}

  plain = needs({})
  control = needs(_others(manifest, config)) if other_support else {}
  sizes = {t: shapes.rounded(n.support, 1, n.query, n.targets) for t, n in plain.items()}
  rates = {task: float(found.episodes) for task, found in plain.items()}
  groups = []
  for _, tasks in shapes.sort(sizes, rates, config.num_queries, config.max_shapes):
    every = _Needs()
    for task in tasks:
      every.include(plain[task])
      if inline and other_support:
        every.include(control[task])
    support = max([every.support, *(control[task].support for task in tasks if other_support)])
    shape = shapes.rounded(support, config.num_queries, every.query, every.targets)
    rows = continuations.plan(every.rows, width)
    # Those with answers of one length stand together: a batch ends with its longest answer.
    longest = {task: plain[task].targets for task in tasks}
    longest = dict(sorted(longest.items(), key=lambda item: item[1]))
    groups.append(Group(longest, shape, (), laid, rows))
  tokens = {task: need.both for task, need in plain.items()}
  return Plan(manifest, config, laid, other_support, inline, continued, groups, tokens)


def groups(
  manifest: Manifest,
  config: EvalConfig,
  seed: int,
  *,
  shuffle_outputs: bool = False,
  **place: Any,
) -> list[Group]:
  """The episodes of one seed alone; `place` as for `plan`."""
  return plan(manifest, config, **place).draw(seed, shuffle_outputs=shuffle_outputs)


def _others(manifest: Manifest, config: EvalConfig) -> Mapping[str, str]:
  return other_tasks(manifest.select(config.include, config.exclude))


def _drawn(
  manifest: Manifest, task: str, config: EvalConfig, seed: int, inline: bool, continued: bool,
  **control: Any,
) -> Sequence[Episode]:  # fmt: skip
  drawn = eval_episodes(
    manifest, task, num_shots=config.num_shots, num_queries=config.num_queries,
    max_queries=config.max_queries, seed=seed, **control,
  )  # fmt: skip
  if not inline and not continued:
    return drawn
  form = episodes_lib.inline if inline else episodes_lib.continued
  return Lazy(len(drawn), lambda number: form(drawn[number]))


def _joined(parts: Sequence[Sequence[Episode]]) -> Lazy:
  """One sequence behind the other."""
  starts = [0, *itertools.accumulate(map(len, parts))]

  def make(number: int) -> Episode:
    part = bisect.bisect_right(starts, number) - 1
    return parts[part][number - starts[part]]

  return Lazy(starts[-1], make)


def supports(
  group: Group, batch_size: int, number: int
) -> tuple[Support, Sequence[Episode]]:
  """The supports of the group's batch of that number, and the episodes of its real rows; queries
  are not laid out."""
  filled, real = _part(group, batch_size, number)
  alone = [dataclasses.replace(episode, queries=()) for episode in filled]
  shape = BatchShape(group.shape.support, 1, 1, 1)
  return loader.to_batch(alone, shape, group.layout)[0].support, real


def batches(
  group: Group, batch_size: int
) -> Iterator[tuple[Batch, np.ndarray, Sequence[Episode]]]:
  """All batches of a group, of exactly `batch_size` episodes each.

  Yields:
    The batch, filled up with its first episode; a mask [B, M] of the queries that count; and the
    episodes of its real rows.
  """
  for number in range(group.num_batches(batch_size)):
    filled, real = _part(group, batch_size, number)
    batch, _ = loader.to_batch(filled, group.shape, group.layout)
    mask = batch.weights.sum(-1) > 0
    mask[len(real) :] = False
    yield batch, mask, real


def _part(
  group: Group, batch_size: int, number: int
) -> tuple[list[Episode], Sequence[Episode]]:
  """The episodes of the group's batch of that number, filled up with the first, and its own."""
  real = group.episodes[number * batch_size : (number + 1) * batch_size]
  return [*real, *[real[0]] * (batch_size - len(real))], real


def count_left_out(manifest: Manifest, config: EvalConfig) -> dict[str, int]:
  """Returns {task: how many queries it would ask if its supports did not need their inputs}."""
  counts = {
    task: len(left_out(manifest, task, config.num_shots, config.num_queries))
    for task in manifest.select(config.include, config.exclude)
  }
  return {task: count for task, count in counts.items() if count}


def remark(manifest: Manifest, config: EvalConfig) -> str:
  """Returns a sentence on targets that no answer can be, of the splits that are asked; "" where
  there are none. Data folders of old have not counted them."""
  entries = {
    task: manifest.split(task, query_split(manifest.splits(task)))
    for task in manifest.select(config.include, config.exclude)
  }
  return manifest.prompt.remark({t: entry.get("ends_early", 0) for t, entry in entries.items()})
