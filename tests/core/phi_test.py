"""The tree of task parameters: what it holds, what check refuses, how rows and trees combine."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core import phi as phi_lib
from hyperjax.core.phi import LowRank, Prefix
from tests.models import tiny, tiny_t5
from tests.trees import assert_equal

Q, V, PREFIX = "decoder.self.q", "decoder.self.v", "decoder.self.prefix"


def spec(prefix=4, rank=3, alpha=6.0, sites=(Q, V)):
  return tiny.llama().phi_spec([PREFIX, *sites], prefix_length=prefix, rank=rank, alpha=alpha)


def phi_of(rows=2, *, seed=5, lengths=None, **changes):
  return tiny.random_phi(spec(**changes), rows, seed=seed, lengths=lengths)


def without(phi, *sites):
  out: dict = {}
  for site, node in phi_lib.sites(phi).items():
    if site not in sites:
      phi_lib.insert(out, site, node)
  return out


def replaced(phi, site, node):
  out = without(phi)
  phi_lib.insert(out, site, node)
  return out


def test_a_child_gets_its_part_and_none_stays_none():
  phi = phi_of()
  assert phi_lib.sub(phi, "decoder") is phi["decoder"]
  assert phi_lib.sub(phi, "encoder") is None and phi_lib.sub(None, "decoder") is None


def test_initial_values_come_from_the_spec():
  s = spec(sites=tiny.SITES)
  phi = phi_lib.init(s, jax.random.key(0))
  phi_lib.check(phi, s)
  sites = phi_lib.sites(phi)
  prefix = sites[PREFIX]
  assert prefix.length.tolist() == [[4]] * 3 and prefix.length.dtype == jnp.int32
  assert 0.4 < prefix.key.std() < 0.6
  assert not np.array_equal(prefix.key, prefix.value)
  for name in tiny.SITES:
    node = sites[name]
    assert not node.b.any() and node.scale == 2.0
    assert np.isclose(node.a.std(), node.a.shape[2] ** -0.5, rtol=0.25), name


def test_the_size_counts_real_entries_only():
  prefix, q, v = 2 * 3 * 4 * 16, 3 * 3 * (32 + 32), 3 * 3 * (32 + 16)
  assert phi_lib.size(spec()) == prefix + q + v
  assert phi_lib.size({}) == 0


def test_sites_are_dotted_names():
  phi = phi_of()
  assert set(phi_lib.sites(phi)) == {PREFIX, Q, V}
  assert phi_lib.sites(phi)[Q] is phi["decoder"]["self"]["q"]
  assert phi_lib.sites(None) == {}


def test_what_is_no_node_is_named():
  with pytest.raises(ValueError, match="holds a list at 'decoder.q', not a Prefix, Prompt or Low"):
    phi_lib.sites({"decoder": {"q": [1]}})


@pytest.mark.parametrize("rows", [1, 2])
def test_check_takes_any_batch_size(rows):
  phi_lib.check(phi_of(rows), spec())
  phi_lib.check(None, {})


def test_check_names_an_unknown_site_and_the_nearest():
  node = phi_lib.sites(phi_of())[Q]
  with pytest.raises(ValueError, match="site 'decoder.self.qq'; did you mean 'decoder.self.q'"):
    phi_lib.check(replaced(phi_of(), "decoder.self.qq", node), spec())
  with pytest.raises(ValueError, match=r"unknown site 'zzz'; the model has \['decoder.self.pre"):
    phi_lib.check(replaced(phi_of(), "zzz", node), spec())


def test_check_names_a_missing_site():
  with pytest.raises(ValueError, match=r"lacks the site 'decoder.self.v'; it has \['decoder"):
    phi_lib.check(without(phi_of(), V), spec())
  with pytest.raises(ValueError, match=r"lacks the site 'decoder.self.prefix'; it has \[\]"):
    phi_lib.check(None, spec())


def test_check_names_a_node_of_another_kind():
  phi = replaced(phi_of(), Q, phi_lib.sites(phi_of())[PREFIX])
  with pytest.raises(ValueError, match="has a Prefix at 'decoder.self.q' where a LowRank belongs"):
    phi_lib.check(phi, spec())


def test_check_names_another_scale():
  with pytest.raises(ValueError, match="scale at 'decoder.self.[qv]' is 2.0, the spec says 3.0"):
    phi_lib.check(phi_of(), spec(alpha=9.0))


def test_check_names_another_shape():
  expected = r"decoder.self.prefix.key has shape \(3, 2, 5, 2, 8\), the spec says \(3, B, 4, 2, 8\)"
  with pytest.raises(ValueError, match=expected):
    phi_lib.check(phi_of(prefix=5), spec())
  q = phi_lib.sites(phi_of())[Q]
  flat = dataclasses.replace(q, b=q.b[:, 0])
  expected = r"decoder.self.q.b has shape \(3, 3, 32\), the spec says \(3, B, 3, 32\)"
  with pytest.raises(ValueError, match=expected):
    phi_lib.check(replaced(phi_of(), Q, flat), spec())
  prefix = phi_lib.sites(phi_of())[PREFIX]
  short = dataclasses.replace(prefix, length=prefix.length[:2])
  expected = r"decoder.self.prefix.length has shape \(2, 2\), the spec says \(3, B\)"
  with pytest.raises(ValueError, match=expected):
    phi_lib.check(replaced(phi_of(), PREFIX, short), spec())


def test_stack_rows_pads_prefixes_and_ranks():
  """Whether padding acts on a model is tested there; here what the arrays are."""
  long, short = phi_of(1, rank=1), phi_of(2, seed=6, prefix=2, rank=3, alpha=1.5, lengths=(2, 1))
  stacked = phi_lib.sites(phi_lib.stack_rows([long, short]))
  prefix = stacked[PREFIX]
  assert prefix.key.shape == (3, 3, 4, 2, 8) and prefix.length[0].tolist() == [4, 2, 1]
  np.testing.assert_array_equal(prefix.key[:, 1:, :2], phi_lib.sites(short)[PREFIX].key)
  q = stacked[Q]
  assert q.a.shape == (3, 3, 32, 3) and q.scale == 1.0
  for row, source in ((0, long), (1, short)):
    node = phi_lib.sites(source)[Q]
    np.testing.assert_allclose(
      q.a[:, row] @ q.b[:, row], node.scale * node.a[:, 0] @ node.b[:, 0], rtol=1e-5, atol=1e-5
    )


def test_stack_rows_refuses_other_sites():
  message = r"cannot share a batch: \['decoder.self.prefix', .*\] and \['decoder.self.prefix'\]"
  with pytest.raises(ValueError, match=message):
    phi_lib.stack_rows([phi_of(1), phi_of(1, sites=())])


def test_stack_rows_pads_prompts():
  model = tiny_t5.t5()
  phis = [
    tiny.random_phi(model.phi_spec(["embed"], prefix_length=size), 1, seed=size) for size in (2, 4)
  ]
  node = phi_lib.stack_rows(phis)["embed"]
  assert node.value.shape == (1, 2, 4, 32) and node.length.tolist() == [[2, 4]]
  for row, phi in enumerate(phis):
    size = phi["embed"].value.shape[2]
    np.testing.assert_array_equal(node.value[:, row, :size], phi["embed"].value[:, 0])


def test_merge_has_the_sites_of_both():
  phi = phi_of()
  assert_equal(phi_lib.merge(without(phi, Q), without(phi, V, PREFIX)), phi)
  assert_equal(phi_lib.merge(None, phi), phi)
  assert_equal(phi_lib.merge(phi, None), phi)


def test_merge_refuses_a_site_of_both():
  with pytest.raises(ValueError, match="both phis have a node at 'decoder.self.q'"):
    phi_lib.merge(without(phi_of(), V), without(phi_of(), PREFIX, V))


def test_merge_changes_neither():
  first, second = without(phi_of(), Q), without(phi_of(), V, PREFIX)
  phi_lib.merge(first, second)
  assert set(phi_lib.sites(first)) == {PREFIX, V} and set(phi_lib.sites(second)) == {Q}


def test_a_whole_prefix_is_real_up_to_its_length():
  key = jnp.zeros((3, 2, 4, 2, 8))
  assert phi_lib.whole_prefix(key, key).length.tolist() == [[4, 4]] * 3
  prefix = phi_lib.whole_prefix(key, key, jnp.asarray([1, 3]))
  assert prefix.length.tolist() == [[1, 3]] * 3 and prefix.length.dtype == jnp.int32


def test_unknown_positions_of_a_prefix_are_named():
  message = r"Prefix.positions must be one of \('none', 'before'\), not 'after'"
  with pytest.raises(ValueError, match=message):
    Prefix(1, 2, 3, "after")


def test_nodes_are_trees_whose_scale_is_static():
  assert len(jax.tree.leaves(Prefix(1, 2, 3))) == 3
  leaves, tree = jax.tree.flatten(LowRank(1, 2, 0.5))
  assert leaves == [1, 2] and tree.unflatten(leaves).scale == 0.5


def test_rows_of_several_batches_are_joined_and_chosen():
  def phi(start):
    rows = lambda size: start + jnp.arange(2.0 * size).reshape(1, 2, size, 1, 1)
    prefix = phi_lib.whole_prefix(rows(3), -rows(3), jnp.array([2, 3]))
    shared = LowRank(jnp.full((1, 1, 4, 2), start), jnp.full((1, 1, 2, 4), start), 2.0)
    return {"prefix": prefix, "q": shared}

  joined = phi_lib.join([phi(0.0), phi(100.0)], 2)
  assert joined["prefix"].key[0, :, 0, 0, 0].tolist() == [0, 3, 100, 103]
  assert joined["prefix"].length.tolist() == [[2, 3, 2, 3]]
  assert joined["q"].a.shape == (1, 1, 4, 2)
  chosen = phi_lib.take(joined, jnp.array([3, 0, 3]))
  assert chosen["prefix"].value[0, :, 0, 0, 0].tolist() == [-103, 0, -103]
  assert chosen["prefix"].length.tolist() == [[3, 2, 3]] and chosen["q"].scale == 2.0
  assert chosen["q"].a.shape == (1, 1, 4, 2)
  assert phi_lib.join([None, None], 2) is None and phi_lib.take(None, jnp.array([0])) is None


def test_batches_of_one_episode_are_joined_too():
  one = {"q": LowRank(jnp.zeros((1, 1, 4, 2)), jnp.zeros((1, 1, 2, 4)))}
  two = jax.tree.map(lambda leaf: leaf + 1, one)
  assert phi_lib.join([one, two], 1)["q"].a[0, :, 0, 0].tolist() == [0, 1]
