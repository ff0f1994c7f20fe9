"""Cached decoding is compared with recomputing the whole sequence for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import DecoderQuery
from hyperjax.models.generate import Sampling, generate
from hyperjax.models.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(
  vocab_size=23, d_model=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_mlp=40,
  rope_theta=100.0, norm_epsilon=1e-5, tie_embeddings=False,
)
SITES = ("decoder.self.q", "decoder.self.v", "decoder.self.o", "decoder.mlp.up", "decoder.mlp.down")


@pytest.fixture(scope="module")
def model():
  return Llama(CONFIG, rngs=nnx.Rngs(0))


def random_phi(model, seed, batch, *, prefix_length=0, rank=0, lengths=None):
  """A phi of `batch` unlike rows; B is not zero, so that the low-rank updates act."""
  sites = ["decoder.self.prefix"] * bool(prefix_length) + list(SITES if rank else ())
  spec = model.phi_spec(sites, prefix_length=prefix_length, rank=rank, alpha=2.0 * rank)
  keys = jax.random.split(jax.random.key(seed), batch)
  rows = [phi_lib.init(spec, k) for k in keys]
  phi = jax.tree.map(lambda *z: jnp.concatenate(z, 1), *rows)
  noise = iter(jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(phi))))
  phi = jax.tree.map(
    lambda z: z + 0.3 * jax.random.normal(next(noise), z.shape)
    if jnp.issubdtype(z.dtype, jnp.floating) else z,
    phi,
  )
  if lengths is not None:
    old = phi["decoder"]["self"]["prefix"]
    phi["decoder"]["self"]["prefix"] = phi_lib.whole_prefix(old.key, old.value, jnp.array(lengths))
  return phi


def random_prompts(seed, batch, queries, width):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, CONFIG.vocab_size, (batch, queries, width)).astype(np.int32)
  length = rng.integers(1, width + 1, (batch, queries)).astype(np.int32)
  length[0, 0] = width
  return jnp.asarray(tokens), jnp.asarray(length)


def row_of(phi, b):
  return jax.tree.map(lambda z: z[:, b : b + 1] if z.shape[1] > 1 else z, phi)


@jax.jit
def next_logits(model, phi, tokens, length):
  """Logits behind each row, all of it read anew: no cache."""
  query = DecoderQuery(tokens, length, (length - 1)[..., None])
  return model(query, phi)[:, :, 0]


def greedy_by_hand(model, phi, tokens, length, new, terminator=()):
  """Greedy decoding without a cache, as lists of ids, [B][M]."""
  batch, queries, width = tokens.shape
  sequence = np.pad(np.asarray(tokens), [(0, 0), (0, 0), (0, new)])
  length = np.array(length)
  out = [[[] for _ in range(queries)] for _ in range(batch)]
  for _ in range(new):
    best = np.argmax(next_logits(model, phi, sequence, length), -1)
    for b, m in np.ndindex(batch, queries):
      row = out[b][m]
      if not terminator or tuple(row[-len(terminator):]) != terminator:
        row.append(int(best[b, m]))
      sequence[b, m, length[b, m]] = best[b, m]
    length += 1
  return out


def ids_of(ids, count):
  return [[r[:n].tolist() for r, n in zip(*z, strict=True)] for z in zip(ids, count, strict=True)]


PHIS = {
  "none": lambda m: None,
  "shared prefix": lambda m: random_phi(m, 1, 1, prefix_length=4),
  "low rank per row": lambda m: random_phi(m, 3, 3, rank=2),
  "both": lambda m: random_phi(m, 4, 3, prefix_length=3, rank=2, lengths=[1, 3, 0]),
}


@pytest.mark.parametrize("kind", PHIS)
def test_cached_equals_uncached(model, kind):
  phi = PHIS[kind](model)
  tokens, length = random_prompts(0, 3, 2, 6)
  ids, count = generate(model, phi, tokens, length, max_new_tokens=7, terminator=())
  assert ids.shape == (3, 2, 7) and np.all(count == 7)
  expected = greedy_by_hand(model, phi, tokens, length, 7)
  assert ids.tolist() == expected
  assert len({tuple(row) for rows in expected for row in rows}) > 3, "all rows are alike"


def test_one_row_equals_its_row_in_a_batch(model):
  phi = random_phi(model, 5, 3, prefix_length=4, lengths=[4, 1, 3])
  tokens, length = random_prompts(1, 3, 2, 5)

  def run(p, t, n):
    return generate(model, p, t, n, max_new_tokens=5, terminator=())[0]

  together = run(phi, tokens, length)
  for b in range(3):
    for m in range(2):
      one = run(row_of(phi, b), tokens[b:b + 1, m:m + 1], length[b:b + 1, m:m + 1])
      assert one[0, 0].tolist() == together[b, m].tolist()


def test_padding_changes_nothing(model):
  phi = random_phi(model, 6, 2, prefix_length=4, lengths=[2, 4])
  tokens, length = random_prompts(2, 2, 2, 5)
  wide = jnp.pad(tokens, [(0, 0), (0, 0), (0, 9)], constant_values=11)
  prefix = phi["decoder"]["self"]["prefix"]
  key, value = (
    jnp.pad(z, [(0, 0), (0, 0), (0, 3), (0, 0), (0, 0)], constant_values=7.0)
    for z in (prefix.key, prefix.value)
  )
  padded = {"decoder": {"self": {"prefix": phi_lib.Prefix(key, value, prefix.length)}}}
  a, _ = generate(model, phi, tokens, length, max_new_tokens=6, terminator=())
  b, _ = generate(model, padded, wide, length, max_new_tokens=6, terminator=())
  np.testing.assert_array_equal(a, b)


def test_rows_end_with_the_terminator_and_count_it(model):
  tokens, length = random_prompts(3, 4, 1, 5)
  free, _ = generate(model, None, tokens, length, max_new_tokens=8, terminator=())
  terminator = tuple(free[0, 0, 2:4].tolist())
  ids, count = generate(model, None, tokens, length, max_new_tokens=8, terminator=terminator)
  expected = greedy_by_hand(model, None, tokens, length, 8, terminator)
  assert ids_of(ids, count) == expected
  assert all(not ids[b, 0, count[b, 0]:].any() for b in range(4))
  assert int(count[0, 0]) <= 4


def test_a_terminator_of_zeros_is_not_found_in_unwritten_ids(model):
  tokens, length = random_prompts(3, 4, 1, 5)
  ids, count = generate(model, None, tokens, length, max_new_tokens=8, terminator=(0, 0, 0))
  assert ids_of(ids, count) == greedy_by_hand(model, None, tokens, length, 8, (0, 0, 0))


def test_a_terminator_longer_than_the_output_never_ends_a_row(model):
  tokens, length = random_prompts(5, 2, 1, 4)
  _, count = generate(model, None, tokens, length, max_new_tokens=2, terminator=(1, 2, 3))
  assert np.all(count == 2)


def test_each_row_has_its_own_limit(model):
  tokens, length = random_prompts(3, 4, 1, 5)
  free, _ = generate(model, None, tokens, length, max_new_tokens=8, terminator=())
  limit = jnp.array([[1], [3], [8], [20]])
  ids, count = generate(model, None, tokens, length, max_new_tokens=8, terminator=(), limit=limit)
  assert count[:, 0].tolist() == [1, 3, 8, 8]
  for row, size in enumerate([1, 3, 8, 8]):
    assert ids[row, 0].tolist() == [*free[row, 0, :size].tolist(), *[0] * (8 - size)]


def test_the_loop_ends_when_all_rows_have(model):
  """The model's steps are counted while compiled code runs."""
  tokens, length = random_prompts(6, 1, 1, 4)
  first = int(generate(model, None, tokens, length, max_new_tokens=1, terminator=())[0][0, 0, 0])
  calls = []

  class Counting(Llama):
    def advance(self, *args):
      jax.debug.callback(lambda: calls.append(1))
      return super().advance(*args)

  counting = Counting(CONFIG, rngs=nnx.Rngs(0))
  generate(counting, None, tokens, length, max_new_tokens=9, terminator=(first,))
  jax.effects_barrier()
  assert not calls
  generate(counting, None, tokens, length, max_new_tokens=9, terminator=())
  jax.effects_barrier()
  assert len(calls) == 8


