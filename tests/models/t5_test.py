"""Exact properties of T5 under phi; its logits are compared with transformers in t5_parity_test."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hyperjax.core import masks
from hyperjax.core import phi as phi_lib
from hyperjax.models.generate import generate
from hyperjax.models.t5 import PREFIX_SITES, PROMPT_SITE, T5Config
from tests.models import tiny, tiny_t5

ENCODER_PREFIX, DECODER_PREFIX, CROSS_PREFIX = PREFIX_SITES


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def assert_same(a, b, tolerance=1e-9):
  np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


def whole_phi(model, rows, *, sites=tiny_t5.ALL, positions="none", lengths=None, seed=5, **sizes):
  sizes = dict(prefix_length=4, rank=3, alpha=6.0) | sizes
  spec = model.phi_spec(sites, positions=positions, **sizes)
  return tiny.random_phi(spec, rows, seed=seed, dtype=model.embed.dtype, lengths=lengths)


# ---- Low-rank updates --------------------------------------------------------------------------


def test_an_update_whose_b_is_zero_changes_no_bit():
  model, query = tiny_t5.t5(), tiny_t5.query(2, 2, 5)
  spec = model.phi_spec(rank=4, alpha=8.0, sites=tiny_t5.LOW_RANK)
  phi = phi_lib.init(spec, jax.random.key(0))
  plain, adapted = (np.asarray(tiny.logits(model, query, p)) for p in (None, phi))
  np.testing.assert_array_equal(plain, adapted)
  assert plain.std() > 0.1


@pytest.mark.parametrize("site", tiny_t5.LOW_RANK)
def test_low_rank_phi_equals_merged_weights(x64, site):
  model, query = tiny_t5.t5(jnp.float64), tiny_t5.query(3, 2, 5)
  phi = whole_phi(model, 3, sites=[site])
  ours, plain = tiny.logits(model, query, phi), tiny.logits(model, query)
  for b in range(3):
    expected = tiny.logits(tiny.merged(model, phi, b), tiny.row(query, b))
    assert_same(ours[b], expected[0])
    assert np.abs(ours[b] - plain[b]).max() > 1e-4


# ---- Prefixes, against a plain model in NumPy --------------------------------------------------


def bucket(distance: int, bidirectional: bool, c: T5Config) -> int:
  half = c.num_buckets // 2 if bidirectional else c.num_buckets
  first = half if bidirectional and distance > 0 else 0
  away = abs(distance) if bidirectional else max(-distance, 0)
  exact = half // 2
  if away < exact:
    return first + away
  spread = math.log(away / exact) / math.log(c.max_distance / exact) * (half - exact)
  return first + min(exact + int(spread), half - 1)


class Plain:
  """One row of a gated, untied T5 under prefixes, as loops over layers, heads, queries and keys."""

  def __init__(self, model, phi):
    self.c = model.config
    self.p = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    self.phi = phi_lib.sites(phi)

  def norm(self, x, scale):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.c.norm_epsilon) * scale

  def prefix(self, site, layer):
    """(position, key, value) of each real row; no position is None."""
    if site not in self.phi:
      return []
    node = self.phi[site]
    size = int(node.length[layer, 0])
    at = [None if node.positions == "none" else i - size for i in range(size)]
    return list(zip(at, node.key[layer, 0, :size], node.value[layer, 0, :size], strict=True))

  def attention(self, x, memory, layer, name, kind):
    """kind: 'both' (encoder), 'causal', or 'cross', which has no bias."""
    stack, attention = name.split(".")
    w = {k: z[layer] for k, z in self.p[stack][attention].items()}
    keys, values = (np.einsum("td,dnh->tnh", memory, w[k]) for k in "kv")
    queries = np.einsum("td,dnh->tnh", x, w["q"])
    before = self.prefix(f"{name}.prefix", layer)
    out = np.zeros_like(x)
    for i, query in enumerate(queries):
      own = [(j, k, v) for j, (k, v) in enumerate(zip(keys, values, strict=True))]
      rows = before + [row for row in own if kind != "causal" or row[0] <= i]
      for n in range(self.c.num_heads):
        scores = []
        for j, key, _ in rows:
          score = query[n] @ key[n]
          if kind != "cross" and j is not None:
            table = self.p[f"{stack}_bias"]
            score += table[bucket(j - i, kind == "both", self.c), n]
          scores.append(score)
        weights = np.exp(scores - np.max(scores))
        weights /= weights.sum()
        mixed = sum(a * v[n] for a, (_, _, v) in zip(weights, rows, strict=True))
        out[i] += mixed @ w["o"][n]
    return out

  def mlp(self, x, stack, layer):
    w = {k: z[layer] for k, z in self.p[stack]["mlp"].items()}
    gate = x @ w["gate"]
    cubic = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return (0.5 * gate * (1 + np.tanh(cubic)) * (x @ w["up"])) @ w["down"]

  def stack(self, name, x, num_layers, sublayers):
    for layer in range(num_layers):
      for attention, memory, kind in sublayers:
        h = self.norm(x, self.p[name][f"{attention}_norm"]["scale"][layer])
        x = x + self.attention(h, h if memory is None else memory, layer, f"{name}.{attention}",
                               kind)  # fmt: skip
      h = self.norm(x, self.p[name]["mlp_norm"]["scale"][layer])
      x = x + self.mlp(h, name, layer)
    return self.norm(x, self.p[f"{name}_norm"]["scale"])

  def logits(self, tokens, targets):
    c, embed = self.c, self.p["embed"]
    text = self.stack("encoder", embed[tokens], c.num_encoder_layers, [("self", None, "both")])
    before = np.concatenate([[c.start_id], targets[:-1]])
    x = self.stack("decoder", embed[before], c.num_decoder_layers,
                   [("self", None, "causal"), ("cross", text, "cross")])  # fmt: skip
    return x @ self.p["head"].T


@pytest.mark.parametrize("positions", ["none", "before"])
@pytest.mark.parametrize("site", [*PREFIX_SITES, "all"])
def test_a_prefix_is_what_a_plain_model_makes_of_it(x64, site, positions):
  model, query = tiny_t5.t5(jnp.float64), tiny_t5.query(2, 1, 12, 9)
  phi = whole_phi(model, 2, sites=PREFIX_SITES if site == "all" else [site], positions=positions,
                  prefix_length=5, lengths=(5, 3))  # fmt: skip
  ours, plain = tiny.logits(model, query, phi), tiny.logits(model, query)
  for b in range(2):
    own = jax.tree.map(lambda x, b=b: x[:, b : b + 1], phi)
    tokens, targets = np.asarray(query.tokens)[b, 0], np.asarray(query.targets)[b, 0]
    assert_same(ours[b, 0], Plain(model, own).logits(tokens, targets))
    assert_same(plain[b, 0], Plain(model, None).logits(tokens, targets))
    assert np.abs(ours[b] - plain[b]).max() > 1e-3


def test_the_two_modes_of_positions_differ_except_across(x64):
  model, query = tiny_t5.t5(jnp.float64), tiny_t5.query(1, 1, 6)

  def difference(site):
    one, other = (
      tiny.logits(model, query, whole_phi(model, 1, sites=[site], positions=p))
      for p in ("none", "before")
    )
    return np.abs(one - other).max()

  assert difference(CROSS_PREFIX) == 0
  assert difference(ENCODER_PREFIX) > 1e-3 and difference(DECODER_PREFIX) > 1e-3


def test_a_prefix_before_the_decoder_is_having_decoded_its_tokens(x64):
  """The keys and values of three (two) decoded tokens, then a new start token behind them."""
  model = tiny_t5.t5(jnp.float64)
  start = model.config.start_id
  query = tiny_t5.query(2, 1, 6, 5, lengths=[[6], [4]])
  earlier, lengths = np.asarray(tiny_t5.tokens(40, 2, 3)), (3, 2)

  _, cache = model.prefill(query.tokens, query.length, None, 4)  # reads the start token
  for step in range(1, 4):
    token = jnp.asarray(earlier[:, step - 1 : step])
    _, cache = model.advance(token, jnp.int32(step), None, cache)
  key, value = (z[:, :, 0] for z in cache.own)
  # Row 0 has read start and two tokens before, row 1 start and one.
  prefix = phi_lib.whole_prefix(key[:, :, :3], value[:, :, :3], jnp.array(lengths), "before")
  phi = {"decoder": {"self": {"prefix": prefix}}}
  ours = tiny.logits(model, query, phi)

  for b, length in enumerate(lengths):
    said = [*earlier[b, : length - 1].tolist(), start, *query.targets[b, 0].tolist()]
    long = dataclasses.replace(
      tiny.row(query, b), targets=jnp.asarray(said, jnp.int32)[None, None]
    )
    expected = tiny.logits(model, long)[0, 0, length:]
    assert_same(ours[b, 0], expected)
  none = dataclasses.replace(prefix, positions="none")
  other = tiny.logits(model, query, {"decoder": {"self": {"prefix": none}}})
  assert np.abs(other - ours).max() > 1e-3


# ---- A soft prompt -----------------------------------------------------------------------------


def read_by_hand(model, prompt, query, phi=None):
  """Logits of one text without padding, behind a prompt's rows [P, D]."""
  x = jnp.concatenate([prompt, model.embed_tokens(query.tokens[0, 0])])[None, None]
  seen = masks.Whole(jnp.full((1, 1), x.shape[2]))
  encoded, _ = model.encode(x, seen, phi)
  before = jnp.asarray([[[model.config.start_id, *query.targets[0, 0, :-1].tolist()]]])
  x = model.decode(model.embed_tokens(before), encoded, (masks.Causal(), seen), phi)
  return model.logits(x)[0, 0]


