"""Batches: layout, what gets cut, resuming, hosts, and errors that cross the thread."""

import dataclasses

import jax
import numpy as np
import pytest

from hyperjax.data.episodes import Episode, EpisodeConfig, Query, TrainStream
from hyperjax.data.eval_episodes import eval_episodes
from hyperjax.data.layouts import EncoderDecoder
from hyperjax.data.loader import Loader, fit, to_batch
from hyperjax.data.shapes import BatchShape
from tests.data.fakes import numbered, write_folder


def ids(*values):
  return np.array(values, np.int32)


EPISODE = Episode(
  task="t",
  head=ids(1),
  shots=(ids(10, 11, 12), ids(20, 21), ids(30, 31, 32, 33)),
  queries=(Query(ids(1, 40, 41), ids(50, 51), 7), Query(ids(1, 60), ids(70, 71, 72), 8)),
  support_ids=(0, 1, 2),
  bos=True,
)


def test_the_layout_of_a_batch():
  batch, counts = to_batch([EPISODE], BatchShape(12, 3, 6, 4))
  assert batch.support.tokens.tolist() == [[1, 10, 11, 12, 20, 21, 30, 31, 32, 33, 0, 0]]
  assert batch.support.length.tolist() == [10]
  assert batch.query.tokens[0].tolist() == [
    [1, 40, 41, 50, 0, 0], [1, 60, 70, 71, 0, 0], [0, 0, 0, 0, 0, 0]
  ]  # fmt: skip
  assert batch.query.length.tolist() == [[4, 4, 1]]
  assert batch.query.target_index[0].tolist() == [[2, 3, 0, 0], [1, 2, 3, 0], [0, 0, 0, 0]]
  assert batch.targets[0].tolist() == [[50, 51, 0, 0], [70, 71, 72, 0], [0, 0, 0, 0]]
  assert batch.weights[0].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
  assert (counts.support_tokens, counts.query_tokens, counts.target_tokens) == (10, 8, 5)
  assert batch.real_tokens() == 10 + 8
  assert counts.padding == pytest.approx(1 - 18 / (12 + 18))
  assert {x.dtype.name for x in jax.tree.leaves(batch)} == {"int32", "float32"}


def test_fit_cuts_nothing():
  _, counts = to_batch([EPISODE], fit([EPISODE]))
  assert not any((counts.shots_dropped, counts.supports_cut, counts.inputs_cut, counts.targets_cut))


@pytest.mark.parametrize(
  "room,expected,dropped,cut",
  [
    (10, [1, 10, 11, 12, 20, 21, 30, 31, 32, 33], 0, 0),
    (9, [1, 20, 21, 30, 31, 32, 33], 1, 0),
    (5, [1, 30, 31, 32, 33], 2, 0),
    (4, [1, 31, 32, 33], 2, 1),
  ],
)
def test_a_long_support_loses_its_far_end(room, expected, dropped, cut):
  batch, counts = to_batch([EPISODE], BatchShape(room, 2, 6, 4))
  assert batch.support.tokens[0, : batch.support.length[0]].tolist() == expected
  assert (counts.shots_dropped, counts.supports_cut) == (dropped, cut)


def test_a_long_query_loses_the_left_of_its_input_and_keeps_bos():
  episode = dataclasses.replace(EPISODE, queries=(Query(ids(1, 2, 3, 4, 5), ids(8, 9), 0),))
  batch, counts = to_batch([episode], BatchShape(12, 1, 4, 2))
  assert batch.query.tokens.tolist() == [[[1, 4, 5, 8]]]
  assert batch.query.target_index.tolist() == [[[2, 3]]]
  assert (counts.inputs_cut, counts.targets_cut) == (1, 0)


def test_a_target_is_never_cut_silently():
  episode = dataclasses.replace(EPISODE, queries=(Query(ids(1, 2), ids(6, 7, 8, 9), 0),))
  batch, counts = to_batch([episode], BatchShape(12, 1, 8, 3))
  assert batch.targets.tolist() == [[[6, 7, 8]]]
  assert (counts.inputs_cut, counts.targets_cut) == (0, 1)


