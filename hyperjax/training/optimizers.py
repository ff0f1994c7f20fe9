"""Optimizers and learning-rate schedules, as optax chains."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

_DECAYS = ("cosine", "linear", "constant", "rsqrt")


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A learning rate over this run's own steps: linear warm-up, then a decay.

  Attributes:
    peak: the learning rate after warm-up.
    warmup_steps: steps of linear warm-up from 0.
    decay: 'cosine', 'linear', 'constant', or 'rsqrt' (peak * sqrt(warmup / step), as T5).
    final: the last learning rate of cosine and linear, as a share of the peak.
  """

  peak: float
  warmup_steps: int = 0
  decay: str = "cosine"
  final: float = 0.05

  def __post_init__(self):
    if self.decay not in _DECAYS:
      raise ValueError(f"Schedule.decay must be one of {_DECAYS}, not {self.decay!r}")
    if self.peak <= 0:
      raise ValueError(f"Schedule.peak must be positive, not {self.peak}")

  def build(self, steps: int) -> optax.Schedule:
    """The schedule of a run of `steps` steps.

    Raises:
      ValueError: the warm-up is not shorter than the run.
    """
    if self.warmup_steps >= steps:
      raise ValueError(
        f"WARMUP_STEPS (Schedule.warmup_steps) is {self.warmup_steps}, but the run has {steps} "
        f"steps, and the warm-up must end before it does: set it to less, such as {steps // 10}"
      )
    rest = steps - self.warmup_steps
    if self.decay == "cosine":
      after = optax.cosine_decay_schedule(self.peak, rest, self.final)
    elif self.decay == "linear":
      after = optax.linear_schedule(self.peak, self.peak * self.final, rest)
    elif self.decay == "rsqrt":
      lead = max(self.warmup_steps, 1)
      after = lambda count: self.peak * (lead / (jnp.maximum(count, 0) + lead)) ** 0.5
    else:
      after = optax.constant_schedule(self.peak)
    warmup = optax.linear_schedule(0.0, self.peak, max(self.warmup_steps, 1))
    return optax.join_schedules([warmup, after], [self.warmup_steps])


@runtime_checkable
class Optimizer(Protocol):
  """What OPTIMIZER names in gin: those below, or a class of one's own."""

  def build(self, steps: int, axes: Mapping[str, Any]) -> optax.GradientTransformation:
    """The transformation for a run of `steps` steps.

    Args:
      steps: optimizer steps of the run.
      axes: the logical axes of every parameter, a tree of tuples; empty where only the settings
        are to be checked.

    Raises:
      ValueError: settings that do not suit a run of this length.
    """


@dataclasses.dataclass(frozen=True)
class AdamW:
  """AdamW (arXiv 1711.05101) with clipping by the global norm.

  What has one axis, layers apart, does not decay: scales of norms, biases.
  """

  schedule: Schedule
  b1: float = 0.9
  b2: float = 0.99
  weight_decay: float = 0.0
  clip_norm: float = 1.0

  def build(self, steps: int, axes: Mapping[str, Any]) -> optax.GradientTransformation:
    """The chain for parameters whose logical axes are `axes` (a tree of tuples)."""
    matrix = lambda names: len(names) - (names[:1] == ("layers",)) > 1
    return optax.chain(
      optax.clip_by_global_norm(self.clip_norm),
      optax.adamw(
        self.schedule.build(steps), b1=self.b1, b2=self.b2, weight_decay=self.weight_decay,
        mask=_labelled(axes, matrix) if self.weight_decay else None,
      ),
    )  # fmt: skip


def _labelled(axes: Mapping[str, Any], label: Callable[[tuple[str, ...]], Any]) -> Any:
  """What `label` says of every parameter's axes."""
  return jax.tree.map(label, axes, is_leaf=lambda x: isinstance(x, tuple))


@dataclasses.dataclass(frozen=True)
class Adafactor:
  """Adafactor as T5 uses it (arXiv 1804.04235): factored second moments, update clipping, learning
  rates relative to each parameter's scale. Each layer of a stacked parameter counts on its own, and
  an attention kernel's heads and their size are one axis."""

  schedule: Schedule
  decay_rate: float = 0.8
  clipping_threshold: float = 1.0
  multiply_by_parameter_scale: bool = True

  def build(self, steps: int, axes: Mapping[str, Any]) -> optax.GradientTransformation:
    """The transformation for parameters whose logical axes are `axes` (a tree of tuples)."""
    plain = optax.adafactor(
      self.schedule.build(steps),
      decay_rate=self.decay_rate,
      clipping_threshold=self.clipping_threshold,
      multiply_by_parameter_scale=self.multiply_by_parameter_scale,
    )
    labels = _labelled(axes, lambda names: "stacked" if names[:1] == ("layers",) else "plain")
    each = optax.multi_transform({"stacked": per_layer(plain), "plain": plain}, labels)
    return heads_joined(each, axes)


def heads_joined(
  transform: optax.GradientTransformation, axes: Mapping[str, Any]
) -> optax.GradientTransformation:
  """Applies `transform` to parameters whose axes for heads and for their size are one, as they are
  in T5: apart, both may be too short for their second moments to be factored."""

  def joined(tree):
    return jax.tree.map(lambda x, names: x.reshape(_joined(x.shape, names)), tree, axes)

  def update(updates, state, params):
    made, state = transform.update(joined(updates), state, joined(params))
    return jax.tree.map(lambda x, like: x.reshape(like.shape), made, updates), state

  return optax.GradientTransformation(lambda params: transform.init(joined(params)), update)


def _joined(shape: Sequence[int], names: Sequence[str]) -> tuple[int, ...]:
  """The shape of an array with these logical axes as `heads_joined` has it."""
  out: list[int] = []
  for size, before, name in zip(shape, (None, *names), names, strict=False):
    if name == "head_dim" and before in ("heads", "kv_heads"):
      out[-1] *= size
    else:
      out.append(size)
  return tuple(out)


def per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
  """Applies `transform` to every layer of every leaf apart; leaves lead with the layer axis."""

  def init(params):
    return jax.tree.map(jax.vmap(transform.init), params)

  def update(updates, state, params):
    pairs = jax.tree.map(jax.vmap(transform.update), updates, state, params)
    return tuple(jax.tree.map(lambda _, pair, i=i: pair[i], updates, pairs) for i in (0, 1))

  return optax.GradientTransformation(init, update)