@pytest.mark.parametrize("sites", [[], ["encoder.self.prefix", "decoder.cross.k"]])
def test_a_prompt_stands_in_front_of_the_embeddings(x64, sites):
  """Rows with prompts and texts of other lengths, and what pads both is not zero."""
  model, lengths = tiny_t5.t5(jnp.float64), np.array([[5, 2], [1, 4], [3, 5]])
  query = tiny_t5.query(3, 2, 5, lengths=lengths)
  phi = whole_phi(model, 3, sites=[PROMPT_SITE, *sites], positions="before", lengths=(4, 2, 0))
  ours, plain = tiny.logits(model, query, phi), tiny.logits(model, query)
  others = {site: node for site, node in phi.items() if site != PROMPT_SITE}
  for b, m in np.ndindex(lengths.shape):
    alone = tiny_t5.query(1, 1, 1)
    alone = dataclasses.replace(
      alone, tokens=query.tokens[b : b + 1, m : m + 1, : lengths[b, m]],
      targets=query.targets[b : b + 1, m : m + 1],
    )  # fmt: skip
    own = jax.tree.map(lambda x, b=b: x[:, b : b + 1], others)
    prompt = phi[PROMPT_SITE].value[0, b, : (4, 2, 0)[b]]
    assert_same(ours[b, m], read_by_hand(model, prompt, alone, own))
    assert b == 2 or np.abs(ours[b, m] - plain[b, m]).max() > 1e-3


