"""natural_instructions: the public layout, its splits and metrics, errors for what is wrong."""

import json

import hypothesis
import pytest
import seqio
from hypothesis import strategies as st

from hyperjax.data import build as build_lib
from hyperjax.data.eval_episodes import eval_episodes, other_tasks
from hyperjax.data.manifest import DataConfig
from hyperjax.tasks import natural_instructions as ni
from hyperjax.tasks.natural_instructions import load
from tests.data.fakes import PROMPT, Bytes
from tests.tasks.ni_files import DELETE, instance, shot, task, write

CHOICE = "Which is even?\n(A)one (B)two (C)three "

TASKS = {
  "task001_numbers": {},
  "task002-more_numbers": {"count": 150},
  "task003_entailment": {"count": 120, "Categories": ["Textual Entailment", "Other"]},
  "task004_titles": {"Categories": ["Title Generation"]},
  "task005_titles_too": {},
  "task006_unlisted": {},
}
LISTS = {
  "train_tasks": ["task001_numbers", "task002-more_numbers", "task005_titles_too"],
  "test_tasks": ["task003_entailment", "task004_titles"],
  "excluded_tasks": ["task005_titles_too"],
}


@pytest.fixture
def clone(tmp_path):
  root = tmp_path / "clone"
  for stem, changes in TASKS.items():
    write(root / "tasks" / f"{stem}.json", task(**changes))
  write(root / "tasks" / "README.md", "not a task")
  for name, stems in LISTS.items():
    write(root / "splits" / "default" / f"{name}.txt", "\n".join(stems) + "\n")
  for name in LISTS:
    write(root / "splits" / "xlingual" / f"{name}.txt", "task006_unlisted\n")
  return root


# ---- Which tasks -------------------------------------------------------------------------------


def test_the_lists_of_a_clone_say_which_tasks(clone):
  assert list(ni.TrainTasks(str(clone)).files()) == [
    "ni_default.Question_Answering.task001_numbers",
    "ni_default.Question_Answering.task002_more_numbers",
  ]
  assert list(ni.TestTasks(str(clone), name="held_out").files()) == [
    "held_out.Textual_Entailment.task003_entailment", "held_out.Title_Generation.task004_titles",
  ]  # fmt: skip
  some = ni.TrainTasks(str(clone), exclude=["task001_numbers"])
  assert [file.stem for file in some.files().values()] == ["task002-more_numbers"]
  assert len(ni.TrainTasks(str(clone), track=None).files()) == 6


def test_a_folder_of_task_files_has_no_track(clone):
  held_out = ["task004_titles"]
  folder = str(clone / "tasks")
  assert len(ni.TrainTasks(folder, track=None, exclude=held_out).files()) == 5
  found = ni.TestTasks(folder, track=None, include=held_out).files()
  assert [file.stem for file in found.values()] == held_out
  with pytest.raises(ValueError, match=r"no track 'default' among \[\]; a folder of task files"):
    ni.TrainTasks(folder).files()


def test_wrong_lists_are_named(clone):
  root = str(clone)
  with pytest.raises(ValueError, match="no track 'defalt' among .*Did you mean 'default'"):
    ni.TrainTasks(root, track="defalt").files()
  with pytest.raises(ValueError, match="include names 'task004_title'.*mean 'task004_titles'"):
    ni.TestTasks(root, include=["task004_title"]).files()
  with pytest.raises(ValueError, match="'task001_numbers', which is no task there"):
    ni.TestTasks(root, include=["task001_numbers"]).files()  # of the other list
  write(clone / "splits/default/test_tasks.txt", "task003_entailment\n\ntask4_titles\n")
  with pytest.raises(ValueError, match=r"test_tasks\.txt, line 3: there is no file of task "
                     "'task4_titles'. Did you mean 'task004_titles'"):  # fmt: skip
    ni.TestTasks(root).files()
  (clone / "splits/default/train_tasks.txt").unlink()
  with pytest.raises(FileNotFoundError, match="train_tasks.txt"):
    ni.TrainTasks(root).files()
  with pytest.raises(FileNotFoundError, match="there is no folder"):
    ni.TrainTasks(root + "x").files()


def test_wrong_settings_are_named(clone):
  with pytest.raises(ValueError, match="support is 'instance', .*Did you mean 'instances'"):
    ni.TestTasks(str(clone), support="instance")
  with pytest.raises(ValueError, match="max_instances is 0"):
    ni.TrainTasks(str(clone), max_instances=0)
  with pytest.raises(ValueError, match="set rouge_tokenizer"):
    ni.TestTasks(str(clone), track="xlingual")


