"""p3: T0's prompted data sets in the layout of their release, and errors for what is wrong."""

import json
import math
import random

import hypothesis
import pytest
import seqio
from hypothesis import strategies as st

from hyperjax.data import build as build_lib
from hyperjax.data import eval_episodes
from hyperjax.data.manifest import DataConfig, family
from hyperjax.tasks.p3 import MIXTURES, P3
from hyperjax.tasks.p3_records import Split
from tests.data.fakes import PROMPT, Bytes
from tests.tasks.p3_files import (
  ANSWERS,
  CHOICES,
  PLAIN,
  SCORED,
  TEXT,
  held_out,
  plain,
  scored,
  template,
  write,
)  # fmt: skip


@pytest.fixture
def data(tmp_path):
  template(tmp_path, "trec_trec1", 12, options=True, test=4)
  template(tmp_path, "trec_fine_grained_LOC", 5, options=True, test=4)
  template(tmp_path, "cnn_dailymail_3.0.0_tldr_summary", 8, validation=4, test=4)
  held_out(tmp_path, "super_glue_wsc.fixed_p_is_are_r")
  held_out(tmp_path, "super_glue_copa__why_C1_or_C2")
  held_out(tmp_path, "anli_GPT_3_style_r1")
  held_out(tmp_path, "anli_GPT_3_style_r2")
  (tmp_path / "README.md").write_text("no template")
  return tmp_path


def test_a_template_is_read_from_all_its_shards(tmp_path):
  split = write(tmp_path / "a", "train", [plain(n) for n in range(5)], PLAIN, shards=2)
  rows = list(split.rows())
  assert [row["inputs"] for row in rows] == [f"Is {n} even?" for n in (0, 2, 4, 1, 3)]
  assert [row["targets"] for row in rows] == ["yes", "yes", "yes", "no", "no"]
  assert all(row["options"] == [] for row in rows)


def test_choices_are_regrouped_wherever_they_stand(tmp_path):
  records = [scored(n, c) for n in range(4) for c in range(3)]
  random.Random(0).shuffle(records)
  split = write(tmp_path / "a_score_eval", "validation", records, SCORED, shards=3)
  assert list(split.rows()) == [
    {"inputs": f"Is {n} even?", "targets": ANSWERS[n % 2], "options": list(ANSWERS)}
    for n in range(4)
  ]


def test_options_come_where_they_are_asked(tmp_path):
  template(tmp_path, "a", train=1, validation=1, options=True)
  rows = {name: list(Split(tmp_path / "a", name).rows()) for name in ("train", "validation")}
  assert [row["options"] for row in rows["train"]] == [[]]
  assert [row["options"] for row in rows["validation"]] == [list(ANSWERS)]


def test_the_mixtures_are_t0s():
  assert [len(datasets) for datasets in MIXTURES.values()] == [38, 48, 54, 9]
  trained = set(MIXTURES["t0pp_train"])
  assert not set(MIXTURES["t0_train"]) & set(MIXTURES["t0_held_out"])
  assert trained & set(MIXTURES["t0_held_out"]) == {
    "hellaswag", "super_glue_copa", "super_glue_wic", "super_glue_wsc.fixed"
  }  # fmt: skip


def test_tasks_are_called_after_data_set_and_template(data):
  assert list(P3(str(data)).tasks()) == [
    "p3.cnn_dailymail_3_0_0.tldr_summary", "p3.trec.fine_grained_LOC", "p3.trec.trec1"
  ]  # fmt: skip
  tasks = P3(str(data), "t0_held_out", name="held_out").tasks()
  assert list(tasks) == [
    "held_out.anli.GPT_3_style_r1", "held_out.anli.GPT_3_style_r2",
    "held_out.super_glue_copa._why_C1_or_C2", "held_out.super_glue_wsc_fixed.p_is_are_r",
  ]  # fmt: skip
  assert set(map(family, tasks)) == {
    "held_out.anli", "held_out.super_glue_copa", "held_out.super_glue_wsc_fixed"
  }  # fmt: skip
  plus = P3(str(data), "t0pp_train", include=["super_glue_copa"]).tasks()
  assert [split.folder.name for split in plus["p3.super_glue_copa._why_C1_or_C2"].values()] == [
    "super_glue_copa__why_C1_or_C2"
  ] * 2


