"""Means and concatenations of phis act on a model as what they stand for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core import arithmetic
from hyperjax.core import phi as phi_lib
from hyperjax.core.phi import Prefix
from tests.models import tiny, tiny_t5

Q, V, PREFIX = "decoder.self.q", "decoder.self.v", tiny.PREFIX


@pytest.fixture(autouse=True)
def x64():
  with jax.enable_x64(True):
    yield


def assert_same(a, b, tolerance=1e-9):
  np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


def llama():
  return tiny.llama(jnp.float64)


def phi_of(rows, seed, *, prefix=0, rank=0, alpha=6.0, lengths=None, sites=(Q, V)):
  chosen = [PREFIX] * bool(prefix) + list(sites if rank else ())
  spec = llama().phi_spec(chosen, prefix_length=prefix, rank=rank, alpha=alpha)
  return tiny.random_phi(spec, rows, seed=seed, dtype=jnp.float64, lengths=lengths)


def updates(phi, site):
  """[L, B, D, out], what a low-rank update adds to the weights."""
  node = phi_lib.sites(phi)[site]
  return node.scale * jnp.einsum("lbdr,lbro->lbdo", node.a, node.b)


def move():
  return arithmetic.rotary(llama().decoder.frequencies)


# ---- Means -------------------------------------------------------------------------------------


def test_the_mean_of_updates_is_exact_whatever_their_ranks_and_scales():
  phis = [phi_of(2, 1, rank=1), phi_of(1, 2, rank=3, alpha=1.0), phi_of(2, 3, rank=2)]
  mean = arithmetic.mean(phis)
  assert phi_lib.sites(mean)[Q].a.shape == (3, 2, 32, 6)
  for site in (Q, V):
    assert_same(updates(mean, site), sum(updates(phi, site) for phi in phis) / 3)
  query = tiny.query(2, 2, 5)
  by_hand = tiny.logits(tiny.merged(llama(), mean, 1), tiny.row(query, 1))
  assert_same(tiny.logits(llama(), query, mean)[1:], by_hand)


def test_the_mean_of_one_phi_is_that_phi():
  phi = phi_of(2, 1, prefix=3, rank=2, lengths=(3, 2))
  query = tiny.query(2, 1, 4)
  assert_same(
    tiny.logits(llama(), query, arithmetic.mean([phi])), tiny.logits(llama(), query, phi)
  )


def test_prefixes_are_averaged_entry_by_entry():
  phis = [phi_of(2, seed, prefix=3, lengths=(3, 2)) for seed in (1, 2)]
  node = phi_lib.sites(arithmetic.mean(phis))[PREFIX]
  one, two = (phi_lib.sites(phi)[PREFIX] for phi in phis)
  assert_same(node.key, (one.key + two.key) / 2)
  assert_same(node.value, (one.value + two.value) / 2)
  assert node.length.tolist() == [[3, 2]] * 3 and node.length.dtype == jnp.int32


@pytest.mark.parametrize("make, message", [
  (lambda: [], "there is no phi to take the mean of"),
  (lambda: [phi_of(1, 1, rank=1), phi_of(1, 1, rank=1, sites=(Q,))], "different sites have no"),
  (lambda: [phi_of(1, 1, prefix=3), phi_of(1, 1, prefix=2)], "different lengths at 'decoder.self"),
  (lambda: [phi_of(1, 1, prefix=3), phi_of(1, 1, prefix=3, lengths=(2,))], "different lengths"),
])
def test_phis_without_a_mean_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    arithmetic.mean(make())


# ---- Low-rank updates of both ------------------------------------------------------------------


def test_the_ranks_of_both_give_the_sum_of_their_updates():
  first, second = phi_of(2, 1, rank=1), phi_of(1, 2, rank=3, alpha=1.0)
  both = arithmetic.concatenate(first, second, move=None)
  query = tiny.query(2, 2, 5)
  ours = tiny.logits(llama(), query, both)
  for b in range(2):
    model = tiny.merged(tiny.merged(llama(), first, b), second, 0)
    assert_same(ours[b], tiny.logits(model, tiny.row(query, b))[0])
  assert phi_lib.sites(both)[V].b.shape == (3, 2, 4, 16)


def test_what_only_one_has_stays():
  first, second = phi_of(1, 1, prefix=3, rank=2, sites=(Q,)), phi_of(1, 2, rank=1, sites=(V,))
  for one, two in ((first, second), (second, first)):
    both = phi_lib.sites(arithmetic.concatenate(one, two, move=move()))
    assert set(both) == {PREFIX, Q, V}
    for site, node in (phi_lib.sites(first) | phi_lib.sites(second)).items():
      jax.tree.map(np.testing.assert_array_equal, both[site], node)


# ---- One prefix behind the other ---------------------------------------------------------------


def read(model, tokens, at, length):
  """A text's own keys and values, standing at positions [B, S], as a phi."""
  key, value = model.read(model.embed_tokens(tokens), at)
  return {"decoder": {"self": {"prefix": phi_lib.whole_prefix(key, value, length)}}}


