"""Every reader on every kind of corrupt file: one error with file and record, and no store touched.

`READERS` is the table of what each format can have wrong; `NO_PLACE` says why it has no more.
"""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import pytest
import seqio
import tensorflow as tf
from hypothesis import strategies as st

from hyperjax.data import build as build_lib
from hyperjax.data import registering, rows, seqio_cache, task_rows
from hyperjax.data import store as store_lib
from hyperjax.data.manifest import DataConfig
from hyperjax.launch import command_line
from hyperjax.tasks import c4, cached, fewshot, text
from hyperjax.tasks.metaicl import MetaICL
from hyperjax.tasks.natural_instructions import TrainTasks
from hyperjax.tasks.p3 import P3
from hyperjax.tasks.promptsource import Templates
from hyperjax.tasks.symbol_tuning import SymbolTuning
from tests.data.fakes import PROMPT, Bytes
from tests.tasks import ni_files, p3_files, promptsource_files
from tests.tasks.metaicl_files import write_checkout

pytestmark = pytest.mark.usefixtures("empty_registry")
LIMIT = 4_000  # bytes of a line, here
LONG = "x" * (LIMIT + 1)
Change = Callable[[pathlib.Path], None]


class Reader(NamedTuple):
  """A source in a folder of its own.

  Attributes:
    write: writes a good folder; returns the source and the file that is spoilt.
    faults: {fault: (what is done to the file, what the error says behind the file's name)}.
  """

  write: Callable[[pathlib.Path], tuple[Any, pathlib.Path]]
  faults: dict[str, tuple[Change, str]]


def put(old: str, new: str | bytes) -> Change:
  """Replaces what stands there once."""

  def change(file: pathlib.Path) -> None:
    contents = file.read_bytes()
    assert contents.count(old.encode()) == 1, (old, contents)
    made = new if isinstance(new, bytes) else new.encode()
    file.write_bytes(contents.replace(old.encode(), made))

  return change


def cut(file: pathlib.Path) -> None:
  file.write_bytes(file.read_bytes()[:-3])


def record(number: int, **changes: Any) -> Change:
  """Changes features of one record; None takes one out."""

  def change(file: pathlib.Path) -> None:
    records = list(seqio_cache.records(file))
    example = tf.train.Example.FromString(records[number])
    for name, value in changes.items():
      del example.features.feature[name]
      if value == []:
        example.features.feature[name].bytes_list.SetInParent()
      elif value is not None:
        example.MergeFromString(p3_files.encoded({name: value}))
    records[number] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(file)) as writer:
      for contents in records:
        writer.write(contents)

  return change


def examples(file: pathlib.Path, **more: str) -> pathlib.Path:
  """Four examples, one a line."""
  answers = ["yes", "no", "no", "yes"]
  lines = [
    {**more, "input": f"a{i}", "output": answer, "options": ["yes", "no"]}
    for i, answer in enumerate(answers)
  ]
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text("\n".join(map(json.dumps, lines)))
  return file


def write_fewshot(path):
  return fewshot.Folder(str(path)), examples(path / "few.jsonl")


def write_symbols(path):
  source = SymbolTuning(fewshot.Folder(str(path)), copies=1)
  return source, examples(path / "few.jsonl")


def write_metaicl(path):
  """A target task's file: options of training tasks are not read."""
  write_checkout(path)
  file = path / "data" / "glue-rte" / "glue-rte_16_100_test.jsonl"
  return MetaICL(str(path), part="test", seeds=(100,)), examples(file, task="glue-rte")


def write_corpus(path):
  path.mkdir()
  file = path / "a.jsonl"
  file.write_text("\n".join(json.dumps({"text": f"a{i}", "id": i}) for i in range(4)))
  return c4.Corpus(str(path)), file


def write_text(path):
  path.mkdir()
  (path / "book.txt").write_text("a0\na1\na2\na3")
  return text.Folder(str(path)), path / "book.txt"


def write_instructions(path):
  file = ni_files.write(path / "task1.json", ni_files.task(4))
  return TrainTasks(str(path), track=None), file


def write_p3(path):
  p3_files.template(path, "trec_trec1", 4, options=True, validation=4)
  return P3(str(path)), path / "trec_trec1" / "validation.tfrecord-00000-of-00001"


