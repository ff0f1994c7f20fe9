"""A tiny random Llama with grouped heads and untied embeddings, and batches and phis for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Batch, Continuations, DecoderQuery, Support
from hyperjax.models.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(
  vocab_size=61, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, d_mlp=48,
  rope_theta=100.0, norm_epsilon=1e-5, tie_embeddings=False,
)
ATTENTION = ("decoder.self.q", "decoder.self.k", "decoder.self.v", "decoder.self.o")
SITES = (*ATTENTION, "decoder.mlp.gate", "decoder.mlp.up", "decoder.mlp.down")
PREFIX = "decoder.self.prefix"
ALL = (PREFIX, *SITES)


@functools.cache
def llama(dtype=jnp.float32, *, seed=0, remat="none", attention="auto", **changes) -> Llama:
  """The model, drawn by NumPy: a program compiled for every drawn array would take seconds."""
  config = dataclasses.replace(CONFIG, **changes)
  make = lambda: Llama(config, rngs=nnx.Rngs(0), remat=remat, attention=attention)
  abstract = nnx.eval_shape(make)
  graph, params = nnx.split(abstract)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if any("norm" in str(key) for key in path):
      return jnp.asarray(1 + 0.1 * rng.standard_normal(leaf.shape), dtype)
    return jnp.asarray(rng.standard_normal(leaf.shape) * config.d_model**-0.5, dtype)

  return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, params))


def encode(text: str) -> list[int]:
  return [ord(c) % CONFIG.vocab_size for c in text]


def tokens(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape), jnp.int32)


def support(*lengths: int, size: int = 0, seed: int = 1) -> Support:
  """Supports of these lengths; the padding behind each is random, not a token of its own."""
  shape = (len(lengths), max(size, *lengths))
  return Support(tokens(seed, *shape), jnp.asarray(lengths, jnp.int32))


def query(batch: int, queries: int, size: int, *, seed: int = 2) -> DecoderQuery:
  """Queries without padding whose logits are wanted everywhere."""
  every = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (batch, queries, size))
  length = jnp.full((batch, queries), size, jnp.int32)
  return DecoderQuery(tokens(seed, batch, queries, size), length, every)


def batch(*lengths: int, queries: int = 2, size: int = 6, targets: int = 3, seed: int = 3) -> Batch:
  """Episodes with one support each; the last target of every second query is padding."""
  rows = len(lengths)
  q = query(rows, queries, size, seed=seed)
  weights = np.ones((rows, queries, targets), np.float32)
  weights[:, ::2, -1] = 0
  return Batch(
    support=support(*lengths, seed=seed + 1),
    query=dataclasses.replace(q, target_index=q.target_index[..., -targets:]),
    targets=tokens(seed + 2, rows, queries, targets),
    weights=jnp.asarray(weights),
  )


def continuations(
  rows: int, queries: int, size: int, *, answer: int = 5, seed: int = 4
) -> Continuations:
  """Inputs of 1 to `size` tokens, with padding that is not zero; behind each a text of three tokens
  and one of two, and room for an answer."""
  spread = lambda *values: jnp.tile(jnp.asarray(values, jnp.int32), (rows, queries, 1))
  targets = tokens(seed + 1, rows, queries, 5)
  length = 1 + tokens(seed + 2, rows, queries) % size
  return Continuations(
    tokens(seed, rows, queries, size), length, targets[..., jnp.asarray([0, 1, 3])],
    spread(0, 0, 1), spread(1, 2, 1), targets, spread(0, 1, 2, 0, 3), spread(answer)[..., 0],
  )  # fmt: skip


def random_phi(spec, rows: int, *, seed: int = 5, dtype=jnp.float32, lengths=None):
  """A phi whose rows differ and whose B matrices are not zero."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    shape = (leaf.shape[0], rows, *leaf.shape[2:])
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      values = lengths or leaf.init(None, (), leaf.dtype)
      return jnp.asarray(np.broadcast_to(values, shape), jnp.int32)
    return jnp.asarray(0.4 * rng.standard_normal(shape), dtype)

  return jax.tree.map(draw, spec, is_leaf=phi_lib.is_leaf)


@jax.jit
def logits(model, query, phi=None):
  return model(query, phi)


def row(tree, index: int):
  """Row `index` of a batch, a support or a query, as a batch of one."""
  return jax.tree.map(lambda x: x[index : index + 1], tree)


def merged(model, phi, row: int):
  """The model with one row of phi added to its weights."""
  graph, state = nnx.split(model)
  params = nnx.to_pure_dict(state)
  for site, node in phi_lib.sites(phi).items():
    *parents, name = site.split(".")
    parent = functools.reduce(lambda tree, key: tree[key], parents, params)
    delta = node.scale * np.asarray(node.a)[:, row] @ np.asarray(node.b)[:, row]
    parent[name] = parent[name] + delta.reshape(parent[name].shape)
  return nnx.merge(graph, params)


def equations(jaxpr, primitive: str | None = None) -> int:
  """The number of equations of a jaxpr and of those inside it; of one primitive where given."""
  total = 0
  for eqn in jaxpr.eqns:
    total += primitive in (None, eqn.primitive.name)
    for value in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
    ):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        total += equations(inner, primitive)
  return total
