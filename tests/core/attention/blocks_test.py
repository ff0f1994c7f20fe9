"""Attention in blocks against the einsum: outputs, gradients, and the room that it needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core import masks
from hyperjax.core.attention import blocks, einsum
from tests.core.attention.rows import prefix_of, random, run, sequence
from tests.core.attention.splash_test import CASES
from tests.models import tiny


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [7, 15])
def test_blocks_are_the_einsum(monkeypatch, case, size):
  """Of 7 queries there would be more than 16 blocks; the last one is never full."""
  monkeypatch.setattr(blocks, "BLOCK", size)
  sizes, mask, prefix = CASES[case]
  with jax.enable_x64(True):
    arrays = sequence(np.float64, **sizes)
    if prefix is not None:
      prefix = prefix_of(*prefix.length.tolist(), dtype=np.float64)
    weights = random(5, *arrays[0].shape, dtype=np.float64)
    (ours, grads), (theirs, wanted) = (
      run(attend, arrays, mask, prefix, weights) for attend in (blocks.attend, einsum.attend)
    )
  np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
  for ours, theirs in zip(grads, wanted, strict=True):
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_model_computes_the_same_in_blocks(monkeypatch, remat):
  """Losses, and gradients through a loop over layers."""
  monkeypatch.setattr(blocks, "BLOCK", 3)
  with jax.enable_x64(True):
    query = tiny.query(2, 2, 10)

    def found(kernel):
      model = tiny.llama(jnp.float64, remat=remat, attention=kernel)
      phi = tiny.random_phi(
        model.phi_spec(tiny.ALL, prefix_length=4, rank=2, alpha=2.0), 2, dtype=jnp.float64,
        lengths=[2, 4],
      )  # fmt: skip
      split = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
      leaves, tree = jax.tree.flatten(phi)
      real = [leaf for leaf in leaves if split(leaf)]

      def loss(real):
        rest = iter(real)
        given = tree.unflatten([next(rest) if split(leaf) else leaf for leaf in leaves])
        return (model(query, given) ** 2).mean()

      return jax.jit(jax.value_and_grad(loss))(real)

    (ours, grads), (theirs, wanted) = found("blocks"), found("einsum")
  assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
  for one, other in zip(grads, wanted, strict=True):
    assert np.abs(other).max() > 1e-4
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backward", [False, True])
def test_less_than_two_thirds_of_the_room_is_needed(backward):
  def room(attend):
    loss = lambda q, k, v: attend(q, k, v, masks.Causal()).sum()
    work = jax.grad(loss, (0, 1, 2)) if backward else loss
    q = jax.ShapeDtypeStruct((1, 1, 2048, 6, 8), jnp.float32)
    k = jax.ShapeDtypeStruct((1, 1, 2048, 2, 8), jnp.float32)
    return jax.jit(work).lower(q, k, k).compile().memory_analysis().temp_size_in_bytes

  assert 0 < room(blocks.attend) < room(einsum.attend) * 2 / 3