def test_a_held_out_task_joins_two_folders(data):
  held_out = P3(str(data), "t0_held_out", include=["super_glue_copa"])
  (splits,) = held_out.tasks().values()
  assert {name: split.folder.name for name, split in splits.items()} == {
    "train": "super_glue_copa__why_C1_or_C2",
    "validation": "super_glue_copa__why_C1_or_C2_score_eval",
  }
  for file in (data / "super_glue_copa__why_C1_or_C2").iterdir():
    file.unlink()
  (splits,) = held_out.tasks().values()
  assert list(splits) == ["validation"]


def test_a_test_split_is_asked_where_it_is_the_only_one(data):
  tasks = P3(str(data)).tasks()
  assert list(tasks["p3.trec.trec1"]) == ["train", "test"]
  assert list(tasks["p3.cnn_dailymail_3_0_0.tldr_summary"]) == ["train", "validation"]


def test_rates_are_t0s(data):
  for n in (1, 2, 3):
    template(data, f"amazon_polarity_{n}", 2)
    stats = data / f"amazon_polarity_{n}" / "stats.train.json"
    stats.write_text(json.dumps({"examples": 3_600_000}))
  capped = {f"p3.amazon_polarity.{n}": 166_666.0 for n in (1, 2, 3)}
  assert P3(str(data)).rates() == {
    **capped, "p3.cnn_dailymail_3_0_0.tldr_summary": 8.0, "p3.trec.fine_grained_LOC": 12.0,
    "p3.trec.trec1": 12.0,
  }  # fmt: skip
  fewer = P3(str(data), include=["amazon_polarity"], exclude=["amazon_polarity_2"])
  assert fewer.rates() == {name: capped[name] for name in capped if not name.endswith("2")}
  assert set(P3(str(data), "t0_held_out").rates().values()) == {1.0}


def test_what_t0_leaves_out_is_left_out(data):
  template(data, "gigaword_summarize_")
  template(data, "gigaword_make_a_title")
  assert list(P3(str(data), include=["gigaword"]).tasks()) == ["p3.gigaword.make_a_title"]


def test_include_and_exclude_name_data_sets_and_templates(data):
  names = lambda **chosen: list(P3(str(data), **chosen).tasks())
  assert names(include=["trec"]) == ["p3.trec.fine_grained_LOC", "p3.trec.trec1"]
  assert names(include=["trec"], exclude=["trec_trec1"]) == ["p3.trec.fine_grained_LOC"]
  for name, hint in (("trec_trec2", "trec_trec1"), ("cnn_dailymail", "cnn_dailymail_3.0.0")):
    with pytest.raises(ValueError, match=f"include names '{name}', .* mean '{hint}'"):
      names(include=[name])
  with pytest.raises(ValueError, match="exclude names 'imdb', which is no data set or template of "
                                       "'t0_train' there"):  # fmt: skip
    names(exclude=["imdb"])
  with pytest.raises(ValueError, match="no template of 't0_train' that include and exclude leave"):
    names(include=["trec"], exclude=["trec"])
  with pytest.raises(ValueError, match="P3: exclude must be a list, not 'trec'"):
    names(exclude="trec")


def test_templates_that_would_be_one_task_are_named(tmp_path):
  for name in ("imdb_Movie Expressed", "imdb_Movie_Expressed"):
    template(tmp_path, name)
  with pytest.raises(ValueError, match="imdb_Movie.Expressed and .*both would be task 'p3.imdb"):
    P3(str(tmp_path)).tasks()


def test_a_folder_that_is_none_of_p3(tmp_path):
  with pytest.raises(ValueError, match="mixture is 't0_tain', .* Did you mean 't0_train'"):
    P3(str(tmp_path), "t0_tain")
  with pytest.raises(ValueError, match=f"{tmp_path}: no template of 't0_train' there"):
    P3(str(tmp_path)).register()
  nowhere = P3(str(tmp_path / "nowhere"))
  assert not nowhere.available()
  with pytest.raises(FileNotFoundError, match="Source 'p3': there is no folder .*nowhere"):
    nowhere.fingerprints()


