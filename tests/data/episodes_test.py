"""Episodes: pure functions of numbers, every example asked, no query in its own support."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax.data import shuffling
from hyperjax.data.episodes import EpisodeConfig, Sampler, TrainStream
from hyperjax.data.eval_episodes import eval_episodes, other_tasks
from hyperjax.data.shapes import BatchShape
from tests.data.fakes import PROMPT, Bytes, numbered, write_folder

TASKS = {
  "a.one": numbered(11),
  "a.two": numbered(40, "two"),
  "b.long": numbered(30, "a much longer input than those of the others "),
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp("data"), TASKS)


def shots_of(episode):
  """The support as texts, read back from its tokens."""
  return [Bytes().decode(shot) for shot in episode.shots]


def same(a, b):
  return (
    a.task == b.task
    and a.support_ids == b.support_ids
    and np.array_equal(a.support, b.support)
    and [q.id for q in a.queries] == [q.id for q in b.queries]
  )


def test_pieces_are_put_together_as_documented(manifest):
  episode = eval_episodes(
    manifest, "a.one", num_shots=3, num_queries=2, max_queries=2, seed=0
  )[0]
  expected = "".join(f"{i}=out{i};" for i in episode.support_ids)
  assert Bytes().decode(episode.support) == expected
  query = episode.queries[0]
  assert Bytes().decode(query.input) == f"{query.id}="
  assert Bytes().decode(query.target) == f"out{query.id};"


def test_bos_starts_support_and_query_where_the_tokenizer_adds_it(tmp_path):
  manifest = write_folder(tmp_path, {"t": numbered(5)}, adds_bos=True)
  episode = eval_episodes(manifest, "t", num_shots=2, num_queries=1, max_queries=1, seed=0)[0]
  support, source = episode.support.tolist(), episode.queries[0].input.tolist()
  assert support[0] == source[0] == Bytes.bos_id
  assert Bytes.bos_id not in support[1:] + source[1:] + episode.queries[0].target.tolist()


def test_a_definition_stands_in_front_of_the_support(tmp_path):
  rows = [{**row, "definition": "Count."} for row in numbered(5)]
  manifest = write_folder(tmp_path, {"t": rows}, adds_bos=True)
  episode = eval_episodes(manifest, "t", num_shots=2, num_queries=1, max_queries=1, seed=0)[0]
  assert episode.support[0] == Bytes.bos_id
  assert Bytes().decode(episode.support).startswith(PROMPT.render_definition("Count."))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**7), row=st.integers(0, 7))
def test_an_episode_depends_on_seed_step_and_row_only(manifest, seed, step, row):
  config = EpisodeConfig(num_shots=(2, 5), num_queries=4)
  one = TrainStream(manifest, config, seed=seed, batch_size=8)
  other = TrainStream(manifest, config, seed=seed, batch_size=8)
  other.episode(step + 3, 1), other.episode(0, 7 - row)  # its past must not matter
  assert same(one.episode(step, row), other.episode(step, row))
  assert one.bucket(step) == other.bucket(step)
  assert len(one.episode(step, row).shots) == one.num_shots(step)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**6))
def test_no_query_is_in_its_own_support(tmp_path_factory, seed, step):
  rows = [{"input": str(i % 9), "output": f"out{i}"} for i in range(30)]  # inputs occur repeatedly
  folder = tmp_path_factory.getbasetemp() / "repeated"
  folder.mkdir(exist_ok=True)
  manifest = write_folder(folder, {"t": rows})
  stream = TrainStream(
    manifest, EpisodeConfig(num_shots=4, num_queries=8), seed=seed, batch_size=2
  )
  episode = stream.episode(step, 1)
  shown = [rows[i]["input"] for i in episode.support_ids]
  assert len(set(shown)) == 4
  assert not set(shown) & {rows[query.id]["input"] for query in episode.queries}
  assert shots_of(episode) == [f"{rows[i]['input']}={rows[i]['output']};"
                               for i in episode.support_ids]  # fmt: skip


@pytest.mark.parametrize("count,queries", [(40, 8), (11, 5), (23, 7)])
def test_every_example_is_asked_once_in_an_epoch(tmp_path, count, queries):
  manifest = write_folder(tmp_path, {"t": numbered(count)})
  config = EpisodeConfig(num_shots=2, num_queries=queries)
  stream = TrainStream(manifest, config, seed=3, batch_size=2)
  asked = [
    query.id
    for step in range(count)
    for row in (0, 1)
    for query in stream.episode(step, row).queries
  ]
  for epoch in range(3):
    part = asked[epoch * count : (epoch + 1) * count]
    assert sorted(part) == list(range(count))
  assert asked[:count] != asked[count : 2 * count]


def test_tasks_come_by_rate_and_steps_keep_their_shape(tmp_path):
  rates = {"a.one": 0.2, "a.two": 0.3, "b.long": 0.5}
  manifest = write_folder(tmp_path, TASKS, rates=rates)
  config = EpisodeConfig(num_shots=3, num_queries=2, max_buckets=2)
  stream = TrainStream(manifest, config, seed=0, batch_size=4)
  assert [set(tasks) for _, tasks in stream.buckets] == [{"a.one", "a.two"}, {"b.long"}]
  seen = collections.Counter()
  for step in range(160):
    tasks = [stream.episode(step, row).task for row in range(4)]
    assert len({(task == "b.long") for task in tasks}) == 1
    assert stream.bucket(step) == stream.shapes[tasks[0] == "b.long"]
    seen.update(tasks)
  for task, rate in rates.items():
    assert abs(seen[task] / 640 - rate) < 0.03


def test_explicit_shapes_are_used(manifest):
  small, large = BatchShape(64, 2, 24, 8), BatchShape(300, 2, 80, 12)
  config = EpisodeConfig(num_shots=3, num_queries=2, shapes=(large, small))
  stream = TrainStream(manifest, config, seed=0, batch_size=1)
  assert dict(stream.buckets) == {small: ("a.one", "a.two"), large: ("b.long",)}
  with pytest.raises(ValueError, match="not for num_queries=3"):
    EpisodeConfig(num_queries=3, shapes=(small,))


def test_a_small_task_gets_fewer_queries(manifest):
  sampler = Sampler(manifest, "a.one", "train", "train", 9, 8)
  assert sampler.queries_per_episode == 2
  assert len(eval_episodes(
    manifest, "a.one", num_shots=9, num_queries=8, max_queries=None, seed=0
  )) == 6  # fmt: skip


def test_too_few_examples_name_the_task_and_the_counts(manifest):
  config = EpisodeConfig(num_shots=11, include=["a.one"])
  with pytest.raises(ValueError, match="'a.one' has too few examples for num_shots=11: split "
                     "'train' has 11 examples with 11 different inputs; it needs at least 12"):
    TrainStream(manifest, config, seed=0, batch_size=1)


def test_documents_have_no_episodes(tmp_path):
  manifest = write_folder(tmp_path, {"text": [[3] * 20]})
  with pytest.raises(ValueError, match="'text' is language modelling.*CACLM"):
    TrainStream(manifest, EpisodeConfig(), seed=0, batch_size=1)


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_outside_the_batch_is_refused(manifest, row):
  stream = TrainStream(manifest, EpisodeConfig(num_shots=2), seed=0, batch_size=4)
  with pytest.raises(IndexError, match=f"Row {row} is outside the batch of 4"):
    stream.episode(0, row)


def test_an_unknown_split_is_named(manifest):
  config = EpisodeConfig(num_shots=2, split="dev")
  with pytest.raises(ValueError, match=r"Task 'a.one' has no split 'dev' in .*: \['train'\]"):
    TrainStream(manifest, config, seed=0, batch_size=1)


def test_include_and_exclude_take_tasks_and_families(manifest):
  def tasks(**chosen):
    config = EpisodeConfig(num_shots=2, **chosen)
    return TrainStream(manifest, config, seed=0, batch_size=1).tasks

  assert tasks(include=["a"]) == ("a.one", "a.two")
  assert tasks(exclude=["a.two", "b"]) == ("a.one",)
  with pytest.raises(ValueError, match="no task 'a.tow'. Did you mean 'a.two'"):
    tasks(exclude=["a.tow"])
  with pytest.raises(ValueError, match="leave no task"):
    tasks(exclude=["a", "b"])


def evaluate(manifest, **options):
  base = {"num_shots": 4, "num_queries": 5, "max_queries": 13, "seed": 0}
  return eval_episodes(manifest, "a.two", **{**base, **options})


def test_evaluation_asks_the_same_queries_for_every_seed(manifest):
  ids = lambda episodes: [[query.id for query in e.queries] for e in episodes]
  one, other = evaluate(manifest), evaluate(manifest, seed=1)
  assert ids(one) == ids(other) and [len(group) for group in ids(one)] == [5, 5, 3]
  assert one[0].support_ids != other[0].support_ids
  assert all(same(a, b) for a, b in zip(one, evaluate(manifest), strict=True))
  everything = [i for group in ids(evaluate(manifest, max_queries=None)) for i in group]
  assert sorted(everything) == list(range(40)) and everything[:13] == sum(ids(one), [])


def test_shuffled_outputs_keep_inputs_and_multiset_of_outputs(manifest):
  shuffled = evaluate(manifest, shuffle_outputs=True)
  for plain, mixed in zip(evaluate(manifest), shuffled, strict=True):
    assert plain.support_ids == mixed.support_ids
    before, after = ([shot.split("=") for shot in shots_of(e)] for e in (plain, mixed))
    assert [x for x, _ in before] == [x for x, _ in after]
    assert sorted(y for _, y in before) == sorted(y for _, y in after)
    assert all(a[1] != b[1] for a, b in zip(before, after, strict=True))


def test_the_support_of_another_task(manifest):
  plain, other = evaluate(manifest), evaluate(manifest, support_task="b.long")
  assert [e.task for e in other] == ["a.two"] * 3
  assert all("longer input" in shot for shot in shots_of(other[0]))
  assert [q.id for q in plain[0].queries] == [q.id for q in other[0].queries]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 99))
def test_a_derangement_moves_all_values_where_it_can(values, seed):
  order = shuffling.derange(values, np.random.default_rng(seed))
  assert sorted(order) == list(range(len(values)))
  kept = sum(values[i] == values[j] for i, j in enumerate(order))
  most = max(collections.Counter(values).values())
  assert kept == max(0, 2 * most - len(values))


def test_classes_change_places_at_random(tmp_path):
  # Of two balanced classes a derangement would only exchange the names.
  rows = [{"input": str(i), "output": str(i % 2)} for i in range(40)]
  manifest = write_folder(tmp_path, {"t": rows})
  store, ids = manifest.store("t", "train"), list(range(12))
  own = [store.target(i).tolist() for i in ids]
  kept = []
  for seed in range(200):
    moved = [t.tolist() for t in shuffling.targets(store, ids, np.random.default_rng(seed))]
    assert sorted(moved) == sorted(own)
    kept.append(sum(map(list.__eq__, moved, own)))
  assert 5.5 < np.mean(kept) < 6.5  # as many as by chance
  # Three outputs of four: as few as possible stay.
  for seed in range(20):
    moved = shuffling.targets(store, [0, 1], np.random.default_rng(seed))
    assert [t.tolist() for t in moved] == [own[1], own[0]]


def test_episodes_of_one_query_are_not_shuffled(tmp_path):
  with pytest.raises(ValueError, match=r"shuffled is 0.5 .*num_queries=1.*NUM_QUERIES to 2"):
    EpisodeConfig(num_queries=1, shuffled=0.5)
  # Four of five examples are its support: one is left for a query.
  manifest = write_folder(tmp_path, {"t": numbered(5)})
  streams = [
    EpisodeConfig(num_shots=4, num_queries=3, shuffled=share).stream(manifest, seed=3, batch_size=2)
    for share in (0.0, 1.0)
  ]
  for step in range(5):
    plain, shuffled = (text_of(stream.episode(step, 0)) for stream in streams)
    assert plain == shuffled


def test_a_definition_that_does_not_fit_is_refused_at_the_start(tmp_path):
  rows = [{**row, "definition": "Count. " * 8} for row in numbered(9)]
  manifest = write_folder(tmp_path, {"plain": numbered(9), "t": rows})
  make = lambda support: EpisodeConfig(num_shots=3, num_queries=2, limit=(support, 64, 16))
  with pytest.raises(ValueError, match=r"'t': its definition has up to \d+ tokens.* 48 by EPISODE"):
    make(48).stream(manifest, seed=0, batch_size=1)
  make(80).stream(manifest, seed=0, batch_size=1)


def test_what_the_limit_cuts_is_said(tmp_path):
  long = [{"input": f"{i}", "output": "many words " * 4} for i in range(9)]
  manifest = write_folder(tmp_path, {"plain": numbered(9), "t": long})
  make = lambda *limit: EpisodeConfig(num_shots=3, num_queries=2, limit=limit).stream(
    manifest, seed=0, batch_size=1
  )
  assert make(512, 64, 64).remark == ""
  assert make(512, 64, 16).remark == (
    "EPISODE_LIMIT (512, 64, 16) cuts targets of 1 tasks, such as t: targets lose their end, "
    "inputs their beginning."
  )
  assert "targets of 1 tasks, such as t and inputs of 1 tasks" in make(512, 16, 16).remark


def text_of(episode):
  """Its support and its queries' targets."""
  return episode.support.tolist(), [query.target.tolist() for query in episode.queries]


