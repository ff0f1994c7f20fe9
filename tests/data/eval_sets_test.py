"""Evaluation sets: who is asked, in which shapes, with nothing cut."""

import dataclasses

import numpy as np
import pytest

from hyperjax.data import continuations, eval_episodes, eval_sets, loader
from hyperjax.data.eval_sets import EvalConfig
from tests.data.fakes import Bytes, numbered, write_folder

CONFIG = EvalConfig(num_shots=3, num_queries=4, max_queries=10, batch_size=3, seeds=(0, 1))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
  """Three tasks: short, long, and one with options of different lengths."""
  options = ["a", "a much longer option than the other ones"]
  return write_folder(
    tmp_path_factory.mktemp("data"),
    {
      "short": numbered(30),
      "long": numbered(30, "x" * 60),
      "choice": [{"input": f"{i}?", "output": "a", "options": options} for i in range(30)],
    },
  )


def all_episodes(groups):
  return [episode for group in groups for episode in group.episodes]


def asked(episodes):
  return {(e.task, q.id) for e in episodes for q in e.queries}


def with_options(episode, number):
  """The episode with each query's option of that number in place of its target."""
  queries = tuple(
    dataclasses.replace(q, target=q.options[number]) if q.options else q for q in episode.queries
  )
  return dataclasses.replace(episode, queries=queries)


def test_every_task_is_asked_once_and_nothing_is_cut(manifest):
  groups = eval_sets.groups(manifest, CONFIG, 0)
  assert len(groups) == 2
  episodes = all_episodes(groups)
  assert sorted({e.task for e in episodes}) == ["choice", "long", "short"]
  assert len(asked(episodes)) == 30 and sum(len(e.queries) for e in episodes) == 30
  for group in groups:
    for episode in group.episodes:
      for option in range(2):
        _, counts = loader.to_batch([with_options(episode, option)], group.shape)
        assert counts.shots_dropped == counts.inputs_cut == counts.targets_cut == 0
        assert counts.supports_cut == 0


def test_a_single_shape_holds_all(manifest):
  [group] = eval_sets.groups(manifest, dataclasses.replace(CONFIG, max_shapes=1), 0)
  two = eval_sets.groups(manifest, CONFIG, 0)
  slots = lambda g: len(g.episodes) * (g.shape.support + g.shape.queries * g.shape.query)
  assert slots(group) > sum(map(slots, two))
  assert len(group.episodes) == len(all_episodes(two))


def test_seeds_and_controls_change_supports_alone(manifest):
  plain = eval_sets.groups(manifest, CONFIG, 0)
  variants = [
    eval_sets.groups(manifest, CONFIG, 1),
    eval_sets.groups(manifest, CONFIG, 0, other_support=True),
    eval_sets.groups(manifest, CONFIG, 0, shuffle_outputs=True),
  ]
  for groups in variants:
    assert asked(all_episodes(groups)) == asked(all_episodes(plain))
    pairs = list(zip(all_episodes(plain), all_episodes(groups), strict=True))
    assert all(a.task == b.task for a, b in pairs)
    assert any(not np.array_equal(a.support, b.support) for a, b in pairs)
  shapes = [[(g.shape.queries, g.shape.query, g.shape.targets) for g in v]
            for v in (plain, *variants)]  # fmt: skip
  assert all(shape == shapes[0] for shape in shapes)
  assert [g.shape for g in variants[0]] == [g.shape for g in variants[2]] == [
    g.shape for g in plain
  ]


def test_episodes_are_drawn_as_they_are_read(manifest, monkeypatch):
  made = []
  sampler = eval_episodes.Sampler
  original = sampler.assemble
  monkeypatch.setattr(
    sampler, "assemble", lambda self, *args: made.append(args) or original(self, *args)
  )
  [group] = eval_sets.groups(manifest, dataclasses.replace(CONFIG, max_shapes=1), 1)
  planned = len(made)
  assert len(group.episodes) == 9 and planned >= 2 * 9  # all of both seeds
  part = group.episodes[4:6]
  assert len(made) == planned + 2
  for number, episode in zip((4, 5), part, strict=True):
    again = group.episodes[number]
    assert again.task == episode.task and np.array_equal(again.support, episode.support)
  assert group.episodes[-1].queries[-1].id == list(group.episodes)[-1].queries[-1].id
  with pytest.raises(IndexError):
    group.episodes[9]


def test_another_tasks_support_fits_too(manifest):
  for group in eval_sets.groups(manifest, CONFIG, 0, other_support=True):
    _, counts = loader.to_batch(list(group.episodes), group.shape)
    assert counts.shots_dropped == counts.supports_cut == 0