def test_llamas_second_prefix_is_a_text_read_at_the_places_behind_the_first():
  model = llama()
  texts = [tiny.tokens(seed, 3, size) for seed, size in ((1, 4), (2, 5))]
  lengths = [jnp.array(x, jnp.int32) for x in ((4, 2, 0), (3, 5, 4))]
  first, second = (
    read(model, text, jnp.arange(text.shape[1])[None], length)
    for text, length in zip(texts, lengths, strict=True)
  )
  both = arithmetic.concatenate(first, second, move=move())
  node = phi_lib.sites(both)[PREFIX]
  assert node.length.tolist() == [[7, 7, 4]] * 3 and node.key.shape[2] == 9

  placed = read(model, texts[1], lengths[0][:, None] + jnp.arange(5), lengths[1])
  one, two = (phi_lib.sites(phi)[PREFIX] for phi in (first, placed))
  query = tiny.query(3, 2, 5)
  ours = tiny.logits(model, query, both)
  for b in range(3):
    n, m = int(lengths[0][b]), int(lengths[1][b])
    key, value = (
      jnp.concatenate([x[:, b : b + 1, :n], y[:, b : b + 1, :m]], 2)
      for x, y in ((one.key, two.key), (one.value, two.value))
    )
    assert_same(node.key[:, b : b + 1, : n + m], key)
    expected = {"decoder": {"self": {"prefix": phi_lib.whole_prefix(key, value)}}}
    assert_same(ours[b], tiny.logits(model, tiny.row(query, b), expected)[0])
  plain = tiny.logits(model, query, arithmetic.concatenate(first, second, move=None))
  assert np.abs(plain - ours)[:2].max((1, 2, 3)).min() > 1e-3
  assert_same(plain[2], ours[2])  # nothing stands before this one


def test_a_prefix_cut_in_two_is_whole_again():
  phi = phi_of(2, 1, prefix=5)
  whole = phi_lib.sites(phi)[PREFIX]
  back = jnp.full((3, 2), -2, jnp.int32)
  first = phi_lib.whole_prefix(whole.key[:, :, :2], whole.value[:, :, :2])
  second = phi_lib.whole_prefix(move()(whole.key[:, :, 2:], back), whole.value[:, :, 2:])
  wrap = lambda node: {"decoder": {"self": {"prefix": node}}}
  again = arithmetic.concatenate(wrap(first), wrap(second), move=move())
  jax.tree.map(assert_same, again, phi)