def test_a_fingerprint_follows_the_contents_and_what_is_taken(clone):
  source = ni.TestTasks(str(clone))
  before = source.fingerprints()
  assert before.keys() == source.files().keys()
  write(clone / "tasks/task004_titles.json", task(4, Categories=["Title Generation"]))
  after = source.fingerprints()
  [changed] = [task for task in before if before[task] != after[task]]
  assert changed.endswith("task004_titles")
  for other in ({"support": ni.POSITIVE_EXAMPLES}, {"definition": False}):
    assert not set(ni.TestTasks(str(clone), **other).fingerprints().values()) & set(after.values())
  assert ni.TestTasks(str(clone), rouge_tokenizer="x").fingerprints() == after


# ---- What is in a file -------------------------------------------------------------------------


def test_rows(tmp_path):
  instances = [instance(0, ["yes", " yes, it is "]), instance(1, ["B"], CHOICE)]
  examples, instances = load(write(tmp_path / "a.json", task(Instances=instances)))
  definition = "Say whether it is a number."
  assert instances == [
    {"inputs": "Is 0 a number?", "targets": "yes", "references": ["yes", "yes, it is"],
     "options": [], "definition": definition},
    {"inputs": CHOICE.strip(), "targets": "B", "references": ["B"], "options": ["A", "B", "C"],
     "definition": definition},
  ]  # fmt: skip
  assert [(row["inputs"], row["targets"]) for row in examples] == [
    ("Is two a number?", "yes"), ("Is green a number?", "no"),
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("text", "target", "expected"),
  [
    (CHOICE, "A", "ABC"),
    ("It rained. (A) It was dry. (B) It was wet., Question: effect", "B", "AB"),
    (CHOICE, "two", ""),
    (CHOICE, "D", ""),
    ("(A)one", "A", ""),
    ("no options", "A", ""),
    ("If f(A) and (C) hold:\n(A)f(B) (B)(A) and (D) (C)none", "C", "ABC"),
    ("(A)I (B)II (C)III (D)(E) I and II", "D", "ABCD"),
    ("(B)two (A)one", "A", ""),
  ],
)
def test_options(text, target, expected):
  assert ni.options(text, target) == list(expected)


ONE = instance(1)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"Definition": DELETE}, "the field 'Definition' is missing"),
    ({"Definition": "text"}, "Definition must be a list, not 'text'"),
    ({"Definition": [" "]}, "Definition is empty"),
    ({"Definition": [1]}, "Definition must be a text, not 1"),
    ({"Positive Examples": {}}, "Positive Examples must be a list, not {}"),
    ({"Positive Examples": [shot("a", ["b"])]},
     r"Positive Examples 1: output must be a text, not \['b'\]"),
    ({"Positive Examples": [shot("a", "b"), shot("a", " ")]},
     "Positive Examples 2: output is empty"),
    ({"Instances": DELETE, "Instance": []}, "'Instances' is missing. Did you mean 'Instance'"),
    ({"Instances": {"1": ONE}}, "Instances must be a list, not {'1'"),
    ({"Instances": []}, "it has no instances"),
    ({"Instances": [ONE, "text"]}, "Instances 2: an object is expected, not 'text'"),
    ({"Instances": [ONE, ONE]}, "Instances 2: its id 'task-0001' occurs twice"),
    ({"Instances": [ONE, {**ONE, "id": 2}]}, "Instances 2: id must be a text, not 2"),
    ({"Instances": [{"id": "1", "output": ["a"]}]}, "Instances 1: the field 'input' is missing"),
    ({"Instances": [{"id": "1", "input": "a"}]}, "Instances 1: the field 'output' is missing"),
    ({"Instances": [{**ONE, "input": None}]}, "Instances 1: input must be a text, not None"),
    ({"Instances": [{**ONE, "input": "a \ud83d"}]}, "Instances 1: input is not Unicode text"),
    ({"Instances": [{**ONE, "output": "yes"}]}, "Instances 1: output must be a list, not 'yes'"),
    ({"Instances": [{**ONE, "output": []}]}, "Instances 1: output is empty"),
    ({"Instances": [{**ONE, "output": ["a", "\n"]}]}, "Instances 1: output is empty"),
    ({"Instances": [{**ONE, "output": [True]}]}, "Instances 1: output must be a text, not True"),
    ({"Domains": [float("nan")]}, "not JSON: NaN is no JSON value"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path, changes, message):
  with pytest.raises(ValueError, match=rf"a\.json(: |, ).*{message}"):
    load(write(tmp_path / "a.json", task(**changes)))


