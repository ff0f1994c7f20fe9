"""HyperT5 (arXiv 2211.12485): the encoder of a T5 reads the support, its decoder reads learned
slots without a causal mask, and heads map the slots' states to phi. All of it is trained.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from hyperjax.core import masks, sharding
from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi
from hyperjax.hypermodels.gist_tokens import Encode
from hyperjax.hypermodels.heads import EmitLowRank, EmitPrefix, Heads, HeadsConfig, slots_per_site
from hyperjax.models import families
from hyperjax.models.t5 import T5, T5Config


class HyperT5(nnx.Module):
  """The hypermodel; it computes in the downstream model's type.

  Attributes:
    body: the T5 that reads the support.
    slots: [Q, D] embeddings that the decoder reads.
    heads: from the decoder's states to phi.
  """

  def __init__(self, body: T5, slots: Float[Array, "Q D"], heads: Heads):
    self.body, self.heads = body, heads
    self.slots = nnx.Param(slots, axes=("gist", "phi_embed"))

  def __call__(self, downstream: Any, support: Support) -> Phi:
    body, dtype = self.body, downstream.activations
    text = masks.Whole(support.length[:, None])
    x = body.embed_tokens(support.tokens)[:, None].astype(dtype)
    encoded, _ = body.encode(x, text)
    num_slots, width = self.slots.shape
    slots = sharding.spread(self.slots[...], (len(x), 1, num_slots, width), dtype)
    every = masks.Whole(jnp.full((1, 1), num_slots, jnp.int32))
    return self.heads(body.decode(slots, encoded, (every, text))[:, 0])


@dataclasses.dataclass(frozen=True)
class HyperT5Config:
  """HyperT5-Prefix, HyperT5-LoRA and their '+' variants.

  Attributes:
    architecture: of the body, a T5Config of any size.
    source: the checkpoint that the body starts from; 'random' for new weights.
    emit: what it makes, EmitPrefix or EmitLowRank.
    heads: the MLPs that make it.
    train_downstream: the downstream model is trained along (the '+' variants).
  """

  architecture: Any
  source: str
  emit: Any
  heads: HeadsConfig = HeadsConfig()
  train_downstream: bool = False

  def __post_init__(self):
    if not isinstance(self.architecture, T5Config):
      raise ValueError(
        f"HyperT5Config.architecture must be a T5Config, not {self.architecture!r}; where the "
        "downstream model is no T5, name the body's (gin: BODY, BODY_SOURCE)"
      )
    if not self.source:
      raise ValueError(
        "HyperT5Config.source must name the checkpoint that the body starts from, or 'random' "
        f"for new weights; it is {self.source!r}"
      )
    if not isinstance(self.emit, EmitPrefix | EmitLowRank):
      raise ValueError(
        f"HyperT5Config.emit must be an EmitPrefix or an EmitLowRank, not {self.emit!r}"
      )

  @property
  def train(self) -> tuple[str, ...]:
    """The parts of the system that are trained."""
    return ("producer", "downstream") if self.train_downstream else ("producer",)

  def without_source(self) -> "HyperT5Config":
    """The same system, for where a checkpoint replaces all that the source would give."""
    return dataclasses.replace(self, source=families.RANDOM)

  def load(self, downstream: Any, mesh: Mesh | None) -> T5 | None:
    """The body that its source gives, in float32 on the mesh; None for new weights.

    For an abstract downstream model the body is abstract too, and nothing is read.

    Raises:
      ValueError: the body does not know the tokens that the downstream model's data has; what the
        source is refused for.
    """
    self._check_vocabulary(downstream)
    if self.source == families.RANDOM:
      return None
    body = families.abstract(self.architecture, **_manner(downstream))
    leaves = jax.tree.leaves(nnx.state(downstream))
    if not any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
      loaded = families.load(
        self.source, dtype=jnp.float32, config=self.architecture, mesh=mesh
      )
      body = nnx.merge(nnx.graphdef(body), loaded.params)
    return _headless(body)

  def build(
    self, downstream: Any, encode: Encode, rngs: nnx.Rngs, body: T5 | None = None
  ) -> HyperT5:
    """The hypermodel for this downstream model, at its initial values.

    Args:
      downstream, encode, rngs: as all systems' `build` takes them.
      body: what `load` gave.

    Raises:
      ValueError: what `load` and the spec of phi are refused for; a source, but no body.
    """
    self._check_vocabulary(downstream)
    spec = self.emit.spec(downstream)
    if (body is None) != (self.source == families.RANDOM):
      raise ValueError(f"HyperT5's body comes from {self.source!r}: build takes what load gives")
    if body is None:
      body = _headless(T5(self.architecture, rngs=rngs, **_manner(downstream)))
    width = self.architecture.d_model
    slots = slots_per_site(spec)
    heads = Heads(self.heads, spec, slots, self.emit.scale, width, rngs=rngs)
    noise = jax.random.normal(rngs.params(), (heads.num_slots, width))
    return HyperT5(body, noise * body.embed[...].std(), heads)

  def _check_vocabulary(self, downstream: Any) -> None:
    """The body reads the support as the downstream model's tokenizer has cut it."""
    mine, theirs = self.architecture.vocab_size, downstream.config.vocab_size
    if mine < theirs:
      raise ValueError(
        f"HyperT5's body has {mine} tokens, the downstream model's vocabulary {theirs}: the body "
        "reads supports in the downstream model's tokens"
      )
    if self.source != families.RANDOM and not isinstance(downstream.config, T5Config):
      raise ValueError(
        f"HyperT5's body {self.source!r} was trained on another vocabulary than the downstream "
        f"{type(downstream.config).__name__.removesuffix('Config')}'s, in whose tokens supports "
        "come: its source must be 'random'"
      )


def _manner(downstream: Any) -> dict[str, str]:
  """How the body is computed: as the downstream model is."""
  return {"remat": downstream.remat, "attention": downstream.attention}


def _headless(body: T5) -> T5:
  """The body without an output layer, which has no use here."""
  if not body.config.tie_embeddings:
    del body.head
  return body
