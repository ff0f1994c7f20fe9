"""The training step: what it changes, what it does not, and how often it compiles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hyperjax.core import sharding
from hyperjax.core.batch import DecoderQuery
from hyperjax.hypermodels.hyperllama import GistConfig, HyperLlamaConfig
from hyperjax.hypermodels.in_context import InContext
from hyperjax.hypermodels.tuned import NoPhi
from hyperjax.progress import compilations
from hyperjax.training import losses, step
from hyperjax.training.optimizers import Adafactor, AdamW, Schedule
from tests.models import tiny

CONFIG = HyperLlamaConfig(GistConfig(num_gist=2), rank=2)
BATCH = (4, 2, 3, 4)
ADAMW = AdamW(Schedule(1e-2, decay="constant"))


@dataclasses.dataclass(frozen=True)
class Plain:
  """Gradient descent."""

  clip_norm: float | None = None

  def build(self, steps, axes):
    del steps, axes
    descent = optax.sgd(1.0)
    if self.clip_norm is None:
      return descent
    return optax.chain(optax.clip_by_global_norm(self.clip_norm), descent)


PLAIN = Plain()


@functools.cache
def parts_of(train=("producer",)):
  model = tiny.llama()
  return step.split(step.System(CONFIG.build(model, tiny.encode, nnx.Rngs(0)), model), train)


@functools.cache
def compiled(optimizer, objective, accumulate):
  """The step of `parts_of()`, compiled once for all tests that take the same one."""
  parts = parts_of()
  transform = optimizer.build(100, parts.axes)
  return transform, step.make_train_step(parts.graph, transform, objective, accumulate)


class Run:
  """A run as `train` sets it up: placed on a mesh, arrays donated from step to step."""

  def __init__(self, optimizer=PLAIN, objective=None, accumulate=1):
    parts = parts_of()
    self.mesh = sharding.MeshConfig().build(jax.devices()[:1])
    transform, self.function = compiled(optimizer, objective or step.Objective(), accumulate)
    copy = lambda tree: jax.tree.map(lambda x: jnp.array(np.asarray(x)), tree)
    self.trained = sharding.place(copy(parts.trained), parts.axes, self.mesh)
    self.frozen = sharding.place(copy(parts.frozen), parts.frozen_axes, self.mesh)
    self.state = step.init_optimizer(transform, self.trained, self.mesh)

  def __call__(self, batch):
    batch = sharding.place_batch(batch, self.mesh)
    self.trained, self.state, metrics = self.function(
      self.trained, self.state, self.frozen, batch
    )
    return {name: float(value) for name, value in metrics.items()}


def leaves(tree):
  return [np.asarray(x) for x in jax.tree.leaves(tree)]


def test_only_what_is_trained_changes():
  parts = parts_of()
  run = Run()
  for seed in (1, 2, 3):
    run(tiny.batch(*BATCH, seed=seed))
  for before, after in zip(leaves(parts.trained), leaves(run.trained), strict=True):
    assert before.dtype == np.float32 and np.abs(after - before).max() > 1e-4
  for before, after in zip(leaves(parts.frozen), leaves(run.frozen), strict=True):
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("optimizer", [ADAMW, Adafactor(Schedule(1e-2, decay="constant"))])
def test_the_optimizer_holds_nothing_of_the_frozen_model(optimizer):
  parts = parts_of()
  run = Run(optimizer)
  trained = sum(x.size for x in leaves(parts.trained))
  frozen = {x.shape for x in leaves(parts.frozen)} - {x.shape for x in leaves(parts.trained)}
  state = leaves(run.state)
  assert frozen and not frozen & {x.shape for x in state}
  counters = 20
  assert trained <= sum(x.size for x in state) + counters <= 2 * trained + 3 * counters


def test_the_split_is_by_role_and_stores_the_llama_once():
  parts = parts_of()
  assert parts.trained.keys() == {"producer"} and parts.frozen.keys() == {"downstream"}
  size = lambda tree: sum(x.size for x in leaves(tree))
  assert size(parts.trained) == 2 * 32 + 3 * 2 * (2 * (32 + 32) + 2 * (32 + 16))
  model = tiny.llama()
  assert size(parts.frozen) == size(nnx.state(model))
  both = parts_of(train=("producer", "downstream"))
  assert both.trained.keys() == {"producer", "downstream"} and not leaves(both.frozen)
  pointers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(nnx.state(model))}
  assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves(parts.frozen)} == pointers


def test_accumulated_parts_equal_the_whole_batch():
  """The parts have unequal numbers of target tokens: the mean is over all of them."""
  batch = tiny.batch(*BATCH)
  weights = np.array(batch.weights)
  weights[::2, :, 1:] = 0
  batch = dataclasses.replace(batch, weights=jnp.asarray(weights))
  # Gradient descent at rate 1: Adam would hide another scale of the gradient.
  one, two = (Run(accumulate=accumulate) for accumulate in (1, 2))
  first, second = one(batch), two(batch)
  assert first.keys() == second.keys() >= {"loss", "exact_match", "gradient_norm"}
  for name in first:
    assert np.isclose(first[name], second[name], rtol=1e-5, atol=1e-6), name
  for a, b in zip(leaves(one.trained), leaves(two.trained), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


class Says(step.System):
  """A system of which only the logits matter."""

  def __init__(self, logits):
    self.logits = nnx.Param(logits)

  def __call__(self, batch):
    return self.logits[...]


def test_metrics_are_of_queries_that_are_asked():
  """Padding is right whatever the model says: it has no target to miss."""
  batch = tiny.batch(*BATCH)
  weights = np.array(batch.weights)
  weights[1:, 1] = 0
  batch = dataclasses.replace(batch, weights=jnp.asarray(weights))
  right = jax.nn.one_hot(batch.targets, 64)
  logits = right.at[0].set(-right[0])  # both queries of the first episode are answered wrong
  _, sums = step.Objective()(Says(logits), batch)
  metrics = step.means(sums)
  asked = batch.targets.shape[0] + 1
  assert sums["queries"] == asked and sums["exact_match"] == asked - 2
  np.testing.assert_allclose(metrics["exact_match"], (asked - 2) / asked)
  nothing = dataclasses.replace(batch, weights=jnp.zeros_like(batch.weights))
  _, sums = step.Objective()(Says(logits), nothing)
  assert step.means(sums)["exact_match"] == 0


def test_gradients_are_the_mean_over_target_tokens():
  """In float64, where a sum's order leaves no trace."""
  with jax.enable_x64(True):
    parts, batch = parts_of(), tiny.batch(*BATCH)
    wide = lambda tree: jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), tree)
    frozen, given = wide(parts.frozen), wide(parts.trained)

    @jax.jit
    def mean(trained):
      system = nnx.merge(parts.graph, trained, frozen)
      logits = system.downstream(batch.query, system.producer(system.downstream, batch.support))
      log_p = jax.nn.log_softmax(logits)
      chosen = jnp.take_along_axis(log_p, batch.targets[..., None], -1)[..., 0]
      return -(chosen * batch.weights).sum() / batch.weights.sum()

    loss, gradient = jax.value_and_grad(mean)(given)
    transform = PLAIN.build(100, parts.axes)
    take = step.make_train_step(parts.graph, transform, step.Objective())
    trained, _, metrics = take(wide(parts.trained), transform.init(given), frozen, batch)
    assert metrics["loss"].dtype == jnp.float64
    assert np.isclose(metrics["loss"], loss, rtol=1e-12)
    assert metrics["target_tokens"] == batch.weights.sum() == 20
    norm = np.sqrt(sum((g**2).sum() for g in leaves(gradient)))
    assert np.isclose(metrics["gradient_norm"], norm, rtol=1e-10)
    for before, g, after in zip(*map(leaves, (given, gradient, trained)), strict=True):
      np.testing.assert_allclose(after, before - g, atol=1e-12)


