"""metaicl: files as MetaICL makes them become tasks, and all that is wrong in them an error."""

import json
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from hyperjax import launch
from hyperjax.data import build as build_lib
from hyperjax.data.episodes import EpisodeConfig, TrainStream
from hyperjax.data.eval_sets import eval_episodes
from hyperjax.data.manifest import DataConfig
from hyperjax.tasks.metaicl import MetaICL, load
from hyperjax.tasks.symbol_tuning import tables
from tests.data.fakes import PROMPT, Bytes
from tests.tasks.metaicl_files import K, write_checkout, write_json, write_rows

ROW = {"task": "t", "input": "a", "output": "b", "options": ["b", "c"]}


@pytest.fixture
def checkout(tmp_path):
  return write_checkout(tmp_path / "MetaICL")


def build(source, out):
  config = DataConfig(source.name, "bytes", prompt=PROMPT, sources=[source])
  return build_lib.build(config, out, vocabulary=Bytes())


def text(ids) -> str:
  return Bytes().decode(ids)


def test_a_setting_names_its_training_tasks(checkout, tmp_path):
  manifest = build(MetaICL(str(checkout), name="mi_train"), tmp_path / "out")
  assert manifest.tasks == ("mi_train.glue_sst2", "mi_train.piqa", "mi_train.unifiedqa_squad2")
  assert {manifest.rate(task) for task in manifest.tasks} == {1 / 3}
  assert {manifest.splits(task) for task in manifest.tasks} == {("train",)}
  found = {task: manifest.values["tasks"][task]["metrics"] for task in manifest.tasks}
  assert list(found.values()) == [["macro_f1"], ["accuracy"], ["accuracy"]]
  store = manifest.store("mi_train.unifiedqa_squad2", "train")
  assert text(store.target(0)) == "free;" and store.options(0) is None
  stream = TrainStream(manifest, EpisodeConfig(num_shots=3, num_queries=2), seed=0, batch_size=2)
  assert len(stream.episode(0, 0).shots) == 3


def test_a_target_task_shows_all_k_examples_of_its_seed(checkout, tmp_path):
  source = MetaICL(str(checkout), part="test", seed=13, name="mi_test")
  manifest = build(source, tmp_path / "out")
  assert manifest.tasks == ("mi_test.glue_rte", "mi_test.openbookqa")
  for other in (None, "mi_test.openbookqa"):
    episodes = eval_episodes(
      manifest, "mi_test.glue_rte", num_shots=K, num_queries=2, max_queries=None, seed=0,
      support_task=other,
    )  # fmt: skip
    assert len(episodes) == 3
    for episode in episodes:
      shown = {text(shot).split("=")[0] for shot in episode.shots}
      assert shown == {f"13 train {i}" for i in range(K)}
      for query in episode.queries:
        assert text(query.input).startswith("13 test ")
        assert list(map(text, query.options)) == ["entailment;", "not_entailment;"]


def test_the_data_files_hold_out_the_target_tasks_and_unseen_symbols(checkout, tmp_path):
  def built(data, part, **macros):
    given = launch.arguments(
      ["models/smollm2_135m.gin", f"data/{data}.gin", "runs/data.gin"],
      "hyperjax.data.build", "build_parts",
      bindings=[f"{name}={value!r}" for name, value in macros.items()],
    )  # fmt: skip
    return build_lib.build(given["parts"][part], tmp_path / data / part, vocabulary=Bytes())

  assert len(built("metaicl", "train", METAICL_DIR=str(checkout)).tasks) == 3
  manifest = built("metaicl", "held_out", METAICL_DIR=str(checkout), METAICL_SEED=13)
  assert manifest.tasks == ("metaicl_held_out.glue_rte", "metaicl_held_out.openbookqa")
  first = manifest.store("metaicl_held_out.glue_rte", "test").input(0)
  assert text(first).startswith("Q: 13 test ")
  for part, task in (
    ("train", "symbol_tuning.metaicl.glue_sst2.3"),
    ("held_out", "symbol_tuning_held_out.metaicl.glue_rte.3"),
  ):
    store = built("symbol_tuning", part, METAICL_DIR=str(checkout)).store(task, "train")
    symbols = {text(option).strip() for option in store.options(0)}
    assert symbols <= set().union(*tables(part == "held_out"))


def test_unseen_domains_are_a_part(checkout):
  source = MetaICL(str(checkout), part="unseen_domain_test")
  assert list(source.tasks()) == ["metaicl.openbookqa"]


def test_a_fingerprint_follows_the_files_and_the_kind(checkout):
  source = MetaICL(str(checkout), part="test")
  before = source.fingerprints()
  assert before == MetaICL(str(checkout), part="test").fingerprints()
  assert before != MetaICL(str(checkout), part="test", seed=13).fingerprints()
  write_rows(checkout / f"data/glue-rte/glue-rte_{K}_100_test.jsonl", [ROW])
  write_json(checkout / "config/tasks/openbookqa.json", {"task_type": "free-form"})
  after = source.fingerprints()
  assert before.keys() == after.keys() and all(before[task] != after[task] for task in before)


