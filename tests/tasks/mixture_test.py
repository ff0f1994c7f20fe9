"""A mixture of mixtures: rates within and between them, and what is wrong with one."""

import json

import pytest
import seqio

from hyperjax import launch
from hyperjax.data import build as build_lib
from hyperjax.data import registering
from hyperjax.data.manifest import DataConfig
from hyperjax.tasks import fewshot, mixture, registry
from tests.data.fakes import PROMPT, Bytes
from tests.tasks import ni_files, p3_files
from tests.tasks.metaicl_files import write_checkout


def folder(path, name: str, *tasks: str) -> fewshot.Folder:
  path.mkdir()
  for task in tasks:
    rows = [{"input": f"{task} {i}", "output": str(i)} for i in range(3)]
    (path / f"{task}.json").write_text(json.dumps(rows))
  return fewshot.Folder(str(path), name=name)


def test_parts_have_their_weights_and_keep_their_own_rates(tmp_path):
  sources = [
    folder(tmp_path / "a", "mixed_a", "one", "two"), folder(tmp_path / "b", "mixed_b", "three"),
    mixture.Mixture({"mixed_a": 1, "mixed_b": 3.0}, name="mixed"),
  ]  # fmt: skip
  config = DataConfig("mixed", "bytes", prompt=PROMPT, sources=sources)
  assert DataConfig.from_json(config.to_json()).hash() == config.hash()
  manifest = build_lib.build(config, tmp_path / "out", vocabulary=Bytes())
  rates = {task: manifest.rate(task) for task in manifest.tasks}
  want = {"mixed_a.one": 1 / 8, "mixed_a.two": 1 / 8, "mixed_b.three": 3 / 4}
  assert rates == pytest.approx(want)


@pytest.mark.parametrize("rates, message", [
  ({}, "rates names nothing"), ({"a": 0.0}, "the rate of 'a' is 0.0"),
  ({"a": float("nan")}, "the rate of 'a' is nan"),
])  # fmt: skip
def test_wrong_rates_are_named(rates, message):
  with pytest.raises(ValueError, match=message):
    mixture.Mixture(rates)


def test_a_part_that_nobody_registered_is_named(tmp_path):
  folder(tmp_path / "c", "mixed_c", "one").register()
  with pytest.raises(ValueError, match="'mixed_d' is registered; its source.*mean 'mixed_c'"):
    mixture.Mixture({"mixed_d": 1.0}).register()


def parts(data, **macros):
  """{part: what is built} by a data file."""
  return launch.arguments(
    ["models/smollm2_135m.gin", f"data/{data}.gin", "runs/data.gin"], "hyperjax.data.build",
    "build_parts", bindings=[f"{name}={value!r}" for name, value in macros.items()],
  )["parts"]  # fmt: skip


