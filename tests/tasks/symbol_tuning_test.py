"""symbol_tuning: which tasks are taken, what their labels become, and that episodes agree on it."""

import collections
import dataclasses
import hashlib
import json
import pathlib

import hypothesis
import pytest
import seqio
from hypothesis import strategies as st

from hyperjax import launch
from hyperjax.data import build as build_lib
from hyperjax.data import eval_sets
from hyperjax.data.building import ensure
from hyperjax.data.episodes import EpisodeConfig, TrainStream
from hyperjax.data.manifest import DataConfig, digest
from hyperjax.tasks import symbol_tuning
from hyperjax.tasks.fewshot import Folder
from hyperjax.tasks.metaicl import MetaICL
from hyperjax.tasks.p3 import P3
from hyperjax.tasks.symbol_tuning import (
  VERSION,
  Labels,
  SymbolTuning,
  classes,
  fewest,
  letters,
  tables,
)
from tests.data.fakes import PROMPT, Bytes
from tests.tasks import natural_instructions_test as ni
from tests.tasks.metaicl_files import write_checkout

REVIEWS = [  # sorted by class, as files often are
  {"input": f"film {i}", "output": "yes" if i < 30 else "no", "options": ["yes", "no"]}
  for i in range(60)
]
TOPICS = [{"input": f"text {i}", "output": ("art", "law", "war")[i % 3]} for i in range(30)]
CAPITALS = [{"input": f"land {i}", "output": f"town {i}"} for i in range(12)]


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / "tasks"
  path.mkdir()
  for name, rows in (("reviews", REVIEWS), ("topics", TOPICS), ("capitals", CAPITALS)):
    (path / f"{name}.json").write_text(json.dumps(rows))
  return Folder(str(path), name=tmp_path.name)  # seqio takes each task from one folder only


def config(source):
  return DataConfig(source.name, "bytes", prompt=PROMPT, sources=[source])


def build(source, out):
  return build_lib.build(config(source), out, vocabulary=Bytes())


def pairs(episode) -> dict[str, str]:
  """{input: label} of an episode's support and queries."""
  texts = [Bytes().decode(shot) for shot in episode.shots]
  texts += [Bytes().decode(query.input) + Bytes().decode(query.target) for query in episode.queries]
  return dict(text.removesuffix(";").split("=") for text in texts)


def options(episode) -> set[str]:
  return {Bytes().decode(o).removesuffix(";") for q in episode.queries for o in q.options}


def truth(example) -> str:
  return {row["input"]: row["output"] for row in [*REVIEWS, *TOPICS]}[example]


def test_in_an_episode_a_class_has_one_symbol(folder, tmp_path):
  source = SymbolTuning(folder, copies=3, examples=25)
  manifest = build(source, tmp_path / "out")
  tasks = [f"symbols.{folder.name}.{task}" for task in ("reviews", "topics")]
  names = [f"{task}.{copy}" for task in tasks for copy in range(3)]
  assert manifest.tasks == tuple(names)  # capitals have no classes
  assert manifest.values["tasks"][names[0]]["metrics"] == ["accuracy"]
  # A copy is no task of its own to an evaluation.
  assert manifest.values["clusters"] == {
    f"symbols.{folder.name}.{task}.{copy}": f"{folder.name}.{task}"
    for task in ("reviews", "topics") for copy in range(3)
  }  # fmt: skip
  stream = TrainStream(manifest, EpisodeConfig(num_shots=8, num_queries=6), seed=0, batch_size=2)
  seen = {}
  for step in range(20):
    for row in range(2):
      episode = stream.episode(step, row)
      symbols = {truth(example): label for example, label in pairs(episode).items()}
      assert len(symbols) > 1 and set(symbols.values()) <= options(episode)
      assert all(label == symbols[truth(example)] for example, label in pairs(episode).items())
      assert len(set(symbols.values())) == len(symbols)  # different for different classes
      assert not options(episode) & {"yes", "no", "art", "law", "war"}
      known = seen.setdefault(episode.task, symbols)
      assert known | symbols == symbols | known  # the same in all episodes of a copy
  assert set(seen) == set(names)
  assert len({tuple(sorted(symbols.items())) for symbols in seen.values()}) == len(names)


def test_a_copy_of_a_template_is_a_version_of_its_data_set():
  source = SymbolTuning(P3("none", name="p3"), name="symbols")
  assert source.cluster("symbols.p3.super_glue_rte.must_be_true.11") == "p3.super_glue_rte"
  assert SymbolTuning(Folder("none")).cluster("symbols.folder.task.3") == "folder.task"


