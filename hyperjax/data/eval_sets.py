"""Evaluation sets: the same episodes for every method, in a few static shapes.

An evaluation episode is a function of (seed, id of its first query) alone.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hyperjax.core.batch import Batch
from hyperjax.data import episodes as episodes_lib
from hyperjax.data import layouts, loader, schedule, shapes, shots
from hyperjax.data.episodes import Episode, Sampler
from hyperjax.data.layouts import Layout
from hyperjax.data.manifest import Manifest, family, prepared
from hyperjax.data.shapes import BatchShape
from hyperjax.data.shots import NumShots

_SPLITS = ("test", "validation", "train")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Which queries are asked, under which supports.

  Attributes:
    num_shots: examples in a support, or (low, high): drawn for each support between both; or
      `shots.PerClass`: so many of each class. None: all examples of the split that supports come
      from, in their order; queries with an input of these are left out (see `left_out`).
    num_queries: queries that share a support.
    max_queries: queries per task; None for all.
    seeds: one evaluation each; a seed draws the supports, the queries stay. Of a task that has
      splits `support_<seed>` it chooses one.
    include: tasks (or the front part of their names up to a dot); all, where empty.
    exclude: tasks to leave out.
    batch_size: episodes scored at once.
    max_shapes: static shapes to sort the tasks into.
    max_new_tokens: of an answer; None: the longest target or option among the tasks of its shape,
      enough to tell whether an answer is its target, not to score an answer that goes on.
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
    if self.num_shots is not None:
      shots.bounds(self.num_shots)
    for name in ("num_queries", "batch_size", "max_shapes"):
      if getattr(self, name) < 1:
        raise ValueError(f"EvalConfig.{name} must be at least 1, not {getattr(self, name)}")
    if not self.seeds:
      raise ValueError("EvalConfig.seeds is empty")


@dataclasses.dataclass(frozen=True)
class Group:
  """Episodes that share one static shape."""

  shape: BatchShape
  episodes: tuple[Episode, ...]
  layout: Layout

  @property
  def longest_input(self) -> int:
    """Tokens of the longest query's input, with what ends it."""
    inputs = [query.input for episode in self.episodes for query in episode.queries]
    return max(map(len, inputs)) + len(self.layout.end)


def groups(
  manifest: Manifest,
  config: EvalConfig,
  seed: int,
  *,
  layout: str = "decoder",
  other_support: bool = False,
  shuffle_outputs: bool = False,
  inline: bool = False,
) -> list[Group]:
  """The episodes of one seed, sorted into at most `max_shapes` shapes that cut nothing.

  The shapes are the same for all seeds and controls of a configuration, unless `inline`.

  Args:
    manifest: the data folder.
    config: what is asked.
    seed: draws the supports.
    layout: of the downstream model's queries, its `config.layout`.
    other_support: control: each task's supports come from another task.
    shuffle_outputs: control: outputs of each support change places.
    inline: the support stands in each query's own input.
  """
  laid = layouts.of(layout, manifest.vocabulary)
  place = episodes_lib.inline if inline else lambda episode: episode
  tasks = manifest.select(config.include, config.exclude)
  others = other_tasks(tasks) if other_support else {}

  def draw(task: str, seed: int, **control) -> list[Episode]:
    drawn = eval_episodes(
      manifest, task, num_shots=config.num_shots, num_queries=config.num_queries,
      max_queries=config.max_queries, seed=seed, **control,
    )  # fmt: skip
    return [place(episode) for episode in drawn]

  plain = {
    task: [_with_options(e) for s in config.seeds for e in draw(task, s)] for task in tasks
  }
  longest_support = loader.fit([e for task in tasks for e in plain[task]], laid).support
  out = []
  needs = {task: loader.fit(episodes, laid) for task, episodes in plain.items()}
  rates = {task: float(len(episodes)) for task, episodes in plain.items()}
  for _, members in shapes.sort(needs, rates, config.num_queries, config.max_shapes):
    chosen = [
      e
      for task in members
      for e in draw(task, seed, shuffle_outputs=shuffle_outputs, support_task=others.get(task))
    ]
    own = [e for task in members for e in plain[task]]
    shape = loader.fit(own + chosen if inline else own, laid)
    if other_support:
      longest = max(longest_support, loader.fit(chosen, laid).support)
      shape = dataclasses.replace(shape, support=longest)
    shape = dataclasses.replace(shape, queries=config.num_queries)
    out.append(Group(shape, tuple(chosen), laid))
  return out


def with_targets(episode: Episode, option: int) -> Episode:
  """The episode with each query's target replaced by its option of that number (modulo)."""
  queries = [
    dataclasses.replace(q, target=q.options[option % len(q.options)]) if q.options else q
    for q in episode.queries
  ]
  return dataclasses.replace(episode, queries=tuple(queries))


def _with_options(episode: Episode) -> Episode:
  """The episode with every option asked too, so that a shape that fits it fits all of them."""
  most = max(len(q.options or ()) for q in episode.queries)
  asked = [q for i in range(most) for q in with_targets(episode, i).queries]
  return dataclasses.replace(episode, queries=(*episode.queries, *asked))


def batches(
  group: Group, batch_size: int
) -> Iterator[tuple[Batch, np.ndarray, Sequence[Episode]]]:
  """Batches of exactly `batch_size` episodes.

  Yields:
    The batch, a mask [B, M] of the queries that count, and the episodes of its real rows.
  """
  for start in range(0, len(group.episodes), batch_size):
    real = group.episodes[start : start + batch_size]
    batch = fill(real, group, batch_size)
    mask = batch.weights.sum(-1) > 0
    mask[len(real) :] = False
    yield batch, mask, real


