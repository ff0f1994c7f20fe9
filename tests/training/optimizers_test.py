"""Optimizers against NumPy and against themselves on unstacked parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hyperjax.training.optimizers import Adafactor, AdamW, Optimizer, Schedule

CONSTANT = Schedule(0.1, decay="constant")


@pytest.mark.parametrize(
  "decay, expected",
  [
    ("cosine", {10: 2.0, 35: 2 * (0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2), 110: 0.2}),
    ("linear", {10: 2.0, 60: 1.1, 110: 0.2}),
    ("constant", {10: 2.0, 60: 2.0, 110: 2.0}),
    ("rsqrt", {10: 2.0, 40: 2 * (10 / 40) ** 0.5, 90: 2 / 3}),
  ],
)
def test_a_schedule_is_its_formula(decay, expected):
  schedule = Schedule(2.0, 10, decay, final=0.1).build(110)
  for step, rate in ({0: 0.0, 1: 0.2, 5: 1.0} | expected).items():
    assert np.isclose(schedule(step), rate, rtol=1e-5), (step, schedule(step))


def test_without_warmup_a_schedule_starts_at_its_peak():
  for decay in ("cosine", "linear", "constant", "rsqrt"):
    assert np.isclose(Schedule(2.0, decay=decay).build(100)(0), 2.0), decay
  assert np.isclose(Schedule(2.0, decay="rsqrt").build(100)(3), 1.0)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(decay="cosin"), r"Schedule.decay must be one of \('cosine', .*\), not 'cosin'"),
    (dict(peak=0.0), "Schedule.peak must be positive, not 0.0"),
  ],
)
def test_a_schedule_that_cannot_be_names_its_field(changes, message):
  with pytest.raises(ValueError, match=message):
    Schedule(**({"peak": 1.0} | changes))


def test_a_warmup_as_long_as_the_run_is_an_error():
  with pytest.raises(ValueError, match="warmup_steps. is 10, but the run has 10 steps"):
    Schedule(1.0, 10).build(10)


def random(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def run(transform, params, gradients):
  """The parameters after one step per gradient."""
  state = transform.init(params)
  update = jax.jit(transform.update)
  for g in gradients:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params


def adamw_by_hand(config, p, gradients):
  p, m, v = np.asarray(p, np.float64), 0, 0
  for t, g in enumerate(gradients, 1):
    g = np.asarray(g, np.float64)
    g = g * min(1, config.clip_norm / np.linalg.norm(g))
    m = config.b1 * m + (1 - config.b1) * g
    v = config.b2 * v + (1 - config.b2) * g * g
    step = (m / (1 - config.b1**t)) / (np.sqrt(v / (1 - config.b2**t)) + 1e-8)
    p = p - config.schedule.peak * (step + config.weight_decay * p)
  return p


@pytest.mark.parametrize(
  "config",
  [
    AdamW(CONSTANT),
    AdamW(CONSTANT, b1=0.5, b2=0.9, weight_decay=0.3, clip_norm=100.0),
  ],
)
def test_adamw_is_its_formula(config):
  gradients = [random(s, 5, 4) for s in (1, 2, 3)]
  transform = config.build(100, {"w": ("embed", "mlp")})
  ours = run(transform, {"w": random(0, 5, 4)}, [{"w": g} for g in gradients])["w"]
  np.testing.assert_allclose(ours, adamw_by_hand(config, random(0, 5, 4), gradients), rtol=1e-4)


def test_scales_and_biases_do_not_decay():
  axes = {
    "kernel": ("embed", "mlp"), "stacked": ("layers", "embed", "mlp"),
    "bias": ("mlp",), "scale": ("layers", "norm"),
  }  # fmt: skip
  sizes = {"kernel": (3, 4), "stacked": (2, 3, 4), "bias": (4,), "scale": (2, 3)}
  params = {name: random(0, *size) for name, size in sizes.items()}
  nothing = jax.tree.map(np.zeros_like, params)
  found = run(AdamW(CONSTANT, weight_decay=0.5).build(10, axes), params, [nothing])
  changed = {name for name in params if not np.array_equal(found[name], params[name])}
  assert changed == {"kernel", "stacked"}


# name: (shape of one layer, axes). optax factors second moments where two axes reach 128.
STACKED = {
  "factored": ((130, 140), ("layers", "embed", "mlp")),
  "unfactored": ((6, 10), ("layers", "phi_embed", "rank")),
  "norm": ((9,), ("layers", "norm")),
}


def test_adafactor_on_stacked_parameters_equals_each_layer_alone():
  """Scales differ a thousandfold between layers, as do gradients: nothing may be shared."""
  size = np.asarray([1e-2, 1.0, 10.0])
  scale = lambda x: x * size.reshape(-1, *[1] * (x.ndim - 1)).astype(np.float32)
  draw = lambda seed: {
    n: scale(random(seed + i, 3, *shape)) for i, (n, (shape, _)) in enumerate(STACKED.items())
  }
  params, gradients = draw(0), [draw(10), draw(20)]
  transform = Adafactor(CONSTANT).build(10, {n: axes for n, (_, axes) in STACKED.items()})
  ours = run(transform, params, gradients)
  alone = optax.adafactor(0.1)
  for name in STACKED:
    layers = [
      run(alone, params[name][l], [g[name][l] for g in gradients]) for l in range(3)
    ]
    np.testing.assert_allclose(ours[name], np.stack(layers), rtol=2e-5, atol=1e-6, err_msg=name)
    together = run(alone, params[name], [g[name] for g in gradients])
    assert not np.allclose(ours[name], together, rtol=1e-3), name


def test_adafactor_takes_a_parameter_without_layers_whole():
  params, gradient = random(0, 5, 4), random(1, 5, 4)
  transform = Adafactor(CONSTANT).build(10, {"w": ("vocab", "embed")})
  ours = run(transform, {"w": params}, [{"w": gradient}])
  np.testing.assert_allclose(ours["w"], run(optax.adafactor(0.1), params, [gradient]), rtol=1e-6)


def test_adafactor_takes_heads_and_their_size_as_one_axis():
  axes = {"q": ("layers", "embed", "heads", "head_dim"), "o": ("heads", "head_dim", "embed")}
  params = {"q": random(0, 2, 160, 4, 40), "o": random(1, 4, 40, 160)}
  gradients = [{"q": random(i, 2, 160, 4, 40), "o": random(i + 1, 4, 40, 160)} for i in (2, 4)]
  ours = run(Adafactor(CONSTANT).build(10, axes), params, gradients)
  for layer in (0, 1):
    flat = lambda tree, i=layer: tree["q"][i].reshape(160, 160)
    alone = run(optax.adafactor(0.1), flat(params), list(map(flat, gradients)))
    np.testing.assert_allclose(flat(ours), alone, rtol=2e-5, atol=1e-6)
  flat = lambda tree: tree["o"].reshape(160, 160)
  alone = run(optax.adafactor(0.1), flat(params), list(map(flat, gradients)))
  np.testing.assert_allclose(flat(ours), alone, rtol=2e-5, atol=1e-6)
  sizes = {x.shape for x in jax.tree.leaves(Adafactor(CONSTANT).build(10, axes).init(params))}
  assert {(2, 160), (160,)} <= sizes and not {(2, 160, 4, 40), (4, 40, 160)} & sizes


def test_adafactor_factors_second_moments_per_layer():
  axes = {"w": STACKED["factored"][1]}
  state = Adafactor(CONSTANT).build(10, axes).init({"w": random(0, 3, 130, 140)})
  sizes = [x.size for x in jax.tree.leaves(state)]
  assert 3 * 130 in sizes and 3 * 140 in sizes and max(sizes) == 3 * 140


CHANGES = {
  AdamW: dict(
    schedule=Schedule(0.2, decay="constant"), b1=0.5, b2=0.5, weight_decay=0.5, clip_norm=1e-8
  ),
  Adafactor: dict(
    schedule=Schedule(0.2, decay="constant"), decay_rate=0.3, clipping_threshold=0.1,
    multiply_by_parameter_scale=False,
  ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_field_changes_the_update(kind):
  assert CHANGES[kind].keys() == {f.name for f in dataclasses.fields(kind)}
  params, gradients = {"w": random(0, 5, 4)}, [{"w": random(s, 5, 4)} for s in (1, 2, 3)]

  def observe(**changes):
    config = kind(**({"schedule": CONSTANT} | changes))
    return run(config.build(10, {"w": ("vocab", "embed")}), params, gradients)["w"]

  base = observe()
  for field, value in CHANGES[kind].items():
    assert not np.allclose(observe(**{field: value}), base, rtol=1e-3), field


def test_an_optimizer_of_ones_own_is_one():
  class Plain:
    """Gradient descent, which knows no schedule."""

    def build(self, steps, axes):
      return optax.sgd(1.0)

  for one in (Plain(), AdamW(Schedule(1.0)), Adafactor(Schedule(1.0))):
    assert isinstance(one, Optimizer) and one.build(10, {}).init({}) is not None
  assert not isinstance(optax.sgd(1.0), Optimizer)
