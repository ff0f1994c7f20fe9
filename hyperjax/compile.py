"""`hyperjax compile`: compiles the training step for a slice of TPUs; no TPU has to be there.

    hyperjax compile --gin_file=data/lexical.gin --gin_file=pods/hyperllama_7b_v5e_4x4.gin \\
      --topology=v5e:4x4
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hyperjax import launch, runs, storage, systems, train
from hyperjax.core import attention, sharding
from hyperjax.data import layouts, loader
from hyperjax.data.episodes import Episode
from hyperjax.data.shapes import BatchShape
from hyperjax.training import hlo_costs, largest, optimizers, topologies
from hyperjax.training import step as step_lib
from hyperjax.training.topologies import Topology

FLAGS = {
  "topology": f"the slice of TPUs, one of {topologies.EXAMPLES}, ...",
  "shape": "support,queries,query,targets: sizes of a batch; the largest that the gin files allow, "
  "where not given",
  "json": "a file to write everything to, as JSON; - for standard output",
  "suggest": "look for the largest batch that fits, the mesh and REMAT that it fits with",
}
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
NOT_MEASURED = (
  "nothing has run: there is no time, no speed and no utilisation (MFU) in this, and the bytes of "
  "collectives are those of arrays, not those on the links"
)
_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_NEEDED = (
  r"[Uu]sed ([\d.]+)([KMG]?) of [\d.]+[KMG]? hbm",
  r"\(([\d.]+)([KMG]?)\) exceeds available HBM",
)


@dataclasses.dataclass(frozen=True)
class Training:
  """What `train.train` is given, as far as the step depends on it."""

  model: runs.ModelConfig
  hypermodel: systems.ProducerConfig
  data: train.TrainData
  run: train.RunConfig
  optimizer: optimizers.Optimizer
  objective: step_lib.Objective = step_lib.Objective()

  @classmethod
  def of(cls, given: Mapping[str, Any]) -> "Training":
    """From the arguments of `train.train`.

    Raises:
      ValueError: settings that do not go together.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    training = cls(**{name: given[name] for name in names if name in given})
    model = training.model
    systems.check_fits(training.hypermodel, model.architecture, model.bits)
    train.check_together(
      model, training.hypermodel, training.data, training.run, training.optimizer,
      training.objective,
    )  # fmt: skip
    return training

  @property
  def largest_shape(self) -> BatchShape:
    """The sizes of the largest batches that there can be."""
    return self.data.episodes.largest(self._layout)

  @property
  def _layout(self) -> layouts.Layout:
    return layouts.of(self.model.architecture.layout, {"adds_eos": True, "eos_id": 0})

  def batch(self, shape: BatchShape) -> Any:
    """A batch without a token, of the arrays that training has."""
    nothing = Episode("", np.zeros([0], np.int32), (), (), ())
    return loader.to_batch([nothing] * self.run.batch_size, shape, self._layout)[0]

  def lower(self, topology: Topology, shape: BatchShape) -> jax.stages.Lowered:
    """The step that `train.train` makes on this slice, for abstract arrays that lie as its do.

    Raises:
      ValueError: the mesh is not of the slice's size, or does not divide the batch; the attention
        kernel asked for is not for TPUs.
    """
    run, model = self.run, self.model
    mesh = run.mesh.build(topology.devices)
    sharding.check_batch(run.batch_size // run.accumulate, mesh)
    parts = systems.abstract_parts(self.hypermodel, model.abstract("tpu"))
    trained = sharding.abstract(parts.trained, parts.axes, mesh)
    frozen = sharding.abstract(parts.frozen, parts.frozen_axes, mesh)
    transform = self.optimizer.build(run.steps, parts.axes)
    state = step_lib.optimizer_shapes(transform, trained, mesh)
    step = step_lib.make_train_step(
      parts.graph, transform, self.objective, run.accumulate,
      (step_lib.lies(trained), step_lib.lies(state)),
    )  # fmt: skip
    batch = sharding.abstract_batch(self.batch(shape), mesh)
    with jax.set_mesh(mesh):
      attention.check(model.attention, model.activations("tpu"), model.architecture.head_dim)
      return step.lower(trained, state, frozen, batch)

  def altered(self, choice: largest.Choice) -> "Training":
    """The same with another batch, mesh and remat."""
    run = dataclasses.replace(
      self.run, batch_size=choice.batch_size, mesh=sharding.MeshConfig(*choice.mesh)
    )
    model = dataclasses.replace(self.model, remat=choice.remat)
    return dataclasses.replace(self, run=run, model=model)


@dataclasses.dataclass(frozen=True)
class Report:
  """What came out, on each device where it is bytes or counts.

  Attributes:
    fits: whether the program was made: it has room.
    peak: bytes that are needed at once; None where the compiler does not say how many too many.
    arguments, temporaries: bytes of what goes into the step, and of what it makes meanwhile.
    costs: what the step does; None where it does not fit.
    seconds: that compiling took, on this machine.
  """

  fits: bool
  peak: int | None
  arguments: int | None = None
  temporaries: int | None = None
  costs: hlo_costs.Costs | None = None
  seconds: float = 0.0


def make(lowered: jax.stages.Lowered) -> Report:
  """Compiles a step for the slice that it was lowered for."""
  start = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return Report(False, needed(str(error)), seconds=time.perf_counter() - start)
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  return Report(
    True, memory.peak_memory_in_bytes, memory.argument_size_in_bytes, memory.temp_size_in_bytes,
    hlo_costs.count(text_of(compiled, lowered)), seconds,
  )  # fmt: skip


def text_of(compiled: jax.stages.Compiled, lowered: jax.stages.Lowered) -> str:
  """The text of a compiled program.

  Of some programs with work for a SparseCore libtpu cannot give it (0.0.52: "async-update
  instruction should have 1 operands"). They are compiled again, with the text written to a file.

  Raises:
    ValueError: it is not among the files either.
  """
  try:
    return compiled.as_text()
  except jax.errors.JaxRuntimeError:
    with tempfile.TemporaryDirectory() as folder:
      lowered.compile(compiler_options={"xla_dump_to": folder})
      files = pathlib.Path(folder).glob("*after_optimizations.txt")
      texts = [file.read_text() for file in files]
  if not texts:
    raise ValueError("the compiler gives no text of this program: nothing can be counted in it")
  return max(texts, key=len)


def needed(message: str) -> int | None:
  """The bytes that a program would need, of the compiler's message that it has no room for them.

  Where temporaries alone are too much it names these: then it is at least so many.
  """
  for pattern in _NEEDED:
    if found := re.search(pattern, message):
      return int(float(found[1]) * _SIZES[found[2]])
  return None


def versions() -> dict[str, str]:
  """Of everything that has a say in what is compiled."""
  found = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {"python": ".".join(platform.python_version_tuple()[:2]), **found}


def program_hash(lowered: jax.stages.Lowered) -> str:
  """Names what is compiled: equal steps for equal slices, whatever configured them."""
  return hashlib.sha256(lowered.as_text().encode()).hexdigest()


# ---- What is printed and written -----------------------------------------------------------------


def as_json(
  training: Training, topology: Topology, shape: BatchShape, report: Report
) -> dict[str, Any]:
  """Everything about a compilation, as JSON has it."""
  run, model = training.run, training.model
  costs = report.costs and dataclasses.asdict(report.costs)
  if costs:
    costs["unknown_loops"] = list(costs["unknown_loops"])
  return {
    "topology": topology.name,
    "device": topology.devices[0].device_kind,
    "devices": len(topology.devices),
    "mesh": dict(run.mesh.build(topology.devices).shape),
    "batch": {"episodes": run.batch_size, **dataclasses.asdict(shape)},
    "remat": model.remat,
    "dtype": model.stored_as("tpu"),
    "fits": report.fits,
    "memory": {
      "limit": topology.hbm, "peak": report.peak, "arguments": report.arguments,
      "temporaries": report.temporaries,
    },
    "costs": costs,
    "seconds": report.seconds,
    "versions": versions(),
    "not_measured": NOT_MEASURED,
  }  # fmt: skip


def amount(number: int | None, unit: str = "B") -> str:
  """A number in four digits: '2.336 GB'; '?' for None."""
  if number is None:
    return "?"
  factors = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
  prefix = next((prefix for prefix, factor in factors.items() if number >= factor), "")
  return f"{number / factors.get(prefix, 1):.4g} {prefix}{unit}"


def describe(found: Mapping[str, Any]) -> str:
  """The same for people: a few lines."""
  mesh, batch, memory, costs = (found[key] for key in ("mesh", "batch", "memory", "costs"))
  share = "" if memory["peak"] is None else f" ({memory['peak'] / memory['limit']:.0%})"
  lines = {
    "slice": f"{found['topology']}, {found['devices']} x {found['device']}; mesh "
    + " x ".join(f"{name} {size}" for name, size in mesh.items()),
    "batch": f"{batch['episodes']} episodes: support {batch['support']}, {batch['queries']} "
    f"queries of {batch['query']}, targets of {batch['targets']}; {found['dtype']}, remat "
    f"{found['remat']}",
    "compiled": f"in {found['seconds']:.0f} s; what follows is of one device and one step",
    "memory": f"{'fits' if found['fits'] else 'DOES NOT FIT'}: peak {amount(memory['peak'])} of "
    f"{amount(memory['limit'])}{share}",
  }
  if found["fits"]:
    lines["memory"] += (
      f"; arguments {amount(memory['arguments'])}, temporaries {amount(memory['temporaries'])}"
    )
  if costs:
    lines["matmuls"] = f"{amount(costs['matmul_flops'], 'FLOP')}, those in loops as often as run"
    lines["collectives"] = amount(sum(each["bytes"] for each in costs["collectives"].values()))
    for kind, each in costs["collectives"].items():
      lines[f"  {kind}"] = (
        f"{amount(each['bytes'])} in {each['calls']:,}; synchronous "
        f"{amount(each['synchronous_bytes'])} in {each['synchronous_calls']:,}"
      )
    lines["kernels"] = f"{costs['kernels']:,} calls of Pallas kernels, whose products are not in "
    lines["kernels"] += "the matmuls above"
    if costs["unknown_loops"]:
      lines["NOTE"] = f"counted as one round: loops {', '.join(costs['unknown_loops'])}"
  lines["not in it"] = NOT_MEASURED
  width = max(map(len, lines))
  return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def read_shape(text: str) -> BatchShape:
  """The sizes of a batch: '1024,4,256,64'.

  Raises:
    ValueError: it is not four numbers.
  """
  names = [field.name for field in dataclasses.fields(BatchShape)]
  sizes = text.split(",")
  if len(sizes) != len(names) or not all(size.strip().isdecimal() for size in sizes):
    raise ValueError(f"--shape={text} is not {','.join(names)}, as in 1024,4,256,64")
  return BatchShape(*map(int, sizes))


# ---- The command ---------------------------------------------------------------------------------


def compile_step(
  *,
  topology: str,
  training: Mapping[str, Any],
  shape: str = "",
  json: str = "",
  suggest: bool = False,
) -> int:
  """Compiles the step of a training run for a slice of TPUs, without one, and says what it needs.

  It takes the gin files and macros of `hyperjax train`; what only a run needs (MODEL_DIR, folders
  of data, TRAIN_STEPS) may be missing. Neither weights nor data are read.

  Args:
    topology: the slice.
    training: the arguments of `train.train`.
    shape: sizes of a batch, as `read_shape` takes them; the largest that there can be where ''.
    json: a file to write to; '-' for standard output, '' for none.
    suggest: look for the largest batch that fits.

  Returns:
    0, or 1 where the step does not fit into the devices' memory.
  """
  given = Training.of(training)
  sizes = read_shape(shape) if shape else given.largest_shape
  topologies.prepare()
  target = topologies.load(topology)
  say = lambda text: print(text, file=sys.stderr if json == "-" else sys.stdout, flush=True)
  if not suggest:
    report, tried = make(given.lower(target, sizes)), {}
  else:
    choice, tried = _suggest(given, target, sizes, say)
    if choice is None:
      say(f"not even one episode for each device of {topology} fits, on any mesh")
      write(json, {"topology": topology, "fits": False, **_listed(tried)})
      return 1
    given, report = given.altered(choice), tried[choice]
    say(f"\nlargest     {choice.flags}\n")
  found = as_json(given, target, sizes, report)
  say(describe(found))
  write(json, {**found, **_listed(tried)})
  return 0 if found["fits"] else 1


Tried = dict[largest.Choice, Report]


def _suggest(
  training: Training, topology: Topology, shape: BatchShape, say: Callable[[str], None]
) -> tuple[largest.Choice | None, Tried]:
  """The largest batch that fits, and all that was compiled on the way."""
  tried: Tried = {}
  limit, devices = float(topology.hbm), len(topology.devices)

  def need(choice: largest.Choice) -> float:
    report = tried[choice] = make(training.altered(choice).lower(topology, shape))
    verdict = "fits" if report.fits else "too much"
    say(f"{verdict:<10}  {amount(report.peak):>9}  {choice.flags}")
    if report.fits:
      return float(report.peak)
    return max(float(report.peak), limit + 1) if report.peak else math.inf

  heads = training.model.architecture.num_heads
  batch, parts = training.run.batch_size, training.run.accumulate
  return largest.choose(need, limit, devices, heads, batch, parts), tried


def _listed(tried: Tried) -> dict[str, Any]:
  """What was compiled in a search, as JSON has it; nothing without one."""
  rows = [
    {**dataclasses.asdict(choice), "fits": report.fits, "peak": report.peak}
    for choice, report in tried.items()
  ]
  return {"tried": rows} if rows else {}


def write(file: str, found: Mapping[str, Any]) -> None:
  """Writes JSON into a file, whole or not at all; '-' is standard output, '' nowhere."""
  text = json.dumps(found, indent=2) + "\n"
  if file == "-":
    print(text, end="")
  elif file:
    storage.write_whole(file, text)


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `hyperjax compile`."""
  unread = {"MODEL_DIR": "not_read", "TRAIN_STEPS": "1_000_000", "*_DIR": "not_read"}
  borrowed = launch.Borrowed("hyperjax.train", "train", "training", unread)
  return launch.run("hyperjax.compile", "compile_step", argv, flags=FLAGS, borrowed=borrowed)


if __name__ == "__main__":
  sys.exit(main())
