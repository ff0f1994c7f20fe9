"""The work that implementations are measured at: its tokens, and the arithmetic that it takes."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from benchmarks.beside import best

PRODUCT_ROWS = 1024  # at the most, of the products whose rate is measured: enough for the full rate


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes of a batch, all of it full: no place is padding.

  Attributes:
    rows: B, episodes.
    support: S, tokens of a support.
    queries: M, queries of an episode.
    query: T, tokens of a query; its target, the last one left out, is a part of them.
    targets: W, tokens of a target.
  """

  rows: int
  support: int
  queries: int
  query: int
  targets: int = 1

  def __post_init__(self):
    if self.targets > self.query:
      raise ValueError(f"{self.targets} target tokens do not fit a query of {self.query}")


class Tokens(NamedTuple):
  """Random int32 ids: support [B, S], query [B, M, T], targets [B, M, W]."""

  support: np.ndarray
  query: np.ndarray
  targets: np.ndarray


def draw(shape: Shape, vocabulary: int) -> Tokens:
  """The tokens of a batch, the same at every call."""
  generator = np.random.default_rng(0)
  ids = lambda *size: generator.integers(0, vocabulary, (shape.rows, *size)).astype(np.int32)
  return Tokens(
    ids(shape.support), ids(shape.queries, shape.query), ids(shape.queries, shape.targets)
  )


@dataclasses.dataclass(frozen=True)
class Pass:
  """What goes through a Llama.

  Attributes:
    places: tokens that go through its blocks.
    pairs: of a token and one that it sees, itself included.
    logits: tokens at which the next one's logits are computed.
  """

  places: int = 0
  pairs: int = 0
  logits: int = 0

  def __add__(self, other: "Pass") -> "Pass":
    return Pass(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

  def __mul__(self, number: int) -> "Pass":
    return Pass(*(number * x for x in self._parts()))

  def _parts(self) -> tuple[int, int, int]:
    return self.places, self.pairs, self.logits

  def flops(self, c: Any, *, backward: bool = False) -> int:
    """Additions and multiplications of all matrix products, at the least.

    Left out is whatever the weights' own products do not take: low-rank updates, norms, softmax.

    Args:
      c: the `LlamaConfig`.
      backward: with the activations' gradients. The weights are frozen and have none, so that a
        product with them comes once more; one of activations, as in attention, twice.
    """
    heads = c.head_dim * c.num_heads
    block = c.d_model * (2 * heads + 2 * c.num_kv_heads * c.head_dim + 3 * c.d_mlp)
    weights = self.places * c.num_layers * block + self.logits * c.vocab_size * c.d_model
    attention = 2 * self.pairs * c.num_layers * heads
    return 2 * (weights * (2 if backward else 1) + attention * (3 if backward else 1))


def reads(tokens: int, before: int = 0, logits: int = 0) -> Pass:
  """A text of so many tokens, of which each sees those in front of it, and a prefix."""
  return Pass(tokens, tokens * before + tokens * (tokens + 1) // 2, logits)


def copy_rate() -> float:
  """Bytes a second of a copy in memory, too large for the caches."""
  source = np.zeros(2**24, np.int32)
  target = np.ones_like(source)
  return source.nbytes / best(lambda: np.copyto(target, source))