def test_clipping_bounds_the_step_and_not_the_report():
  parts, batch = parts_of(), tiny.batch(*BATCH)
  run = Run(Plain(1e-3))
  metrics = run(batch)
  moved = np.sqrt(sum(
    ((a - b) ** 2).sum() for a, b in zip(*map(leaves, (parts.trained, run.trained)), strict=True)
  ))
  assert np.isclose(moved, 1e-3, rtol=1e-3) and metrics["gradient_norm"] > 1e-2


TRACES: list[int] = []


@dataclasses.dataclass(frozen=True)
class Counting(step.Objective):
  def __call__(self, system, batch):
    TRACES.append(1)
    return super().__call__(system, batch)


def test_a_step_is_traced_and_compiled_once_per_shape():
  run = Run(ADAMW, Counting())
  batches = [tiny.batch(*BATCH, seed=s) for s in range(5)]
  TRACES.clear()
  run(batches[0])
  before = compilations()
  for batch in batches[1:]:
    run(batch)
  assert len(TRACES) == 1 and compilations() == before
  run(tiny.batch(5, 2))
  assert len(TRACES) == 2 and compilations() > before


def test_distillation_is_towards_the_model_that_reads_the_support():
  model, batch = tiny.llama(), tiny.batch(*BATCH)
  objective = step.Objective(distillation=2.0, label_weight=0.5)

  @jax.jit
  def run(producer):
    system = step.System(producer, model)
    return objective(system, batch)

  total, sums = run(NoPhi())
  teacher = tiny.logits(model, batch.query, InContext()(model, batch.support))
  student = tiny.logits(model, batch.query)
  kl = losses.divergences(student, teacher, batch.weights).sum()
  assert sums["kl"] > 0.1 and np.isclose(sums["kl"], kl, rtol=1e-4)
  assert np.isclose(total, 0.5 * sums["loss"] + 2.0 * sums["kl"], rtol=1e-5)
  _, same = run(InContext())
  assert abs(same["kl"]) < 1e-4


def test_the_teacher_reads_no_second_bos():
  model, batch = tiny.llama(), tiny.batch(*BATCH)
  objective = step.Objective(distillation=1.0, label_weight=0.0)
  _, sums = objective(step.System(NoPhi(), model), batch, bos=True)
  q = batch.query
  behind = DecoderQuery(q.tokens[..., 1:], q.length - 1, q.target_index - 1)
  assert behind.target_index.min() >= 0
  teacher = tiny.logits(model, behind, InContext()(model, batch.support))
  kl = losses.divergences(tiny.logits(model, q), teacher, batch.weights).sum()
  _, other = objective(step.System(NoPhi(), model), batch)
  assert np.isclose(sums["kl"], kl, rtol=1e-4) and not np.isclose(other["kl"], kl, rtol=1e-2)


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (0.0, 0.0), (1.0, -0.5)])
def test_objective_weights_that_cannot_be_are_named(weights):
  with pytest.raises(ValueError, match=f"distillation {weights[0]}, label_weight {weights[1]}"):
    step.Objective(*weights)


def test_a_batch_without_targets_changes_nothing_and_is_finite():
  batch = tiny.batch(*BATCH)
  batch = dataclasses.replace(batch, weights=jnp.zeros_like(batch.weights))
  parts = parts_of()
  run = Run()
  metrics = run(batch)
  assert metrics["loss"] == 0 and metrics["gradient_norm"] == 0
  for before, after in zip(leaves(parts.trained), leaves(run.trained), strict=True):
    np.testing.assert_array_equal(before, after)