def test_a_fingerprint_follows_the_files_not_their_place(data, tmp_path_factory):
  source = P3(str(data), "t0_held_out")
  before = source.fingerprints()
  copy = tmp_path_factory.mktemp("other") / "data"
  data.rename(copy)
  assert P3(str(copy), "t0_held_out").fingerprints() == before
  for file in ("anli_GPT_3_style_r1/train.tfrecord-00000-of-00001",
               "anli_GPT_3_style_r2_score_eval/stats.validation.json"):  # fmt: skip
    contents = (copy / file).read_bytes()
    (copy / file).write_bytes(contents[:-1] + b" ")
  after = P3(str(copy), "t0_held_out").fingerprints()
  assert [task for task in before if before[task] != after[task]] == [
    "p3.anli.GPT_3_style_r1", "p3.anli.GPT_3_style_r2"
  ]  # fmt: skip


def test_episodes_have_the_options_of_the_validation_split(data, tmp_path):
  source = P3(str(data), "t0_held_out", name="asked")
  config = DataConfig("asked", "bytes", prompt=PROMPT, sources=[source])
  manifest = build_lib.build(config, tmp_path / "out", vocabulary=Bytes())
  assert set(manifest.tasks) == set(source.tasks())
  task = "asked.super_glue_copa._why_C1_or_C2"
  assert manifest.values["tasks"][task]["metrics"] == ["rank_classification"]
  assert manifest.splits(task) == ("train", "validation") and manifest.rate(task) == 0.25
  assert {task: manifest.cluster(task) for task in manifest.tasks} == {
    "asked.anli.GPT_3_style_r1": "asked.anli", "asked.anli.GPT_3_style_r2": "asked.anli",
    task: "asked.super_glue_copa",
    "asked.super_glue_wsc_fixed.p_is_are_r": "asked.super_glue_wsc_fixed",
  }  # fmt: skip
  (episode,) = eval_episodes.eval_episodes(
    manifest, task, num_shots=4, num_queries=10, max_queries=None, seed=0
  )
  decode = Bytes().decode
  assert len(episode.queries) == 6
  for query in episode.queries:
    number = int(decode(query.input).split()[1])
    assert number >= 100 and decode(query.target) == f"{ANSWERS[number % 2]};"
    assert [decode(option) for option in query.options] == [f"{answer};" for answer in ANSWERS]
  shots = [decode(shot) for shot in episode.shots]
  expected = {f"Is {n} even?={ANSWERS[n % 2]};" for n in range(12)}
  assert len(set(shots)) == 4 and set(shots) <= expected


def test_a_training_mixture_is_built_at_its_rates(data, tmp_path):
  source = P3(str(data), exclude=["cnn_dailymail_3.0.0"], name="trained")
  config = DataConfig("trained", "bytes", prompt=PROMPT, sources=[source], splits=["train"])
  manifest = build_lib.build(config, tmp_path / "out", vocabulary=Bytes())
  assert manifest.rate("trained.trec.trec1") == 0.5
  assert len(manifest.store("trained.trec.fine_grained_LOC", "train")) == 5
  assert seqio.get_mixture_or_task("trained.trec.trec1").splits == ("train", "test")


NAN = float("nan")
BROKEN = [
  ({2: {"targets_pretokenized": " \n"}}, r"record 3: the target is empty"),
  ({2: {"inputs_pretokenized": b"a\xff"}}, r"record 3: inputs_pretokenized is not text in UTF-8"),
  ({2: {"inputs_pretokenized": ["a", "b"]}}, r"record 3: inputs_pretokenized has 2 values, not 1"),
  ({2: {"targets_pretokenized": 7}}, r"record 3: it has no feature 'targets_pretokenized' of str"),
  ({2: {"answer_choices": ["yes", " yes"]}}, r"record 3: option 'yes' occurs twice"),
  ({2: {"answer_choices": ["no", "maybe"]}}, r"record 3: the target 'yes' is none of its options"),
  ({2: b"\x0f"}, r"record 3: not a tf\.train\.Example"),
]
BROKEN_CHOICES = [
  ({0: {"is_correct": False}}, r"record 1, example 0: 0 of 3 choices are correct, not 1"),
  ({1: {"is_correct": True}}, r"record 1, example 0: 2 of 3 choices are correct, not 1"),
  ({1: {"targets_pretokenized": "yes"}}, r"record 1, example 0: option 'yes' occurs twice"),
  ({4: {"idx": [0, 1]}}, r"record 5: idx \[0, 1\] occurs twice"),
  ({4: {"idx": [1, 3]}}, r"record 4, example 1: its choices are \[0, 2, 3\]; some are missing"),
  ({4: {"idx": [1]}}, r"record 5: idx is \[1\], not an example and a choice"),
  ({4: {"inputs_pretokenized": "?"}}, r"record 4, example 1: its choices have different inputs"),
  ({4: {"weight": NAN}}, r"record 5: weight is nan; every choice must weigh 1"),
  ({4: {"is_correct": 0.0}}, r"record 5: it has no feature 'is_correct' of bool"),
]


