"""Runs on a frozen base in 8 bits (gin: BASE_BITS), by the commands and for every system."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import few_bits
from hyperjax import adapt, adapters, evaluate, launch, predict, runs, systems, tune
from hyperjax import compile as compile_lib
from hyperjax.core import quantised
from hyperjax.data import vocabularies
from hyperjax.data.caclm import CaclmConfig
from hyperjax.models import families
from tests import tiny as tiny_lib
from tests.baselines_test import gin_of

tiny = tiny_lib.fixture

UNREAD = ("MODEL_DIR='m'", "DATA_DIR='d'", "TRAIN_STEPS=70")


def training(model: str, system: str, *bindings: str) -> compile_lib.Training:
  """What a run is given."""
  files = [f"models/{model}.gin", f"systems/{system}.gin", "data/lexical.gin", "runs/mtf.gin"]
  given = launch.arguments(
    files, "hyperjax.train", "train", bindings=[*UNREAD, "BASE_BITS=8", *bindings]
  )
  return compile_lib.Training.of(given)


@pytest.mark.parametrize("bits, packed, least, most", [
  (8, False, 0.5, 0.51), (8, True, 0.5, 0.51), (4, False, 0.53, 0.54), (4, True, 0.28, 0.29),
])  # fmt: skip
@pytest.mark.parametrize("model, system, numbers", [
  ("smollm2_135m", "hyperllama", 134_515_008), ("t5_1_1_small", "gisting_t5", 76_961_152),
])  # fmt: skip
def test_the_base_takes_half_the_bytes_of_half_precision(
  model, system, numbers, bits, packed, least, most, monkeypatch
):
  given = training(model, system, f"BASE_BITS={bits}", "DTYPE='bfloat16'")
  frozen = systems.abstract_parts(given.hypermodel, given.model.abstract()).frozen
  assert quantised.numbers(frozen) == numbers
  monkeypatch.setattr(quantised, "packs", lambda: packed)
  assert least < quantised.stored_bytes(frozen) / (2 * numbers) < most


@pytest.mark.parametrize("model, system, bindings", [
  ("llama_tiny", "hyperllama", ["LOOP='one_scan'"]),
  ("llama_tiny", "gisting", ["DISTILLATION=1.0"]),  # whose teacher reads in context
  ("llama_tiny", "hyperllama_lora", []),
  ("llama_tiny", "few_shot_lora", []),
  ("llama_tiny", "prompt_tuning", []),
  ("t5_tiny", "hypert5_prefix", []),
  ("t5_tiny", "gisting_t5", []),
  ("t5_tiny", "prompt_tuning", []),
])  # fmt: skip
def test_a_system_that_leaves_the_base_frozen_has_its_gradient(model, system, bindings):
  """Traced, not run: nothing of it asks for another kind of weights."""
  given = training(model, system, *bindings)
  parts = systems.abstract_parts(given.hypermodel, given.model.abstract())
  batch = given.batch(given.largest_shape)

  def loss(trained, frozen, batch):
    return given.objective(nnx.merge(parts.graph, trained, frozen), batch)[0]

  gradient = jax.eval_shape(jax.grad(loss), parts.trained, parts.frozen, batch)
  assert jax.tree.structure(gradient) == jax.tree.structure(parts.trained)
  assert any(map(quantised.is_quantised, jax.tree.leaves(
    parts.frozen, is_leaf=quantised.is_quantised
  )))  # fmt: skip


@pytest.mark.parametrize("model, system, what", [
  ("llama_tiny", "full", "FullConfig trains the downstream model's"),
  ("llama_tiny", "hyperllama_full", "FullHyperLlamaConfig trains a copy of the downstream model's"),
  ("t5_tiny", "hypert5_lora_plus", "HyperT5Config trains the downstream model's"),
  ("t5_tiny", "gisting_t5_full", "FullGistingT5Config trains the downstream model's"),
])  # fmt: skip
def test_what_is_trained_cannot_be_in_few_bits(model, system, what):
  with pytest.raises(ValueError, match=f"BASE_BITS is 8, but {what}.*set BASE_BITS to None"):
    training(model, system)
  training(model, system, "BASE_BITS=None")


@pytest.mark.parametrize("bits", ["5", "True"])
def test_other_bits_are_refused(bits):
  with pytest.raises(ValueError, match=rf"bits must be None, 8 or 4, not {bits} \(gin: BASE_BITS"):
    training("llama_tiny", "hyperllama", f"BASE_BITS={bits}")


# ---- The commands --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
  """A run of a few steps on the base in 8 bits."""
  folder = tmp_path_factory.mktemp("few") / "run"
  assert tiny.train(folder, TRAIN_STEPS=4, BASE_BITS=8) == 0
  return folder


@pytest.fixture(scope="module")
def same(tiny, tmp_path_factory):
  """The same run in full width, on the weights that the 8 bits stand for."""
  base = tmp_path_factory.mktemp("few")
  few = families.load(tiny.model, bits=8)
  plain = jax.tree.map(
    lambda x: x.qvalue * x.scale if quantised.is_quantised(x) else x,
    few.params, is_leaf=quantised.is_quantised,
  )  # fmt: skip
  families.save(
    base / "model", few.config, plain, tokenizer=vocabularies.load(tiny.model), max_positions=256
  )
  assert tiny.train(base / "run", TRAIN_STEPS=4, MODEL_SOURCE=base / "model") == 0
  return base / "run"


def losses(folder) -> list[float]:
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["loss"] for line in lines if "loss" in line]


def test_it_trains_as_on_the_weights_that_the_bits_stand_for(tiny, run, same):
  np.testing.assert_allclose(losses(run), losses(same), rtol=1e-5)
  # And not as on the model's own.
  assert np.abs(np.array(losses(run)) / losses(tiny.run)[:4] - 1).max() > 1e-3


def test_a_dry_run_says_what_is_stored(tiny, tmp_path, capsys):
  assert tiny.train(tmp_path / "run", "--dry_run", BASE_BITS=8) == 0
  out = capsys.readouterr().out
  # 49152 rows; in 2 layers q, k, v, o, gate, up and down; float32 scales and norms.
  matrices = 49152 * 32 + 2 * (2 * 32 * 64 + 2 * 32 * 32 + 3 * 32 * 64)
  outputs = 49152 + 2 * (64 + 32 + 32 + 32 + 64 + 64 + 32)
  norms = 2 * 2 * 32 + 32
  stored = matrices + 4 * (outputs + norms)
  share = stored / (2 * (matrices + norms))
  assert f"stored      frozen {stored:,} bytes, {share:.3f} of bfloat16's\n" in out
  assert f"frozen {matrices + norms:,}, stored once\n" in out and ", int8 and float32\n" in out


def test_its_adapters_serve_the_plain_base_which_is_said(tiny, run, tmp_path, capsys):
  """Their fingerprint is the base's own; what they were made on is in their provenance."""
  examples, made = tmp_path / "examples.jsonl", tmp_path / "made"
  examples.write_text("".join(
    json.dumps({"input": f"word {i}", "output": "yes"}) + "\n" for i in range(3)
  ))  # fmt: skip
  given = ["--checkpoint", str(run), "--examples", str(examples), "--out", str(made)]
  assert adapt.main(given) == 0
  meta = json.loads((made / adapters.META).read_text())
  loaded = runs.load(run)
  assert meta["provenance"]["base_bits"] == loaded.model.bits == 8
  assert meta["model"]["fingerprint"] == runs.load(tiny.run).model_fingerprint
  capsys.readouterr()
  given = ["--adapter", str(made), "--input", "word 5", "--max_new_tokens", "1"]
  assert predict.main(given) == 0
  assert capsys.readouterr().err == (
    f"note: {made} was made on the base in 8 bits, which is used in full width here: answers may "
    "differ a little\n"
  )
  assert predict.main([*given, "--base_bits", "8"]) == 0
  assert capsys.readouterr().err == ""