def test_the_models_own_embeddings_as_a_prompt_are_its_tokens(x64):
  model, query = tiny_t5.t5(jnp.float64), tiny_t5.query(1, 1, 6)
  rest = dataclasses.replace(query, tokens=query.tokens[..., 2:], length=query.length - 2)
  phi = model.prompted(model.embed_tokens(query.tokens[0, 0, :2]))
  phi_lib.check(phi, model.phi_spec([PROMPT_SITE], prefix_length=2))
  assert_same(tiny.logits(model, rest, phi), tiny.logits(model, query))


# ---- Rows and padding --------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["none", "before"])
def test_a_phi_per_episode_equals_a_loop_over_episodes(x64, positions):
  model, query = tiny_t5.t5(jnp.float64), tiny_t5.query(3, 2, 5)
  phi = whole_phi(model, 3, positions=positions, lengths=(4, 2, 1))
  ours = tiny.logits(model, query, phi)
  for b in range(3):
    own = jax.tree.map(lambda x, b=b: x[:, b : b + 1], phi)
    assert_same(ours[b], tiny.logits(model, tiny.row(query, b), own)[0])


def test_one_phi_for_all_equals_its_copies(x64):
  model, query = tiny_t5.t5(jnp.float64), tiny_t5.query(3, 2, 5)
  for positions in ("none", "before"):
    phi = whole_phi(model, 1, positions=positions, lengths=(3,))
    copies = jax.tree.map(lambda x: jnp.repeat(x, 3, 1), phi)
    assert_same(tiny.logits(model, query, phi), tiny.logits(model, query, copies))


