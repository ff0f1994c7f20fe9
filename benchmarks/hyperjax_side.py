"""hyperjax's sides of the benchmarks, and what both sides must agree on.

Models have random weights, so none has to be there.
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import work
from benchmarks.beside import SIDES, Contestant, Side, best
from benchmarks.work import PRODUCT_ROWS, Shape
from hyperjax import launch, runs, systems
from hyperjax.core import sharding, specs
from hyperjax.core.batch import Batch, DecoderQuery, Support
from hyperjax.core.phi import Phi
from hyperjax.data.episodes import EpisodeConfig
from hyperjax.data.loader import Loader
from hyperjax.data.manifest import Manifest
from hyperjax.evaluation import scoring
from hyperjax.hypermodels.in_context import InContext
from hyperjax.models import families, llama_peft
from hyperjax.models.generate import generate
from hyperjax.training import step as step_lib

_POSITIONS = 2**15  # that PyTorch's model is configured for: more than any benchmark has


def gin_files(model: str, system: str) -> list[str]:
  """The files that configure a training run."""
  return [f"models/{model}.gin", f"systems/{system}.gin", "data/lexical.gin", "runs/mtf.gin"]


def configured(files: Sequence[str], gin: Sequence[str]) -> dict[str, Any]:
  """What `hyperjax train` would be given, but with random weights."""
  return launch.arguments(
    files, "hyperjax.train", "train",
    bindings=["MODEL_DIR='none'", "DATA_DIR='none'", "TRAIN_STEPS=1000", *gin,
              "MODEL_SOURCE='random'"],
  )  # fmt: skip


def encode(text: str) -> list[int]:
  """In place of a vocabulary: every text is one token."""
  return [0]


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a configuration says to both sides.

  Attributes:
    architecture: the model's.
    rows: episodes of a batch.
    num_gist: gist tokens.
    prefix: rows of the prefix that they become, a sink included.
    torch: what PyTorch's side is made with, but for the dtype.
  """

  architecture: families.Config
  rows: int
  num_gist: int
  prefix: int
  torch: Mapping[str, Any]

  @classmethod
  def of(cls, given: Mapping[str, Any]) -> "Setting":
    """Of a HyperLlama, or of gisting, that `configured` returns."""
    hyper = getattr(given["hypermodel"], "hyper", given["hypermodel"])
    architecture, num_gist = given["model"].architecture, hyper.gist.num_gist
    modules = llama_peft.FORMAT.modules(architecture)
    return cls(
      architecture, given["run"].batch_size, num_gist, num_gist + len(hyper.gist.sink(encode)),
      {
        "raw": families.of(architecture).to_hf(architecture, _POSITIONS),
        "lora": {
          "r": hyper.rank, "lora_alpha": hyper.alpha,
          "target_modules": [modules[site].short for site in specs.match(hyper.sites, modules)],
        },
        "num_gist": num_gist,
      },
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Maker:
  """One side in one dtype.

  Attributes:
    side, dtype: its name.
    make: the function that sets it up, as in `Contestant`.
    given: its arguments, but for those of the benchmark.
  """

  side: str
  dtype: str
  make: str
  given: Mapping[str, Any]

  def contestant(self, cost: float, label: str = "", **more: Any) -> Contestant:
    """With the cost of a token, what to add to its name, and the rest of the arguments."""
    name = " ".join(filter(None, [self.side, self.dtype, label]))
    return Contestant(name, self.make, {**self.given, **more}, cost)


def makers(
  args: argparse.Namespace, function: str, system: str = "hyperllama"
) -> tuple[Setting, list[Maker]]:
  """Every side in every dtype, hyperjax first.

  Args:
    args: with the arguments of `beside.add_model`.
    function: of both sides' modules.
    system: a file of gin/systems.
  """
  files = gin_files(args.model, system)
  setting = Setting.of(configured(files, args.gin))
  given = {
    "hyperjax": lambda dtype: {"files": files, "gin": [*args.gin, f"DTYPE={dtype!r}"]},
    "pytorch": lambda dtype: {**setting.torch, "dtype": dtype},
  }
  modules = {"hyperjax": "hyperjax_side", "pytorch": "torch_baselines"}
  return setting, [
    Maker(side, dtype, f"benchmarks.{modules[side]}:{function}", given[side](dtype))
    for dtype in args.dtypes for side in SIDES if side in args.sides
  ]  # fmt: skip


def make_batch(shape: Shape, vocabulary: int) -> Batch:
  """A full batch of random tokens: no place is padding."""
  tokens = work.draw(shape, vocabulary)
  rows, queries = shape.rows, shape.queries
  index = np.arange(shape.query - shape.targets, shape.query, dtype=np.int32)
  return Batch(
    Support(tokens.support, np.full([rows], shape.support, np.int32)),
    DecoderQuery(
      tokens.query, np.full([rows, queries], shape.query, np.int32),
      np.tile(index, (rows, queries, 1)),
    ),
    tokens.targets,
    np.ones([rows, queries, shape.targets], np.float32),
  )  # fmt: skip


def _side(run: Callable[[], Mapping[str, Any]], model: runs.ModelConfig, places: int) -> Side:
  """With the rate of products of as many places, at the most, as the work has."""
  c, dtype = model.architecture, model.compute_dtype()
  x = jnp.ones((min(places, PRODUCT_ROWS), c.d_model), dtype)
  w = jnp.ones((c.d_model, c.d_mlp), dtype)
  product = jax.jit(jnp.matmul)
  seconds = lambda: best(lambda: jax.block_until_ready(product(x, w)), repeats=10)
  return Side(
    run, lambda: 2 * x.shape[0] * c.d_model * c.d_mlp / seconds(),
    {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "dtypes": model.dtypes()},
  )  # fmt: skip


def train(files: Sequence[str], gin: Sequence[str], shape: Shape) -> Side:
  """A whole training step, as `hyperjax train` compiles it."""
  given = configured(files, gin)
  model, mesh = given["model"], given["run"].mesh.build()
  downstream, _ = model.load(mesh)
  parts = systems.build_parts(given["hypermodel"], downstream, encode, 0, mesh)
  transform = given["optimizer"].build(given["run"].steps, parts.axes)
  trained, frozen = parts.trained, parts.frozen
  state = step_lib.init_optimizer(transform, trained, mesh)
  train_step = step_lib.make_train_step(
    parts.graph, transform, given["objective"], given["run"].accumulate,
    (step_lib.lies(trained), step_lib.lies(state)),
  )  # fmt: skip
  batch = sharding.place_batch(make_batch(shape, model.architecture.vocab_size), mesh)

  def run() -> dict[str, Any]:
    nonlocal trained, state
    with jax.set_mesh(mesh):
      trained, state, metrics = train_step(trained, state, frozen, batch)
    jax.block_until_ready((trained, state, metrics))
    return {"tokens": batch.query.tokens.size, "loss": float(metrics["loss"])}

  places = shape.rows * (shape.support + shape.queries * shape.query)
  return _side(run, model, places)


def _system(files: Sequence[str], gin: Sequence[str]) -> tuple[runs.ModelConfig, step_lib.System]:
  given = configured(files, gin)
  downstream, _ = given["model"].load()
  parts = systems.build_parts(given["hypermodel"], downstream, encode, 0)
  return given["model"], nnx.merge(parts.graph, parts.trained, parts.frozen)


def kept_mib(phi: Phi) -> float:
  """What is kept of a support, to answer with."""
  real = [x for x in jax.tree.leaves(phi) if jnp.issubdtype(x.dtype, jnp.floating)]
  return sum(x.nbytes for x in real) / 2**20


def adapt(files: Sequence[str], gin: Sequence[str], shape: Shape) -> Side:
  """Supports to phi."""
  model, system = _system(files, gin)
  support = make_batch(shape, model.architecture.vocab_size).support

  def run() -> dict[str, Any]:
    phi = jax.block_until_ready(scoring.produce(system.producer, system.downstream, support))
    return {"tokens": support.tokens.size, "kept_mib": kept_mib(phi)}

  return _side(run, model, support.tokens.size)


def decode(
  files: Sequence[str],
  gin: Sequence[str],
  shape: Shape,
  method: str,
  new_tokens: int,
  at_once: int,
) -> Side:
  """One support, and answers to its queries by one of `answers`' methods."""
  model, system = _system(files, gin)
  batch = make_batch(shape, model.architecture.vocab_size)

  def run() -> dict[str, Any]:
    ids, kept = answers(system, batch, method, new_tokens, at_once)
    return {"tokens": ids.size, "kept_mib": kept}

  return _side(run, model, batch.query.tokens.size)


def answers(
  system: step_lib.System, batch: Batch, method: str, new_tokens: int, at_once: int
) -> tuple[np.ndarray, float]:
  """Reads the support of one episode and answers its queries, greedily and to the full length.

  Args:
    system, batch: what reads and answers; B is 1.
    method: 'phi': under the producer's phi; 'cached': in context, the support read once for all;
      'anew': in context, the support read for each query.
    new_tokens: of each answer.
    at_once: queries that are answered at once where the support is read anew.

  Returns:
    ids [M, new_tokens], and MiB kept of the support from query to query.
  """
  support, query = batch.support, batch.query
  if method == "anew":
    every = query.tokens[0][:, None]
    rows = [every[i : i + at_once] for i in range(0, len(every), at_once)]
    repeated = lambda n: Support(np.repeat(support.tokens, n, 0), np.repeat(support.length, n))
    supports = [repeated(len(tokens)) for tokens in rows]
    producer = InContext()
  else:
    rows, supports = [query.tokens], [support]
    producer = system.producer if method == "phi" else InContext()
  found, kept = [], 0.0
  for tokens, read in zip(rows, supports, strict=True):
    phi = scoring.produce(producer, system.downstream, read)
    length = np.full(tokens.shape[:2], tokens.shape[2], np.int32)
    ids, _ = generate(
      system.downstream, phi, tokens, length, max_new_tokens=new_tokens, terminator=()
    )
    found.append(np.asarray(ids).reshape(-1, new_tokens))
    kept = 0.0 if method == "anew" else kept_mib(phi)
  return np.concatenate(found), kept


def episodes(folder: str, batch_size: int, batches: int, num_shots: int, num_queries: int) -> Side:
  """Batches of a store's episodes, in the thread that asks for them."""
  config = EpisodeConfig(num_shots=num_shots, num_queries=num_queries)
  stream = config.stream(Manifest.load(folder), seed=0, batch_size=batch_size)
  loader = Loader(stream, stop_step=0)  # its thread has nothing to do
  step = 0

  def run() -> dict[str, Any]:
    nonlocal step
    first, step, tokens = step, step + batches, 0
    for number in range(first, step):
      counts = loader.load(number)[1].counts
      tokens += counts.support_tokens + counts.query_tokens
    return {"tokens": tokens}

  return Side(run, work.copy_rate, {"numpy": np.__version__})
