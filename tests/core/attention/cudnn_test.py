"""What cuDNN is given, worked off by XLA, is the einsum; and JAX takes it for cuDNN's kernel.

No test runs the kernel itself: that needs a GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core import masks
from hyperjax.core.attention import cudnn, einsum
from tests.core.attention.rows import random, run, sequence

MASKS = {
  "a support": (dict(length=7), masks.Causal(), True),
  "texts of lengths": (
    dict(length=3, keys=7), masks.Whole(jnp.asarray([[7, 1], [2, 4]])), False
  ),
  "one length for all": (dict(length=3, keys=7), masks.Whole(jnp.asarray([[5]])), False),
}  # fmt: skip


@pytest.fixture
def seen(monkeypatch):
  """The keyword arguments of every call for cuDNN; XLA works it off instead."""
  calls, original = [], jax.nn.dot_product_attention

  def attention(*arrays, implementation, **given):
    assert implementation == "cudnn"
    calls.append((tuple(x.shape for x in arrays), given))
    return original(*arrays, implementation="xla", **given)

  monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
  return calls


@pytest.mark.parametrize("case", MASKS)
def test_what_is_passed_is_the_einsum(seen, case):
  sizes, mask, causal = MASKS[case]
  assert cudnn.can_be_told(mask, None)
  arrays = sequence(np.float32, **sizes)
  weights = random(5, *arrays[0].shape, dtype=np.float32)
  (ours, grads), (theirs, wanted) = (
    run(attend, arrays, mask, None, weights) for attend in (cudnn.attend, einsum.attend)
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  for ours, theirs in zip(grads, wanted, strict=True):
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
  ((shapes, given),) = seen
  own = (4, sizes.get("keys", 7), 2, 3)  # two episodes of two queries each
  assert shapes == ((4, sizes["length"], 6, 3), own, own)
  assert given["is_causal"] is causal and given["scale"] == 1.0
  lengths = given["key_value_seq_lengths"]
  assert lengths is None if causal else (lengths.shape, lengths.dtype) == ((4,), jnp.int32)
  assert set(given) == {"scale", "is_causal", "key_value_seq_lengths"}  # no mask is drawn


@pytest.mark.parametrize("mask", [masks.Causal(), masks.Whole(jnp.asarray([[5, 64], [1, 9]]))])
def test_jax_makes_cudnns_calls_of_it(monkeypatch, mask):
  """Forward and back, as JAX would on a machine with cuDNN 9.10."""
  module = "jax._src.cudnn.fused_attention_stablehlo"
  monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: 91000)
  q, k = jnp.zeros((2, 2, 64, 8, 64), jnp.bfloat16), jnp.zeros((2, 2, 64, 4, 64), jnp.bfloat16)
  loss = lambda q, k: (cudnn.attend(q, k, k, mask, scale=0.125) ** 2).sum()
  lowered = jax.jit(jax.grad(loss, (0, 1))).trace(q, k).lower(lowering_platforms=("cuda",))
  text = lowered.as_text()
  assert text.count("@__cudnn$fmhaSoftmax(") == text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
  assert "dot_general" not in text