@pytest.mark.parametrize("positions", ["none", "before"])
def test_rows_of_other_lengths_and_ranks_share_a_batch(x64, positions):
  model, query = tiny_t5.t5(jnp.float64), tiny_t5.query(2, 2, 5)
  phis = [
    whole_phi(model, 1, positions=positions, prefix_length=p, rank=r, alpha=alpha, seed=r)
    for p, r, alpha in ((5, 1, 3.0), (2, 4, 1.0))
  ]
  together = phi_lib.stack_rows(phis)
  assert phi_lib.rows(together) == 2
  ours = tiny.logits(model, query, together)
  for b, phi in enumerate(phis):
    assert_same(ours[b], tiny.logits(model, tiny.row(query, b), phi)[0])


def test_what_pads_a_text_does_not_matter(x64):
  model = tiny_t5.t5(jnp.float64)
  phi = whole_phi(model, 1, positions="before", lengths=(3,))
  short = tiny_t5.query(2, 2, 4, lengths=[[4, 2], [1, 3]])
  padded = dataclasses.replace(
    short, tokens=jnp.concatenate([short.tokens, tiny_t5.tokens(9, 2, 2, 3)], 2)
  )
  other = dataclasses.replace(
    short, tokens=jnp.where(jnp.arange(4) < short.length[..., None], short.tokens, 0)
  )
  want = tiny.logits(model, short, phi)
  for same in (padded, other):
    assert_same(tiny.logits(model, same, phi), want)
  full = dataclasses.replace(short, length=jnp.full((2, 2), 4))
  assert np.abs(tiny.logits(model, full, phi) - want).max() > 1e-3


# ---- Decoding ----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="new")
def greedy_by_hand(model, phi, query, new):
  """Greedy decoding without a cache: everything is read anew for every token."""
  targets = jnp.zeros((*query.length.shape, new), jnp.int32)
  for step in range(new):
    logits = model(dataclasses.replace(query, targets=targets), phi)
    targets = targets.at[..., step].set(jnp.argmax(logits[..., step, :], -1))
  return targets


DECODED = {
  "none": lambda m: None,
  "prefixes without positions": lambda m: whole_phi(m, 3, sites=PREFIX_SITES, lengths=(4, 2, 1)),
  "prefixes before": lambda m: whole_phi(
    m, 3, sites=PREFIX_SITES, positions="before", lengths=(1, 4, 0)
  ),
  "prompts": lambda m: whole_phi(m, 3, sites=[PROMPT_SITE], lengths=(4, 2, 0)),
  "all": lambda m: whole_phi(m, 1, positions="before"),
}


@pytest.mark.parametrize("kind", DECODED)
def test_cached_equals_uncached(kind):
  model = tiny_t5.t5()
  phi, query = DECODED[kind](model), tiny_t5.query(3, 2, 6, lengths=[[6, 1], [2, 5], [3, 4]])
  ids, count = generate(model, phi, query.tokens, query.length, max_new_tokens=7, terminator=())
  assert ids.shape == (3, 2, 7) and np.all(count == 7)
  np.testing.assert_array_equal(ids, greedy_by_hand(model, phi, query, 7))
  assert len({tuple(row) for row in ids.reshape(6, 7).tolist()}) > 2, "all rows are alike"


def test_rows_end_with_the_terminator(x64):
  model, query = tiny_t5.t5(), tiny_t5.query(3, 1, 5)
  free, _ = generate(model, None, query.tokens, query.length, max_new_tokens=6, terminator=())
  end = (int(free[0, 0, 2]),)
  ids, count = generate(model, None, query.tokens, query.length, max_new_tokens=6, terminator=end)
  for b in range(3):
    row = free[b, 0].tolist()
    stop = row.index(end[0]) + 1 if end[0] in row else 6
    assert count[b, 0] == stop and ids[b, 0].tolist() == row[:stop] + [0] * (6 - stop)


# ---- What depends on what ----------------------------------------------------------------------


