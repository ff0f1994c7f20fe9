"""The token batch: the contract between data and models.

Rows are padded on the right; what is real follows from the lengths, never from a token id
(in many vocabularies id 0 is a real token).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# jax or NumPy arrays, and what stands for them inside of jax's transformations and in programs that
# are compiled ahead of time.
Arrayish = Any


def _pytree(cls):
  return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_pytree
class Support:
  """The examples that a hypermodel reads: one concatenated row per episode.

  Attributes:
    tokens: [B, S] int32.
    length: [B] int32, the number of real tokens of each row.
  """

  tokens: Arrayish
  length: Arrayish


@_pytree
class DecoderQuery:
  """Queries for a decoder-only model: input and target as one sequence, the last target left out.

      tokens        i i i t t . .        i: input piece, t: target piece, .: padding
      target_index      2 3 4            where the logits stand that predict each target token

  Attributes:
    tokens: [B, M, T] int32.
    length: [B, M] int32, the number of real tokens.
    target_index: [B, M, W] int32, positions in T (0 where there is no target).
  """

  tokens: Arrayish
  length: Arrayish
  target_index: Arrayish

  def continued(self) -> "DecoderQuery":
    """The queries without their first token: BOS, where they go on behind a text that has one."""
    less = lambda x: jnp.maximum(x - 1, 0)
    return DecoderQuery(
      jnp.roll(self.tokens, -1, -1), less(self.length), less(self.target_index)
    )

  def prompts(self) -> tuple[Arrayish, Arrayish]:
    """What answers follow, the queries without their targets: tokens [B, M, T], lengths [B, M]."""
    length = np.asarray(self.target_index)[..., 0] + 1
    real = np.arange(self.tokens.shape[-1]) < length[..., None]
    return np.where(real, np.asarray(self.tokens), 0), length


@_pytree
class EncoderDecoderQuery:
  """Queries for an encoder-decoder model.

  Attributes:
    tokens: [B, M, T] int32, what the encoder reads.
    length: [B, M] int32, the number of real ones.
    targets: [B, M, W] int32; the decoder reads them moved one place to the right, behind its start
      token.
  """

  tokens: Arrayish
  length: Arrayish
  targets: Arrayish

  def prompts(self) -> tuple[Arrayish, Arrayish]:
    """What answers follow: tokens [B, M, T] and their lengths [B, M]."""
    return self.tokens, self.length


@_pytree
class Continuations:
  """Queries to be answered, and behind each the texts whose likelihood is wanted, side by side.

      read      a a b b b . .        a, b: two texts without their last tokens
      text      0 0 1 1 1            whose token it is
      step      1 2 1 2 3            its place behind the query's input
      targets   a a a b b b b .      both texts, whole
      behind    0 1 2 0 3 4 5        what predicts it: 0 the input, i the i-th token of `read`

  Attributes:
    tokens: [B, M, T] int32, the queries' inputs.
    length: [B, M] int32, their real tokens.
    read, text, step: [B, M, X] int32; where nothing is read, text is -1 and step 1.
    targets, behind: [B, M, W] int32.
    limit: [B, M] int32, tokens that an answer may have.
  """

  tokens: Arrayish
  length: Arrayish
  read: Arrayish
  text: Arrayish
  step: Arrayish
  targets: Arrayish
  behind: Arrayish
  limit: Arrayish


@_pytree
class Batch:
  """B episodes of M queries each.

  Attributes:
    support: what the hypermodel reads.
    query: what the downstream model reads (its type is the model family's).
    targets: [B, M, W] int32.
    weights: [B, M, W] float32, 1 for every real target token including the terminator, else 0.
  """

  support: Support
  query: DecoderQuery | EncoderDecoderQuery
  targets: Arrayish
  weights: Arrayish

  def asked(self) -> Arrayish:
    """[B, M] bool, which queries are no padding: those with targets (a task may have fewer)."""
    return self.weights.sum(-1) > 0

  def real_tokens(self) -> Arrayish:
    """How many tokens of supports and queries are no padding.

    In a program this is the number of all processes' rows.
    """
    return self.support.length.sum() + (self.query.length * self.asked()).sum()
