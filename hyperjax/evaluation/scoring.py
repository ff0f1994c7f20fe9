"""How well the downstream model answers under a producer's phi: log-likelihoods, greedy answers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from hyperjax.core import phi as phi_lib
from hyperjax.core import sharding
from hyperjax.core.batch import Batch, Continuations, Support
from hyperjax.core.phi import Phi
from hyperjax.models.generate import generate
from hyperjax.training import losses


@jax.jit
def produce(producer: nnx.Module, downstream: nnx.Module, support: Support) -> Phi | None:
  """The phi of every episode of a batch."""
  return producer(downstream, support)


@jax.jit
def teacher_forced(
  downstream: nnx.Module, phi: Phi | None, batch: Batch
) -> tuple[Float[Array, "B M"], Float[Array, "B M"]]:
  """Log-likelihood of each query's target in nats (terminator included), and 1 where every target
  token is the most likely one, that is where greedy decoding would emit it."""
  logits = downstream(batch.query, phi)
  likelihood = -losses.token_losses(logits, batch.targets, batch.weights).sum(-1)
  exact = losses.exact_matches(logits, batch.targets, batch.weights)
  return sharding.whole(likelihood), sharding.whole(exact)


@jax.jit
def likelihoods(
  downstream: nnx.Module, phi: Phi | None, rows: Int[Array, "B"], asked: Continuations
) -> Float[Array, "B M F"]:
  """Log-probability in nats of each target token of texts that go on from queries.

  Each query is read once, and its texts behind it; row b is under phi's row rows[b], so that one
  phi serves as many rows of a batch as its episode's queries fill.
  """
  phi = phi_lib.take(phi, rows)
  # One more than is read: room is counted in tokens that are predicted one after another.
  room = asked.read.shape[-1] + 1
  last, cache = downstream.prefill(asked.tokens, asked.length, phi, room)
  x = downstream.branch(asked.read, asked.text, asked.step, phi, cache)
  logits = downstream.logits(jnp.concatenate([last[:, :, None], x], 2))
  normaliser = jax.nn.logsumexp(logits, -1)
  pick = lambda line, total, behind, token: line[behind, token] - total[behind]
  return sharding.whole(jax.vmap(jax.vmap(pick))(logits, normaliser, asked.behind, asked.targets))


def answers(
  downstream: nnx.Module,
  phi: Phi | None,
  batch: Batch,
  terminator: tuple[int, ...],
  longest: int | None = None,
  max_new_tokens: int | None = None,
  limit: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Greedy answers.

  Args:
    longest: tokens that the longest input has, so that padding behind it is not computed.
    max_new_tokens: of an answer; None: W, the longest target of the batch's shape. What is longer
      can be no target.
    limit: of each answer [B, M], where that is less.

  Returns:
    ids [B, M, max_new_tokens] int32, and how many are real, terminator included: [B, M].
  """
  tokens, length = batch.query.prompts()
  tokens = tokens[..., :longest]
  ids, count = generate(
    downstream, phi, tokens, length,
    max_new_tokens=max_new_tokens or batch.targets.shape[-1], terminator=terminator, limit=limit,
  )  # fmt: skip
  return np.asarray(ids), np.asarray(count)
