"""How well the downstream model answers under a producer's phi: log-likelihoods, greedy answers."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from hyperjax.core import phi as phi_lib
from hyperjax.core import sharding
from hyperjax.core.batch import Batch, Continuations, Support
from hyperjax.core.phi import Phi
from hyperjax.models.generate import go_on
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


def means(
  producer: nnx.Module, downstream: nnx.Module, batches: Iterable[tuple[Batch, np.ndarray]]
) -> dict[str, float]:
  """Exact match and log-likelihood (nats), teacher-forced, as means over queries.

  Args:
    producer, downstream: what answers.
    batches: each with a mask [B, M] of the queries that count.
  """
  likelihood, exact, queries = 0.0, 0.0, 0
  for batch, mask in batches:
    scores = teacher_forced(downstream, produce(producer, downstream, batch.support), batch)
    likelihood += float(np.asarray(scores[0])[mask].sum())
    exact += float(np.asarray(scores[1])[mask].sum())
    queries += int(mask.sum())
  return {"exact_match": exact / queries, "log_likelihood": likelihood / queries}


class Answered(NamedTuple):
  """What came of queries.

  Attributes:
    likelihoods: [B, M, W], log-probability in nats of each target token of the texts behind them.
    ids: [B, M, A] int32, greedy answers, terminator included.
    count: [B, M] int32, how many of these are real.
  """

  likelihoods: Array
  ids: Array
  count: Array


@partial(jax.jit, static_argnames=("max_new_tokens", "terminator"))
def ask(
  downstream: nnx.Module,
  phi: Phi | None,
  rows: Int[Array, " B"],
  asked: Continuations,
  *,
  max_new_tokens: int,
  terminator: tuple[int, ...],
) -> Answered:
  """Reads each query once; then the texts behind it, and what the model itself puts there.

  Args:
    downstream: the model.
    phi: of any number of episodes.
    rows: which of them each row of `asked` is under: one serves as many rows as its queries fill.
    asked: the queries.
    max_new_tokens: A, the most that an answer of the batch may have.
    terminator: what ends it.
  """
  phi = phi_lib.take(phi, rows)
  # One more than is read: room is counted in tokens that are predicted one after another.
  room = max(asked.read.shape[-1] + 1, max_new_tokens)
  last, cache = downstream.prefill(asked.tokens, asked.length, phi, room)
  x = downstream.branch(asked.read, asked.text, asked.step, phi, cache)
  found = _likelihoods(downstream, jnp.concatenate([last[:, :, None], x], 2), asked)
  answer = go_on(
    downstream, phi, last, cache, max_new_tokens=max_new_tokens, terminator=terminator,
    limit=asked.limit,
  )  # fmt: skip
  return Answered(*map(sharding.whole, (found, *answer)))


def _likelihoods(
  downstream: nnx.Module, x: Float[Array, "B M _ D"], asked: Continuations
) -> Float[Array, "B M W"]:
  """Of each target token; x are activations behind the query, then behind each token read."""
  pick = jax.vmap(lambda line, total, behind, token: line[behind, token] - total[behind])

  def column(given):  # of all columns at once the logits would take M times as much memory
    x, behind, targets = given
    logits = downstream.logits(x)
    return pick(logits, jax.nn.logsumexp(logits, -1), behind, targets)

  columns = jax.tree.map(lambda z: jnp.moveaxis(z, 1, 0), (x, asked.behind, asked.targets))
  return jnp.moveaxis(jax.lax.map(column, columns), 0, 1)
