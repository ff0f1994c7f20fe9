"""What is computed how often, counted in the gradient's program; splash: attention/tpu_test.py."""

import jax
import jax.numpy as jnp

from hyperjax.core import masks, remat
from hyperjax.core.attention import blocks
from tests.core.attention.rows import random, sequence
from tests.models import tiny


def test_weights_of_a_block_are_computed_twice(monkeypatch):
  """Once in each pass; with 'full' once more, for the output that what is behind it needs."""
  monkeypatch.setattr(blocks, "BLOCK", 3)
  arrays = random(7, 3, 3), *sequence(jnp.float32, length=8)

  def loss(kernel, q, k, v):
    return (blocks.attend(q, k, v, masks.Causal()) @ kernel).sum()

  def exponentials(name):
    gradient = jax.grad(remat.REMAT[name](loss), (0, 1, 2, 3))
    return tiny.equations(jax.make_jaxpr(gradient)(*arrays).jaxpr, "exp")

  assert {name: exponentials(name) for name in remat.REMAT} == {
    "none": 2 * 3, "dots": 2 * 3, "full": 3 * 3
  }  # fmt: skip
