"""CACLM: four parts of one window, every window once in an epoch, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax.data.caclm import CaclmConfig, CaclmStream
from hyperjax.data.loader import to_batch
from tests.data.fakes import Bytes, numbered, write_folder

# Ids that say where they stand: document 0 counts 1000, 1001, ...; document 2 counts 1200, ...
DOCUMENTS = [range(1000, 1100), range(1100, 1110), range(1200, 1270)]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bos"])
def manifest(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  return write_folder(folder, {"text.a": [list(d) for d in DOCUMENTS]}, adds_bos=request.param)


def parts(manifest, episode):
  """(A, B, C, D) of an episode."""
  bos = int(manifest.vocabulary["adds_bos"])
  support = episode.support.tolist()
  source = episode.queries[0].input.tolist()
  assert support[:bos] == source[:bos] == [Bytes.bos_id] * bos
  support, source = support[bos:], source[bos:]
  eos = support.index(Bytes.eos_id)
  return support[:eos], source, episode.queries[0].target.tolist(), support[eos + 1 :]


@settings(max_examples=60)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.sampled_from(["equal", "random"]))
def test_the_parts_make_up_a_window(manifest, seed, step, cuts):
  stream = CaclmStream(manifest, CaclmConfig(32, cuts), seed=seed, batch_size=2)
  episode = stream.episode(step, 1)
  four = parts(manifest, episode)
  window = sum(four, [])
  assert window == list(range(window[0], window[0] + 32))
  assert window[0] // 100 == window[-1] // 100
  assert min(map(len, four)) >= stream.config.shortest
  if cuts == "equal":
    assert list(map(len, four)) == [8] * 4
  _, counts = to_batch([episode], stream.bucket(step))
  assert not any((counts.shots_dropped, counts.supports_cut, counts.inputs_cut, counts.targets_cut))


def test_every_window_comes_once_in_an_epoch_and_none_overlap(manifest):
  stream = CaclmStream(manifest, CaclmConfig(32), seed=1, batch_size=1)
  for epoch in range(4):
    starts = sorted(
      parts(manifest, stream.episode(step, 0))[0][0] for step in range(epoch * 5, epoch * 5 + 5)
    )
    assert [start < 1200 for start in starts] == [True] * 3 + [False] * 2
    assert all(b - a >= 32 for a, b in zip(starts, starts[1:], strict=False))
  assert stream.remark == "Documents shorter than WINDOW 32 are not read: 1 of text.a."


def test_an_episode_depends_on_seed_step_and_row_only(manifest):
  config = CaclmConfig(16, "random")
  one = CaclmStream(manifest, config, seed=9, batch_size=4)
  [one.episode(step, 2) for step in range(5)]
  other = CaclmStream(manifest, config, seed=9, batch_size=4)
  assert np.array_equal(one.episode(3, 1).support, other.episode(3, 1).support)
  assert not np.array_equal(one.episode(3, 1).support, other.episode(3, 2).support)


def test_short_documents_are_an_error_that_names_the_longest(manifest):
  with pytest.raises(ValueError, match="'text.a': none of its 3 documents has a window of 512 "
                     "tokens; the longest has 100"):
    CaclmStream(manifest, CaclmConfig(), seed=0, batch_size=1)


def test_examples_are_no_documents(tmp_path):
  manifest = write_folder(tmp_path, {"few": numbered(5)})
  with pytest.raises(ValueError, match="'few' has inputs"):
    CaclmStream(manifest, CaclmConfig(), seed=0, batch_size=1)


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_outside_the_batch_is_refused(manifest, row):
  stream = CaclmStream(manifest, CaclmConfig(16), seed=0, batch_size=4)
  with pytest.raises(IndexError, match=f"Row {row} is outside the batch of 4"):
    stream.episode(0, row)


def test_configuration_errors():
  with pytest.raises(ValueError, match="cuts is 'half'; allowed: equal, random"):
    CaclmConfig(cuts="half")
  with pytest.raises(ValueError, match="window is 4"):
    CaclmConfig(window=4)
