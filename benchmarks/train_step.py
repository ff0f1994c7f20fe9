"""How fast a training step is, beside plain matrix products of its own sizes in the same process.

    python benchmarks/train_step.py --gin_file=models/smollm2_135m.gin \\
      --gin_file=systems/hyperllama.gin --gin_file=data/lexical.gin --gin_file=runs/mtf.gin \\
      --shape 144,8,20,8

The weights are random, so no model has to be there. `share` is what the step reaches of the
products' rate; run it twice in turn to compare two settings (an environment variable, a branch).
"""

import argparse
import json
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import launch, runs
from hyperjax.core import sharding
from hyperjax.core.batch import Batch, DecoderQuery, Support
from hyperjax.training import step as step_lib


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--gin_file", action="append", required=True, help="as for hyperjax train")
  p.add_argument("--gin", action="append", default=[], metavar="NAME=VALUE", help="as there")
  p.add_argument("--shape", default="144,8,20,8", help="support, queries, query, target tokens")
  p.add_argument("--steps", type=int, default=5, help="timed steps (default: 5)")
  return p


def make_batch(rows: int, shape: tuple[int, int, int, int], vocabulary: int) -> Batch:
  """A full batch of random tokens: no place is padding."""
  support, queries, query, targets = shape
  draw = np.random.default_rng(0)
  ids = lambda *size: draw.integers(0, vocabulary, (rows, *size)).astype(np.int32)
  index = np.arange(query - targets, query, dtype=np.int32)
  return Batch(
    Support(ids(support), np.full([rows], support, np.int32)),
    DecoderQuery(
      ids(queries, query), np.full([rows, queries], query, np.int32),
      np.tile(index, (rows, queries, 1)),
    ),
    ids(queries, targets),
    np.ones([rows, queries, targets], np.float32),
  )  # fmt: skip


def best(function, *arguments, repeats: int = 5) -> float:
  """The shortest time of a call in seconds, compiled before."""
  jax.block_until_ready(function(*arguments))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    times.append(time.perf_counter() - start)
  return min(times)


def main() -> int:
  args = parser().parse_args()
  given = launch.arguments(
    args.gin_file, "hyperjax.train", "train",
    bindings=["MODEL_DIR='none'", "DATA_DIR='none'", "TRAIN_STEPS=1000", *args.gin,
              "MODEL_SOURCE='random'"],
  )  # fmt: skip
  model, rows = given["model"], given["run"].batch_size
  mesh = given["run"].mesh.build()
  downstream, _ = model.load(mesh)
  parts = runs.build_parts(given["hypermodel"], downstream, lambda text: [0], 0, mesh)
  transform = given["optimizer"].build(given["run"].steps, parts.axes)
  trained, frozen = parts.trained, parts.frozen
  state = step_lib.init_optimizer(transform, trained, mesh)
  train_step = step_lib.make_train_step(
    parts.graph, transform, given["objective"], given["run"].accumulate,
    (step_lib.lies(trained), step_lib.lies(state)),
  )  # fmt: skip
  shape = tuple(map(int, args.shape.split(",")))
  architecture = model.architecture
  batch = sharding.place_batch(make_batch(rows, shape, architecture.vocab_size), mesh)
  times = []
  for _ in range(args.steps + 1):
    start = time.perf_counter()
    with jax.set_mesh(mesh):
      trained, state, metrics = train_step(trained, state, frozen, batch)
    jax.block_until_ready(metrics)
    times.append(time.perf_counter() - start)

  c = architecture
  places = rows * (shape[0] + shape[1] * shape[2])
  embeddings = c.vocab_size * c.d_model * (1 if c.tie_embeddings else 2)
  blocks = sum(math.prod(x.shape) for x in jax.tree.leaves(frozen)) - embeddings
  # Forward and the activations' gradients; the weights are frozen, so they have none.
  flops = 4 * (places * blocks + rows * shape[1] * shape[3] * c.vocab_size * c.d_model)
  x = jnp.ones((places // 2, c.d_model), model.compute_dtype())
  w = jnp.ones((c.d_model, c.d_mlp), model.compute_dtype())
  product = 2 * x.shape[0] * c.d_model * c.d_mlp / best(jax.jit(jnp.matmul), x, w, repeats=20)
  step = min(times[1:])
  print(json.dumps({
    "device": jax.devices()[0].device_kind, "shape": shape, "rows": rows,
    "first_step_seconds": round(times[0], 2), "step_seconds": round(step, 3),
    "places_per_second": round(places / step), "step_gflops": round(flops / step / 1e9, 1),
    "matmul_gflops": round(product / 1e9, 1), "share": round(flops / step / product, 3),
  }))  # fmt: skip
  return 0


if __name__ == "__main__":
  sys.exit(main())
