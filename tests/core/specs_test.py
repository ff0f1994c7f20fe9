"""The sites of a model and the specs of phis there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core import phi as phi_lib
from hyperjax.core import specs

PLACES = {
  "embed": specs.PromptSite(300),
  "decoder.self.prefix": specs.PrefixSite(3, 2, 8),
  "decoder.self.q": specs.LowRankSite(3, 32, 16),
}


@pytest.mark.parametrize("rank", [-1, 0, 17])
def test_a_rank_out_of_range_names_the_projection(rank):
  with pytest.raises(ValueError, match=f"rank {rank} is not in 1..16, .* a 32 x 16 projection"):
    specs.low_rank_leaf(3, 32, 16, rank, 1.0)
  assert specs.low_rank_leaf(3, 32, 16, 16, 8.0).scale == 0.5


@pytest.mark.parametrize("site", ["embed", "decoder.self.prefix"])
def test_a_length_out_of_range_names_the_site(site):
  with pytest.raises(ValueError, match=f"prefix at '{site}' has length 0; it must be at least 1"):
    specs.make_spec(PLACES, [site], rank=1)


def test_patterns_stand_for_whole_parts():
  assert specs.match(["*.*.*"], PLACES) == ["decoder.self.prefix", "decoder.self.q"]
  assert specs.match(["*", "*.self.q"], PLACES) == ["embed", "decoder.self.q"]
  with pytest.raises(ValueError, match="unknown site 'embd'; the nearest is 'embed' of"):
    specs.match(["embd"], PLACES)


def test_a_prompt_starts_between_minus_and_plus_a_half():
  spec = specs.make_spec(PLACES, ["embed"], prefix_length=20)
  phi = phi_lib.init(spec, jax.random.key(0))
  phi_lib.check(phi, spec)
  node = phi["embed"]
  assert node.value.shape == (1, 1, 20, 300) and node.length.tolist() == [[20]]
  assert -0.5 <= node.value.min() < -0.49 and 0.49 < node.value.max() <= 0.5
  assert abs(node.value.mean()) < 0.02 and node.length.dtype == jnp.int32
  assert phi_lib.size(spec) == 6000
  again = phi_lib.init(spec, jax.random.key(1))
  assert not np.array_equal(node.value, again["embed"].value)
