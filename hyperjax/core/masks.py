"""Who may see whom, as descriptions that `dense` draws and that a kernel can take instead.

A query at index i of T looks at keys at index j of S. Padding on the right needs no mask of its own
under causal attention: what a real token may see always lies to its left. A prefix is not part of a
mask: `attention.attend` follows `Prefix.length`.
"""

import abc
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Causal:
  """Query i sees key j where j <= i.

      T=S=4   1 0 0 0
              1 1 0 0
              1 1 1 0
              1 1 1 1
  """

  causal = True

  def real(self, S: int) -> None:
    """Which keys can be seen at all; None for all of them."""

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

  causal = False

  def real(self, S: int) -> Bool[Array, "#B #M S"]:
    """Which keys can be seen at all."""
    return jnp.arange(S) < self.length[..., None]

  def dense(self, T: int, S: int) -> Bool[Array, "#B #M T S"]:
    return jnp.broadcast_to(self.real(S)[:, :, None], (*self.length.shape, T, S))


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
  jax.tree_util.register_dataclass,
  data_fields=["length"],
  meta_fields=["num_gist", "head", "size"],
)
@dataclasses.dataclass(frozen=True)
class Gist:
  """One masked pass over [support, gist, queries] (gisting, arXiv 2304.08467): causal, and what
  follows the gist does not see what precedes it. Several queries of one episode stand side by side
  without seeing one another.

      support s s, gist g g, queries q q and r r        s s g g q q r r
                                                    s   1 0 0 0 0 0 0 0
                                                    s   1 1 0 0 0 0 0 0
                                                    g   1 1 1 0 0 0 0 0
                                                    g   1 1 1 1 0 0 0 0
                                                    q   0 0 1 1 1 0 0 0
                                                    q   0 0 1 1 1 1 0 0
                                                    r   0 0 1 1 0 0 1 0
                                                    r   0 0 1 1 0 0 1 1

  Attributes:
    length: [B] int32, real support tokens; the gist tokens stand at length..length+num_gist-1.
    num_gist: G.
    head: places for support and gist; the queries begin behind them.
    size: places of each query.
  """

  length: Int[Array, " B"]
  num_gist: int
  head: int
  size: int

  def is_gist(self, S: int) -> Bool[Array, "B S"]:
    """Which keys are gist tokens."""
    j, start = jnp.arange(S), self.length[:, None]
    return (j >= start) & (j < start + self.num_gist)

  def sides(
    self, x: Float[Array, "B 1 _T *rest"]
  ) -> tuple[Float[Array, "B 1 _ *rest"], Float[Array, "B _M _S *rest"]]:
    """Queries, keys or values of the support's side, which is causal; and of the queries' side, in
    rows, each of which is causal and sees the gist in front of it."""
    head, tail = x[:, :, : self.head], x[:, :, self.head :]
    return head, tail.reshape(len(x), -1, self.size, *x.shape[3:])

  def dense(self, T: int, S: int) -> Bool[Array, "B 1 T S"]:
    i, j = jnp.arange(T)[:, None], jnp.arange(S)[None]
    query = lambda at: jnp.where(at < self.head, -1, (at - self.head) // self.size)
    same = query(i) == query(j)
    visible = (j <= i) & (same | ((query(i) >= 0) & self.is_gist(S)[:, None]))
    return visible[:, None]


@partial(jax.tree_util.register_dataclass, data_fields=["length", "text"], meta_fields=["start"])
@dataclasses.dataclass(frozen=True)
class Branches:
  """Texts that go on from one prompt, side by side in its cache: each sees the prompt's real tokens
  and, causally, itself.

      start=3 (padded prompt), length=2, text=0 0 1     1 1 0 1 0 0 0
                                                        1 1 0 1 1 0 0
                                                        1 1 0 0 0 1 0
                                                        prompt|texts

  Attributes:
    length: [B, M] int32, real tokens of each prompt.
    text: [B, M, T] int32, which text each token belongs to.
    start: where the texts begin.
  """

  length: Int[Array, "B M"]
  text: Int[Array, "B M T"]
  start: int

  def dense(self, T: int, S: int) -> Bool[Array, "B M T S"]:
    same = self.text[..., :, None] == self.text[..., None, :]
    own = same & (jnp.arange(T) <= jnp.arange(T)[:, None])
    room = [(0, 0)] * 3 + [(self.start, S - self.start - T)]
    return jnp.pad(own, room) | (jnp.arange(S) < self.length[..., None, None])


class Drawn(abc.ABC):
  """A mask that has no description: only the einsum works under it."""

  @abc.abstractmethod
  def dense(self, T: int, S: int) -> Bool[Array, "#B #M T S"]:
    """Who sees whom."""


Mask = Causal | Whole | Cached | Branches | Gist | Drawn
