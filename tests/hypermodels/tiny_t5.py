"""A tiny random T5 with unequal stacks, and batches for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hyperjax.core.batch import Batch, EncoderDecoderQuery
from hyperjax.models.t5 import T5, T5Config
from tests.models import tiny

CONFIG = T5Config(
  vocab_size=61, d_model=16, num_encoder_layers=3, num_decoder_layers=2, num_heads=2, head_dim=6,
  d_mlp=24, activation="gated-gelu", tie_embeddings=False, num_buckets=8, max_distance=20,
)  # fmt: skip
PREFIXES = ("encoder.self.prefix", "decoder.self.prefix", "decoder.cross.prefix")
QUERY_VALUE = tuple(
  f"{attention}.{name}"
  for attention in ("encoder.self", "decoder.self", "decoder.cross")
  for name in ("q", "v")
)


@functools.cache
def t5(dtype=jnp.float32, *, seed=0, **changes) -> T5:
  """The model, drawn by NumPy at the scales of its own initialisation."""
  config = dataclasses.replace(CONFIG, **changes)
  graph, params = nnx.split(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0))))
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    z = rng.standard_normal(leaf.shape)
    if "norm" in name:
      return jnp.asarray(1 + 0.1 * z, dtype)
    if "embed" in name:
      return jnp.asarray(z, dtype)
    if "bias" in name:
      return jnp.asarray(0.5 * z, dtype)
    if "'q'" in name:
      return jnp.asarray(z * (config.d_model * config.head_dim) ** -0.5, dtype)
    return jnp.asarray(z * config.d_model**-0.5, dtype)

  return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, params))


def query(batch: int, queries: int, size: int, targets: int, *, seed: int = 2):
  """Queries of different lengths; the padding behind each is random, not a token of its own."""
  length = 1 + np.random.default_rng(seed).integers(size // 2, size, (batch, queries))
  return EncoderDecoderQuery(
    tiny.tokens(seed, batch, queries, size),
    jnp.asarray(length, jnp.int32),
    tiny.tokens(seed + 1, batch, queries, targets),
  )


def batch(*lengths: int, queries: int = 2, size: int = 6, targets: int = 3, seed: int = 3) -> Batch:
  """Episodes with one support each; the last target of every second query is padding."""
  q = query(len(lengths), queries, size, targets, seed=seed)
  weights = np.ones((len(lengths), queries, targets), np.float32)
  weights[:, ::2, -1] = 0
  return Batch(tiny.support(*lengths, seed=seed + 2), q, q.targets, jnp.asarray(weights))
