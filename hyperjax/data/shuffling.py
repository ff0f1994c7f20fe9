"""Outputs that change places: a control in evaluation, and a share of training's episodes."""

from collections.abc import Sequence

import numpy as np

from hyperjax.data.store import Store


def targets(store: Store, ids: Sequence[int], generator: np.random.Generator) -> list[np.ndarray]:
  """Returns the targets of examples, as they have changed places.

  As few as possible stand at their own. Where there are few classes (an output stands at two
  examples or more on average) they change places at random: moved away from all of their examples
  the classes would only be renamed, and inputs would tell outputs as before.
  """
  pieces = [store.target_piece(index) for index in ids]
  few_classes = 2 * len(set(pieces)) <= len(pieces)
  order = generator.permutation(len(ids)) if few_classes else derange(pieces, generator)
  return [store.target(ids[i]) for i in order]


def derange(values: Sequence[int], generator: np.random.Generator) -> list[int]:
  """Returns an order of positions in which as few values as possible stand where they stood.

  Equal values are put side by side and all are shifted by the size of the largest group: if that
  is at most half of them, no position keeps its value.
  """
  order = generator.permutation(len(values))
  groups: dict[int, list[int]] = {}
  for position in order:
    groups.setdefault(values[position], []).append(int(position))
  line = [position for group in groups.values() for position in group]
  shift = max(map(len, groups.values())) % len(line)
  result = [0] * len(line)
  for i, position in enumerate(line):
    result[position] = line[(i + shift) % len(line)]
  return result
