"""`hyperjax train`: trains a producer of phi for a frozen downstream model.

    hyperjax train --gin_file=models/smollm2_135m.gin --gin_file=systems/hyperllama.gin \\
      --gin_file=data/lexical.gin --gin_file=runs/mtf.gin --gin.MODEL_DIR=runs/mine \\
      --gin.DATA_DIR=data/lexical --gin.TRAIN_STEPS=1000
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from hyperjax import launch, resuming, runs, storage, systems
from hyperjax.core import quantised, sharding
from hyperjax.data import eval_sets, loader, vocabularies
from hyperjax.data.caclm import CaclmConfig
from hyperjax.data.episodes import EpisodeConfig
from hyperjax.evaluation import scoring
from hyperjax.progress import Progress, StopSignal, compilations, in_words, say_devices
from hyperjax.training import optimizers
from hyperjax.training import step as step_lib
from hyperjax.training.checkpoints import Checkpoints, abstract
from hyperjax.training.metrics_writer import MetricsWriter
from hyperjax.training.step import lies


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """How long and how often.

  Attributes:
    steps: optimizer steps of this run.
    batch_size: episodes per step.
    seed: of initial values and episodes.
    accumulate: parts that a batch is worked off in.
    checkpoint_period: steps between checkpoints; the last step is always saved.
    eval_period: steps between evaluations on the held-out tasks; 0 for none.
    mesh: the devices, and what is sharded over them.
    initial_checkpoint: a run's folder whose newest trained parameters this run starts from.
    resume_step: the checkpoint to go back to, where later ones are damaged or led nowhere: they are
      removed; the newest one where None.
  """

  steps: int
  batch_size: int
  seed: int = 0
  accumulate: int = 1
  checkpoint_period: int = 100
  eval_period: int = 0
  mesh: sharding.MeshConfig = sharding.MeshConfig()
  initial_checkpoint: str | None = None
  resume_step: int | None = None

  def __post_init__(self):
    for name in ("steps", "batch_size", "accumulate", "checkpoint_period"):
      if getattr(self, name) < 1:
        raise ValueError(f"RunConfig.{name} must be at least 1, not {getattr(self, name)}")
    if self.eval_period < 0:
      raise ValueError(f"RunConfig.eval_period must be at least 0, not {self.eval_period}")
    if self.resume_step is not None and not 1 <= self.resume_step <= self.steps:
      raise ValueError(
        f"RunConfig.resume_step must be in 1..{self.steps} (TRAIN_STEPS), not {self.resume_step}"
      )
    if self.batch_size % self.accumulate:
      raise ValueError(
        f"RunConfig.batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}"
      )


@dataclasses.dataclass(frozen=True)
class TrainData:
  """What is trained on, and what is watched meanwhile.

  Attributes:
    data: the training mixture.
    episodes: how its episodes are made: few-shot (MTF), or of running text (hyperpretraining).
    held_out: the tasks that are evaluated every `eval_period` steps; None for none.
    evaluation: which of their queries.
  """

  data: runs.DataFolder
  episodes: EpisodeConfig | CaclmConfig
  held_out: runs.DataFolder | None = None
  evaluation: eval_sets.EvalConfig = eval_sets.EvalConfig(num_queries=8, max_queries=16)

  @property
  def config(self):
    """The training mixture's configuration."""
    return self.data.config

  @property
  def inline(self) -> bool:
    """Whether the queries hold the support themselves."""
    return isinstance(self.episodes, EpisodeConfig) and self.episodes.inline


