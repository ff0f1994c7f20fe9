"""So many examples of each class: counts, queries, order, and what is refused."""

import collections
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax.data import eval_sets, loader, shots
from hyperjax.data.episodes import EpisodeConfig, TrainStream
from hyperjax.data.eval_episodes import eval_episodes
from hyperjax.data.eval_sets import EvalConfig
from hyperjax.data.shots import PerClass
from hyperjax.data.store import Store
from tests.data.fakes import Bytes, Cased, numbered, write_examples, write_folder


def labelled(**sizes: int) -> list[dict]:
  """Examples of classes of these sizes, sorted by class."""
  return [
    {"input": f"{label}{i}", "output": label, "options": list(sizes)}
    for label, size in sizes.items() for i in range(size)
  ]  # fmt: skip


def shown(episode) -> list[tuple[str, str]]:
  """The (input, label) pairs of a support."""
  return [tuple(Bytes().decode(shot)[:-1].split("=")) for shot in episode.shots]


def asked(episode) -> set[str]:
  return {Bytes().decode(query.input)[:-1] for query in episode.queries}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
  """Two classes, one of them rare; three; and two whose inputs recur, one with both labels."""
  recurring = [{"input": f"{i % 12}", "output": "up" if i % 12 < 6 else "down"} for i in range(36)]
  return write_folder(
    tmp_path_factory.mktemp("data"),
    {
      "rare": labelled(yes=60, no=6),
      "three": labelled(art=9, law=20, war=12),
      "recurring": [*recurring, {"input": "0", "output": "down"}],
    },
  )


CLASSES = {"rare": 2, "three": 3, "recurring": 2}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**7), row=st.integers(0, 3))
def test_a_training_support_has_so_many_of_each_class_and_no_query(manifest, seed, step, row):
  config = EpisodeConfig(num_shots=PerClass((1, 2)), num_queries=5)
  stream = TrainStream(manifest, config, seed=seed, batch_size=4)
  episode, number = stream.episode(step, row), stream.num_shots(step)
  pairs = shown(episode)
  counts = collections.Counter(label for _, label in pairs)
  assert len(counts) == CLASSES[episode.task] and set(counts.values()) == {number}
  assert len(dict(pairs)) == len(pairs) and not asked(episode) & set(dict(pairs))
  other = TrainStream(manifest, config, seed=seed, batch_size=4)
  other.episode(step + 1, row)
  assert other.episode(step, row).support_ids == episode.support_ids


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), task=st.sampled_from(sorted(CLASSES)), number=st.integers(1, 3))
def test_an_evaluation_support_has_so_many_of_each_class_and_no_query(
  manifest, seed, task, number
):
  options = {"num_shots": PerClass(number), "num_queries": 5, "max_queries": None, "seed": seed}
  episodes = eval_episodes(manifest, task, **options)
  assert sum(len(e.queries) for e in episodes) == len(manifest.store(task, "train"))
  again = eval_episodes(manifest, task, **options)
  for episode, same in zip(episodes, again, strict=True):
    pairs = shown(episode)
    counts = collections.Counter(label for _, label in pairs)
    assert len(counts) == CLASSES[task] and set(counts.values()) == {number}
    assert len(dict(pairs)) == len(pairs) and not asked(episode) & set(dict(pairs))
    assert episode.support_ids == same.support_ids


def test_classes_stand_in_random_order(manifest):
  """Also where one is rare: the last example of a support, which weighs most, is of any class."""
  last = collections.Counter()
  for seed in range(300):
    [episode] = eval_episodes(
      manifest, "rare", num_shots=PerClass(2), num_queries=1, max_queries=1, seed=seed
    )
    last[shown(episode)[-1][1]] += 1
  assert last["yes"] == pytest.approx(150, abs=35)  # four standard deviations


def test_a_number_in_all_is_drawn_by_the_same_permutation_as_ever(manifest):
  """Stored answers and checkpoints stand for these supports."""
  draw = lambda num_shots: eval_episodes(
    manifest, "three", num_shots=num_shots, num_queries=2, max_queries=2, seed=7
  )[0].support_ids
  assert draw(5) == (20, 2, 33, 39, 5)
  of_each = shots.Supports(PerClass(2), manifest.store("three", "train"))
  assert of_each.draw([], 2, (7, "evaluation")) == [17, 5, 37, 39, 10, 1]