def test_files_that_are_no_tasks(tmp_path):
  file = tmp_path / "a.json"
  for contents, message in [
    (b"\xff", r"a\.json, line 1: not UTF-8"),
    (b'{"Definition": [', r"a\.json: not JSON: .*column 17"),
    (b"[" * 100_000, r"a\.json: not JSON: "),
    (b"[]", r"a\.json: an object is expected, not \[\]"),
  ]:
    file.write_bytes(contents)
    with pytest.raises(ValueError, match=message):
      load(file)
  for categories in ([], "Title Generation", DELETE):
    write(file, task(Categories=categories))
    with pytest.raises(ValueError, match=r"a\.json: it has no 'Categories'"):
      ni.category(file)


WHOLE = json.dumps(task(2)).encode()
PIECES = st.sampled_from([b"", b'"', b"\\", b"[]", b"{}", b"null", b"1", b'""', b"\xff", b"NaN"])
CUTS = st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 12), PIECES | st.binary(max_size=4))
JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.just(instance(1)),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
  max_leaves=5,
)
FIELDS = st.sampled_from(["Definition", "Positive Examples", "Instances"])


@hypothesis.given(
  st.binary(max_size=40)
  | CUTS.map(lambda cut: WHOLE[: cut[0]] + cut[2] + WHOLE[cut[0] + cut[1] :])
  | st.dictionaries(FIELDS, JSON).map(lambda changes: json.dumps(task(2, **changes)).encode())
)
def test_any_bytes_are_rows_or_an_error_that_names_the_file(tmp_path_factory, contents):
  file = tmp_path_factory.getbasetemp() / "any.json"
  file.write_bytes(contents)
  try:
    found = load(file)
  except ValueError as e:
    assert str(file) in str(e)
  else:
    assert found.instances
    for row in (*found.positive_examples, *found.instances):
      assert row["targets"] == row["references"][0] and all(map(str.strip, row["references"]))
      row["inputs"].encode()


# ---- Splits, seqio, stores ---------------------------------------------------------------------


def test_the_splits_of_a_test_task(tmp_path):
  file = write(tmp_path / "a.json", task(120))
  more = ni.TestTasks("").splits(file)
  assert [row["inputs"] for row in more["test"]] == [f"Is {i} a number?" for i in range(100)]
  assert [row["inputs"] for row in more["train"]] == [f"Is {i} a number?" for i in range(100, 120)]
  shown = ni.TestTasks("", support=ni.POSITIVE_EXAMPLES).splits(file)
  assert shown["test"] == more["test"] and [r["targets"] for r in shown["train"]] == ["yes", "no"]
  few = write(tmp_path / "few.json", task(100, **{"Positive Examples": []}))
  assert ni.TestTasks("").splits(few).keys() == {"test"}
  with pytest.raises(ValueError, match=r"few\.json: it has no positive examples"):
    ni.TestTasks("", support=ni.POSITIVE_EXAMPLES).splits(few)


def test_the_split_of_a_training_task(tmp_path):
  """So many instances of it are drawn: not the first ones, not those of another task's numbers."""

  def taken(name, most):
    file = write(tmp_path / f"{name}.json", task(120))
    splits = ni.TrainTasks("", max_instances=most).splits(file)
    assert splits.keys() == {"train"}
    return [int(row["inputs"].split()[1]) for row in splits["train"]]

  assert taken("a", None) == [*range(120)]
  assert sorted(taken("a", 200)) == [*range(120)]
  drawn = taken("a", 40)
  assert len({*drawn}) == 40 and {*drawn} <= {*range(120)} and max(drawn) > 80
  assert drawn[:7] == taken("a", 7)
  assert len({*drawn} & {*taken("b", 40)}) < 30
  assert drawn[:4] == [54, 69, 25, 106]  # with other draws stores must have other names


def test_only_stores_of_drawn_instances_have_other_names_than_before(clone):
  whole = ni.TrainTasks(str(clone), max_instances=None)
  assert whole.taken == {
    "name": "ni_default", "track": "default", "definition": True, "max_instances": None
  }  # fmt: skip
  assert ni.TrainTasks(str(clone)).taken == {**whole.taken, "max_instances": 100, "drawn": True}
  assert ni.TestTasks(str(clone)).taken.keys() == {"name", "track", "definition", "support"}