@pytest.mark.parametrize("positions", ["none", "before"])
def test_t5s_prefix_cut_in_two_is_whole_again(positions):
  """Row by row at another place, all three attentions; no key is turned."""
  model, query = tiny_t5.t5(jnp.float64), tiny_t5.query(2, 2, 5)
  spec = model.phi_spec(["*.*.prefix"], prefix_length=5, positions=positions)
  phi = tiny.random_phi(spec, 2, dtype=jnp.float64, lengths=(5, 4))
  first, second = {}, {}
  for site, node in phi_lib.sites(phi).items():
    cut = jnp.array([2, 3], jnp.int32)
    part = lambda n, m, node=node, cut=cut: phi_lib.whole_prefix(n, m, cut, positions)
    phi_lib.insert(first, site, part(node.key[:, :, :3], node.value[:, :, :3]))
    rest = [
      jnp.stack([x[:, 0, 2:5], x[:, 1, [3, 0, 0]]], 1)
      for x in (node.key, node.value)
    ]
    length = jnp.broadcast_to(jnp.array([3, 1], jnp.int32), node.length.shape)
    phi_lib.insert(second, site, Prefix(*rest, length, positions))
  again = arithmetic.concatenate(first, second, move=None)
  assert_same(tiny.logits(model, query, again), tiny.logits(model, query, phi))
  swapped = arithmetic.concatenate(second, first, move=None)
  same = np.abs(tiny.logits(model, query, swapped) - tiny.logits(model, query, phi)).max()
  assert same < 1e-9 if positions == "none" else same > 1e-3


# ---- Soft prompts ------------------------------------------------------------------------------


def prompt_of(rows, size, seed, lengths=None):
  spec = tiny_t5.t5(jnp.float64).phi_spec(["embed"], prefix_length=size)
  return tiny.random_phi(spec, rows, seed=seed, dtype=jnp.float64, lengths=lengths)


def test_prompts_are_averaged_entry_by_entry():
  phis = [prompt_of(2, 3, seed, (3, 2)) for seed in (1, 2)]
  node = arithmetic.mean(phis)["embed"]
  assert_same(node.value, (phis[0]["embed"].value + phis[1]["embed"].value) / 2)
  assert node.length.tolist() == [[3, 2]]
  with pytest.raises(ValueError, match="different lengths at 'embed' have no mean"):
    arithmetic.mean([phis[0], prompt_of(2, 3, 3)])


def test_a_prompt_behind_another_is_one_long_prompt():
  """Row by row at another place, and as the model reads them."""
  model, query = tiny_t5.t5(jnp.float64), tiny_t5.query(3, 2, 5)
  first, second = prompt_of(3, 4, 1, (4, 2, 0)), prompt_of(1, 3, 2, (2,))
  both = arithmetic.concatenate(first, second, move=None)
  assert both["embed"].length.tolist() == [[6, 4, 2]]
  ours = tiny.logits(model, query, both)
  for b, n in enumerate((4, 2, 0)):
    one, two = first["embed"].value[0, b, :n], second["embed"].value[0, 0, :2]
    long = model.prompted(jnp.concatenate([one, two]))
    assert_same(ours[b], tiny.logits(model, tiny.row(query, b), long)[0])


def test_concatenation_works_inside_a_program():
  first, second = (phi_of(2, s, prefix=3, rank=2, lengths=(3, 1)) for s in (1, 2))
  make = lambda a, b: (arithmetic.concatenate(a, b, move=move()), arithmetic.mean([a, b]))
  for one, two in zip(make(first, second), jax.jit(make)(first, second), strict=True):
    jax.tree.map(assert_same, one, two)


def test_nodes_that_do_not_go_together_are_named():
  first, second = phi_of(1, 1, prefix=3), phi_of(1, 2, prefix=3)
  node = phi_lib.sites(second)[PREFIX]
  other = {"decoder": {"self": {"prefix": dataclasses.replace(node, positions="before")}}}
  with pytest.raises(ValueError, match=r"different positions at 'decoder.self.prefix': \['before"):
    arithmetic.concatenate(first, other, move=None)
  odd = {"decoder": {"self": {"prefix": phi_lib.sites(phi_of(1, 1, rank=1))[Q]}}}
  with pytest.raises(ValueError, match=r"different kinds at .*: \['LowRank', 'Prefix'\]"):
    arithmetic.concatenate(first, odd, move=None)
