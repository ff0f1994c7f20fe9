"""Who may see whom, as descriptions that `dense` draws and that a kernel can take instead.

A query at index i of T looks at keys at index j of S. Padding on the right needs no mask of its own
under causal attention: what a real token may see always lies to its left. A prefix is not part of a
mask: `layers.attend` follows `Prefix.length`.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Causal:
  """Query i sees key j where j <= i.

      T=S=4   1 0 0 0
              1 1 0 0
              1 1 1 0
              1 1 1 1
  """

  def dense(self, T: int, S: int) -> Bool[Array, "1 1 T S"]:
    return (jnp.arange(S) <= jnp.arange(T)[:, None])[None, None]


@partial(jax.tree_util.register_dataclass, data_fields=["length"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Whole:
  """Every query sees every real key: an encoder, or a decoder's look at it.

      T=2, S=4, length=3      1 1 1 0
                              1 1 1 0

  Attributes:
    length: [B, M] int32, real keys.
  """

  length: Int[Array, "#B #M"]

  def dense(self, T: int, S: int) -> Bool[Array, "#B #M T S"]:
    real = jnp.arange(S) < self.length[..., None, None]
    return jnp.broadcast_to(real, (*self.length.shape, T, S))


@partial(jax.tree_util.register_dataclass, data_fields=["length", "step"], meta_fields=["start"])
@dataclasses.dataclass(frozen=True)
class Cached:
  """One decoding step over a cache: the prompt's real tokens and what was generated since.

      start=4 (padded prompt), length=2, step=1     1 1 0 0 1 1 0 0
                                                    prompt| generated

  Attributes:
    length: [B, M] int32, real tokens of each prompt.
    step: scalar int32, how many tokens were generated before this one.
    start: where the generated tokens begin.
  """

  length: Int[Array, "B M"]
  step: Int[Array, ""]
  start: int

  def dense(self, T: int, S: int) -> Bool[Array, "B M T S"]:
    j = jnp.arange(S)
    prompt = j < self.length[:, :, None, None]
    new = (j >= self.start) & (j <= self.start + self.step)
    return jnp.broadcast_to(prompt | new, (*self.length.shape, T, S))


@partial(
  jax.tree_util.register_dataclass, data_fields=["length", "group"], meta_fields=["num_gist"]
)
@dataclasses.dataclass(frozen=True)
class Gist:
  """One masked pass over [support, gist, queries] (gisting, arXiv 2304.08467): causal, and what
  follows the gist does not see what precedes it. Several queries of one episode stand side by side
  without seeing one another.

      support s s, gist g g, queries q q and r          s s g g q q r
                                                    s   1 0 0 0 0 0 0
                                                    s   1 1 0 0 0 0 0
                                                    g   1 1 1 0 0 0 0
                                                    g   1 1 1 1 0 0 0
                                                    q   0 0 1 1 1 0 0
                                                    q   0 0 1 1 1 1 0
                                                    r   0 0 1 1 0 0 1

  Attributes:
    length: [B] int32, real support tokens; the gist tokens stand at length..length+num_gist-1.
    group: [T] int32, -1 for support and gist (and the padding behind them), else the query's
      number.
    num_gist: G.
  """

  length: Int[Array, "B"]
  group: Int[Array, "T"]
  num_gist: int

  def dense(self, T: int, S: int) -> Bool[Array, "B 1 T S"]:
    i, j = jnp.arange(T)[:, None], jnp.arange(S)[None]
    length = self.length[:, None, None]
    is_gist = (j >= length) & (j < length + self.num_gist)
    same = self.group[:, None] == self.group[None]
    visible = (j <= i) & (same | ((self.group[:, None] >= 0) & is_gist))
    return visible[:, None]


Mask = Causal | Whole | Cached | Gist
