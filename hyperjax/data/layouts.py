"""How a query's input and target lie in a batch: one layout per kind of model.

    decoder            i i i t t           one sequence, the last target left out
    encoder_decoder    i i i </s>  |  t t t    two; a text ends with EOS where its tokenizer adds it
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperjax.core.batch import DecoderQuery, EncoderDecoderQuery

# Source and target ids that fit the batch, by row and column.
Pieces = Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Input and target in one sequence, for decoder-only models."""

  end = ()  # ids behind a text: none, it goes on with its target

  def length(self, source: int, target: int) -> int:
    """T that a query of an input and a target of these lengths needs."""
    return source + target - 1

  def longest_target(self, size: int, targets: int) -> int:
    """Tokens of the longest target that T=`size` and W=`targets` have room for."""
    return min(size, targets)

  def usual(self, lengths: Mapping[str, Any]) -> int:
    """T that 99 of 100 queries of a store with these statistics need, without BOS."""
    return lengths["shot"]["p99"]

  def room(self, size: int, target: int) -> int:
    """Tokens of an input that T=`size` has room for."""
    return size - (target - 1)

  def fill(self, pieces: Pieces, shape: tuple[int, int, int], targets: np.ndarray) -> DecoderQuery:
    """The query arrays [B, M, T] of what fits; `targets` [B, M, W] are already filled in."""
    tokens, length = np.zeros(shape, np.int32), np.ones(shape[:2], np.int32)
    target_index = np.zeros(targets.shape, np.int32)
    for row, queries in enumerate(pieces):
      for column, (source, target) in enumerate(queries):
        start, stop = len(source), len(source) + len(target) - 1
        tokens[row, column, :start] = source
        tokens[row, column, start:stop] = target[:-1]
        length[row, column] = stop
        target_index[row, column, : len(target)] = np.arange(start - 1, stop)
    return DecoderQuery(tokens, length, target_index)


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
  """The encoder reads the input, the decoder the target.

  Attributes:
    end: ids that are put behind every text that the encoder reads.
  """

  end: tuple[int, ...] = ()

  def length(self, source: int, target: int) -> int:
    """T that a query of an input and a target of these lengths needs."""
    del target
    return source + len(self.end)

  def longest_target(self, size: int, targets: int) -> int:
    """Tokens of the longest target that T=`size` and W=`targets` have room for."""
    del size
    return targets

  def usual(self, lengths: Mapping[str, Any]) -> int:
    """T that 99 of 100 queries of a store with these statistics need, without BOS."""
    return lengths["input"]["p99"] + len(self.end)

  def room(self, size: int, target: int) -> int:
    """Tokens of an input that T=`size` has room for."""
    del target
    return size - len(self.end)

  def fill(
    self, pieces: Pieces, shape: tuple[int, int, int], targets: np.ndarray
  ) -> EncoderDecoderQuery:
    """The query arrays [B, M, T] of what fits; `targets` [B, M, W] are already filled in."""
    tokens, length = np.zeros(shape, np.int32), np.ones(shape[:2], np.int32)
    for row, queries in enumerate(pieces):
      for column, (source, _) in enumerate(queries):
        ids = [*source, *self.end]
        tokens[row, column, : len(ids)] = ids
        length[row, column] = len(ids)
    return EncoderDecoderQuery(tokens, length, targets)


Layout = Decoder | EncoderDecoder
LAYOUTS = ("decoder", "encoder_decoder")
DECODER = Decoder()


def of(name: str, vocabulary: Mapping[str, Any]) -> Layout:
  """The layout of that name (a model's `config.layout`) for a manifest's vocabulary.

  Raises:
    ValueError: an unknown name.
  """
  if name not in LAYOUTS:
    near = difflib.get_close_matches(name, LAYOUTS, 1, 0.0)[0]
    raise ValueError(f"unknown layout {name!r}; the nearest is {near!r} of {sorted(LAYOUTS)}")
  if name == "decoder":
    return DECODER
  return EncoderDecoder((vocabulary["eos_id"],) if vocabulary["adds_eos"] else ())