def fill(episodes: Sequence[Episode], group: Group, batch_size: int) -> Batch:
  """One batch of a group of exactly `batch_size` episodes, filled up with the first one."""
  filled = [*episodes, *[episodes[0]] * (batch_size - len(episodes))]
  return loader.to_batch(filled, group.shape, group.layout)[0]


def have_options(manifest: Manifest, task: str) -> bool:
  """Whether every example that an evaluation may ask has options."""
  entry = manifest.split(task, query_split(manifest.splits(task)))
  return 0 < entry["examples"] == entry.get("with_options", 0)


def query_split(splits: Sequence[str]) -> str:
  """Returns the split of a task whose examples an evaluation asks."""
  return next((split for split in _SPLITS if split in splits), splits[0])


def support_split(task: str, splits: Sequence[str], seed: int) -> str:
  """Returns the split that a task's supports come from: `support_<seed>` where it has such splits,
  else `train`, else the one that is asked.

  Raises:
    ValueError: it has such splits, but not for this seed.
  """
  by_seed = prepared(splits)
  if by_seed and seed not in by_seed:
    raise ValueError(
      f"Task '{task}' has supports for the seeds {', '.join(map(str, by_seed))}, none for {seed}: "
      "evaluate with some of these (gin: SEEDS)."
    )
  return by_seed.get(seed) or ("train" if "train" in splits else query_split(splits))


def count_left_out(manifest: Manifest, config: EvalConfig) -> dict[str, int]:
  """Returns {task: how many queries it would ask if its supports did not hold their inputs}.

  Only a support that is a whole split can make that necessary; any other one is drawn without them.
  """
  tasks = manifest.select(config.include, config.exclude) if config.num_shots is None else ()
  counts = {task: len(left_out(manifest, task)) for task in tasks}
  return {task: count for task, count in counts.items() if count}


def left_out(manifest: Manifest, task: str) -> set[int]:
  """Returns the queries that are not asked where a support is a whole split: those whose input is
  one of its inputs, with any seed, so that all seeds ask the same."""
  splits = manifest.splits(task)
  names = prepared(splits).values() or [support_split(task, splits, 0)]
  stores = [manifest.store(task, name) for name in names]
  shown = {store.input(i).tobytes() for store in stores for i in range(len(store))}
  asked = manifest.store(task, query_split(splits))
  return {i for i in range(len(asked)) if asked.input(i).tobytes() in shown}


def eval_episodes(
  manifest: Manifest,
  task: str,
  *,
  num_shots: NumShots | None,
  num_queries: int,
  max_queries: int | None,
  seed: int,
  shuffle_outputs: bool = False,
  support_task: str | None = None,
) -> list[Episode]:
  """Returns the evaluation episodes of a task: its queries in groups, each with its own support.

  Queries come from the task's `test` split, else `validation`, else `train`; for supports see
  `support_split`. The queries and their groups are the same for every seed; a support is keyed by
  the seed and its group's first query.

  Args:
    manifest: the data folder.
    task: the task that is asked.
    num_shots, seed: see `EvalConfig`.
    num_queries: queries that share a support (fewer in the last group).
    max_queries: at most so many queries, the first of a permutation keyed by the task; None: all.
    shuffle_outputs: control: outputs of a support change places, so that none keeps its own where
      that is possible.
    support_task: control: supports come from this task instead (see `other_tasks`).
  """

  def sampler(task: str) -> Sampler:
    splits = manifest.splits(task)
    shown = support_split(task, splits, seed)
    return Sampler(manifest, task, query_split(splits), shown, num_shots, num_queries)

  asked = sampler(task)
  shown = asked if support_task is None else sampler(support_task)
  order = schedule.Permutation(asked.num_queries_in_store, "evaluation", task)
  out = left_out(manifest, task) if num_shots is None else ()
  kept = (i for i in map(order, range(order.n)) if i not in out)
  ids = list(itertools.islice(kept, max_queries))
  if not ids:
    raise ValueError(f"Task '{task}': every query's input is in its supports (num_shots=None).")
  episodes = []
  for start in range(0, len(ids), asked.queries_per_episode):
    group = ids[start : start + asked.queries_per_episode]
    parts = (seed, "evaluation", task, group[0])
    number = None if num_shots is None else shots.count(num_shots, *parts, "shots")
    support = shown.draw(group if shown is asked else [], number, parts)
    if shuffle_outputs:
      targets = episodes_lib.shuffled(shown.support, support, schedule.generator(*parts, "shuffle"))
    else:
      targets = [shown.support.target(index) for index in support]
    queries = tuple(asked.query(index) for index in group)
    episode = shown.assemble(support, targets, queries)
    episodes.append(dataclasses.replace(episode, task=task))
  return episodes


def other_tasks(tasks: Sequence[str]) -> Mapping[str, str]:
  """Pairs each task with another one, for the control "another task's support".

  The next task in the given cyclic order, of another family where there are several families.
  """
  if len(tasks) < 2:
    raise ValueError(f"Another task's support needs at least two tasks, not {list(tasks)}.")
  several = len(set(map(family, tasks))) > 1
  following = {task: [*tasks[i + 1 :], *tasks[:i]] for i, task in enumerate(tasks)}
  return {
    task: next(other for other in rest if not several or family(other) != family(task))
    for task, rest in following.items()
  }
