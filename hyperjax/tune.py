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
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hyperjax import launch, progress, runs, systems
from hyperjax.core import arithmetic, sharding
from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Batch, Support
from hyperjax.core.phi import Phi
from hyperjax.data import vocabularies
from hyperjax.data.manifest import set_lists
from hyperjax.data.tuning import Bench
from hyperjax.evaluation import scoring, tuning_report
from hyperjax.hypermodels.tuned import TunedPhi
from hyperjax.training import step as step_lib

Point = dict[str, int | float]
Curve = list[Point]

# Part of what stored cells are named by: raise it where tuning or scoring changes.
_TUNING = 4


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
    set_lists(self, "measure", "seeds", "tasks")
    for name in ("steps", "batch_size", "num_shots", "max_queries"):
      if getattr(self, name) < 1:
        raise ValueError(f"TuneConfig.{name} must be at least 1, not {getattr(self, name)}")
    if not self.measure or min(self.measure) < 0 or max(self.measure) > self.steps:
      raise ValueError(f"TuneConfig.measure {self.measure} must name steps in 0..{self.steps}")


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
  with jax.set_mesh(devices):
    for name, method in methods.items():
      check_start(name, method, starts.get(name))
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


def check_start(name: str, method: Method, start: runs.Run | None) -> None:
  """Refuses a start whose phi is not of the kind that the method tunes; computes none.

  Raises:
    ValueError: names the method, the run and the difference.
  """
  if method.start is None:
    return
  said = f"the method '{name}' (tune.tune.methods) cannot start from {method.start.run}"
  if not hasattr(method.producer, "spec"):
    raise ValueError(f"{said}: only tuned.TunedConfig can, not {type(method.producer).__name__}")
  support = Support(
    jax.ShapeDtypeStruct((1, 16), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
  )
  phi = jax.eval_shape(scoring.produce, start.producer, start.downstream, support)
  try:
    phi_lib.check(phi, method.producer.spec(start.downstream))
  except ValueError as error:
    raise ValueError(
      f"{said}: {error}; gin's PREFIX_LENGTH is the length of the prefix that is tuned, and "
      "tuned.TunedConfig has its other sizes"
    ) from None


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
    """The method for a downstream model, its start being one that `check_start` takes."""
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
    batches = [(batch, batch.asked()) for batch in asked]
    return {"step": step, **scoring.means(system.producer, system.downstream, batches)}


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `hyperjax tune`."""
  return launch.run("hyperjax.tune", "tune", argv, folder="TUNE_OUTPUT_DIR")


if __name__ == "__main__":
  sys.exit(main())
