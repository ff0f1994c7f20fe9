"""All systems train through the one training step, and their phi comes to depend on the support."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hyperjax.core import phi as phi_lib
from hyperjax.core.sharding import MeshConfig
from hyperjax.hypermodels.tuned import TunedPhi
from hyperjax.training import step
from tests.hypermodels import hypert5_test as hypert5
from tests.models import tiny

STEPS = 12


@dataclasses.dataclass(frozen=True)
class Trained:
  """What came of a few steps on one batch.

  Attributes:
    before, after: the trained parameters before and after the first step.
    producer: after the first step.
    losses: of all steps.
  """

  before: dict
  after: dict
  producer: nnx.Module
  losses: list


@functools.cache
def train(model: str, emit: str, kind: str) -> Trained:
  """Trains a hypermodel ('generated') or a phi of parameters ('tuned')."""
  downstream, batch = hypert5.MODELS[model](), hypert5.BATCHES[model](4, 2)
  if kind == "generated":
    producer = hypert5.fresh(model, emit)
  else:
    producer = TunedPhi(hypert5.EMITS[emit].spec(downstream), rngs=nnx.Rngs(0))
  parts = step.split(step.System(producer, downstream))
  optimizer = optax.adam(1e-2)
  copy = lambda tree: jax.tree.map(np.asarray, tree)
  trained = jax.tree.map(lambda x: jnp.array(np.asarray(x)), parts.trained)  # is donated
  state = step.init_optimizer(optimizer, trained, MeshConfig().build(jax.devices()[:1]))
  function = step.make_train_step(parts.graph, optimizer, step.Objective())
  losses = []
  for number in range(STEPS):
    trained, state, metrics = function(trained, state, parts.frozen, batch)
    losses.append(float(metrics["loss"]))
    if number == 0:
      after = copy(trained)
  system = nnx.merge(parts.graph, jax.tree.map(jnp.asarray, after), parts.frozen)
  return Trained(copy(parts.trained), after, system.producer, losses)


@pytest.mark.parametrize("kind", ["generated", "tuned"])
@pytest.mark.parametrize("emit", hypert5.EMITS)
@pytest.mark.parametrize("model", hypert5.MODELS)
def test_the_loss_of_a_fixed_batch_goes_down(model, emit, kind):
  result = train(model, emit, kind)
  assert np.isfinite(result.losses).all()
  assert result.losses[-1] < result.losses[0] - 0.1, result.losses


@pytest.mark.parametrize("emit", hypert5.EMITS)
@pytest.mark.parametrize("model", hypert5.MODELS)
def test_every_generated_leaf_depends_on_every_real_token_after_one_step(model, emit):
  """In every layer, B too, which starts at zero whatever the support; and on no padding."""
  result = train(model, emit, "generated")
  downstream, support = hypert5.MODELS[model](), tiny.support(4, 3)
  graph, state = nnx.split(result.producer)
  params = nnx.to_pure_dict(state)

  @jax.jit
  def influence(table):
    def leaves(table):
      producer = nnx.merge(graph, params | {"body": params["body"] | {"embed": table}})
      phi = producer(downstream, support)
      return [
        (x[:, 0] * jnp.cos(jnp.arange(x[0, 0].size)).reshape(x[0, 0].shape)).reshape(
          x.shape[0], -1
        ).sum(1)
        for x in jax.tree.leaves(phi) if x.ndim > 2
      ]  # fmt: skip

    return [jnp.abs(x).max(-1) for x in jax.jacrev(leaves)(table)]

  read = sorted(set(np.asarray(support.tokens[0, :4]).tolist()))
  others = sorted(set(range(61)) - set(read))
  found = influence(params["body"]["embed"])
  assert len(found) == 2 * len(phi_lib.sites(hypert5.EMITS[emit].spec(downstream)))
  for leaf in found:  # [L, V]
    assert (leaf[:, read] > 0).all() and not leaf[:, others].any()


@pytest.mark.parametrize("model", hypert5.MODELS)
def test_all_of_the_body_is_trained(model):
  """With B at zero the heads of B alone get a gradient at first; a prefix reaches all at once."""
  changed = lambda r: jax.tree.map(lambda a, b: bool((a != b).any()), r.after, r.before)["producer"]
  prefix = changed(train(model, "prefix", "generated"))
  assert all(jax.tree.leaves(prefix["body"])) and prefix["slots"]
  lora = changed(train(model, "lora", "generated"))["heads"]["heads"]
  assert {name for name, head in lora.items() if any(head.values())} == {
    name for name in lora if name.endswith("_b")
  }
