"""The token batch: the contract between data and models.

Rows are padded on the right; what is real follows from the lengths, never from a token id
(in many vocabularies id 0 is a real token).
"""

import dataclasses
from typing import Any

import jax

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
  query: DecoderQuery
  targets: Arrayish
  weights: Arrayish
