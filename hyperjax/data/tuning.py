"""What `hyperjax tune` tunes on and asks: the examples and queries of single tasks, in batches."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hyperjax.core.batch import Batch
from hyperjax.data import eval_episodes, layouts, loader, schedule, shapes
from hyperjax.data.episodes import Episode, Sampler
from hyperjax.data.manifest import Manifest

# Static shapes that the tasks are sorted into: each is compiled anew for every method.
MAX_SHAPES = 3


@dataclasses.dataclass(frozen=True)
class Bench:
  """The tasks' examples in batches of a few static shapes, so that a few programs serve all tasks.

  Attributes:
    manifest, config, layout: as given; the configuration is a `tune.TuneConfig`.
    shapes: {task: of the batches that are tuned on and answered}.
  """

  manifest: Manifest
  config: Any
  layout: layouts.Layout
  shapes: Mapping[str, shapes.BatchShape]

  @classmethod
  def open(
    cls, manifest: Manifest, tasks: Sequence[str], methods: Mapping[str, Any], config: Any,
    layout: str,
  ) -> "Bench":  # fmt: skip
    """Plans the shapes; `methods` are {name: a `tune.Method`}.

    Raises:
      ValueError: a task has too few examples.
    """
    laid = layouts.of(layout, manifest.vocabulary)
    bench = cls(manifest, config, laid, {})
    needs = {
      task: loader.fit(
        [*bench.asked(task), *(e for s in config.seeds for m in methods.values()
                               for e in bench.read(task, s, m))],
        laid,
      )
      for task in tasks
    }  # fmt: skip
    groups = shapes.sort(needs, dict.fromkeys(tasks, 1.0), config.batch_size, MAX_SHAPES)
    return dataclasses.replace(
      bench, shapes={task: shape for shape, members in groups for task in members}
    )

  def asked(self, task: str) -> list[Episode]:
    """The queries that are answered, in groups of `batch_size`."""
    return [
      dataclasses.replace(episode, head=episode.head[:0], shots=())
      for episode in eval_episodes.eval_episodes(
        self.manifest, task, num_shots=1, num_queries=self.config.batch_size,
        max_queries=self.config.max_queries, seed=self.config.seeds[0],
      )
    ]  # fmt: skip

  def examples(self, task: str, seed: int, count: int) -> tuple[Sampler, list[int]]:
    """A sampler of the split that is tuned on, and the ids of the tuning examples in it.

    None has the input of a query that is asked, whichever split that one is of.

    Raises:
      ValueError: there are not as many.
    """
    splits = self.manifest.splits(task)
    asked = [q.id for episode in self.asked(task) for q in episode.queries]
    split = eval_episodes.support_split(task, splits, seed)
    try:
      apart = Sampler(self.manifest, task, eval_episodes.query_split(splits), split, count, 1)
      ids = apart.draw(asked, count, (seed, "tune", task))
      return Sampler(self.manifest, task, split, split, count, 1), ids
    except ValueError as error:
      inputs = self.manifest.split(task, split)["distinct_inputs"]
      raise ValueError(
        f"Task '{task}': split '{split}', of {inputs} different inputs, has no {count} to tune on "
        f"beside the {len(asked)} queries: set fewer (gin: NUM_EXAMPLES, or MAX_QUERIES; in "
        "runs/tune_baselines.gin FEW or MORE), or leave the task out (TASKS)"
      ) from error

  def read(self, task: str, seed: int, method: Any) -> list[Episode]:
    """All that a method reads of a task: its tuning examples as queries, and its supports."""
    sampler, ids = self.examples(task, seed, method.num_examples)
    queries = tuple(map(sampler.query, ids))
    supports = method.start.supports if method.start else 1
    first, *others = self.supports(task, seed, method.num_examples, supports)
    return [dataclasses.replace(first, queries=queries), *others]

  def supports(self, task: str, seed: int, count: int, supports: int) -> list[Episode]:
    """So many disjoint supports of the tuning examples, each with its examples as queries."""
    sampler, ids = self.examples(task, seed, count)
    shots = min(self.config.num_shots, count)
    if supports * shots > count:
      raise ValueError(
        f"{supports} supports of {shots} examples are more than the {count} tuning examples"
      )
    parts = [ids[i * shots : (i + 1) * shots] for i in range(supports)]
    return [
      sampler.assemble(
        part, [sampler.support.target(i) for i in part], tuple(map(sampler.query, part))
      )
      for part in parts
    ]

  def steps(self, task: str, seed: int, count: int) -> Iterator[Batch]:
    """The batches that are tuned on: epochs of the examples, each in an order of its own."""
    sampler, ids = self.examples(task, seed, count)
    order = schedule.Epochs(count, seed, "tune", task)
    size = min(self.config.batch_size, count)
    for step in range(self.config.steps):
      chosen = [ids[order(step * size + i)] for i in range(size)]
      queries = tuple(map(sampler.query, chosen))
      yield self.batch(Episode(task, np.zeros([0], np.int32), (), queries, (), sampler.adds_bos))

  def batch(self, episode: Episode) -> Batch:
    """One episode as a batch."""
    return loader.to_batch([episode], self.shapes[episode.task], self.layout)[0]
