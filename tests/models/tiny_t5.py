"""A tiny random T5 of unequal depths, and queries for it; what serves all families is in `tiny`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hyperjax.core.batch import EncoderDecoderQuery
from hyperjax.models import families
from hyperjax.models.t5 import PREFIX_SITES, PROMPT_SITE, T5, T5Config

# Few buckets and short distances, so that short texts reach the last, shared bucket.
CONFIG = T5Config(
  vocab_size=61, d_model=32, num_encoder_layers=2, num_decoder_layers=3, num_heads=4, head_dim=8,
  d_mlp=48, activation="gated-gelu", tie_embeddings=False, num_buckets=8, max_distance=10,
  start_id=7,
)
ATTENTIONS = ("encoder.self", "decoder.self", "decoder.cross")
LOW_RANK = (
  *(f"{attention}.{name}" for attention in ATTENTIONS for name in "qkvo"),
  *(f"{stack}.mlp.{name}" for stack in ("encoder", "decoder") for name in ("gate", "up", "down")),
)
ALL = (PROMPT_SITE, *PREFIX_SITES, *LOW_RANK)


@functools.cache
def t5(
  dtype=jnp.float32, *, config=CONFIG, seed=0, remat="none", attention="auto", **changes
) -> T5:
  """The model, drawn by NumPy at the scales of its own initialisation: a program compiled for every
  drawn array would take seconds."""
  config = dataclasses.replace(config, **changes)
  graph, params = nnx.split(families.abstract(config, remat=remat, attention=attention))
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    drawn = rng.standard_normal(leaf.shape)
    if "norm" in name:
      return jnp.asarray(1 + 0.1 * drawn, dtype)
    if "bias" in name or "embed" in name:
      return jnp.asarray(drawn, dtype)
    if "'q'" in name:
      return jnp.asarray(drawn * (config.d_model * config.head_dim) ** -0.5, dtype)
    return jnp.asarray(drawn * config.d_model**-0.5, dtype)

  return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, params))


def tokens(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape), jnp.int32)


def query(
  batch: int, queries: int, size: int, targets: int = 4, *, seed: int = 2, lengths=None
) -> EncoderDecoderQuery:
  """Queries; what pads the texts is random, not a token of its own."""
  full = np.full((batch, queries), size) if lengths is None else lengths
  length = jnp.asarray(full, jnp.int32)
  return EncoderDecoderQuery(
    tokens(seed, batch, queries, size), length, tokens(seed + 100, batch, queries, targets)
  )