def test_batches_are_of_one_size_and_the_mask_counts_each_query_once(manifest):
  for group in eval_sets.groups(manifest, CONFIG, 0):
    seen, rows = 0, []
    for batch, mask, real in eval_sets.batches(group, CONFIG.batch_size):
      assert batch.support.tokens.shape == (3, group.shape.support)
      assert mask.shape == batch.weights.shape[:2]
      assert [int(n) for n in mask.sum(1)] == [len(e.queries) for e in real] + [0] * (3 - len(real))
      seen += int(mask.sum())
      rows += real
    ids = lambda episodes: [(e.task, q.id) for e in episodes for q in e.queries]
    assert ids(rows) == ids(group.episodes)
    assert seen == sum(len(e.queries) for e in group.episodes)


@pytest.mark.parametrize("place", [
  {}, {"layout": "encoder_decoder"}, {"layout": "encoder_decoder", "inline": True},
])  # fmt: skip
def test_supports_are_those_of_whole_batches(manifest, place):
  for group in eval_sets.groups(manifest, CONFIG, 0, **place):
    for number, (batch, _, real) in enumerate(eval_sets.batches(group, CONFIG.batch_size)):
      support, episodes = eval_sets.supports(group, CONFIG.batch_size, number)
      np.testing.assert_array_equal(support.tokens, batch.support.tokens)
      np.testing.assert_array_equal(support.length, batch.support.length)
      keys = lambda found: [(e.task, [q.id for q in e.queries]) for e in found]
      assert keys(episodes) == keys(real)


def test_continuations_fit_the_shapes_of_every_seed(manifest):
  shapes = [
    [group.continuations for group in eval_sets.groups(manifest, CONFIG, seed, **control)]
    for seed, control in ((0, {}), (1, {}), (1, {"other_support": True}))
  ]
  assert shapes[0] == shapes[1] == shapes[2]
  for group in eval_sets.groups(manifest, CONFIG, 0):
    for episode in group.episodes:
      for row in continuations.rows(episode, 2, group.layout, group.tasks[episode.task]):
        assert any(shape.holds(row.sizes) for shape in group.continuations)


def test_every_row_finds_a_planned_shape_where_queries_have_several_lanes(tmp_path, monkeypatch):
  """16 of 96 queries have three lanes each; an answer may be as long as a target."""
  monkeypatch.setattr(continuations, "_PROGRAM_TOKENS", 0)
  options = [letter * 32 for letter in "abcdef"]
  long = {"output": options[0], "options": options}
  made = write_folder(tmp_path, {"mixed": [
    {"input": f"{i:047}", **long} if i % 6 == 0 else {"input": f"{i:099}", "output": "four"}
    for i in range(96)
  ]})  # fmt: skip
  config = EvalConfig(num_shots=1, num_queries=6, max_queries=None)
  [group] = eval_sets.groups(made, config, 0)
  assert len(group.continuations) > 1 and group.tasks == {"mixed": 33}
  rows = [
    row
    for source, episode in enumerate(group.episodes)
    for row in continuations.rows(episode, 3, group.layout, 33, source)
  ]
  assert max(lane.start for row in rows for lane in row.lanes) == 4
  packed = [row for part, _ in continuations.pack(rows, group.continuations, 8) for row in part]
  assert len(packed) == len(rows)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_support_and_a_query_that_goes_on_are_the_text_that_holds_both(tmp_path, adds_bos):
  made = write_folder(tmp_path, {"short": numbered(30)}, adds_bos=adds_bos)
  episodes = lambda **place: all_episodes(eval_sets.groups(made, CONFIG, 1, **place))
  found = list(zip(episodes(continued=True), episodes(inline=True), strict=True))
  assert len(found) > 2
  for apart, whole in found:
    for a, b in zip(apart.queries, whole.queries, strict=True):
      np.testing.assert_array_equal(np.concatenate([apart.support, a.input]), b.input)
      assert (b.input == made.vocabulary["bos_id"]).sum() == adds_bos


@pytest.mark.parametrize("inline", [False, True])
def test_a_plan_knows_what_a_support_and_a_query_have_together(tmp_path, inline):
  """Three shots "0=out0;" and "1=out" are 21 + 6; 60 letters more in each input 3 * 67 + 66."""
  tasks = {"short": numbered(10), "long": numbered(10, "x" * 60)}
  made = write_folder(tmp_path, tasks)
  assert eval_sets.plan(made, CONFIG, inline=inline).tokens == {"short": 27, "long": 267}


