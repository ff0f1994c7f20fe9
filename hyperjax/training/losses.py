"""Objectives: token cross-entropy, and distillation from the model that reads the support."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_losses(
  logits: Float[Array, "B M W V"], targets: Int[Array, "B M W"], weights: Float[Array, "B M W"]
) -> Float[Array, "B M W"]:
  """Weighted negative log-likelihood of every target token, in nats."""
  log_normaliser = jax.nn.logsumexp(logits, -1)
  chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  return (log_normaliser - chosen) * weights


def divergences(
  logits: Float[Array, "B M W V"],
  teacher: Float[Array, "B M W V"],
  weights: Float[Array, "B M W"],
) -> Float[Array, "B M W"]:
  """Weighted KL(teacher || student) at each target position, in nats; the teacher is constant."""
  teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher), -1)
  student = jax.nn.log_softmax(logits, -1)
  return (jnp.exp(teacher) * (teacher - student)).sum(-1) * weights


def exact_matches(
  logits: Float[Array, "B M W V"], targets: Int[Array, "B M W"], weights: Float[Array, "B M W"]
) -> Float[Array, "B M"]:
  """1 where every target token is the most likely one: greedy decoding would emit the target."""
  return jnp.all((logits.argmax(-1) == targets) | (weights == 0), -1).astype(jnp.float32)
