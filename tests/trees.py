"""Trees of arrays."""

import jax
import numpy as np


def assert_equal(one, other) -> None:
  """They have the same structure and the same numbers."""
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)
