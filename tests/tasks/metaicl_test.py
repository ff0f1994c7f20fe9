"""metaicl: files as MetaICL makes them become tasks, and all that is wrong in them an error."""

import dataclasses
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from hyperjax import evaluate, launch
from hyperjax.data import build as build_lib
from hyperjax.data.episodes import EpisodeConfig, TrainStream
from hyperjax.data.eval_episodes import eval_episodes
from hyperjax.data.manifest import DataConfig
from hyperjax.data.shots import PerClass
from hyperjax.evaluation import report
from hyperjax.tasks.metaicl import LABELS, RANKED, UNREAD, MetaICL, load
from hyperjax.tasks.symbol_tuning import tables
from tests import tiny as tiny_lib
from tests.data.fakes import PROMPT, Bytes
from tests.tasks.metaicl_files import K, examples, write_checkout, write_json, write_rows

tiny = tiny_lib.fixture
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


def test_options_of_training_tasks_are_read_for_symbol_tuning_alone(checkout, tmp_path):
  """MetaICL's own files have some twice, or empty; nothing ranks them."""
  odd = [
    {**ROW, "options": ["b", "c", "b", " "]}, {**ROW, "options": ["", ""]},
    {**ROW, "options": [3, "3", "b"]}, {**ROW, "options": ["b", "b"]},
  ]  # fmt: skip
  file = checkout / "data/piqa/piqa_16384_100_train.jsonl"
  write_rows(file, [*odd, {**ROW, "options": "c"}])
  assert [row["options"] for row in load(file, UNREAD)] == [[]] * 5
  manifest = build(MetaICL(str(checkout), name="mi_odd"), tmp_path / "out")
  assert {manifest.split(task, "train")["with_options"] for task in manifest.tasks} == {0}
  write_rows(file, odd)
  assert [row["options"] for row in load(file, LABELS)] == [["b", "c"], [], ["3", "b"], []]
  kept = build(MetaICL(str(checkout), options=True, name="mi_kept"), tmp_path / "kept")
  found = {task: kept.split(task, "train")["with_options"] for task in kept.tasks}
  assert found == {"mi_kept.glue_sst2": 12, "mi_kept.piqa": 2, "mi_kept.unifiedqa_squad2": 0}


def test_tasks_are_chosen_by_the_settings_names(checkout):
  ask = lambda **options: [*MetaICL(str(checkout), name="m", **options).tasks()]
  assert ask(include=["piqa", "unifiedqa:squad2"]) == ["m.piqa", "m.unifiedqa_squad2"]
  exclude = ["piqa", "openbookqa"]  # one is trained on, one is not
  assert ask(exclude=exclude) == ["m.glue_sst2", "m.unifiedqa_squad2"]
  assert ask(exclude=exclude, part="test", seeds=(13,)) == ["m.glue_rte"]
  with pytest.raises(ValueError, match=r"exclude names 'pica', which is no task.* mean 'piqa'\?"):
    ask(exclude=["pica"])
  with pytest.raises(ValueError, match=r"hr_to_lr\.json: include and exclude leave no task of 'un"):
    ask(exclude=exclude, part="unseen_domain_test")
  source = MetaICL(str(checkout), exclude=exclude)
  assert DataConfig.from_json(DataConfig(None, "bytes", sources=[source]).to_json()).sources == (
    source,
  )  # fmt: skip


def test_a_target_task_shows_all_examples_of_a_seed(checkout, tmp_path):
  source = MetaICL(str(checkout), part="test", seeds=(100, 13), name="mi_test")
  manifest = build(source, tmp_path / "out")
  assert manifest.tasks == ("mi_test.glue_rte", "mi_test.openbookqa")
  assert manifest.splits("mi_test.glue_rte") == ("test", "support_100", "support_13")
  for other in (None, "mi_test.openbookqa"):
    for seed in (13, 100):
      episodes = eval_episodes(
        manifest, "mi_test.glue_rte", num_shots=None, num_queries=2, max_queries=None, seed=seed,
        support_task=other,
      )  # fmt: skip
      assert len(episodes) == 3
      for episode in episodes:
        shown = [text(shot).split("=")[0] for shot in episode.shots]
        assert shown == [f"{seed} train {i}" for i in range(K)]
        for query in episode.queries:
          assert text(query.input).startswith("test ")
          assert list(map(text, query.options)) == ["entailment;", "not_entailment;"]


