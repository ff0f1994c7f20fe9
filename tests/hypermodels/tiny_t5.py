"""A T5 smaller than the models' own tests have it, and batches for it."""

import jax.numpy as jnp
import numpy as np

from hyperjax.core.batch import Batch
from hyperjax.models.t5 import PREFIX_SITES, T5, T5Config
from tests.models import tiny, tiny_t5

CONFIG = T5Config(
  vocab_size=61, d_model=16, num_encoder_layers=3, num_decoder_layers=2, num_heads=2, head_dim=6,
  d_mlp=24, activation="gated-gelu", tie_embeddings=False, num_buckets=8, max_distance=20,
)  # fmt: skip
PREFIXES = PREFIX_SITES
QUERY_VALUE = tuple(f"{at}.{name}" for at in tiny_t5.ATTENTIONS for name in "qv")


def t5(dtype=jnp.float32, **changes) -> T5:
  return tiny_t5.t5(dtype, config=CONFIG, **changes)


def query(batch: int, queries: int, size: int, targets: int, *, seed: int = 2):
  """Queries of different lengths."""
  lengths = 1 + np.random.default_rng(seed).integers(size // 2, size, (batch, queries))
  return tiny_t5.query(batch, queries, size, targets, seed=seed, lengths=lengths)


def batch(*lengths: int, queries: int = 2, size: int = 6, targets: int = 3, seed: int = 3) -> Batch:
  """Episodes with one support each; the last target of every second query is padding."""
  q = query(len(lengths), queries, size, targets, seed=seed)
  weights = np.ones((len(lengths), queries, targets), np.float32)
  weights[:, ::2, -1] = 0
  return Batch(tiny.support(*lengths, seed=seed + 2), q, q.targets, jnp.asarray(weights))