def test_sampling_is_reproducible_and_independent_of_neighbours(model):
  tokens, length = random_prompts(7, 2, 2, 5)

  def draw(key, t=tokens, n=length):
    return generate(
      model, None, t, n, max_new_tokens=8, terminator=(), sampling=Sampling(key)
    )[0]

  np.testing.assert_array_equal(draw(jax.random.key(0)), draw(jax.random.key(0)))
  assert np.any(draw(jax.random.key(0)) != draw(jax.random.key(1)))
  keys = jax.random.split(jax.random.key(3), (2, 2))
  together = draw(keys)
  alone = draw(keys[1:, 1:], tokens[1:, 1:], length[1:, 1:])
  np.testing.assert_array_equal(together[1:, 1:], alone)


def by_hand(logits, temperature, top_k, top_p):
  """Token probabilities after temperature, top-k and top-p, the slow and plain way."""
  p = np.exp(np.asarray(logits, np.float64) / temperature)
  p /= p.sum()
  order = np.argsort(-p)
  keep, total = [], 0.0
  restricted = order[:top_k] if top_k else order
  mass = p[restricted].sum()
  for token in restricted:
    if total >= top_p:
      break
    keep.append(token)
    total += p[token] / mass
  out = np.zeros_like(p)
  out[keep] = p[keep]
  return out / out.sum()