def test_a_target_task_may_have_a_test_split_alone(checkout, tmp_path):
  manifest = build(MetaICL(str(checkout), part="test", seeds=(), name="mi_alone"), tmp_path / "out")
  assert manifest.splits("mi_alone.openbookqa") == ("test",)


def test_all_seeds_must_ask_the_same(checkout):
  other = checkout / f"data/glue-rte/glue-rte_{K}_13_test.jsonl"
  write_rows(other, [ROW])
  source = MetaICL(str(checkout), part="test", seeds=(100, 13), name="mi_unlike")
  with pytest.raises(ValueError, match=rf"_100_test\.jsonl and {other} differ, though every seed"):
    source.register()
  MetaICL(str(checkout), part="test", seeds=(13,), name="mi_unlike").register()


# ---- By gin, from one checkout: seqio takes each task from one folder only -----------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A checkout with 15 examples of each class to train on and to ask; of the 16 examples of one
  seed one input is there twice, and one is also asked."""
  root = write_checkout(tmp_path_factory.mktemp("whole") / "MetaICL")
  rows = examples("glue-sst2", "classification", 30)
  write_rows(root / "data/glue-sst2/glue-sst2_16384_100_train.jsonl", rows)
  for seed in (100, 13):
    rows = examples("glue-rte", "classification", 30, "test ")
    write_rows(root / f"data/glue-rte/glue-rte_{K}_{seed}_test.jsonl", rows)
  rows = examples("glue-rte", "classification", K, "13 train ")
  rows[1]["input"], rows[2]["input"] = rows[0]["input"], "test 4"
  write_rows(root / f"data/glue-rte/glue-rte_{K}_13_train.jsonl", rows)
  return str(root)


def built(folder, data, part, **macros):
  """Builds the stores of a data file's tasks in bytes."""
  given = launch.arguments(
    ["models/smollm2_135m.gin", f"data/{data}.gin", "runs/data.gin"],
    "hyperjax.data.build", "build_parts",
    bindings=[f"{name}={value!r}" for name, value in macros.items()],
  )  # fmt: skip
  return build_lib.build(given["parts"][part], folder / data / part, vocabulary=Bytes())


def test_the_data_file_holds_out_the_target_tasks(whole, tmp_path):
  macros = {"METAICL_DIR": whole, "METAICL_SEEDS": (13,)}
  assert len(built(tmp_path, "metaicl", "train", **macros).tasks) == 3
  some = {"METAICL_EXCLUDE": ("piqa", "openbookqa"), "METAICL_INCLUDE": ("piqa", "glue-sst2")}
  parts = {part: built(tmp_path / "some", "metaicl", part, **macros, **some).tasks
           for part in ("train", "held_out")}  # fmt: skip
  assert parts == {
    "train": ("metaicl_hr_to_lr.glue_sst2",), "held_out": ("metaicl_hr_to_lr_test.glue_rte",)
  }  # fmt: skip
  manifest = built(tmp_path, "metaicl", "held_out", **macros)
  assert manifest.tasks == ("metaicl_hr_to_lr_test.glue_rte", "metaicl_hr_to_lr_test.openbookqa")
  assert manifest.splits("metaicl_hr_to_lr_test.glue_rte") == ("test", "support_13")
  assert text(manifest.store("metaicl_hr_to_lr_test.glue_rte", "test").input(0)) == "Q: test 0\nA:"


@pytest.mark.parametrize("part, task, split", [
  ("train", "symbol_tuning.metaicl.glue_sst2.3", "train"),
  ("held_out", "symbol_tuning_held_out.metaicl.glue_rte.3", "test"),
])  # fmt: skip
def test_symbol_tuning_shows_its_held_out_tasks_examples_of_each_class(
  whole, tmp_path, part, task, split
):
  """They are of the test file: the 16 examples of a seed may lack a class."""
  manifest = built(tmp_path, "symbol_tuning", part, METAICL_DIR=whole)
  assert manifest.splits(task) == (split,)
  store = manifest.store(task, split)
  assert {text(o).strip() for o in store.options(0)} <= set().union(*tables(part == "held_out"))
  if part == "held_out":
    episodes = eval_episodes(
      manifest, task, num_shots=PerClass(4), num_queries=5, max_queries=None, seed=0
    )
    assert sum(len(episode.queries) for episode in episodes) == 30
    assert {len(episode.shots) for episode in episodes} == {8}