def train(
  *,
  model_dir: str,
  model: runs.ModelConfig,
  hypermodel: systems.ProducerConfig,
  data: TrainData,
  run: RunConfig,
  optimizer: optimizers.Optimizer,
  objective: step_lib.Objective = step_lib.Objective(),
  dry_run: bool = False,
) -> int:
  """Trains, resuming from the newest checkpoint in `model_dir` where there is one.

  Args:
    model_dir: where checkpoints, metrics and the configuration go.
    model: the frozen downstream model.
    hypermodel: what is trained to produce phi.
    data: episodes.
    run: lengths and periods.
    optimizer: how the trained parameters follow their gradients.
    objective: what is minimised.
    dry_run: print devices, parameter counts, a memory estimate and a data summary; build nothing.

  Returns:
    0 when all steps are done; 75 (EX_TEMPFAIL) after SIGTERM and 130 after Ctrl-C, the state saved:
    the same command goes on from there.
  """
  systems.check_fits(hypermodel, model.architecture, model.bits)
  check_together(model, hypermodel, data, run, optimizer, objective)
  mesh = run.mesh.planned() if dry_run else run.mesh.build()
  sharding.check_batch(run.batch_size // run.accumulate, mesh)
  if dry_run:
    print(f"devices     {in_words(mesh)}")
    return describe(model, hypermodel, data, run)

  # The model, the data, the system.
  resuming.check(model_dir, {"hypermodel": hypermodel, "data": data, "run": run,
                             "objective": objective})  # fmt: skip
  say_devices(mesh)
  vocabulary = vocabularies.load(data.config.vocabulary)
  vocabularies.check_fits(
    data.config.vocabulary, vocabulary, model.architecture.vocab_size, model.source
  )
  manifest = data.data.open(vocabulary)
  layout = model.architecture.layout
  stream = data.episodes.stream(
    manifest, seed=run.seed, batch_size=run.batch_size, layout=layout
  )
  if stream.remark:
    print(f"note: {stream.remark}", file=sys.stderr)
  downstream, fingerprint = model.load(mesh)
  parts = systems.build_parts(hypermodel, downstream, systems.encoder(vocabulary), run.seed, mesh)
  transform = optimizer.build(run.steps, parts.axes)
  watch = None
  if run.eval_period and data.held_out:
    watch = Watch.open(data, vocabulary, parts.graph, layout, sharding.episode_parts(mesh))

  # Where it starts: this run's newest checkpoint, another run's, or the initial values.
  trained, frozen = parts.trained, parts.frozen
  state, start = step_lib.init_optimizer(transform, trained, mesh), 0
  bos = manifest.vocabulary["adds_bos"] and not data.inline  # of queries behind a support
  train_step = step_lib.make_train_step(
    parts.graph, transform, partial(objective, bos=bos), run.accumulate,
    (lies(trained), lies(state)),
  )  # fmt: skip
  del parts, downstream
  checkpoints = Checkpoints(model_dir, fingerprint, data=manifest.identity)
  # Initial values make room for those that are read.
  if checkpoints.latest() is not None:
    trained, state = abstract(trained), abstract(state)
  restored = checkpoints.resume(trained, state, run.resume_step)
  if restored is not None:
    trained, state, start = restored.trained, restored.state, restored.step
    if start > run.steps:
      raise ValueError(
        f"{model_dir} holds a checkpoint of step {start}, beyond TRAIN_STEPS {run.steps}: name "
        "another MODEL_DIR"
      )
    print(f"resuming {model_dir} at step {start} of {run.steps}", flush=True)
  elif run.initial_checkpoint:
    other = Checkpoints(run.initial_checkpoint, fingerprint, read_only=True)
    # What that run left frozen starts as it is: HyperT5+ goes on from HyperT5's hyperpretraining.
    kept = {k: v for k, v in trained.items() if k == "downstream" and k not in other.parts()}
    trained = abstract({k: v for k, v in trained.items() if k not in kept})
    trained = {**other.restore(trained, None).trained, **kept}
    other.close()

  # The loop. Metrics of a step are read after the next one is dispatched.
  launch.accept()
  writer = MetricsWriter(model_dir, resume_step=start)
  signals, bar = StopSignal(), Progress(run.steps, start, writer.last.get("minutes", 0.0))
  seen_shapes: set = set()
  pending, done = None, start
  counts = loader.Counts()
  rows = sharding.local_rows(run.batch_size, mesh)
  with (
    loader.Loader(stream, start_step=start, stop_step=run.steps, rows=rows) as batches,
    writer, signals, bar, jax.set_mesh(mesh),
  ):  # fmt: skip
    if watch and (start % run.eval_period == 0 or start == run.steps):
      # A run that ended while it measured has saved the step, but not what it measured.
      measured = np.array("held_out/exact_match" in writer.last)
      if not multihost_utils.broadcast_one_to_all(measured):
        _measure(watch, start, trained, frozen, writer, bar)
    for step, host_batch, info in batches:
      shape = stream.bucket(step)
      before = compilations()
      batch = sharding.place_batch(host_batch, mesh)
      trained, state, metrics = train_step(trained, state, frozen, batch)
      if compilations() > before and shape in seen_shapes:
        raise RuntimeError(f"step {step} compiled again for {shape}; shapes must be static")
      seen_shapes.add(shape)
      if pending:
        _report(*pending, writer, bar, checkpoints)
      pending = (step, metrics, info)
      counts += info.counts
      done = step + 1
      stop = signals.stops_after(done)
      evaluate = watch and (done % run.eval_period == 0 or done == run.steps)
      save = done % run.checkpoint_period == 0 or done == run.steps or stop
      if evaluate or save:
        _report(*pending, writer, bar, checkpoints)
        pending = None
      if save:  # first: measuring takes long, and little time may be left
        _save(done, trained, state, writer, checkpoints)
      if evaluate:
        _measure(watch, done, trained, frozen, writer, bar)
      if stop:
        break
    checkpoints.wait()  # in here: a signal, or metrics that cannot be written, do not end it
  checkpoints.close()
  if signals.received and done < run.steps:
    print(f"stopped by {signals.received.name} after step {done}; state is saved in {model_dir}: "
          "the same command goes on from there", flush=True)  # fmt: skip
    return signals.status
  _summarise(model_dir, run, start, counts, bar)
  return 0


def check_together(
  model, hypermodel: systems.ProducerConfig, data: TrainData, run: RunConfig,
  optimizer: optimizers.Optimizer, objective: step_lib.Objective,
) -> None:  # fmt: skip
  """Refuses settings that are each allowed, but not with one another.

  Raises:
    ValueError: names the setting, its value and the way out.
  """
  if run.eval_period and isinstance(data.episodes, CaclmConfig):
    raise ValueError(
      f"EVAL_PERIOD is {run.eval_period}, but running text has no few-shot queries to evaluate: "
      "set it to 0"
    )
  optimizer.build(run.steps, {})
  if objective.distillation and model.architecture.layout != "decoder":
    raise ValueError(
      f"DISTILLATION is {objective.distillation}, but its teacher reads the support as a prefix, "
      "which only decoder-only models can: set it to 0"
    )
  if objective.distillation and "downstream" in systems.trained_parts(hypermodel):
    raise ValueError(
      f"DISTILLATION is {objective.distillation}, but its teacher is the downstream model, which "
      f"{type(hypermodel).__name__} trains: set it to 0"
    )
  if data.inline and systems.reads_support(hypermodel):
    raise ValueError(
      f"the episodes' queries hold the support themselves (runs/mtf_few_shot.gin), so "
      f"{type(hypermodel).__name__} would have none to read: name runs/mtf.gin, or a system whose "
      "producer reads no support, as systems/lora.gin"
    )


def _report(step, metrics, info, writer, bar, checkpoints) -> None:
  """Writes a step's metrics; stops the run where its loss is not a number."""
  values = {name: float(value) for name, value in metrics.items()}
  if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient_norm"]):
    checkpoints.wait()
    good = checkpoints.latest()
    raise FloatingPointError(
      f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']}; its episodes "
      f"are of {', '.join(sorted(set(info.tasks)))}; "
      + ("there is no checkpoint before it" if good is None else
         f"the last good checkpoint is step {good} in {checkpoints.folder}")
    )  # fmt: skip
  speed = bar.advance(int(values["tokens"]), values["loss"])
  writer.write(
    step + 1,
    {**values, "tokens_per_second": speed, "padding": info.counts.padding, "minutes": bar.minutes},
  )


def _measure(watch, step, trained, frozen, writer, bar) -> None:
  """Writes how the held-out tasks are answered after so many steps, and says it."""
  with bar.paused():
    found = watch.measure(trained, frozen)
  writer.write(step, {**found, "minutes": bar.minutes})
  bar.note(f"step {step}: held-out exact match {found['held_out/exact_match']:.3f}, "
           f"log-likelihood {found['held_out/log_likelihood']:.2f}")  # fmt: skip


def _save(step, trained, state, writer, checkpoints) -> None:
  """Starts a checkpoint; where the metrics before it cannot be copied, it is whole first."""
  try:
    writer.publish()
  except OSError:
    checkpoints.save(step, trained, state)
    checkpoints.wait()
    raise
  checkpoints.save(step, trained, state)


def _summarise(model_dir, run, start, counts, bar) -> None:
  if counts.slots:
    print(
      f"{model_dir}: all {run.steps} steps done, {bar.minutes:.1f} minutes of training "
      f"in all; since step {start} {bar.tokens_per_second:.0f} tokens/s, padding "
      f"{counts.padding:.0%} of the places; cut: "
      f"{counts.shots_dropped} support examples, {counts.supports_cut} supports of one example, "
      f"{counts.inputs_cut} inputs, {counts.targets_cut} targets",
      flush=True,
    )
  else:
    print(f"{model_dir}: all {run.steps} steps were done before", flush=True)


@dataclasses.dataclass(frozen=True)
class Watch:
  """Held-out episodes, scored by teacher forcing (which equals greedy decoding in exact match)."""

  graph: Any
  batches: Sequence[tuple[Any, np.ndarray]]

  @classmethod
  def open(cls, data: TrainData, vocabulary, graph, layout: str, parts: int = 1) -> "Watch":
    """Makes the batches of the first seed once, of so many episodes that `parts` share them."""
    manifest = data.held_out.open(vocabulary)
    groups = eval_sets.groups(
      manifest, data.evaluation, data.evaluation.seeds[0], layout=layout, inline=data.inline
    )
    size = -(-data.evaluation.batch_size // parts) * parts
    batches = [
      (batch, mask) for group in groups for batch, mask, _ in eval_sets.batches(group, size)
    ]
    return cls(graph, batches)

  def measure(self, trained, frozen) -> dict[str, float]:
    """Means over all held-out queries."""
    system = nnx.merge(self.graph, trained, frozen)
    found = scoring.means(system.producer, system.downstream, self.batches)
    return {f"held_out/{name}": value for name, value in found.items()}


def describe(model, hypermodel, data: TrainData, run: RunConfig) -> int:
  """Prints what a run would be; reads no weights and builds nothing."""
  parts = systems.abstract_parts(hypermodel, model.abstract())
  trained, frozen = quantised.numbers(parts.trained), quantised.numbers(parts.frozen)
  stored = quantised.stored_bytes(parts.frozen)
  print(f"model       {model.source}, {model.stored_as()}")
  print(f"hypermodel  {type(hypermodel).__name__.removesuffix('Config')}")
  print(f"parameters  trained {trained:,}; frozen {frozen:,}, stored once")
  if model.bits is not None:
    print(f"stored      frozen {stored:,} bytes, {stored / (2 * frozen):.3f} of bfloat16's")
  fixed = stored + 4 * quantised.stored_bytes(parts.trained)
  print(f"memory      {fixed / 2**30:.2f} GiB on all devices together: frozen weights, and 4 x "
        "trained (parameters, gradients, AdamW's moments); activations come on top")  # fmt: skip
  print(f"steps       {run.steps}, {run.batch_size} episodes each: {data.episodes.summary}")
  for name, folder in (("data", data.data), ("held out", data.held_out)):
    if folder is not None:
      print(f"{name:<11} {_describe_data(folder)}")
  return 0


def _describe_data(folder: runs.DataFolder) -> str:
  name = f"{folder.config.title} in {folder.path}"
  if storage.in_bucket(folder.path):
    return f"{name}, which is not read"
  try:
    manifest = runs.Manifest.load(folder.path)
  except FileNotFoundError:
    return f"{name}: not built yet"
  splits = [manifest.split(task, s) for task in manifest.tasks for s in manifest.splits(task)]
  return (f"{name}: {len(manifest.tasks)} tasks, {sum(s['examples'] for s in splits):,} examples, "
          f"{sum(s['tokens'] for s in splits):,} tokens")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `hyperjax train`."""
  return launch.run("hyperjax.train", "train", argv, distributed=True)


if __name__ == "__main__":
  sys.exit(main())
