"""RoPE against complex rotation in NumPy and against transformers, which computes Llama's own.

Needs torch and fails without it: a parity test that skips proves nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama import modeling_llama

from hyperjax.core.positions import Llama3Scaling, rope_frequencies, rotate, rotation

# An original context of 64 puts frequencies on each side of both thresholds and between them.
SCALING = Llama3Scaling(8.0, 1.0, 4.0, 64)


def random(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape)


def turn(x: np.ndarray, positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
  """RoPE as a product of complex numbers: the first half real, the second imaginary."""
  half = x.shape[-1] // 2
  z = x[..., :half] + 1j * x[..., half:]
  z = z * np.exp(1j * positions[..., None] * frequencies)[..., None, :]
  return np.concatenate([z.real, z.imag], -1)


def test_rotation_is_a_complex_product():
  x, at = random(2, 3, 5, 4, 8), np.random.default_rng(1).integers(-9, 99, (2, 3, 5))
  frequencies = rope_frequencies(8, 1e4)
  np.testing.assert_allclose(frequencies, [1, 0.1, 0.01, 0.001])
  with jax.enable_x64(True):
    ours = rotate(jnp.asarray(x), rotation(jnp.asarray(at), tuple(frequencies), x.dtype))
  assert ours.dtype == np.float64
  np.testing.assert_allclose(ours, turn(x, at, frequencies), atol=1e-12)


@pytest.mark.parametrize("scaling", [None, SCALING])
def test_rotation_is_transformers(scaling):
  rope = {"rope_type": "default", "rope_theta": 5e5}
  if scaling:
    rope |= {
      "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 64,
    }
  config = transformers.LlamaConfig(
    hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=256,
    rope_parameters=rope,
  )
  module = modeling_llama.LlamaRotaryEmbedding(config)
  frequencies = rope_frequencies(16, 5e5, scaling)
  np.testing.assert_allclose(frequencies, module.inv_freq.numpy(), rtol=1e-6)
  if scaling:
    ratio = frequencies / rope_frequencies(16, 5e5)
    assert ratio[0] == 1 and 0.13 < ratio[1] < 0.99 and np.isclose(ratio[-1], 1 / 8)

  x, at = random(2, 50, 4, 16).astype(np.float32), np.arange(50)[None].repeat(2, 0)
  heads_first = torch.tensor(x).transpose(1, 2)
  cos, sin = module(heads_first, torch.tensor(at))
  theirs, _ = modeling_llama.apply_rotary_pos_emb(heads_first, heads_first, cos, sin)
  ours = rotate(jnp.asarray(x), rotation(jnp.asarray(at), tuple(frequencies), x.dtype))
  np.testing.assert_allclose(ours, theirs.transpose(1, 2).numpy(), atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(i=st.integers(-500, 500), j=st.integers(-500, 500), shift=st.integers(-2000, 2000))
def test_scores_depend_on_the_distance_alone(i, j, shift):
  frequencies = tuple(rope_frequencies(8, 100.0, SCALING))
  q, k = random(1, 1, 8), random(1, 1, 8, seed=1)
  with jax.enable_x64(True):
    at = lambda x, p: rotate(jnp.asarray(x), rotation(jnp.asarray([p]), frequencies, x.dtype))
    score = lambda i, j: float((at(q, i) * at(k, j)).sum())
    assert abs(score(i, j) - score(i + shift, j + shift)) < 1e-9
    np.testing.assert_allclose(at(at(k, j), shift), at(k, j + shift), atol=1e-9)


def test_position_zero_changes_nothing():
  x = random(3, 2, 8).astype(np.float32)
  ours = rotate(jnp.asarray(x), rotation(jnp.zeros(3, jnp.int32), tuple(rope_frequencies(8, 1e4))))
  np.testing.assert_array_equal(ours, x)


def test_angles_are_float32_under_bfloat16_activations():
  """In bfloat16 position 1001 would be 1000."""
  x, at = jnp.asarray(random(1, 1, 8), jnp.bfloat16), jnp.asarray([1001])
  frequencies = tuple(rope_frequencies(8, 1e4))
  ours = rotate(x, rotation(at, frequencies, x.dtype))  # as a model asks for it
  assert ours.dtype == jnp.bfloat16
  exact = turn(np.asarray(x, np.float64), np.asarray(at), np.asarray(frequencies))
  np.testing.assert_allclose(np.asarray(ours, np.float64), exact, atol=0.02)


@pytest.mark.parametrize("low, high", [(4.0, 1.0), (0.0, 4.0), (2.0, 2.0)])
def test_scaling_factors_out_of_order_are_named(low, high):
  with pytest.raises(ValueError, match=f"low_freq_factor {low} .* high_freq_factor {high}"):
    Llama3Scaling(8.0, low, high, 32)
