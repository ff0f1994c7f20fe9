"""`hyperjax tune`: tunes phi (or the whole model) on single tasks by gradient descent, from several
starts, and draws how each does after so many steps.

    hyperjax tune --gin_file=runs/tune.gin --gin.RUN=runs/mine --gin.SHARED=runs/shared \\
      --gin.TUNE_OUTPUT_DIR=runs/mine/tuned

A phi that a hypermodel generated from the same examples is one start; others are random values and
one phi that was trained on the whole mixture (HyperTuning, arXiv 2211.12485, section 6).
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hyperjax import launch, progress, runs, systems
from hyperjax.core import arithmetic, sharding
from hyperjax.core.batch import Batch
from hyperjax.core.phi import Phi
from hyperjax.data import eval_episodes, layouts, loader, schedule, shapes, vocabularies
from hyperjax.data.episodes import Episode, Sampler
from hyperjax.data.manifest import Manifest
from hyperjax.evaluation import scoring, tuning_report
from hyperjax.hypermodels.tuned import TunedPhi
from hyperjax.training import step as step_lib

Point = dict[str, int | float]
Curve = list[Point]

# Part of what stored cells are named by: raise it where tuning or scoring changes.
_TUNING = 3

# Static shapes that the tasks are sorted into: each is compiled anew for every method.
MAX_SHAPES = 3


@dataclasses.dataclass(frozen=True)
class Start:
  """The phi that a training run gives for the tuning examples.

  Attributes:
    run: folder of the run: a hypermodel's (phi is generated) or a tuned phi's (phi is shared).
    supports: phi is the mean over so many disjoint supports of the tuning examples.
  """

  run: str
  supports: int = 1


@dataclasses.dataclass(frozen=True)
class Method:
  """One way to tune.

  Attributes:
    producer: what is tuned: a TunedConfig, or FullConfig.
    optimizer: a training.optimizers.Optimizer.
    start: where it starts from; None for the producer's own initial values.
    num_examples: how many examples of the task are tuned on.
  """

  producer: systems.ProducerConfig
  optimizer: Any
  start: Start | None = None
  num_examples: int = 10


@dataclasses.dataclass(frozen=True)
class TuneConfig:
  """What all methods share.

  Attributes:
    steps: optimizer steps on each task.
    measure: the steps at which the task's other queries are answered; 0 is the start.
    batch_size: examples in a step.
    num_shots: examples of a support that a hypermodel reads.
    max_queries: queries per task that are answered.
    seeds: each draws tuning examples of its own.
    tasks: tasks (or the front part of their names up to a dot); all, where empty.
  """

  steps: int = 50
  measure: Sequence[int] = (0, 2, 5, 10, 20, 35, 50)
  batch_size: int = 10
  num_shots: int = 10
  max_queries: int = 40
  seeds: Sequence[int] = (0,)
  tasks: Sequence[str] = ()

  def __post_init__(self):
    for name in ("steps", "batch_size", "num_shots", "max_queries"):
      if getattr(self, name) < 1:
        raise ValueError(f"TuneConfig.{name} must be at least 1, not {getattr(self, name)}")
    if not self.measure or min(self.measure) < 0 or max(self.measure) > self.steps:
      raise ValueError(
        f"TuneConfig.measure {tuple(self.measure)} must name steps in 0..{self.steps}"
      )


def tune(
  *,
  output_dir: str,
  run: str,
  methods: Mapping[str, Method],
  config: TuneConfig,
  data: runs.DataFolder | None = None,
  mesh: sharding.MeshConfig = sharding.MeshConfig(),
  dry_run: bool = False,
) -> int:
  """Tunes every method on every task and writes curves over steps.

  Each cell (method, task, seed) is stored as it ends: the same command goes on where it stopped.

  Args:
    output_dir: where cells, results.json, report.md and curves.png go.
    run: the folder of a training run, whose downstream model and held-out tasks are used.
    methods: {name: how it tunes}.
    config: what they share.
    data: the tasks; the run's held-out ones where None.
    mesh: the devices, and what is sharded over them. A task is one episode, which is never split:
      `fsdp` gives room for the weights, `tensor` shares out work too, `data` does neither.
    dry_run: print what would be done.

  Raises:
    FileNotFoundError: a folder holds no run.
    ValueError: there are no tasks; a method does not fit the model; or the mesh the devices.
  """
  given = runs.configured(run)
  base = given["model"]
  data = data or runs.held_out(given)
  if data is None:
    raise ValueError(f"{run} was trained without held-out tasks: name tasks as tune.tune.data")
  for name, method in methods.items():
    systems.check_fits(
      method.producer, base.architecture, base.bits, f"leave '{name}' out of tune.tune.methods"
    )
    if method.start and (note := runs.remark_on_start(method.start.run, base)):
      print(note, file=sys.stderr)
  devices = mesh.planned() if dry_run else mesh.build()
  if dry_run:
    print(f"devices    {progress.in_words(devices)}")
    print(f"methods    {', '.join(methods)}")
    print(f"data       {data.config.title} in {data.path}")
    print(f"config     {config}")
    return 0

  progress.say_devices(devices)
  vocabulary = vocabularies.load(data.config.vocabulary)
  manifest = data.open(vocabulary)
  model, fingerprint = base.load(devices)
  tasks = manifest.select(config.tasks, ())
  bench = Bench.open(manifest, tasks, methods, config, base.architecture.layout)
  for start in filter(None, (method.start for method in methods.values())):
    runs.check(start.run, fingerprint, manifest)
  starts = {
    name: runs.load(method.start.run, loaded=(model, fingerprint), mesh=devices)
    for name, method in methods.items() if method.start
  }  # fmt: skip
  folder = pathlib.Path(output_dir) / "cells"
  folder.mkdir(parents=True, exist_ok=True)
  launch.accept()
  cells: dict[str, dict[str, list[Curve]]] = {}
  with progress.counter() as bar, jax.set_mesh(devices):
    done = bar.add_task("", total=len(methods) * len(tasks) * len(config.seeds))
    for name, method in methods.items():
      tuner = Tuner.build(
        method, model, systems.encoder(vocabulary), config, starts.get(name), devices
      )
      about = [
        _TUNING, fingerprint, base.dtypes(), manifest.values["tasks"],
        dataclasses.asdict(config), repr(method),
        starts[name].trained_hash if name in starts else "",
      ]  # fmt: skip
      for task in tasks:
        for seed in config.seeds:
          bar.update(done, description=f"{name}, {task}")
          key = hashlib.sha256(json.dumps([*about, task, seed]).encode()).hexdigest()[:16]
          curve = tuning_report.stored(
            folder / f"{name}-{task}-{seed}-{key}.json",
            lambda t=tuner, k=task, s=seed: t.curve(bench, k, s),
          )
          cells.setdefault(name, {}).setdefault(task, []).append(curve)
          bar.advance(done)
      del tuner  # the next one may hold the whole model too
  current = launch.current()
  about = {"command": current.command, "config": current.config, "base": base.dtypes()}
  clusters = {task: manifest.cluster(task) for task in tasks}
  tuning_report.write(output_dir, cells, about, clusters)
  return 0


@dataclasses.dataclass(frozen=True)
class Bench:
  """The tasks' examples in batches of a few static shapes, so that a few programs serve all tasks.

  Attributes:
    manifest, config, layout: as given.
    shapes: {task: of the batches that are tuned on and answered}.
  """

  manifest: Manifest
  config: TuneConfig
  layout: layouts.Layout
  shapes: Mapping[str, shapes.BatchShape]

  @classmethod
  def open(cls, manifest, tasks, methods, config: TuneConfig, layout: str) -> "Bench":
    """Plans the shapes.

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
    """
    splits = self.manifest.splits(task)
    asked = [q.id for episode in self.asked(task) for q in episode.queries]
    split = eval_episodes.support_split(task, splits, seed)
    apart = Sampler(self.manifest, task, eval_episodes.query_split(splits), split, count, 1)
    ids = apart.draw(asked, count, (seed, "tune", task))
    return Sampler(self.manifest, task, split, split, count, 1), ids

  def read(self, task: str, seed: int, method: Method) -> list[Episode]:
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


@dataclasses.dataclass(frozen=True)
class Tuner:
  """One method, compiled once for all tasks.

  Attributes:
    method, config, start: as given; start is the run that phi starts from.
    parts: the system at its initial values.
    transform, train_step: what changes it.
    mesh: that all of it lies on.
  """

  method: Method
  config: TuneConfig
  start: runs.Run | None
  spec: Phi | None
  parts: step_lib.Parts
  transform: Any
  train_step: Any
  mesh: jax.sharding.Mesh

  @classmethod
  def build(
    cls, method: Method, model, encode, config, start: runs.Run | None, mesh: jax.sharding.Mesh
  ) -> "Tuner":
    """The method for a downstream model.

    Raises:
      ValueError: only a phi can start from a run.
    """
    if method.start and not hasattr(method.producer, "spec"):
      raise ValueError(
        f"{type(method.producer).__name__} tunes no phi: it cannot start from {method.start.run}"
      )
    spec = method.producer.spec(model) if method.start else None
    parts = systems.build_parts(method.producer, model, encode, 0, mesh)
    transform = method.optimizer.build(config.steps, parts.axes)
    state = step_lib.optimizer_shapes(transform, parts.trained, mesh)
    lying = step_lib.lies(parts.trained), step_lib.lies(state)
    train_step = step_lib.make_train_step(
      parts.graph, transform, step_lib.Objective(), lying=lying
    )
    return cls(method, config, start, spec, parts, transform, train_step, mesh)

  def curve(self, bench: Bench, task: str, seed: int) -> Curve:
    """Tunes on one task; exact match and log-likelihood of its other queries at each step asked.

    Raises:
      FloatingPointError: a log-likelihood is not a number.
    """
    trained = self._initial(bench, task, seed)
    state = step_lib.init_optimizer(self.transform, trained, self.mesh)
    asked = [bench.batch(episode) for episode in bench.asked(task)]
    found = [self._measure(trained, asked, 0)] if 0 in self.config.measure else []
    count = self.method.num_examples
    for step, batch in enumerate(bench.steps(task, seed, count), 1):
      trained, state, _ = self.train_step(trained, state, self.parts.frozen, batch)
      if step in self.config.measure:
        found.append(self._measure(trained, asked, step))
    for point in found:
      if not math.isfinite(point["log_likelihood"]):
        raise FloatingPointError(
          f"{task}, seed {seed}: the log-likelihood is {point['log_likelihood']} after step "
          f"{point['step']}: lower the learning rate, or leave the method out of tune.tune.methods"
        )
    return found

  def _initial(self, bench: Bench, task: str, seed: int):
    """The trained parameters at the start; a copy, because a step donates them."""
    if self.start is None:
      return jax.tree.map(jnp.copy, self.parts.trained)
    episodes = bench.supports(task, seed, self.method.num_examples, self.method.start.supports)
    phis = [
      scoring.produce(self.start.producer, self.start.downstream, bench.batch(e).support)
      for e in episodes
    ]
    tuned = TunedPhi.starting_from(
      phis[0] if len(phis) == 1 else arithmetic.mean(phis), self.spec
    )
    system = nnx.merge(self.parts.graph, self.parts.trained, self.parts.frozen)
    trained = step_lib.split(step_lib.System(tuned, system.downstream)).trained
    return sharding.place(trained, self.parts.axes, self.mesh)

  def _measure(self, trained, asked: Sequence[Batch], step: int) -> Point:
    system = nnx.merge(self.parts.graph, trained, self.parts.frozen)
    likelihood, exact, queries = 0.0, 0.0, 0
    for batch in asked:
      phi = scoring.produce(system.producer, system.downstream, batch.support)
      scores = scoring.teacher_forced(system.downstream, phi, batch)
      real = batch.weights.sum(-1) > 0
      likelihood += float(np.asarray(scores[0])[real].sum())
      exact += float(np.asarray(scores[1])[real].sum())
      queries += int(real.sum())
    return {
      "step": step, "exact_match": exact / queries, "log_likelihood": likelihood / queries
    }


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `hyperjax tune`."""
  return launch.run("hyperjax.tune", "tune", argv, folder="TUNE_OUTPUT_DIR")


if __name__ == "__main__":
  sys.exit(main())