def test_no_token_depends_on_a_later_one_but_the_encoder_reads_both_ways():
  model = tiny_t5.t5()
  phi = whole_phi(model, 1, lengths=(3,))
  x = model.embed_tokens(tiny_t5.tokens(0, 1, 1, 6))
  text = masks.Whole(jnp.asarray([[5]]))

  @jax.jit
  def influence(model, x):
    encode = lambda x: model.encode(x, text, phi)[0][0, 0].sum(-1)
    decode = lambda x, y: model.decode(y, x, (masks.Causal(), text), phi)[0, 0].sum(-1)
    mass = lambda jacobian: jnp.abs(jacobian[:, 0, 0]).sum(-1)
    cross, decoder = jax.jacrev(decode, (0, 1))(x, x)
    return mass(jax.jacrev(encode)(x)), mass(cross), mass(decoder)

  encoder, cross, decoder = (np.asarray(m) > 0 for m in influence(model, x))
  real = np.arange(6) < 5
  np.testing.assert_array_equal(encoder, real[None] | np.eye(6, dtype=bool))
  np.testing.assert_array_equal(cross, np.broadcast_to(real, (6, 6)))
  np.testing.assert_array_equal(decoder, np.tri(6, dtype=bool))


def test_every_leaf_of_a_phi_matters():
  model, query = tiny_t5.t5(), tiny_t5.query(1, 1, 5)
  phi = whole_phi(model, 1)
  loss = lambda phi, model: (model(query, phi) ** 2).mean()
  gradient = jax.jit(jax.grad(loss, allow_int=True))(phi, model)
  for site, node in phi_lib.sites(gradient).items():
    for name in ("key", "value", "a", "b"):
      leaf = getattr(node, name, None)
      assert leaf is None or np.abs(leaf).max((1, 2, 3)).min() > 0, (site, name)


def test_collecting_some_keys_equals_picking_them_later():
  model, index = tiny_t5.t5(), jnp.asarray([[4, 1], [0, 3]], jnp.int32)
  x, mask = model.embed_tokens(tiny_t5.tokens(0, 2, 1, 5)), masks.Whole(jnp.full((2, 1), 5))
  every, some = model.encode(x, mask)[1], model.encode(x, mask, None, index)[1]
  for have, want in zip(some, every, strict=True):
    assert have.shape == (2, 2, 1, 2, 4, 8)
    for b in range(2):
      np.testing.assert_array_equal(have[:, b, 0], want[:, b, 0, index[b]])