def test_free_texts_are_refused_before_each_is_a_class_of_its_own(tmp_path, monkeypatch):
  manifest = write_folder(tmp_path, {"free": numbered(200)})
  made = Mock(wraps=shots.Pool)
  monkeypatch.setattr(shots, "Pool", made)
  for number in (1, 4):
    config = EpisodeConfig(num_shots=PerClass(number))
    with pytest.raises(ValueError, match=r"'train' has 1 examples of the class of example 0, with"):
      TrainStream(manifest, config, seed=0, batch_size=1)
  assert made.call_count == 2


def test_supports_of_other_lengths_fit(manifest):
  """A support has 4, 6 or 4 examples: shapes are planned and cut for each task's own."""
  config = EpisodeConfig(num_shots=PerClass(2), num_queries=2, max_buckets=3)
  stream = TrainStream(manifest, config, seed=0, batch_size=4)
  for step in range(12):
    _, info = loader.Loader(stream, start_step=step, stop_step=step).load(step)
    assert info.counts.shots_dropped == info.counts.supports_cut == 0
  config = EvalConfig(num_shots=PerClass(2), num_queries=2, max_shapes=2)
  for control in ({}, {"other_support": True}, {"shuffle_outputs": True}, {"inline": True}):
    for group in eval_sets.groups(manifest, config, 0, **control):
      _, counts = loader.to_batch(list(group.episodes), group.shape)
      assert counts.shots_dropped == counts.supports_cut == counts.inputs_cut == 0


def test_a_range_is_drawn_for_each_support_of_an_evaluation(manifest):
  episodes = eval_episodes(
    manifest, "three", num_shots=(2, 4), num_queries=2, max_queries=None, seed=0
  )
  assert {len(episode.shots) for episode in episodes} == {2, 3, 4}


@pytest.mark.parametrize("make", [
  lambda m, n: TrainStream(m, EpisodeConfig(num_shots=n, include=["rare"]), seed=0, batch_size=1),
  lambda m, n: eval_sets.groups(m, EvalConfig(num_shots=n, include=["rare"]), 0),
])  # fmt: skip
def test_a_class_with_too_few_examples_is_named(manifest, make):
  make(manifest, PerClass(5))
  with pytest.raises(ValueError, match=r"'rare' has too few examples for num_shots=PerClass\(count="
                     r"6\): split 'train' has 6 examples of the class of example 60, with 6 differe"
                     r"nt inputs that no other class has; it needs at least 7 \(gin: NUM_SHOTS"):
    make(manifest, PerClass(6))


def test_an_input_with_two_labels_counts_for_neither_class(manifest):
  store = manifest.store("recurring", "train")
  found = shots.Supports(PerClass(1), store)
  assert (found.scarcest.distinct, found.size) == (5, 2)  # "1" to "5" alone are always "up"


def test_what_has_the_same_tokens_is_one_input_and_one_class(tmp_path):
  pairs = [("a", "Yes"), ("A", "yes"), ("b", "no"), ("c", "no")]
  write_examples(tmp_path / "s", [{"input": x, "output": y} for x, y in pairs], Cased())
  store = Store(tmp_path / "s")
  assert shots.Supports(2, store).scarcest.distinct == 3
  found = shots.Supports(PerClass(1), store)
  assert (found.scarcest.distinct, found.size) == (1, 2)  # "a" alone is always "yes"
  assert {store.target(i).tobytes() for i in found.draw([], 1, (0,))} == {
    store.target(i).tobytes() for i in (0, 2)
  }


@pytest.mark.parametrize("wrong", [0, (0, 2), (3, 2)])
def test_wrong_numbers_are_named(wrong):
  with pytest.raises(ValueError, match=r"num_shots is \(?\d.*; want 1 <= low <= high"):
    EpisodeConfig(num_shots=wrong)
  with pytest.raises(ValueError, match=r"num_shots is PerClass\(.*; want 1 <= low <= high"):
    PerClass(wrong)
  with pytest.raises(ValueError, match="num_shots is None; want 1 <= low <= high"):
    shots.bounds(None)  # of a whole split there are no bounds


def test_what_a_support_holds_in_words():
  assert shots.summary(10) == "10 shots" and shots.summary((2, 4)) == "2 to 4 shots"
  assert shots.summary(PerClass((2, 10))) == "2 to 10 shots of each class"
  assert EpisodeConfig(num_shots=PerClass(4)).summary == "4 shots of each class, 8 queries"


def test_counts_of_a_range_are_all_drawn():
  drawn = collections.Counter(shots.count(PerClass((2, 4)), 0, "shots", i) for i in range(600))
  assert set(drawn) == {2, 3, 4} and min(drawn.values()) > 150
  assert shots.count(7, "any") == 7 and np.isscalar(shots.count(7))