def test_other_tasks_leave_the_family():
  assert other_tasks(["a.x", "a.y", "b.x"]) == {"a.x": "b.x", "a.y": "b.x", "b.x": "a.x"}
  assert other_tasks(["f.x", "f.y"]) == {"f.x": "f.y", "f.y": "f.x"}
  with pytest.raises(ValueError, match="at least two tasks"):
    other_tasks(["a"])


def test_shuffled_episodes_change_outputs_in_support_and_queries(tmp_path):
  manifest = write_folder(tmp_path, {"t": numbered(60)})
  make = lambda share: EpisodeConfig(num_shots=4, num_queries=3, shuffled=share).stream(
    manifest, seed=3, batch_size=2
  )
  plain, always, half = make(0.0), make(1.0), make(0.5)
  text = lambda ids: Bytes().decode(ids)
  own = lambda shot: text(shot).split("=")[1] == f"out{text(shot).split('=')[0]};"
  mixed = 0
  for step in range(40):
    for row in range(2):
      a, b, c = (s.episode(step, row) for s in (plain, always, half))
      assert a.support_ids == b.support_ids == c.support_ids
      assert all(map(own, a.shots)) and not any(map(own, b.shots))
      assert sorted(text(q.target) for q in a.queries) == sorted(text(q.target) for q in b.queries)
      for x, y in zip(a.queries, b.queries, strict=True):
        assert x.id == y.id and x.input.tolist() == y.input.tolist()
        assert x.target.tolist() != y.target.tolist()
      mixed += c.queries[0].target.tolist() != a.queries[0].target.tolist()
  assert 25 < mixed < 55
  with pytest.raises(ValueError, match=r"shuffled is 1.5; it must be in 0..1"):
    EpisodeConfig(shuffled=1.5)