def test_runs_on_other_bases_are_compared_where_that_makes_sense(tiny, run, tmp_path, capsys):
  """All are asked on the hypermodel's base; one that trained its base has none in few bits."""
  full = tmp_path / "full"
  full.mkdir()
  text = pathlib.Path(gin_of(tiny, "full", tmp_path)).read_text()
  (full / "config.gin").write_text(f"{text}\nMODEL_DIR = 'none'\n")
  ask = lambda **by_method: evaluate.main([
    "--gin_file=runs/evaluate.gin", f"--gin.EVAL_OUTPUT_DIR={tmp_path / 'out'}", "--dry_run",
    f"--gin.RUNS={ {name: str(folder) for name, folder in by_method.items()} }",
  ])  # fmt: skip
  assert ask(hyperllama=run, plain=tiny.run) == 0
  assert capsys.readouterr().err == (
    f"note: {tiny.run} was made on the base in full width, which is used in 8 bits here: answers "
    "may differ a little\n"
  )
  assert ask(hyperllama=tiny.run, full=full) == 0
  capsys.readouterr()
  message = tiny_lib.refused(capsys, ask(hyperllama=run, full=full))
  assert message.startswith("BASE_BITS is 8, but FullConfig trains the downstream model's weights")
  assert message.endswith(f": leave {full} out, or name runs beside it whose base is in full width")