def write_choices(path):
  p3_files.held_out(path, "super_glue_copa_best", count=2)
  folder = path / "super_glue_copa_best_score_eval"
  return P3(str(path), "t0_held_out"), folder / "validation.tfrecord-00000-of-00001"


def write_templates(path):
  return Templates(str(path)), promptsource_files.copa(path) / "validation.jsonl"


def gone(split, shuffle_files, seed=None):
  raise AssertionError("the source was read")


def write_cached(path):
  feature = seqio.Feature(seqio.ByteVocabulary())
  if "in_cache" not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
      "in_cache", seqio.FunctionDataSource(gone, splits=["train"]),
      preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
      output_features={"inputs": feature, "targets": feature},
    )  # fmt: skip
  kept = [p3_files.plain(i) for i in range(4)]
  split = p3_files.write(path / "in_cache", "train", kept, p3_files.PLAIN)
  (split.folder / "COMPLETED").touch()
  return cached.Tasks(str(path), ["in_cache"]), split.shards()[0]


UTF8, TOO_LONG = "line 3: not UTF-8", "line 3: it has more than 4,000 bytes"
EXAMPLES = {
  "cut off": (cut, "line 4: not JSON"),
  "not UTF-8": (put("a2", b"a\xff"), UTF8),
  "no field": (put('"input": "a2", ', ""), "line 3: the field 'input' is missing"),
  "NaN": (put('"a2", "output": "no"', '"a2", "output": NaN'), "line 3: not JSON: NaN is no JSON"),
  "an empty option": (put('"a2", "output": "no", "options": ["yes"', '"a2", "output": "no", '
                          '"options": [" "'), "line 3: an option is empty"),
  "twice an option": (put('"a2", "output": "no", "options": ["yes"', '"a2", "output": "no", '
                          '"options": ["no"'), "line 3: option 'no' occurs twice"),
  "no such option": (put('"a2", "output": "no"', '"a2", "output": "n"'),
                     "line 3: the output 'n' is none of its options"),
  "too long": (put("a2", LONG), TOO_LONG),
}  # fmt: skip
NONE = {
  "no options": (put('"a2", "output": "no", "options": ["yes", "no"]', '"a2", "output": "no", '
                     '"options": []'), "line 3: the output 'no' is none of its options"),
}  # fmt: skip
READERS = {
  "fewshot": Reader(write_fewshot, {**EXAMPLES, **NONE}),
  "symbol_tuning": Reader(write_symbols, {**EXAMPLES, **NONE}),
  "metaicl": Reader(write_metaicl, {
    **EXAMPLES,
    "no options": (NONE["no options"][0], "line 3: 0 options, where at least 2 are due"),
  }),
  "c4": Reader(write_corpus, {
    "cut off": (cut, "line 4: not JSON"),
    "not UTF-8": (put("a2", b"a\xff"), UTF8),
    "no field": (put('"text": "a2", ', ""), 'line 3: it has no "text"; it has .\'id\''),
    "NaN": (put('"id": 2', '"id": NaN'), "line 3: not JSON: NaN is no JSON value"),
    "too long": (put("a2", LONG), TOO_LONG),
  }),
  "text": Reader(write_text, {
    "not UTF-8": (put("a2", b"a\xff"), UTF8),
    "too long": (put("a2", LONG), TOO_LONG),
  }),
  "natural_instructions": Reader(write_instructions, {
    "cut off": (cut, "not JSON"),
    "not UTF-8": (put("Is 2 a", b"Is \xff a"), r"line \d+: not UTF-8"),
    "no field": (put('"input": "Is 2 a number?",', ""), "Instances 3: the field 'input' is miss"),
    "NaN": (put('"Mathematics"', "NaN"), "not JSON: NaN is no JSON value"),
    "twice the same id": (put("task-0002", "task-0001"), "Instances 3: its id 'task-0001' occurs"),
    "too long": (put("Is 2 a", LONG), r"line \d+: it has more than 4,000 bytes"),
  }),
  "p3": Reader(write_p3, {
    "cut off": (cut, "after record 3: cut off or damaged"),
    "not UTF-8": (record(2, inputs_pretokenized=b"\xff"), "record 3: inputs_pretokenized is not"),
    "no field": (record(2, targets_pretokenized=None), "record 3: it has no feature 'targets_pre"),
    "an empty option": (record(2, answer_choices=["yes", " "]), "record 3: an option is empty"),
    "no options": (record(2, answer_choices=[]), "record 3: it has no options"),
    "twice an option": (record(2, answer_choices=["no", "no"]), "record 3: option 'no' occurs twi"),
    "no such option": (record(2, answer_choices=["no"]), "record 3: the target 'yes' is none of"),
    "too long": (record(2, inputs_pretokenized=LONG), "record 3: inputs_pretokenized has more"),
  }),
  "p3's choices": Reader(write_choices, {
    "cut off": (cut, "after record 5: cut off or damaged"),
    "not UTF-8": (record(2, inputs_pretokenized=b"\xff"), "record 3: inputs_pretokenized is not"),
    "no field": (record(2, is_correct=None), "record 3: it has no feature 'is_correct'"),
    "NaN": (record(2, weight=float("nan")), "record 3: weight is nan; every choice must weigh 1"),
    "an empty option": (record(2, targets_pretokenized=" "), "example 100: an option is empty"),
    "twice an option": (record(2, targets_pretokenized="yes"), "example 100: option 'yes' occurs"),
    "no such option": (record(0, is_correct=False), "example 100: 0 of 3 choices are correct"),
    "twice the same id": (record(2, idx=[100, 1]), r"record 3: idx \[100, 1\] occurs twice"),
    "too long": (record(2, inputs_pretokenized=LONG), "record 3: inputs_pretokenized has more"),
  }),
  "promptsource": Reader(write_templates, {
    "cut off": (cut, "line 4: not JSON"),
    "not UTF-8": (put("a2", b"a\xff"), UTF8),
    "no field": (put('"premise": "a2", ', ""), "line 3: .*, template '.why. C1 or C2': jinja reads "
                 "the column 'premise', which the record lacks"),
    "NaN": (put('"a2"', "NaN"), "line 3: not JSON: NaN is no JSON value"),
    "an empty option": (put('"choice1": "c2"', '"choice1": " "'), "line 3: .*an option is empty"),
    "twice an option": (put('"choice1": "c2"', '"choice1": "d2"'), "line 3: .*option 'd2' occurs"),
    "no such option": (put('"answer": "c2"', '"answer": "c3"'), "line 3: .*'c3' is none of its"),
    "too long": (put("a2", LONG), TOO_LONG),
  }),
  "cached": Reader(write_cached, {
    "cut off": (cut, "after record 3: cut off or damaged"),
    "not UTF-8": (record(2, inputs_pretokenized=b"\xff"), "record 3: inputs_pretokenized is not"),
    "no field": (record(2, targets_pretokenized=None), "record 3: it has no text 'targets_preto"),
    "too long": (record(2, inputs_pretokenized=LONG), "example 2: its inputs have more than 4,000"),
  }),
}  # fmt: skip
FAULTS = {fault for reader in READERS.values() for fault in reader.faults}
_OPTIONS = ("an empty option", "no options", "no such option", "twice an option")
NO_PLACE = {
  # A line of it is a text, and so is a part of it.
  "text": ("cut off", "no field", "NaN", *_OPTIONS, "twice the same id"),
  "c4": (*_OPTIONS, "twice the same id"),  # documents
  "natural_instructions": _OPTIONS,  # read out of inputs, and none where they do not fit
  **dict.fromkeys(("fewshot", "symbol_tuning", "metaicl"), ("twice the same id",)),  # no ids
  "p3": ("NaN", "twice the same id"),  # neither numbers nor ids are read
  "p3's choices": ("no options",),  # a record is one
  "promptsource": ("no options", "twice the same id"),  # a text is at least one option; no ids
  "cached": ("NaN", *_OPTIONS, "twice the same id"),  # texts
}