def test_recomputation_changes_no_gradient():
  query = tiny_t5.query(1, 1, 5)
  phi = whole_phi(tiny_t5.t5(), 1, sites=PREFIX_SITES)
  models = [tiny_t5.t5(remat=remat) for remat in ("none", "dots", "full")]

  @jax.jit
  def gradients(models, phi):
    loss = lambda phi, model: (model(query, phi) ** 3).sum()
    return [jax.grad(loss, allow_int=True)(phi, model) for model in models]

  plain, *others = gradients(models, phi)
  real = lambda tree: [x for node in phi_lib.sites(tree).values() for x in (node.key, node.value)]
  assert min(jnp.abs(x).max() for x in real(plain)) > 0.1
  for other in others:
    for a, b in zip(real(other), real(plain), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


# ---- The program -------------------------------------------------------------------------------


def program(model, phi=None):
  query = tiny_t5.query(1, 2, 5)
  return jax.make_jaxpr(lambda m, p: m(query, p))(model, phi)


def program_size(model, phi=None):
  return tiny.equations(program(model, phi).jaxpr)


def test_the_program_does_not_grow_with_the_layers():
  sizes = [
    program_size(tiny_t5.t5(num_encoder_layers=n, num_decoder_layers=n)) for n in (2, 6)
  ]
  assert sizes[0] == sizes[1] > 50


def test_only_adapted_sites_add_operations():
  model = tiny_t5.t5()
  lora = lambda *sites: whole_phi(model, 1, sites=sites)
  plain = program_size(model)
  sites = tiny_t5.LOW_RANK[:2]
  one, two = program_size(model, lora(sites[0])), program_size(model, lora(*sites))
  assert two - one == one - plain > 0
  assert str(program(model, {})) == str(program(model, None))
  for site in (PROMPT_SITE, *PREFIX_SITES):
    assert program_size(model, lora(site)) > plain


def test_memory_does_not_grow_by_the_queries_times_phi():
  """Queries of an episode share its prefixes: no copy for each of them, in no layer."""
  model = tiny_t5.t5(num_encoder_layers=4, num_decoder_layers=4, head_dim=64, num_heads=2)
  spec = model.phi_spec(PREFIX_SITES, prefix_length=256)
  phi = tiny.random_phi(spec, 2)
  phi_bytes = 2 * phi_lib.size(spec) * 4

  def temporary(queries):
    query = tiny_t5.query(2, queries, 2, 2)
    loss = lambda phi, model: (model(query, phi) ** 2).mean()
    grad = jax.grad(loss, allow_int=True)
    compiled = jax.jit(grad).lower(phi, model).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  few, many = temporary(2), temporary(8)
  print(f"phi {phi_bytes}, M=2 {few}, M=8 {many}")
  assert many - few < 0.1 * (8 - 2) * phi_bytes


# ---- Configurations and sites ------------------------------------------------------------------

CHANGES = {
  "vocab_size": 67,
  "d_model": 40,
  "num_encoder_layers": 1,
  "num_decoder_layers": 2,
  "num_heads": 2,
  "head_dim": 16,
  "d_mlp": 56,
  "activation": "relu",
  "tie_embeddings": True,
  "norm_epsilon": 0.1,
  "num_buckets": 16,
  "max_distance": 4,
  "start_id": 3,
}


def test_every_field_of_the_config_changes_the_model():
  assert CHANGES.keys() == {f.name for f in dataclasses.fields(T5Config)}
  shapes = lambda m: jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(nnx.state(m)))
  base, query = tiny_t5.t5(), tiny_t5.query(1, 1, 8)
  for field, value in CHANGES.items():
    changed = tiny_t5.t5(**{field: value})
    if field in ("norm_epsilon", "max_distance", "start_id"):
      assert shapes(changed) == shapes(base)
      difference = tiny.logits(changed, query) - tiny.logits(base, query)
      assert np.abs(difference).max() > 1e-3, field
    else:
      assert shapes(changed) != shapes(base), field


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(d_model=0), ["T5Config.d_model", "integer of at least 1", "0"]),
    (dict(num_heads=2.5), ["T5Config.num_heads", "integer of at least 1", "2.5"]),
    (dict(start_id=-1), ["T5Config.start_id", "integer of at least 0", "-1"]),
    (dict(activation="gated-silu"), ["T5Config.activation", "'gated-gelu', 'relu'", "gated-silu"]),
    (dict(num_buckets=10), ["num_buckets 10", "multiple of 4"]),
    (dict(max_distance=2), ["max_distance 2", "above a quarter"]),
  ],
)
def test_a_config_that_cannot_be_names_its_field(changes, words):
  # Straight to the check: the annotations that run in the tests would refuse the type before it.
  fields = dataclasses.asdict(tiny_t5.CONFIG) | changes
  config = object.__new__(T5Config)
  for name, value in fields.items():
    object.__setattr__(config, name, value)
  with pytest.raises(ValueError) as error:
    config.__post_init__()
  assert all(w in str(error.value) for w in words), error.value


def test_the_spec_follows_the_model():
  model = tiny_t5.t5()
  sites = phi_lib.sites(model.phi_spec(tiny_t5.ALL, prefix_length=4, rank=3, alpha=6.0))
  assert set(sites) == set(model.places()) == set(tiny_t5.ALL)
  layers = {"encoder": 2, "decoder": 3}
  for site in PREFIX_SITES:
    assert sites[site].key.shape == (layers[site.split(".")[0]], 1, 4, 4, 8)
  assert sites[PROMPT_SITE].value.shape == (1, 1, 4, 32)
  ends = {s: (sites[s].a.shape[2], sites[s].b.shape[3]) for s in tiny_t5.LOW_RANK}
  for site in tiny_t5.LOW_RANK:
    name = site.split(".")[-1]
    want = {"gate": (32, 48), "up": (32, 48), "down": (48, 32)}.get(name, (32, 32))
    assert ends[site] == want
  relu = tiny_t5.t5(activation="relu").places()
  assert set(tiny_t5.ALL) - set(relu) == {"encoder.mlp.gate", "decoder.mlp.gate"}