@pytest.mark.parametrize(
  ("part", "task", "command"),
  [
    ("train", "glue-sst2", r"_build_gym\.py --build --do_train"),
    ("train", "unifiedqa:squad2", r"unifiedqa\.py --do_train"),
    ("train", "inst:piqa", r"_build_gym\.py --build --inst --do_train"),
    ("test", "glue-rte", rf"_build_gym\.py --build --do_test --test_k {K}"),
  ],
)
def test_a_missing_file_is_named_with_what_makes_it(checkout, part, task, command):
  write_json(checkout / "config" / "tasks" / f"{task}.json", {"task_type": "classification"})
  write_json(checkout / "config" / "hr_to_lr.json", {part: [task]})
  for file in checkout.glob(f"data/{task}/*_train.jsonl"):
    file.unlink()
  with pytest.raises(FileNotFoundError, match=rf"{task}_.*_train\.jsonl is missing.* {command}$"):
    MetaICL(str(checkout), part=part).tasks()


def test_unknown_names_are_errors(checkout):
  with pytest.raises(ValueError, match=r"no setting 'hr_to_rl'.*Did you mean 'hr_to_lr'\?"):
    MetaICL(str(checkout), setting="hr_to_rl").tasks()
  with pytest.raises(ValueError, match=r"hr_to_lr\.json: 'tests' is no list.*you mean 'test'\?"):
    MetaICL(str(checkout), part="tests").tasks()
  with pytest.raises(ValueError, match=r"seed is 14; MetaICL draws with \(100, 13, 21, 42, 87\)"):
    MetaICL(str(checkout), seed=14)
  write_json(checkout / "config/tasks/piqa.json", {"task_type": "classifcation"})
  with pytest.raises(ValueError, match=r"piqa\.json: task_type is 'classifcation'; it must be"):
    MetaICL(str(checkout)).tasks()
  (checkout / "config/tasks/piqa.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"config/tasks/piqa\.json"):
    MetaICL(str(checkout)).tasks()
  assert not MetaICL(str(checkout / "data")).available()


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({name: value for name, value in ROW.items() if name != "task"}, "the field 'task' is missing"),
    ({**ROW, "option": []}, "unknown field 'option'.*Did you mean 'options'"),
    ({**ROW, "output": " "}, "the output is empty"),
    ({**ROW, "options": [" ", "b"]}, "an option is empty"),
    ({**ROW, "options": ["c", "d"]}, "the output 'b' is none of its options"),
    ({**ROW, "options": ["b", "c", "b"]}, "option 'b' occurs twice"),
    ({**ROW, "options": {}}, "options must be a list"),
    ({**ROW, "output": float("nan")}, "NaN is no JSON value"),
    ({**ROW, "input": "\ud800"}, "input is not Unicode text"),
    ({**ROW, "options": ["b"]}, "1 options, where at least 2 are due"),
  ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, row, message):
  write_rows(tmp_path / "a.jsonl", [ROW, row])
  with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: ?.*{message}"):
    load(tmp_path / "a.jsonl", 2)


ANYTHING = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=6,
)
LABELS = st.sampled_from(["a", "b", "", 1, None])
ROWS = st.fixed_dictionaries(
  {
    "task": ANYTHING, "input": ANYTHING, "output": LABELS,
    "options": st.lists(LABELS, max_size=3) | ANYTHING,
  }
)  # fmt: skip


@hypothesis.given(
  st.binary() | st.lists(ROWS | ANYTHING).map(lambda r: "\n".join(map(json.dumps, r)).encode())
)
def test_any_file_is_read_or_refused_by_name(tmp_path_factory, contents):
  file = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
  file.write_bytes(contents)
  try:
    rows = load(file)
  except ValueError as e:
    assert "fuzzed.jsonl" in str(e)
  else:
    for row in rows:
      assert row["targets"].strip() and json.dumps(row, ensure_ascii=False).encode()
      assert not row["options"] or row["targets"] in row["options"]


@hypothesis.given(st.binary() | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_any_setting_is_read_or_refused_by_name(tmp_path_factory, contents):
  file = tmp_path_factory.getbasetemp() / "config" / "fuzzed.json"
  file.parent.mkdir(exist_ok=True)
  file.write_bytes(contents)
  with pytest.raises(ValueError, match=r"fuzzed\.json"):
    MetaICL(str(file.parent.parent), setting="fuzzed").tasks()


@pytest.mark.parametrize("contents", ["[" * 100_000, '{"a": ' * 100_000])
def test_deep_nesting_is_refused(tmp_path, contents):
  (tmp_path / "deep.jsonl").write_text(contents)
  with pytest.raises(ValueError, match=r"deep\.jsonl, line 1: not JSON"):
    load(tmp_path / "deep.jsonl")


def test_sources_are_described_without_seqio():
  code = (
    "import sys; import hyperjax.tasks.metaicl, hyperjax.tasks.symbol_tuning; "
    "sys.exit(bool({'seqio', 'tensorflow', 'sklearn'} & set(sys.modules)))"
  )
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