@pytest.mark.usefixtures("empty_registry")
def test_hyperllamas_tasks_count_by_their_examples(tmp_path):
  p3 = tmp_path / "p3"
  for n in (1, 2):
    p3_files.template(p3, f"amazon_polarity_{n}", 2)
    stats = p3 / f"amazon_polarity_{n}" / "stats.train.json"
    stats.write_text(json.dumps({"examples": 3_600_000}))
  p3_files.template(p3, "trec_trec1", 12)
  p3_files.held_out(p3, "super_glue_copa_best_option")
  clone = tmp_path / "clone"
  for stem, count in (("task001_few", 3), ("task002_many", 150), ("task003_asked", 3)):
    ni_files.write(clone / "tasks" / f"{stem}.json", ni_files.task(count))
  for name, stems in (
    ("train_tasks", "task001_few\ntask002_many"), ("test_tasks", "task003_asked"),
    ("excluded_tasks", ""),
  ):  # fmt: skip
    ni_files.write(clone / "splits" / "default" / f"{name}.txt", stems)
  made = parts(
    "hyperllama", P3_DIR=str(p3), NI_DIR=str(clone),
    METAICL_DIR=str(write_checkout(tmp_path / "metaicl")),
    **{"train/mixture.ByExamples.maximum": 100, **dict.fromkeys(
      (f"{part}/symbol_tuning.SymbolTuning.min_per_class" for part in ("train", "held_out")), 1
    )},
  )  # fmt: skip
  found = {}
  for part, config in made.items():
    registering.register(config)
    mixed = seqio.MixtureRegistry.get(config.mixture_or_task_name)
    found[part] = {task.name: mixed.get_rate(task) for task in mixed.tasks}
  # T0's rates: of a data set that is larger than 500,000 each template has its part of these.
  assert found["train"] == {
    "t0_train.amazon_polarity.1": 250_000.0, "t0_train.amazon_polarity.2": 250_000.0,
    "t0_train.trec.trec1": 12.0, "ni_default.Question_Answering.task001_few": 3.0,
    "ni_default.Question_Answering.task002_many": 100.0,
    **{f"symbol_tuning.metaicl.glue_sst2.{copy}": 12.0 for copy in range(16)},
  }  # fmt: skip
  weights = dict.fromkeys(("p3_held_out", "natural_instructions_test", "symbol_tuning_held_out"), 0)
  for task, rate in found["held_out"].items():
    weights[task.split(".")[0]] += rate
  assert weights == dict.fromkeys(weights, pytest.approx(1))


def test_examples_are_counted_where_a_source_does_not_say(tmp_path):
  folder(tmp_path / "e", "mixed_e", "one", "two").register()
  mixture.ByExamples(["mixed_e"], name="counted").register()
  made = seqio.MixtureRegistry.get("counted")
  assert {task.name: made.get_rate(task) for task in made.tasks} == {
    "mixed_e.one": 3.0, "mixed_e.two": 3.0
  }  # fmt: skip


@pytest.mark.parametrize("fields, message", [
  ({"parts": []}, "needs parts"), ({"parts": ["a"], "maximum": 0}, "a maximum of 1 or more"),
  ({"parts": "a"}, "parts must be a list"),
  ({"parts": ["t0_train"], "own_rates": ["t0_tain"]}, "no part of it. Did you mean 't0_train'"),
])  # fmt: skip
def test_wrong_parts_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    mixture.ByExamples(**fields)


def test_a_part_without_training_examples_is_named():
  registry.add_rows("only_asked", "asked", {"test": lambda: []})
  message = "Mixture 'by_examples': task 'only_asked' has no split 'train'"
  with pytest.raises(ValueError, match=message):
    mixture.ByExamples(["only_asked"]).register()


P3, NI, METAICL = {"P3_DIR": "d"}, {"NI_DIR": "d"}, {"METAICL_DIR": "d"}


@pytest.mark.parametrize("data, macros, names", [
  ("p3", P3, ("t0_train", "p3_held_out")),
  ("p3", {**P3, "P3_MIXTURE": "t0pp_train"}, ("t0pp_train", "p3_held_out")),
  ("natural_instructions", NI, ("ni_default", "natural_instructions_test")),
  ("natural_instructions", {**NI, "NI_TRACK": "xlingual", "NI_ROUGE_TOKENIZER": "x"},
   ("ni_xlingual", "natural_instructions_test")),
  ("metaicl", METAICL, ("metaicl_hr_to_lr", "metaicl_hr_to_lr_test")),
  ("metaicl", {**METAICL, "METAICL_SETTING": "qa_to_qa"},
   ("metaicl_qa_to_qa", "metaicl_qa_to_qa_test")),
  ("symbol_tuning", METAICL, ("symbol_tuning", "symbol_tuning_held_out")),
  ("c4", {"C4_DIR": "d"}, ("c4", "c4")), ("redpajama", {"REDPAJAMA_DIR": "d"}, ("redpajama",) * 2),
])  # fmt: skip
def test_the_papers_mixtures_have_the_papers_names(data, macros, names):
  """Of these are the hyper forms' names made: hyper_t0_train, caclm_c4 and so on."""
  made = parts(data, **macros)
  assert tuple(made[part].mixture_or_task_name for part in ("train", "held_out")) == names