def test_two_sources_of_a_clone_register_side_by_side(clone):
  train, test = ni.TrainTasks(str(clone)), ni.TestTasks(str(clone))
  for source in (train, test, train):
    source.register()
  mixtures = [seqio.MixtureRegistry.get(source.name) for source in (train, test)]
  assert [[task.name for task in mixture.tasks] for mixture in mixtures] == [
    list(source.files()) for source in (train, test)
  ]
  assert {mixture.get_rate(task) for mixture in mixtures for task in mixture.tasks} == {1.0}
  splits = {task.name.split(".")[-1]: set(task.splits) for m in mixtures for task in m.tasks}
  assert splits == {
    "task001_numbers": {"train"}, "task002_more_numbers": {"train"},
    "task003_entailment": {"train", "test"}, "task004_titles": {"test"},
  }  # fmt: skip


def build(source, out):
  config = DataConfig(source.name, "bytes", prompt=PROMPT, sources=[source])
  assert DataConfig.from_json(config.to_json()).hash() == config.hash()
  return build_lib.build(config, out, vocabulary=Bytes())


ENTAILMENT, TITLES = "Textual_Entailment.task003_entailment", "Title_Generation.task004_titles"


def episodes(manifest, task, num_shots, **options):
  return eval_episodes(
    manifest, task, num_shots=num_shots, num_queries=2, max_queries=2, seed=0, **options
  )


def test_a_built_folder_has_metrics_references_and_definitions(clone, tmp_path):
  write(clone / "tasks/task004_titles.json", task(
    Categories=["Title Generation"], Instances=[instance(i, ["yes", "sure"]) for i in range(9)],
  ))  # fmt: skip
  manifest = build(ni.TestTasks(str(clone), name="one"), tmp_path / "out")
  entailment, titles = f"one.{ENTAILMENT}", f"one.{TITLES}"
  metrics = {name: entry["metrics"] for name, entry in manifest.values["tasks"].items()}
  assert metrics == {
    entailment: ["exact_match", "rouge_l"], titles: ["rouge_l", "exact_match"]
  }  # fmt: skip
  assert list(manifest.store(titles, "test").references(3)) == ["yes", "sure"]
  for name, shots in ((entailment, 8), (titles, 4)):
    [episode] = episodes(manifest, name, shots)
    assert Bytes().decode(episode.head) == "Say whether it is a number.\n"
    assert len(episode.shots) == shots and len(episode.queries) == 2


def test_supports_of_positive_examples(clone, tmp_path):
  """All two that a task has, also as the support of another task."""
  source = ni.TestTasks(
    str(clone), name="two", support=ni.POSITIVE_EXAMPLES, definition=False, rouge_tokenizer="x"
  )
  manifest = build(source, tmp_path / "out")
  titles = f"two.{TITLES}"
  assert manifest.values["tasks"][titles]["metrics"] == ["xlingual_rouge_l:x", "exact_match"]
  others = other_tasks(manifest.tasks)
  for options in ({}, {"support_task": others[titles]}):
    [episode] = episodes(manifest, titles, 2, **options)
    assert sorted(map(Bytes().decode, episode.shots)) == [
      "Is green a number?=no;", "Is two a number?=yes;",
    ]  # fmt: skip
    assert not len(episode.head)


def test_seqio_evaluates_a_tokenised_copy(clone):
  write(clone / "tasks/task004_titles.json", task(Categories=["Title Generation"], Instances=[
    instance(0, ["a green cat", "cats"]), instance(1, ["a dog"]),
  ]))  # fmt: skip
  ni.TestTasks(str(clone), name="three").register()
  titles = seqio.TaskRegistry.get(f"three.{TITLES}")
  vocabulary = seqio.ByteVocabulary()
  seqio.TaskRegistry.add(
    "titles_in_bytes", titles.source,
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features=dict.fromkeys(("inputs", "targets"), seqio.Feature(vocabulary)),
    postprocess_fn=titles.postprocessor, metric_fns=titles.metric_fns,
  )  # fmt: skip
  try:
    evaluator = seqio.Evaluator(
      "titles_in_bytes", seqio.EncDecFeatureConverter(pack=False), eval_split="test"
    )
    metrics, _ = evaluator.evaluate(
      compute_metrics=True,
      predict_fn=lambda dataset: [
        (int(i), vocabulary.encode("Cats.")) for i, _ in dataset.as_numpy_iterator()
      ],
    )
    # Against "cats" and against "a dog".
    assert metrics.result() == {"titles_in_bytes": {"rouge_l": 0.5, "exact_match": 0.5}}
  finally:
    seqio.TaskRegistry.remove("titles_in_bytes")
