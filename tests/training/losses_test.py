"""Objectives against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.training import losses

SHAPE = (2, 3, 4)


def random(seed: int, *more: int) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal((*SHAPE, *more)).astype(np.float32) * 3


def targets(seed: int = 1) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 7, SHAPE).astype(np.int32)


def weights(seed: int = 2) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 2, SHAPE).astype(np.float32)


def probabilities(logits: np.ndarray) -> np.ndarray:
  e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def call(function, *arrays):
  return np.asarray(function(*map(jnp.asarray, arrays)))


def test_token_losses_are_log_probabilities():
  logits, y, w = random(0, 7), targets(), weights()
  p = probabilities(logits)
  expected = -np.log(np.take_along_axis(p, y[..., None], -1)[..., 0]) * w
  np.testing.assert_allclose(call(losses.token_losses, logits, y, w), expected, rtol=1e-5)
  assert 0 < w.sum() < w.size


def test_token_losses_of_huge_logits_are_finite():
  logits = random(0, 7) * 1e4
  assert np.isfinite(call(losses.token_losses, logits, targets(), weights())).all()


def test_divergences_are_kl_from_the_teacher():
  student, teacher, w = random(0, 7), random(3, 7), weights()
  p, q = probabilities(teacher), probabilities(student)
  expected = (p * np.log(p / q)).sum(-1) * w
  ours = call(losses.divergences, student, teacher, w)
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
  assert (ours[w > 0] > 0.1).all() and not ours[w == 0].any()


def test_distillation_is_zero_for_equal_logits():
  logits, w = random(0, 7), np.ones(SHAPE, np.float32)
  assert not call(losses.divergences, logits, logits, w).any()
  shifted = call(losses.divergences, logits + 5, logits, w)
  np.testing.assert_allclose(shifted, 0, atol=1e-5)


def test_distillation_has_no_gradient_to_the_teacher():
  student, teacher, w = (jnp.asarray(x) for x in (random(0, 7), random(3, 7), weights()))
  total = lambda s, t: losses.divergences(s, t, w).sum()
  to_student, to_teacher = jax.grad(total, (0, 1))(student, teacher)
  assert not to_teacher.any()
  expected = (probabilities(student) - probabilities(teacher)) * np.asarray(w)[..., None]
  np.testing.assert_allclose(to_student, expected, atol=1e-5)


def test_an_exact_match_needs_every_weighted_target():
  y = np.asarray([[[1, 2, 0], [1, 2, 0]]], np.int32)
  logits = np.zeros((1, 2, 3, 4), np.float32)
  for m, w, token in np.ndindex(2, 3, 4):
    logits[0, m, w, token] = token == (y[0, m, w] if (m, w) != (1, 1) else 3)
  full, loose = np.ones((1, 2, 3), np.float32), np.ones((1, 2, 3), np.float32)
  loose[0, 1, 1] = 0
  assert call(losses.exact_matches, logits, y, full).tolist() == [[1, 0]]
  assert call(losses.exact_matches, logits, y, loose).tolist() == [[1, 1]]
