"""Decoding with a key/value cache: greedy or sampled, every row with its own length and phi."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from hyperjax.core.phi import Phi


@partial(
  jax.tree_util.register_dataclass,
  data_fields=["key"], meta_fields=["temperature", "top_k", "top_p"],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is drawn from the logits.

  Attributes:
    key: one PRNG key, or [B, M] keys, which make a row independent of its neighbours.
    temperature: the logits are divided by it.
    top_k: only the k likeliest tokens are drawn; 0 for all.
    top_p: only the smallest set of likeliest tokens whose probabilities reach p is drawn
      (arXiv 1904.09751).
  """

  key: Any
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not self.temperature > 0:
      raise ValueError(f"Sampling.temperature must be above 0, not {self.temperature}")
    if self.top_k < 0:
      raise ValueError(f"Sampling.top_k must be at least 0, not {self.top_k}")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"Sampling.top_p must be above 0 and at most 1, not {self.top_p}")

  def restrict(self, logits: Float[Array, "*batch V"]) -> Float[Array, "*batch V"]:
    """The logits that the draw is made from: scaled, and -inf for every token left out."""
    logits = logits / self.temperature
    if 0 < self.top_k < logits.shape[-1]:
      least = jax.lax.top_k(logits, self.top_k)[0][..., -1:]
      logits = jnp.where(logits < least, -jnp.inf, logits)
    if self.top_p < 1:
      ranked = jnp.flip(jnp.sort(logits, -1), -1)
      probability = jax.nn.softmax(ranked, -1)
      before = jnp.cumsum(probability, -1) - probability
      least = jnp.min(jnp.where(before < self.top_p, ranked, jnp.inf), -1, keepdims=True)
      logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


@partial(jax.jit, static_argnames=("max_new_tokens", "terminator"))
def generate(
  downstream: nnx.Module,
  phi: Phi | None,
  tokens: Int[Array, "B M T"],
  length: Int[Array, "B M"],
  *,
  max_new_tokens: int,
  terminator: tuple[int, ...],
  limit: Int[Array, "B M"] | None = None,
  sampling: Sampling | None = None,
) -> tuple[Int[Array, "B M max_new"], Int[Array, "B M"]]:
  """Continues every row until it has produced the terminator, or as many tokens as it may.

  Compiled once per shape; the loop ends as soon as all rows have ended.

  Args:
    downstream: a model with `prefill`, `advance` and `logits`.
    phi: task parameters of batch B or 1, or None.
    tokens: prompts, padded on the right.
    length: their real tokens, at least 1 each.
    max_new_tokens: the most that a row may produce.
    terminator: the token ids that end a row when it has produced them in this order; () for none.
    limit: the most that each row may produce, where that is less; a row produces at least 1.
    sampling: how tokens are drawn; None takes the likeliest.

  Returns:
    The produced ids, 0 behind a row's last one, and how many are real, the terminator included.

  Raises:
    ValueError: there is nothing to produce, or the keys of `sampling` are no PRNG keys, or not one
      for each row.
  """
  _validate(length, max_new_tokens, sampling)
  last, cache = downstream.prefill(tokens, length, phi, max_new_tokens)
  return go_on(
    downstream, phi, last, cache, max_new_tokens=max_new_tokens, terminator=terminator,
    limit=limit, sampling=sampling,
  )  # fmt: skip


def go_on(
  downstream: nnx.Module,
  phi: Phi | None,
  last: Float[Array, "B M D"],
  cache: Any,
  *,
  max_new_tokens: int,
  terminator: tuple[int, ...],
  limit: Int[Array, "B M"] | None = None,
  sampling: Sampling | None = None,
) -> tuple[Int[Array, "B M max_new"], Int[Array, "B M"]]:
  """As `generate`, behind prompts that were read before.

  Args:
    last, cache: what `downstream.prefill` returned, with room for at least `max_new_tokens`.
  """
  batch, queries, _ = last.shape
  if sampling is not None and sampling.key.ndim == 0:
    keys = jax.random.split(sampling.key, (batch, queries))
    sampling = dataclasses.replace(sampling, key=keys)

  def choose(x: Float[Array, "B M D"], step) -> Int[Array, "B M"]:
    logits = downstream.logits(x)
    if sampling is None:
      return jnp.argmax(logits, -1).astype(jnp.int32)
    step_keys = jax.vmap(jax.vmap(partial(_fold_in, step=step)))(sampling.key)
    draw = jax.vmap(jax.vmap(jax.random.categorical))
    return draw(step_keys, sampling.restrict(logits)).astype(jnp.int32)

  def record(ids, count, ended, token, step):
    ids = jax.lax.dynamic_update_slice_in_dim(ids, jnp.where(ended, 0, token)[..., None], step, 2)
    count = count + ~ended
    ended |= _ends_with(ids, step, terminator)
    return ids, count, ended if limit is None else ended | (count >= limit)

  def decode(carry):
    step, token, ids, count, ended, cache = carry
    x, cache = downstream.advance(token, step, phi, cache)
    token = choose(x, step)
    return step + 1, token, *record(ids, count, ended, token, step), cache

  def unfinished(carry):
    step, _, _, _, ended, _ = carry
    return (step < max_new_tokens) & ~jnp.all(ended)

  token = choose(last, 0)
  ids = jnp.zeros((batch, queries, max_new_tokens), jnp.int32)
  none = jnp.zeros((batch, queries), jnp.int32)
  first = record(ids, none, jnp.zeros((batch, queries), bool), token, 0)
  _, _, ids, count, _, _ = jax.lax.while_loop(
    unfinished, decode, (jnp.int32(1), token, *first, cache)
  )
  return ids, count


def _ends_with(
  ids: Int[Array, "B M X"], step: Int[Array, ""] | int, terminator: tuple[int, ...]
) -> Bool[Array, "B M"]:
  """Whether the ids up to and including index `step` end with the terminator."""
  size = len(terminator)
  if not 0 < size <= ids.shape[2]:
    return jnp.zeros(ids.shape[:2], bool)
  window = jax.lax.dynamic_slice_in_dim(ids, step - size + 1, size, 2)
  # A slice that would begin before the first id is clamped to it, and is not a match.
  return jnp.all(window == jnp.asarray(terminator), -1) & (step + 1 >= size)


def _fold_in(key: jax.Array, step: Int[Array, ""] | int) -> jax.Array:
  return jax.random.fold_in(key, step)


def _validate(length, max_new_tokens, sampling) -> None:
  if max_new_tokens < 1:
    raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
  if sampling is None:
    return
  key = sampling.key
  if not jnp.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
    raise ValueError("Sampling.key must be made by jax.random.key")
  if key.ndim and key.shape != length.shape:
    raise ValueError(f"Sampling.key must be one key or {length.shape} of them, not {key.shape}")