def test_copies_show_other_examples_until_all_are_shown(folder, tmp_path):
  manifest = build(SymbolTuning(folder, copies=3, examples=20), tmp_path / "out")
  reviews = f"symbols.{folder.name}.reviews"
  shown = [
    {Bytes().decode(store.input(i)) for i in range(len(store))}
    for store in (manifest.store(f"{reviews}.{copy}", "train") for copy in range(3))
  ]
  assert list(map(len, shown)) == [20, 20, 20] and len(set.union(*shown)) == len(REVIEWS)
  mixed = [{truth(example.removesuffix("=")) for example in part} for part in shown]
  assert mixed == [{"yes", "no"}] * 3
  again = build(SymbolTuning(folder, copies=5, examples=20), tmp_path / "again")
  first, fourth = (again.store(f"{reviews}.{copy}", "train") for copy in (0, 3))
  assert [first.input(i).tolist() for i in range(20)] == [
    fourth.input(i).tolist() for i in range(20)
  ]


@pytest.mark.parametrize("copies, examples", [(3, 20), (2, 17), (4, 20), (1, 2)])
def test_copies_are_those_of_all_rows_in_order(folder, tmp_path, monkeypatch, copies, examples):
  """No more rows are held than they show. Of the 60, some are there twice, some have one input."""
  rows = [*REVIEWS[:15], *REVIEWS[:15], *REVIEWS[45:], *[{**REVIEWS[0], "output": "no"}] * 15]
  (pathlib.Path(folder.path) / "reviews.json").write_text(json.dumps(rows))
  source = SymbolTuning(folder, copies=copies, examples=examples)
  build(source, tmp_path / "few")
  first = symbol_tuning._first
  every = lambda count, *rest: first(10**6, *rest)
  monkeypatch.setattr(symbol_tuning, "_first", every)
  build(source, tmp_path / "all")
  few, whole = (
    {file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for out in (tmp_path / "few", tmp_path / "all")
  )
  assert few == whole and len(few) > 10


@hypothesis.given(st.lists(st.integers(0, 5)), st.integers(1, 9), st.integers(2, 4))
def test_the_first_rows_are_those_of_a_sort(inputs, copies, examples):
  rows = [{"inputs": str(x), "number": i} for i, x in enumerate(inputs)]
  digest_of = lambda row: hashlib.sha256(f"t\0{row['inputs']}".encode()).digest()
  ordered = sorted(rows, key=digest_of)
  kept = symbol_tuning._first(copies * examples, "t", iter(rows))
  for i in range(min(copies * examples, len(rows))):
    assert kept[i % len(kept)] == ordered[i % len(ordered)]


def relabelling(labels, task="t", copy=0, classes=("a", "b")):
  source = SymbolTuning(Folder("none"), labels=labels)
  return source.relabelling(task, copy, list(classes))


def test_symbols_follow_from_task_and_copy():
  assert relabelling("symbols") == relabelling("symbols")
  draws = [relabelling("symbols", task, copy) for task in "tu" for copy in range(50)]
  assert len({tuple(draw.values()) for draw in draws}) == len(draws)


@pytest.mark.parametrize("labels", ["symbols", "unseen_symbols"])
def test_symbols_are_of_three_kinds_alike_and_distinct(labels):
  kinds = tables(labels == "unseen_symbols")
  symbols = [
    symbol
    for copy in range(200)
    for symbol in relabelling(labels, copy=copy, classes=map(str, range(20))).values()
  ]
  for kind in map(set, kinds):
    assert len([s for s in symbols if s in kind]) == pytest.approx(len(symbols) / 3, rel=0.1)
  for start in range(0, len(symbols), 20):
    assert len({s.casefold() for s in symbols[start : start + 20]}) == 20
    assert not set(symbols[start : start + 20]) & set(map(str, range(20)))


def test_no_symbol_of_training_is_one_of_evaluation():
  training, unseen = (set().union(*tables(unseen)) for unseen in (False, True))
  assert not training & unseen
  assert len(training) > 20_300 and len(unseen) > 180_300
  assert tables(False)[0][-1] == "9999" and tables(True)[0][0] == "10000"
  assert [letters(n) for n in (0, 25, 26, 701, 702, 9_999)] == ["A", "Z", "AA", "ZZ", "AAA", "NTP"]


def test_the_version_stands_for_the_symbols():
  drawn = [relabelling(labels, copy=c) for labels in ("symbols", "unseen_symbols") for c in (0, 1)]
  assert (VERSION, digest([tables(False), tables(True), drawn])[:16]) == ("1", "1018c103a1da9a86")


def by_gin(tmp_path, **macros):
  """The held-out data of an evaluation and its configuration: reviews that have a definition."""
  instances = [ni.instance(i, [row["output"]], row["input"]) for i, row in enumerate(REVIEWS * 3)]
  contents = ni.task(Instances=instances, Definition=["Good?"], **{"Positive Examples": []})
  ni.write(tmp_path / "ni" / "task001_films.json", contents)
  macros = {
    "NI_DIR": str(tmp_path / "ni"), "NI_TRACK": None, "NI_HELD_OUT": ["task001_films"],
    "natural_instructions.TestTasks.name": tmp_path.name, "DATA_DIR": "d", "EVAL_OUTPUT_DIR": "o",
    "RUNS": {}, "held_out/symbol_tuning.SymbolTuning.copies": 2, "MAX_QUERIES": 9, **macros,
  }  # fmt: skip
  given = launch.arguments(
    ["models/smollm2_135m.gin", "data/symbol_tuning_instructions.gin",
     "runs/eval_symbol_tuning.gin"], "hyperjax.evaluate", "evaluate",
    bindings=[f"{name}={value!r}" for name, value in macros.items()],
  )  # fmt: skip
  config = dataclasses.replace(given["data"].held_out.config, prompt=PROMPT)
  manifest = build_lib.build(config, tmp_path / "out", vocabulary=Bytes())
  return manifest, given["episodes"]


@pytest.mark.parametrize("instructions", [False, True])
@pytest.mark.parametrize("labels", ["own", "unseen_symbols", "flipped"])
def test_the_settings_of_evaluation(tmp_path, labels, instructions):
  manifest, config = by_gin(
    tmp_path, HELD_OUT_LABELS=labels, HELD_OUT_INSTRUCTIONS=instructions
  )
  assert len(manifest.tasks) == 2
  for task in manifest.tasks:
    some = dataclasses.replace(config, include=[task])
    [group] = eval_sets.groups(manifest, some, 0)
    assert sum(len(episode.queries) for episode in group.episodes) == 9
    changed = {truth(x): label for e in group.episodes for x, label in pairs(e).items()}
    for episode in group.episodes:
      assert Bytes().decode(episode.head) == ("Good?\n" if instructions else "")
      assert all(changed[truth(x)] == label for x, label in pairs(episode).items())
      assert options(episode) == set(changed.values())
      shown = collections.Counter(Bytes().decode(shot).split("=")[1] for shot in episode.shots)
      assert sorted(shown.values()) == [4, 4]
    if labels == "own":
      assert changed == {"yes": "yes", "no": "no"}
    elif labels == "flipped":
      assert changed == {"yes": "no", "no": "yes"}
    else:
      assert set(changed.values()) <= set().union(*tables(True))


def test_instructions_that_no_task_has_are_an_error(tmp_path):
  with pytest.raises(ValueError, match="instructions are asked for, and no task of source"):
    by_gin(tmp_path, NI_DEFINITION=False)


def test_copies_that_show_too_few_of_a_class_are_not_taken(folder):
  """30 reviews of each class, and 10 texts of each of three topics, in copies of 20 examples."""

  def taken(least):
    SymbolTuning(folder, copies=2, examples=20, min_per_class=least).register()
    return {task.name: task.source for task in seqio.MixtureRegistry.get("symbols").tasks}

  fewest_of = {
    name: min(collections.Counter(row["targets"] for row in source.rows("train")).values())
    for name, source in taken(0).items()
  }
  assert len(fewest_of) == 4
  for least in fewest_of.values():
    assert set(taken(least)) == {name for name, count in fewest_of.items() if count >= least}
  with pytest.raises(ValueError, match="2 to 20 labels, each with at least 11 examples in a copy"):
    taken(11)


def test_an_input_with_two_labels_is_of_neither():
  rows = [{"inputs": x, "targets": y} for x, y in ("ab", "ab", "cb", "cd", "ed", "fd")]
  assert fewest(rows) == 1 and fewest(rows[2:4]) == 0


def test_a_file_that_changes_while_it_is_read_is_an_error(folder, tmp_path, monkeypatch):
  """Also where that happens before the copies are registered."""
  file = pathlib.Path(folder.path) / "topics.json"

  def classes_of(splits):
    if splits[0].targets.keys() == {"art", "law", "war"}:
      file.write_text(json.dumps(TOPICS[1:]))
    return classes(splits)

  monkeypatch.setattr(symbol_tuning, "classes", classes_of)
  source = SymbolTuning(dataclasses.replace(folder, include=["topics"]), copies=1)
  with pytest.raises(ValueError, match=r"topics\.json: it changed while it was read"):
    build(source, tmp_path / "out")


def test_own_labels_leave_a_task_as_it_is(folder, tmp_path):
  plain = build(folder, tmp_path / "plain")
  own = build(SymbolTuning(folder, labels="own", copies=1), tmp_path / "own")

  def rows(store):
    return sorted(
      (store.input(i).tolist(), store.target(i).tolist(), [o.tolist() for o in store.options(i)])
      for i in range(len(store))
    )

  name = f"{folder.name}.reviews"
  assert rows(plain.store(name, "train")) == rows(own.store(f"symbols.{name}.0", "train"))


def test_only_tasks_of_two_classes_can_be_flipped(folder, tmp_path):
  source = SymbolTuning(folder, labels="flipped", copies=1)
  assert build(source, tmp_path / "out").tasks == (f"symbols.{folder.name}.reviews.0",)


def test_what_classification_is():
  def split(targets, options=(), most=3):
    labels = Labels(most)
    row = {"inputs": "", "options": list(options), "definition": ""}
    assert len(list(labels.watch({**row, "targets": t} for t in targets))) == len(targets)
    return labels

  assert classes([split("abab")]) == classes([split("ab"), split("ba")]) == ["a", "b"]
  assert classes([split("aba")]) == []  # "b" is answered once: an open question
  assert classes([split("ab", "abc")]) == classes([split("a", "ac"), split("b")]) == ["a", "b", "c"]
  assert classes([split("")]) == [] == classes([])


def test_what_is_no_classification_is_not_read_to_its_end():
  row = {"inputs": "", "options": [], "definition": ""}
  for rows, kept in (
    ([{**row, "targets": t} for t in "aabcdd"], 4),  # four labels
    ([{**row, "targets": "a", "options": options} for options in ("ab", "abcd", "a")], 1),
    ([{"targets": "text", "options": [], "definition": ""}] * 2, 0),  # language modelling
  ):
    labels, source = Labels(3), iter(rows)
    assert len(list(labels.watch(source))) == kept and len(list(source)) == len(rows) - kept - 1
    assert classes([labels]) == classes([labels, Labels(3)]) == []


def test_tasks_of_metaicl(tmp_path):
  checkout = str(write_checkout(tmp_path / "MetaICL"))
  targets = MetaICL(checkout, part="test", seeds=(13,), name="mi")
  source = SymbolTuning(targets, copies=2, max_classes=2)
  manifest = build(source, tmp_path / "out")
  assert manifest.tasks == ("symbols.mi.glue_rte.0", "symbols.mi.glue_rte.1")
  assert manifest.splits(manifest.tasks[0]) == ("test", "support_13")


def test_a_configuration_may_be_moved_and_comes_back_whole(folder, tmp_path):
  here = config(SymbolTuning(folder))
  assert DataConfig.from_json(json.loads(json.dumps(here.to_json()))) == here
  there = config(SymbolTuning(dataclasses.replace(folder, path="elsewhere")))
  assert here.hash() == there.hash() and str(tmp_path) not in json.dumps(here.portable())
  assert here.hash() != config(SymbolTuning(folder, copies=2)).hash()


def test_a_changed_file_is_noticed(folder, tmp_path):
  source = SymbolTuning(folder, copies=1)
  build(source, tmp_path / "out")
  assert ensure(config(source), tmp_path / "out").tasks
  file = f"{folder.path}/topics.json"
  with open(file, "w") as out:
    json.dump(TOPICS[1:], out)
  with pytest.raises(ValueError, match=r"the source of task 'symbols\..*\.topics\.0' has"):
    ensure(config(source), tmp_path / "out")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(labels="symbol"), "labels is 'symbol'; want one of .* Did you mean 'symbols'"),
    (dict(min_per_class=-1), "min_per_class is -1; it must be in 0"),
    (dict(copies=0), r"copies is 0; it must be in 1\.\.10000"),
    (dict(examples=1), "examples is 1; it must be in 2"),
    (dict(max_classes=10_001), r"max_classes is 10001; it must be in 2\.\.10000"),
  ],
)
def test_what_is_wrong_is_named(folder, fields, message):
  with pytest.raises(ValueError, match=f"SymbolTuning: {message}"):
    SymbolTuning(folder, **fields)


def test_a_source_without_classification_is_an_error(folder):
  source = SymbolTuning(dataclasses.replace(folder, include=["capitals"]))
  with pytest.raises(ValueError, match=f"of the tasks of source '{folder.name}' none is class"):
    source.register()