def test_the_table_is_whole():
  for name, reader in READERS.items():
    assert not set(reader.faults) & set(NO_PLACE.get(name, ()))
    assert set(reader.faults) | set(NO_PLACE.get(name, ())) == FAULTS, name


def build(source, out):
  config = DataConfig(None, "bytes", prompt=PROMPT, sources=[source])
  if isinstance(source, cached.Tasks):
    config = DataConfig("in_cache", "bytes", prompt=PROMPT, sources=[source])
  return build_lib.build(config, out, vocabulary=Bytes())


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(source, out) -> str:
  """The one error of a build, no defect of ours, which leaves what there is: finished stores."""
  before = contents(out)
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    build(source, out)
  assert command_line.raised_by_us(error.value, "hyperjax.data")
  after = contents(out)
  assert before.items() <= after.items() and (out / "manifest.json" in after) == bool(before)
  assert all(map(store_lib.complete, out.glob("stores/*")))
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.fixture(autouse=True)
def limit(monkeypatch):
  monkeypatch.setattr(rows, "MAX_LINE", LIMIT)
  before = list(seqio.get_global_cache_dirs())
  yield
  seqio.set_global_cache_dirs(before)


@pytest.mark.parametrize("name, fault", [(n, f) for n, r in READERS.items() for f in r.faults])
def test_one_error_with_its_place_and_no_store_spoilt(tmp_path, name, fault):
  source, file = READERS[name].write(tmp_path / "data")
  change, message = READERS[name].faults[fault]
  build(source, tmp_path / "out")
  change(file)
  place = f"in_cache train in {file.parent}" if message.startswith("example 2") else str(file)
  found = refused(source, tmp_path / "out")
  assert found.startswith(place) and re.search(message, found), found