def test_the_benchmark_asks_what_training_watched(tiny, run, same):
  """On the base as it was trained on, its exact match is the run's own; in few bits, what it is on
  the weights that these stand for."""
  full, few, plain = (
    few_bits.measure(str(folder), bits, 8)
    for folder, bits in ((tiny.run, None), (run, 8), (same, None))
  )
  line = json.loads((tiny.run / "metrics.jsonl").read_text().splitlines()[-1])
  for name in ("held_out/exact_match", "held_out/log_likelihood"):
    assert full[name] == pytest.approx(line[name], rel=1e-6)
    assert few[name] == pytest.approx(plain[name], rel=1e-5)
  assert full["queries"] == few["queries"] == 16
  assert full["of_bfloat16"] == 2 and few["of_bfloat16"] < 0.6


@pytest.mark.parametrize("nothing", [{"held_out": None}, {"episodes": CaclmConfig()}])
def test_a_run_without_tasks_to_ask_is_named_by_the_benchmark(tiny, capsys, monkeypatch, nothing):
  given = runs.configured(tiny.run)
  data = dataclasses.replace(given["data"], **nothing)
  monkeypatch.setattr(runs, "configured", lambda _: {**given, "data": data})
  monkeypatch.setattr("sys.argv", ["few_bits", "--run", str(tiny.run)])
  assert few_bits.main() == 1
  assert capsys.readouterr().err == (
    f"benchmarks.few_bits: {tiny.run} was trained without held-out tasks, or on running text, "
    "which has none: name another --run\n"
  )


def test_the_same_parameters_may_train_on_without_bits(tiny, run, tmp_path):
  folder = tmp_path / "run"
  assert tiny.train(folder, TRAIN_STEPS=3, INITIAL_CHECKPOINT_PATH=run) == 0


def test_tuning_the_whole_model_of_such_a_run_is_refused(run, tmp_path, capsys):
  status = tune.main([
    "--gin_file=runs/tune_baselines.gin", f"--gin.RUN={run}",
    f"--gin.TUNE_OUTPUT_DIR={tmp_path / 'out'}",
  ])  # fmt: skip
  message = tiny_lib.refused(capsys, status)
  assert message.startswith("BASE_BITS is 8, but FullConfig trains")
  assert message.endswith(": leave 'full_few' out of tune.tune.methods")
