"""The evaluation episodes of one task: functions of (seed, id of their first query) alone."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hyperjax.data import schedule, shots, shuffling
from hyperjax.data.episodes import Episode, Sampler
from hyperjax.data.manifest import Manifest, family, prepared
from hyperjax.data.shots import NumShots

_SPLITS = ("test", "validation", "train")


@dataclasses.dataclass(frozen=True)
class Lazy(Sequence):
  """Episodes that are made as they are read, and not kept.

  Attributes:
    size: how many there are.
    make: from an episode's number to the episode.
  """

  size: int
  make: Callable[[int], Episode]

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int | slice) -> Any:
    if isinstance(index, slice):
      return [self.make(i) for i in range(self.size)[index]]
    return self.make(range(self.size)[index])


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


def left_out(
  manifest: Manifest, task: str, num_shots: NumShots | None, num_queries: int
) -> set[int]:
  """Returns the queries that are not asked since a support may need their inputs.

  Those are queries with an input of the split that supports come from, if it is another one than
  theirs and has too few examples to draw a support without as many of them as may share it: so in
  a support that is the whole split, and in a task's few positive examples. They count with any
  seed, so that all seeds ask the same.
  """
  splits = manifest.splits(task)
  asked = query_split(splits)
  names = set(prepared(splits).values() or [support_split(task, splits, 0)]) - {asked}
  stores = [manifest.store(task, name) for name in names]
  supports = [shots.Supports(num_shots, store) for store in stores]
  spare = min((s.scarcest.distinct - s.most for s in supports), default=num_queries)
  if spare >= num_queries:
    return set()
  shown = {store.input(i).tobytes() for store in stores for i in range(len(store))}
  queries = manifest.store(task, asked)
  found = {i for i in range(len(queries)) if queries.input(i).tobytes() in shown}
  return found if len(found) > spare else set()


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
) -> Sequence[Episode]:
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
    shuffle_outputs: control: outputs of a support change places (see `shuffling`).
    support_task: control: supports come from this task instead (see `other_tasks`).
  """

  def sampler(task: str) -> Sampler:
    splits = manifest.splits(task)
    shown = support_split(task, splits, seed)
    return Sampler(manifest, task, query_split(splits), shown, num_shots, num_queries)

  asked = sampler(task)
  shown = asked if support_task is None else sampler(support_task)
  order = schedule.Permutation(asked.num_queries_in_store, "evaluation", task)
  out = left_out(manifest, task, num_shots, num_queries)
  kept = (i for i in map(order, range(order.n)) if i not in out)
  ids = list(itertools.islice(kept, max_queries))
  if not ids:
    raise ValueError(f"Task '{task}': every query's input is in its supports ({num_shots=}).")
  size = asked.queries_per_episode

  def make(number: int) -> Episode:
    group = ids[number * size : (number + 1) * size]
    parts = (seed, "evaluation", task, group[0])
    count = None if num_shots is None else shots.count(num_shots, *parts, "shots")
    support = shown.draw(group if shown is asked else [], count, parts)
    if shuffle_outputs:
      targets = shuffling.targets(shown.support, support, schedule.generator(*parts, "shuffle"))
    else:
      targets = [shown.support.target(index) for index in support]
    episode = shown.assemble(support, targets, tuple(asked.query(index) for index in group))
    return dataclasses.replace(episode, task=task)

  return Lazy(-(-len(ids) // size), make)


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
