"""Gist tokens: learned embeddings that stand right behind a support, whatever model reads them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hyperjax.core import quantised

Encode = Callable[[str], Sequence[int]]


def append(
  x: Float[Array, "B S D"], length: Int[Array, " B"], gist: Float[Array, "G D"]
) -> Float[Array, "B _ D"]:
  """Puts the gist embeddings right behind the last real token of each row of embedded text."""
  size, num_gist = x.shape[1], gist.shape[0]
  slot = jnp.arange(size + num_gist) - length[:, None]
  here = (slot >= 0) & (slot < num_gist)
  x = jnp.pad(x, [(0, 0), (0, num_gist), (0, 0)])
  return jnp.where(here[..., None], gist[jnp.clip(slot, 0, num_gist - 1)].astype(x.dtype), x)


@dataclasses.dataclass(frozen=True)
class GistTokens:
  """How many there are, and what they start from.

  Attributes:
    num_gist: G.
    init_text: the gist embeddings start from the embeddings of this text's tokens, repeated to G;
      '' starts them from noise of the embedding table's own spread.
    noise: standard deviation added, in units of the embedding table's.
  """

  num_gist: int = 16
  init_text: str = "\n"
  noise: float = 0.1

  def __post_init__(self):
    if self.num_gist < 1:
      raise ValueError(f"{type(self).__name__}.num_gist must be at least 1, not {self.num_gist}")

  def embeddings(self, model: Any, encode: Encode, key: jax.Array) -> Float[Array, "G D"]:
    """The initial gist embeddings, at least float32.

    Raises:
      ValueError: the text has no token in the model's vocabulary.
    """
    table = model.embed[...]
    table = quantised.plain(table, jnp.promote_types(table.dtype, jnp.float32))
    noise = jax.random.normal(key, (self.num_gist, table.shape[1])) * table.std()
    if not self.init_text:
      return noise
    ids = encode(self.init_text)
    if not len(ids):
      raise ValueError(
        f"{type(self).__name__}.init_text {self.init_text!r} has no token in the model's vocabulary"
      )
    repeated = [ids[i % len(ids)] for i in range(self.num_gist)]
    return table[jnp.asarray(repeated)] + self.noise * noise