@pytest.mark.parametrize("name", ["fewshot", "symbol_tuning", "metaicl"])
def test_an_error_behind_rows_that_are_written_leaves_no_store(tmp_path, monkeypatch, name):
  monkeypatch.setattr(build_lib, "_CHUNK", 1)
  source, file = READERS[name].write(tmp_path / "data")
  cut(file)
  assert refused(source, tmp_path / "out").startswith(f"{file}, line 4: not JSON")


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, name):
  """It becomes unreadable at once: what is wrong with it then is not the point."""
  source, file = READERS[name].write(tmp_path / "data")
  read, registered = task_rows.texts, []

  def changed(task, *rest):
    if registered:
      file.write_bytes(b"\xff")
    return read(task, *rest)

  rates = lambda name: registered.append(name) or built(name)
  built = registering.rates
  monkeypatch.setattr(task_rows, "texts", changed)
  monkeypatch.setattr(registering, "rates", rates)
  assert refused(source, tmp_path / "out").startswith(f"{file}: it changed while it was read")


@pytest.mark.parametrize("name, values, message", [
  ("info", {"num_shards": 1}, "it has no field 'features' of dict"),
  ("info", {"features": {}, "num_shards": None}, "it has no field 'num_shards' of int"),
  ("stats", {"examples": float("nan")}, "not JSON: NaN is no JSON value"),
  ("stats", {"examples": 5}, "5 examples; the shards hold 4"),
])  # fmt: skip
def test_a_cache_whose_description_is_wrong(tmp_path, name, values, message):
  source, file = write_cached(tmp_path / "data")
  described = file.parent / f"{name}.train.json"
  described.write_text(json.dumps(values))
  assert refused(source, tmp_path / "out").startswith(f"{described}: {message}")


def test_a_cache_that_lacks_a_shard(tmp_path):
  source, file = write_cached(tmp_path / "data")
  file.unlink()
  assert refused(source, tmp_path / "out") == f"{file}: shard 1 of 1 is missing."


LINE = st.sampled_from([b'{"input": "a", "output": "b"}', b'{"input": "a"}', b"[]", b"NaN", b""])


@hypothesis.given(
  st.sampled_from([fewshot.load, text.load]), st.sampled_from(["any.json", "any.jsonl"]),
  st.binary(max_size=40) | st.lists(LINE | st.binary(max_size=9)).map(b"\n".join),
)  # fmt: skip
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_by_name(tmp_path_factory, load, name, contents):
  file = tmp_path_factory.getbasetemp() / name
  file.write_bytes(contents)
  try:
    found = list(load(file))
  except ValueError as error:
    assert str(file) in str(error) and command_line.raised_by_us(error, "hyperjax.data")
  else:
    assert found