def test_some_tasks_of_a_folder(manifest):
  config = dataclasses.replace(CONFIG, exclude=("long",))
  assert {e.task for e in all_episodes(eval_sets.groups(manifest, config, 0))} == {
    "short", "choice"
  }  # fmt: skip
  with pytest.raises(ValueError, match="no task 'shor'. Did you mean 'short'?"):
    eval_sets.groups(manifest, dataclasses.replace(CONFIG, include=("shor",)), 0)


def test_another_task_needs_two(manifest):
  config = dataclasses.replace(CONFIG, include=("short",))
  with pytest.raises(ValueError, match="needs at least two tasks, not \\['short'\\]"):
    eval_sets.groups(manifest, config, 0, other_support=True)


@pytest.mark.parametrize("name", ["num_queries", "batch_size", "max_shapes"])
def test_a_wrong_value_is_named(name):
  with pytest.raises(ValueError, match=f"EvalConfig.{name} must be at least 1, not 0"):
    dataclasses.replace(CONFIG, **{name: 0})
  with pytest.raises(ValueError, match="num_shots is 0; want 1 <= low <= high"):
    dataclasses.replace(CONFIG, num_shots=0)


@pytest.mark.parametrize("name", ["max_queries", "max_new_tokens"])
def test_a_limit_below_one_is_refused_and_none_is_no_limit(name):
  for value in (0, -1):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, or None, not {value}"):
      dataclasses.replace(CONFIG, **{name: value})
  assert getattr(dataclasses.replace(CONFIG, **{name: None}), name) is None


def test_no_seed_is_refused():
  with pytest.raises(ValueError, match="EvalConfig.seeds is empty"):
    dataclasses.replace(CONFIG, seeds=())


@pytest.mark.parametrize("field, value", [("seeds", 3), ("include", "short"), ("exclude", "short")])
def test_what_is_no_list_is_refused(manifest, field, value):
  """Of a text, each letter would be taken for a name."""
  config = dataclasses.replace(CONFIG)
  object.__setattr__(config, field, value)  # past the tests' own check of types
  with pytest.raises(ValueError, match=f"^EvalConfig: {field} must be a list, not {value!r}"):
    config.__post_init__()
  if field != "seeds":
    with pytest.raises(ValueError, match=f"^{field} must be a list, not 'short'"):
      manifest.select(**{field: value})


def test_a_list_is_as_good_as_a_tuple():
  same = dataclasses.replace(CONFIG, seeds=[0, 1], include=["short"])
  assert same == dataclasses.replace(CONFIG, include=("short",)) and hash(same)


# ---- Supports that are there already ------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Two tasks whose supports two seeds have drawn: a query is in one, an input in one twice."""
  shown = {100: ["a", "b", "b", "c"], 13: ["d", "e", "f", "g"]}
  tasks = {
    task: {
      "test": [{"input": f"{task}{x}", "output": x} for x in "cpqrst"],
      **{f"support_{seed}": [{"input": f"{task}{x}", "output": f"{i}"} for i, x in enumerate(xs)]
         for seed, xs in shown.items()},
    }
    for task in ("one", "two")
  }  # fmt: skip
  return write_folder(tmp_path_factory.mktemp("prepared"), tasks)


WHOLE = EvalConfig(num_shots=None, num_queries=2, max_queries=None, seeds=(100, 13))


def shots(episode):
  return [Bytes().decode(shot) for shot in episode.shots]


def test_a_seed_chooses_its_support_and_all_of_it_is_shown_in_order(prepared):
  found = {seed: all_episodes(eval_sets.groups(prepared, WHOLE, seed)) for seed in WHOLE.seeds}
  assert {tuple(shots(e)) for e in found[100] if e.task == "one"} == {
    ("onea=0;", "oneb=1;", "oneb=2;", "onec=3;")
  }  # fmt: skip
  assert {tuple(shots(e)) for e in found[13] if e.task == "two"} == {
    ("twod=0;", "twoe=1;", "twof=2;", "twog=3;")
  }  # fmt: skip
  assert asked(found[100]) == asked(found[13])
  [other] = {tuple(shots(e)) for g in eval_sets.groups(prepared, WHOLE, 13, other_support=True)
             for e in g.episodes if e.task == "one"}  # fmt: skip
  assert other == ("twod=0;", "twoe=1;", "twof=2;", "twog=3;")