@pytest.mark.parametrize("temperature, top_k, top_p", [
  (1.0, 0, 1.0), (0.5, 0, 1.0), (1.5, 6, 1.0), (1.0, 0, 0.7), (1.2, 10, 0.8),
])
def test_samples_follow_the_distribution(model, temperature, top_k, top_p):
  number = 4000
  prompt = jnp.arange(4, dtype=jnp.int32)
  sampling = Sampling(jax.random.key(0), temperature, top_k, top_p)
  ids, _ = generate(
    model, None, jnp.tile(prompt, (1, number, 1)), jnp.full((1, number), 4),
    max_new_tokens=1, terminator=(), sampling=sampling,
  )
  logits = next_logits(model, None, prompt[None, None], jnp.full((1, 1), 4))[0, 0]
  expected = by_hand(logits, temperature, top_k, top_p)
  observed = np.bincount(np.ravel(ids), minlength=CONFIG.vocab_size)
  assert not observed[expected == 0].any()
  likely = expected * number >= 5
  table = [np.append(z[likely], z[~likely].sum()) for z in (observed, expected * number)]
  table = [z[:-1] if table[1][-1] == 0 else z for z in table]
  assert stats.chisquare(*table).pvalue > 1e-4


@pytest.mark.parametrize("make, message", [
  (lambda: Sampling(None, temperature=0.0), "Sampling.temperature must be above 0"),
  (lambda: Sampling(None, top_k=-1), "Sampling.top_k must be at least 0"),
  (lambda: Sampling(None, top_p=0.0), "Sampling.top_p must be above 0"),
  (lambda: Sampling(None, top_p=1.1), "Sampling.top_p must be above 0"),
])
def test_sampling_refuses(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize("change, message", [
  ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
  ({"sampling": Sampling(None)}, "Sampling.key must be made by jax.random.key"),
  ({"sampling": Sampling(jax.random.PRNGKey(0))}, "Sampling.key must be made by jax.random.key"),
  (
    {"sampling": Sampling(jax.random.split(jax.random.key(0), 3))},
    r"Sampling.key must be one key or \(1, 1\) of them, not \(3,\)",
  ),
])
def test_generate_refuses(model, change, message):
  good = dict(
    tokens=jnp.ones((1, 1, 3), jnp.int32), length=jnp.full((1, 1), 3), max_new_tokens=2,
    terminator=(),
  )
  with pytest.raises(ValueError, match=message):
    generate(model, None, **(good | change))