def test_too_many_queries_are_an_error():
  with pytest.raises(ValueError, match="'t': 2 queries do not fit"):
    to_batch([EPISODE], BatchShape(12, 1, 6, 4))


def test_an_empty_input_is_refused_where_nothing_else_precedes_the_target():
  queries = (EPISODE.queries[0], Query(ids(), ids(50, 51), 9))
  episode = dataclasses.replace(EPISODE, queries=queries)
  with pytest.raises(ValueError) as error:
    to_batch([episode], BatchShape(12, 2, 6, 4))
  assert str(error.value) == (
    "Task 't', query 9: its input has no tokens, so that nothing stands before its target: name "
    "another PROMPT, whose input template has a text of its own."
  )
  batch, _ = to_batch([episode], BatchShape(12, 2, 6, 4), EncoderDecoder((2,)))
  assert batch.query.tokens[0, 1].tolist() == [2, 0, 0, 0, 0, 0]
  assert batch.query.length.tolist() == [[4, 1]]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
  tasks = {"a": numbered(20), "b": numbered(25, "some longer input "), "c": numbered(30, "c")}
  manifest = write_folder(tmp_path_factory.mktemp("data"), tasks)
  config = EpisodeConfig(num_shots=(2, 4), num_queries=3, max_buckets=2)
  return TrainStream(manifest, config, seed=5, batch_size=4)


def equal(a, b):
  return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_resumed_loader_gives_the_same_batches(stream):
  with Loader(stream, stop_step=12) as loader:
    whole = list(loader)
  with Loader(stream, start_step=7, stop_step=12, prefetch=5) as loader:
    rest = list(loader)
  assert [step for step, *_ in whole] == list(range(12))
  assert [step for step, *_ in rest] == list(range(7, 12))
  for (_, a, info_a), (_, b, info_b) in zip(whole[7:], rest, strict=True):
    assert equal(a, b) and info_a == info_b


def test_hosts_share_the_global_batch(stream):
  with Loader(stream, stop_step=5) as loader:
    whole = list(loader)
  parts = []
  for rows in (range(0, 1), range(1, 4)):
    with Loader(stream, stop_step=5, rows=rows) as loader:
      parts.append(list(loader))
  for (_, all_rows, info), (_, a, info_a), (_, b, info_b) in zip(whole, *parts, strict=True):
    joined = jax.tree.map(lambda x, y: np.concatenate([x, y]), a, b)
    assert equal(all_rows, joined) and info.tasks == info_a.tasks + info_b.tasks


def test_real_tokens_are_those_of_the_episodes(stream):
  with Loader(stream, stop_step=6) as loader:
    for step, batch, info in loader:
      episodes = [stream.episode(step, row) for row in range(4)]
      assert info.tasks == tuple(e.task for e in episodes)
      for row, episode in enumerate(episodes):
        length = batch.support.length[row]
        assert episode.support[-length:].tolist() == batch.support.tokens[row, :length].tolist()
        for column, query in enumerate(episode.queries):
          real = batch.weights[row, column] > 0
          assert batch.targets[row, column][real].tolist() == query.target.tolist()


def test_an_error_in_the_thread_surfaces_in_the_loop(stream):
  class Broken:
    batch_size, layout, remark = 4, stream.layout, ""
    bucket = stream.bucket

    def episode(self, step, row):
      if step == 2:
        raise OSError("the disk is gone")
      return stream.episode(step, row)

  seen = []
  with pytest.raises(OSError, match="the disk is gone"), Loader(Broken()) as loader:
    for step, *_ in loader:
      seen.append(step)
  assert seen == [0, 1]


def test_a_loader_that_is_left_early_ends_its_thread(stream):
  with Loader(stream) as loader:
    next(iter(loader))
  assert not loader._thread.is_alive()


def test_evaluation_episodes_make_batches(tmp_path):
  manifest = write_folder(tmp_path, {"t": numbered(12)})
  episodes = eval_episodes(manifest, "t", num_shots=3, num_queries=5, max_queries=None, seed=0)
  batch, _ = to_batch(episodes, fit(episodes))
  assert batch.targets.shape[:2] == (3, 5)
  assert (batch.weights.sum(-1) > 0).sum() == 12