def changed(records, changes):
  return [
    changes[i] if isinstance(changes.get(i), bytes) else {**record, **changes.get(i, {})}
    for i, record in enumerate(records)
  ]


@pytest.mark.parametrize("changes, message", BROKEN)
def test_what_is_wrong_in_a_record_is_named_with_its_place(tmp_path, changes, message):
  records = changed([plain(n, answer_choices=list(ANSWERS)) for n in range(4)], changes)
  split = write(tmp_path / "a", "validation", records, CHOICES)
  with pytest.raises(ValueError, match=r"validation\.tfrecord-00000-of-00001, " + message):
    list(split.rows())


@pytest.mark.parametrize("changes, message", BROKEN_CHOICES)
def test_what_is_wrong_among_choices_is_named_with_its_place(tmp_path, changes, message):
  records = changed([scored(n, c) for n in range(2) for c in range(3)], changes)
  split = write(tmp_path / "a_score_eval", "validation", records, SCORED)
  with pytest.raises(ValueError, match=r"validation\.tfrecord-00000-of-00001, " + message):
    list(split.rows())


def test_a_record_without_a_feature(tmp_path):
  record = plain(2)
  del record["targets_pretokenized"]
  split = write(tmp_path / "a", "train", [plain(0), record], PLAIN)
  with pytest.raises(ValueError, match="record 2: it has no feature 'targets_pretokenized' of str"):
    list(split.rows())


@pytest.mark.parametrize(
  "file, contents, message",
  [
    ("info", "{", "not JSON: Expecting property name"),
    ("info", "[1]", "it has no field 'features' of dict"),
    ("info", {"features": SCORED}, "it has no field 'num_shards' of int"),
    ("stats", {"examples": "3"}, "it has no field 'examples' of int"),
    ("stats", {"examples": 4}, "4 examples; the shards hold 3"),
    ("info", {"features": PLAIN, "num_shards": 1},
     r"feature 'idx' is missing; \{'dtype': 'int32', 'shape': \[None\]\} is needed"),
    ("info", {"features": {**SCORED, "weight": TEXT}, "num_shards": 1},
     r"feature 'weight' is \{'dtype': 'string', 'shape': \[\]\}; \{'dtype': 'float32'"),
  ],
)  # fmt: skip
def test_json_files_that_do_not_describe_their_shards(tmp_path, file, contents, message):
  split = write(tmp_path / "a_score_eval", "train", [scored(0, c) for c in range(3)], SCORED)
  path = tmp_path / "a_score_eval" / f"{file}.train.json"
  path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
  with pytest.raises(ValueError, match=rf"{file}\.train\.json: {message}"):
    list(split.rows())


def test_files_that_are_missing(data):
  split = write(data / "trec_trec2", "train", [plain(n) for n in range(5)], PLAIN, shards=3)
  (data / "trec_trec2" / "train.tfrecord-00001-of-00003").unlink()
  with pytest.raises(FileNotFoundError, match="00001-of-00003: shard 2 of 3 is missing"):
    list(split.rows())
  with pytest.raises(FileNotFoundError, match="00001-of-00003: shard 2 of 3 is missing"):
    P3(str(data)).fingerprints()
  (data / "anli_GPT_3_style_r1_score_eval" / "info.validation.json").unlink()
  with pytest.raises(FileNotFoundError, match="score_eval/info.validation.json does not exist"):
    P3(str(data), "t0_held_out").fingerprints()


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shard") / "a"
  write(folder, "train", [plain(n) for n in range(3)], PLAIN)
  path = folder / "train.tfrecord-00000-of-00001"
  return path, path.read_bytes()


@hypothesis.given(st.floats(0, 1, exclude_max=True), st.booleans())
def test_no_damaged_shard_is_taken_for_whole(shard, place, cut):
  path, contents = shard
  at = math.floor(place * len(contents))
  changed = bytes([contents[at] ^ 1]) + contents[at + 1 :]
  path.write_bytes(contents[:at] + (b"" if cut else changed))
  with pytest.raises(ValueError, match=r"/a/(train\.tfrecord-00000-of-00001|stats\.train\.json)"):
    list(Split(path.parent, "train").rows())