def test_an_evaluation_by_the_protocol(tiny, whole, tmp_path):
  out, data = tmp_path / "report", tmp_path / "data"
  files = ["models/llama_tiny.gin", "data/metaicl.gin", "runs/eval_metaicl.gin"]
  macros = {
    "METAICL_DIR": whole, "METAICL_SEEDS": (100, 13), "DATA_DIR": str(data),
    "EVAL_OUTPUT_DIR": str(out), "RUNS": {"hyperllama": str(tiny.run)}, "MAX_SHAPES": 1,
    "MODEL_SOURCE": str(tiny.model), "MAX_NEW_TOKENS": 2,
  }  # fmt: skip
  given = [f"{name}={value!r}" for name, value in macros.items()] + ["VOCABULARY=%MODEL_SOURCE"]
  asked = launch.arguments(files, "hyperjax.evaluate", "evaluate", bindings=given)
  held_out = asked["data"].held_out
  build_lib.build(held_out.config, held_out.path)
  arguments = [*(f"--gin_file={f}" for f in files), *(f"--gin.{binding}" for binding in given)]
  assert evaluate.main(arguments) == 0
  results = json.loads((out / "results.json").read_text())
  assert results["seeds"] == [13, 100]
  assert results["left_out"] == {"metaicl_hr_to_lr_test.glue_rte": 1}
  assert results["num_queries"] == 2 * (29 + 6)
  assert results["metrics"]["metaicl_hr_to_lr_test.glue_rte"] == "macro_f1"
  for method, found in report.read_records(out).items():
    asked = {record["input"] for record in found if record["task"].endswith("rte")}
    assert asked == {f"Q: test {i}\nA:" for i in range(30) if i != 4}
    figures = results["methods"][method]
    assert figures["score_worst_seed"]["mean"] <= figures["score"]["mean"]


# ---- Files ---------------------------------------------------------------------------------------


def test_unseen_domains_are_a_part(checkout):
  source = MetaICL(str(checkout), part="unseen_domain_test", seeds=(13,))
  assert list(source.tasks()) == ["metaicl_hr_to_lr_unseen_domain_test.openbookqa"]


def test_a_fingerprint_follows_the_files_and_the_kind(checkout):
  source = MetaICL(str(checkout), part="test", seeds=(100,))
  before = source.fingerprints()
  assert before == dataclasses.replace(source).fingerprints()
  assert before != MetaICL(str(checkout), part="test", seeds=(13,)).fingerprints()
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
  with pytest.raises(ValueError, match=r"seeds is \(13, 14\); MetaICL draws with \(100, 13, 21, "):
    MetaICL(str(checkout), seeds=(13, 14))
  with pytest.raises(ValueError, match="MetaICL: include must be a list, not 'piqa'"):
    MetaICL(str(checkout), include="piqa")
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
    list(load(tmp_path / "a.jsonl"))


ANYTHING = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=6,
)
ANSWER = st.sampled_from(["a", "b", "", 1, None])
ROWS = st.fixed_dictionaries(
  {
    "task": ANYTHING, "input": ANYTHING, "output": ANSWER,
    "options": st.lists(ANSWER, max_size=3) | ANYTHING,
  }
)  # fmt: skip


@hypothesis.given(
  st.binary() | st.lists(ROWS | ANYTHING).map(lambda r: "\n".join(map(json.dumps, r)).encode()),
  st.sampled_from([RANKED, LABELS, UNREAD]),
)
def test_any_file_is_read_or_refused_by_name(tmp_path_factory, contents, use):
  file = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
  file.write_bytes(contents)
  try:
    rows = list(load(file, use))
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
    list(load(tmp_path / "deep.jsonl"))