def test_queries_that_their_supports_hold_are_left_out_with_all_seeds_and_counted(prepared):
  assert eval_episodes.left_out(prepared, "one", None, 2) == {0}  # "c", which only seed 100 shows
  assert eval_sets.count_left_out(prepared, WHOLE) == {"one": 1, "two": 1}
  some = dataclasses.replace(WHOLE, include=("two",))
  assert eval_sets.count_left_out(prepared, some) == {"two": 1}
  ids = {i for task, i in asked(all_episodes(eval_sets.groups(prepared, WHOLE, 13)))}
  assert ids == {1, 2, 3, 4, 5}
  few = dataclasses.replace(WHOLE, max_queries=3)
  assert len(asked(all_episodes(eval_sets.groups(prepared, few, 13)))) == 6


def test_a_drawn_support_makes_room_for_every_query(prepared):
  drawn = dataclasses.replace(WHOLE, num_shots=2)
  assert eval_sets.count_left_out(prepared, drawn) == {}
  episodes = all_episodes(eval_sets.groups(prepared, drawn, 100))
  assert {i for task, i in asked(episodes)} == set(range(6))
  for episode in episodes:
    inputs = {shot.split("=")[0] for shot in shots(episode)}
    assert len(inputs) == 2 and not inputs & {Bytes().decode(q.input)[:-1] for q in episode.queries}


@pytest.mark.parametrize(
  "num_shots, left", [(2, {0, 3}), ((1, 2), {0, 3}), (1, set()), (None, {0, 3})]
)
def test_queries_that_a_small_support_split_cannot_do_without_are_left_out(
  tmp_path, num_shots, left
):
  """As of a task's two positive examples some are also asked."""
  few = [{"input": x, "output": "shown"} for x in "ad"]
  manifest = write_folder(tmp_path, {"t": {"test": labelled("abcdef"), "train": few}})
  config = EvalConfig(num_shots=num_shots, num_queries=1, max_queries=None, seeds=(0, 1))
  assert eval_sets.count_left_out(manifest, config) == ({"t": 2} if left else {})
  for seed in config.seeds:
    episodes = all_episodes(eval_sets.groups(manifest, config, seed))
    assert {i for _, i in asked(episodes)} == set(range(6)) - left
    for episode in episodes:
      assert not {shot.split("=")[0] for shot in shots(episode)} & {
        Bytes().decode(query.input)[:-1] for query in episode.queries
      }


def test_queries_of_a_large_support_split_are_all_asked(tmp_path):
  many = {"test": labelled("abcdef"), "train": labelled("abcdefghijkl")}
  manifest = write_folder(tmp_path, {"t": many})
  config = EvalConfig(num_shots=4, num_queries=6, max_queries=None)
  assert eval_sets.count_left_out(manifest, config) == {}
  assert len(asked(all_episodes(eval_sets.groups(manifest, config, 0)))) == 6


def test_targets_that_no_answer_can_be_are_remarked_on(tmp_path):
  """Those of the split that is asked, where they have been counted."""
  rows = [{"input": "a", "output": "b;c"}, {"input": "b", "output": "b"}]
  manifest = write_folder(
    tmp_path,
    {
      "lines": {"test": rows, "train": labelled("xyz")},
      "shown": {"test": labelled("ab"), "train": rows},
    },
  )
  config = EvalConfig(num_shots=1)
  assert ", ';': 1 of lines; " in eval_sets.remark(manifest, config)
  for task in manifest.values["tasks"].values():
    for entry in task["splits"].values():
      del entry["ends_early"]  # as in older data folders
  assert eval_sets.remark(manifest, config) == ""


def labelled(inputs):
  return [{"input": x, "output": x} for x in inputs]


def test_a_seed_without_a_support_is_an_error(prepared):
  with pytest.raises(ValueError, match="'one' has supports for the seeds 100, 13, none for 0: "):
    eval_sets.groups(prepared, dataclasses.replace(WHOLE, seeds=(0,)), 0)


def test_a_whole_split_cannot_be_support_and_queries(manifest, tmp_path):
  config = dataclasses.replace(CONFIG, num_shots=None)
  with pytest.raises(ValueError, match="'short' has too few examples for num_shots=None: split "
                     "'train' has 30 examples, all of them in the support; it needs at least 31"):
    eval_sets.groups(manifest, config, 0)
  rows = [{"input": "a", "output": "b"}]
  same = write_folder(tmp_path, {"t": {"test": rows, "train": rows}})
  with pytest.raises(ValueError, match="'t': every query's input is in its supports"):
    eval_sets.groups(same, config, 0)
