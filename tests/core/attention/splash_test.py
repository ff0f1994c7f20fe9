"""Splash attention, worked off by Pallas' interpreter, against the einsum: outputs and gradients.

Blocks are of 128: the cases fill two and more, so that some are skipped.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core import masks
from hyperjax.core.attention import einsum, splash
from hyperjax.hypermodels.gisting_t5 import CrossGist
from tests.core.attention.rows import interpreted, prefix_of, random, run, sequence

LENGTHS = jnp.asarray([[60, 0, 17], [33, 2, 60]])
STARTS = jnp.asarray([[5, 0, 16], [0, 1, 40]])
CASES = {
  "a support": (dict(rows=1, length=140), masks.Causal(), None),
  "behind a prefix for both": (dict(rows=1, length=125), masks.Causal(), prefix_of(3)),
  "queries behind ragged prefixes": (dict(rows=3, length=60), masks.Causal(), prefix_of(5, 2)),
  "texts of lengths, behind prefixes": (
    dict(rows=3, length=20, keys=60), masks.Whole(LENGTHS), prefix_of(0, 4)
  ),
  "texts from somewhere on": (
    dict(rows=3, length=20, keys=60), CrossGist(LENGTHS, STARTS), None
  ),
  "one masked pass": (
    dict(rows=1, length=26 + 3 * 40), masks.Gist(jnp.asarray([20, 3]), 4, 26, 40), None
  ),
  "one masked pass behind prefixes": (
    dict(rows=1, length=26 + 3 * 40), masks.Gist(jnp.asarray([20, 3]), 4, 26, 40), prefix_of(2, 5)
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_splash_is_the_einsum(monkeypatch, case):
  """A query that sees nothing has no weight, and comes out finite."""
  interpreted(monkeypatch)
  sizes, mask, prefix = CASES[case]
  arrays = sequence(np.float32, **sizes)
  seen = np.ones(arrays[0].shape[:3], bool)
  if isinstance(mask, masks.Whole):
    seen &= np.asarray(mask.real(60)).any(-1)[..., None]
    seen |= False if prefix is None else np.asarray(prefix.length)[:, None, None] > 0
    assert not seen.all()
  weights = random(5, *arrays[0].shape, dtype=np.float32) * seen[..., None, None]
  kernel = partial(splash.attend, interpret=True)
  (ours, grads), (theirs, wanted) = (
    run(attend, arrays, mask, prefix, weights) for attend in (kernel, einsum.attend)
  )
  np.testing.assert_allclose(ours[seen], theirs[seen], rtol=1e-5, atol=2e-6)
  assert np.isfinite(ours).all()
  for ours, theirs in zip(grads, wanted, strict=True):
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_rows_side_by_side_by_place(causal):
  """Two keys in front, three rows of four queries over four keys, and what pads both."""
  mask = splash.SideBySide((16, 20), 2, 3, 4, 4, causal)
  wanted = np.zeros((16, 20), bool)
  wanted[:, :2] = True
  for row in range(3):
    own = np.tri(4, dtype=bool) if causal else True
    wanted[4 * row : 4 * row + 4, 2 + 4 * row : 6 + 4 * row] = own
  wanted[12:] = wanted[11]
  np.testing.assert_array_equal(mask[:, :], wanted)
  np.testing.assert_array_equal(mask[4:9, 8:], wanted[4:9, 8:])
  assert mask == splash.SideBySide((16, 20), 2, 3, 4, 4, causal) and hash(mask) == hash(mask)


def test_rows_that_the_kernel_could_not_tell_apart_are_refused():
  with pytest.raises(ValueError, match="2 rows of 65537 keys do not fit"):
    splash.SideBySide((65664, 131328), 0, 2, 65537, 65537, True)


@pytest.mark.parametrize("size, block, padded", [
  (1, 128, 128), (320, 384, 384), (1088, 384, 1152), (2112, 384, 2304), (8256, 512, 8704),
  (8192, 512, 8192), (640, 128, 640),
])  # fmt: skip
def test_blocks_are_large_where_that_costs_little_padding(size, block, padded):
  assert splash._block(size) == block
  assert splash._padded(jnp.zeros((1, size, 1), bool), block).shape[1] == padded
