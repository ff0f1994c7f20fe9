"""`hyperjax compile`, for this machine's CPU in place of a slice of TPUs."""

import dataclasses
import json
import math
import pathlib
import re
import types
from unittest import mock

import jax
import pytest

from hyperjax import compile as compile_lib
from hyperjax import launch, systems, train
from hyperjax.data import layouts
from hyperjax.data.shapes import BatchShape
from hyperjax.training import hlo_costs, topologies
from hyperjax.training import step as step_lib
from tests import tiny as tiny_lib

tiny = tiny_lib.fixture

FILES = ["models/llama_tiny.gin", "systems/hyperllama.gin", "data/lexical.gin", "runs/mtf.gin"]
ARGUMENTS = [f"--gin_file={file}" for file in FILES]
UNREAD = ["MODEL_DIR='m'", "DATA_DIR='d'", "TRAIN_STEPS=2000"]


def training(*bindings: str, files=FILES) -> compile_lib.Training:
  given = launch.arguments(files, "hyperjax.train", "train", bindings=[*UNREAD, *bindings])
  return compile_lib.Training.of(given)


@pytest.fixture
def here(monkeypatch):
  """This machine's device as a slice of its own."""
  here = topologies.Topology("here:1", jax.devices(), 10**12)
  monkeypatch.setattr(topologies, "load", lambda name: here)
  monkeypatch.setattr(topologies, "prepare", lambda: None)
  return here


@pytest.fixture
def made(monkeypatch):
  """Reports of steps that are neither lowered nor compiled: 1 GB and 3 GB for an episode."""
  monkeypatch.setattr(compile_lib.Training, "lower", lambda self, *_: self.run.batch_size)

  def make(episodes):
    peak = (1 + 3 * episodes) * 10**9
    return compile_lib.Report(peak <= 16 * 10**9, peak)

  monkeypatch.setattr(compile_lib, "make", make)
  slice_ = topologies.Topology("made:1", jax.devices(), 16 * 10**9)
  monkeypatch.setattr(topologies, "load", lambda name: slice_)
  monkeypatch.setattr(topologies, "prepare", lambda: None)
  mesh = types.SimpleNamespace(shape={"data": 1, "fsdp": 1, "tensor": 1})
  monkeypatch.setattr(compile_lib.sharding.MeshConfig, "build", lambda *_: mesh)


def test_it_is_the_step_that_training_runs(tiny, tmp_path, monkeypatch):
  """Their programs are equal, character for character, arguments and their shardings included."""
  steps, original = [], step_lib.make_train_step

  def make(*arguments):
    compiled = original(*arguments)

    def step(*given):
      steps.append((compiled.lower(*given).as_text(), given[3]))
      return compiled(*given)

    return step

  monkeypatch.setattr(train.step_lib, "make_train_step", make)
  bindings = {"MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 3, "DTYPE": "float32"}
  assert tiny.train(bindings["MODEL_DIR"], TRAIN_STEPS=3, DTYPE="float32") == 0
  monkeypatch.undo()
  same = training(*(f"{name}={value!r}" for name, value in bindings.items()), files=[tiny.gin])
  here = topologies.Topology("here:1", jax.devices(), 10**12)
  text, batch = steps[-1]
  episodes, support = batch.support.tokens.shape
  assert same.run.batch_size == episodes
  shape = BatchShape(support, *batch.query.tokens.shape[1:], batch.targets.shape[2])
  assert same.lower(here, shape).as_text() == text


def test_parts_of_a_system_have_the_dtypes_of_tpus():
  """Whatever this machine has; where a dtype is named it is that one."""
  given = training()
  parts = systems.abstract_parts(given.hypermodel, given.model.abstract("tpu"))
  assert {leaf.dtype.name for leaf in jax.tree.leaves(parts.trained)} == {"float32"}
  assert parts.frozen["downstream"]["embed"].dtype.name == "bfloat16"
  wide, half = (training(f"DTYPE='{name}'").model for name in ("float32", "bfloat16"))
  assert wide.activations("tpu").name == half.activations("cpu").name == "float32"
  assert half.activations("tpu").name == given.model.activations("tpu").name == "bfloat16"


def test_the_command_compiles_and_reports(here, tmp_path, capsys):
  """Neither folders nor steps are named: nothing of the step depends on them."""
  file = tmp_path / "found.json"
  given = [*ARGUMENTS, "--gin.BATCH_SIZE=2", "--gin.REMAT=full", "--topology=here:1"]
  given.append(f"--gin.llama.LlamaConfig.d_mlp={WIDE}")
  assert compile_lib.main([*given, "--shape=16,2,8,4", f"--json={file}"]) == 0
  out = capsys.readouterr().out
  found = json.loads(file.read_text())
  assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
  assert found["batch"] == {"episodes": 2, "support": 16, "queries": 2, "query": 8, "targets": 4}
  assert found["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1} and found["remat"] == "full"
  assert found["fits"] and found["memory"]["limit"] == 10**12
  assert found["memory"]["temporaries"] > 0 and found["memory"]["peak"] > 0
  assert found["costs"]["collectives"] == {} and found["costs"]["unknown_loops"] == []
  assert found["costs"]["matmul_flops"] == pytest.approx(flops_of_a_step(), rel=0.02)
  assert {"jax", "python"} <= found["versions"].keys()
  for line in ("slice ", "batch ", "memory  ", "matmuls ", "not in it "):
    assert re.search(f"^{line}", out, re.M), out
  assert "there is no time, no speed and no utilisation (MFU)" in out and "fits: peak" in out


# An MLP beside which attention and LoRA, which are not counted below, are small, and neither the
# layers nor the logits are.
WIDE = 4096


def flops_of_a_step() -> int:
  """Of the frozen weights of models/llama_tiny.gin: 2 layers, model 32, 4 and 2 heads of 16, MLP
  WIDE, vocabulary 49,152. Forwards, again up to the last product, whose result nothing asks for,
  and backwards; logits of 4 targets forwards and back."""
  layer = 32 * (4 + 2 * 2) * 16 + 4 * 16 * 32 + 3 * 32 * WIDE
  tokens = 2 * (16 + 16 + 1 + 2 * 8)  # support, gist, sink, two queries
  logits = 2 * 2 * 4 * 32 * 49_152
  return 2 * (2 * (3 * layer - WIDE * 32) * tokens + 2 * logits)


def test_what_does_not_fit_is_said_and_failed(made, capsys):
  given = [*ARGUMENTS, "--gin.BATCH_SIZE=6", "--topology=made:1", "--json=-"]
  assert compile_lib.main(given) == 1
  captured = capsys.readouterr()
  found = json.loads(captured.out)
  assert not found["fits"] and found["costs"] is None and found["memory"]["peak"] == 19 * 10**9
  assert "DOES NOT FIT: peak 19 GB of 16 GB (119%)" in captured.err


def test_the_largest_batch_is_suggested(made, capsys):
  given = [*ARGUMENTS, "--gin.BATCH_SIZE=2", "--topology=made:1", "--suggest", "--json=-"]
  assert compile_lib.main(given) == 0
  captured = capsys.readouterr()
  found = json.loads(captured.out)
  assert found["batch"]["episodes"] == 5 and found["remat"] == "none" and found["fits"]
  tried = {(each["batch_size"], each["fits"]) for each in found["tried"]}
  assert {(2, True), (5, True), (6, False)} <= tried
  assert re.search(r"^largest +--gin.BATCH_SIZE=5 --gin.MESH_DATA=1 ", captured.err, re.M)
  assert re.search(r"^too much +19 GB  --gin.BATCH_SIZE=6 ", captured.err, re.M)


def test_where_nothing_fits_no_batch_is_suggested(made, monkeypatch, capsys):
  monkeypatch.setattr(compile_lib, "make", lambda _: compile_lib.Report(False, None))
  assert compile_lib.main([*ARGUMENTS, "--topology=made:1", "--suggest", "--json=-"]) == 1
  captured = capsys.readouterr()
  assert "not even one episode for each device of made:1 fits" in captured.err
  found = json.loads(captured.out)
  assert not found["fits"] and found["tried"][-1]["batch_size"] == 1


@pytest.mark.parametrize("more, message", [
  ([], r"give --topology: the slice of TPUs, one of v5e:4x4"),
  (["--topology=v5e:4x4", "--shape=32"], r"--shape=32 is not support,queries,query,targets"),
  (["--topology=v5e:4x4", "--shape=0,1,1,1"], r"BatchShape: support must be at least 1"),
  (["--topology=v5e:4x4", "--topolgy=x"], r"unknown flag '--topolgy=x'. Did you mean 'topology'"),
  (["--topology=v5e:4x4", "--gin.BATCHSIZE=4"], r"BATCHSIZE is set .* but never used"),
  (["--topology=v5e:4x4", "--gin.BATCH_SIZE=0"], r"RunConfig.batch_size must be at least 1"),
  (["--topology=v5e:4x4", "--gin_file=models/t5_tiny.gin"], r"is for decoder models, not for a T5"),
])  # fmt: skip
def test_wrong_input_is_refused(capsys, more, message):
  assert re.search(message, tiny_lib.refused(capsys, compile_lib.main([*ARGUMENTS, *more])))


def test_a_batch_that_the_mesh_cannot_share_out_is_refused(here, capsys):
  given = [*ARGUMENTS, "--topology=here:1", "--gin.MESH_FSDP=3"]
  assert "does not fit 1 devices" in tiny_lib.refused(capsys, compile_lib.main(given))


def test_a_kernel_for_other_machines_is_refused(here, capsys):
  given = [*ARGUMENTS, "--topology=here:1", "--gin.ATTENTION='cudnn'"]
  assert "ATTENTION" in tiny_lib.refused(capsys, compile_lib.main(given))


def test_the_shape_is_the_largest_that_a_configuration_allows():
  limit = "EPISODE_LIMIT=(100, 30, 10)"
  assert training(limit, "NUM_QUERIES=3").largest_shape == BatchShape(112, 3, 32, 12)
  files = [file.replace("hyperllama", "lora") for file in FILES]  # reads no other support
  inline = training(limit, "episodes.EpisodeConfig.inline=True", files=files)
  assert inline.largest_shape == BatchShape(16, 8, 132, 12)
  given = training(limit).data.episodes
  shapes = (BatchShape(16, 8, 8, 4), BatchShape(32, 8, 4, 4), BatchShape(16, 8, 12, 4))
  assert dataclasses.replace(given, shapes=shapes).largest(layouts.DECODER) == shapes[2]


def test_the_shape_of_running_text_is_the_one_of_its_stream():
  """A window of 512: A and D with EOS and BOS between and before; B and C with BOS; T5 has an EOS
  behind what its encoder reads."""
  files = ["systems/hyperllama.gin", "data/text.gin", "runs/hyperpretrain.gin"]
  given = training("TEXT_DIR='t'", files=["models/llama_tiny.gin", *files])
  assert given.largest_shape == BatchShape(272, 1, 256, 128)
  files[0] = "systems/gisting_t5.gin"
  given = training("TEXT_DIR='t'", files=["models/t5_tiny.gin", *files])
  assert given.largest_shape == BatchShape(272, 1, 132, 128)


@pytest.mark.parametrize("message, size", [
  ("RESOURCE_EXHAUSTED: ... Used 16.38G of 15.75G hbm. Exceeded", int(16.38 * 2**30)),
  ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
   "(104.28G) exceeds available HBM (15.75G).", int(104.28 * 2**30)),
  ("out of memory", None),
])  # fmt: skip
def test_the_compilers_message_says_how_much_is_needed(message, size):
  assert compile_lib.needed(message) == size


def test_a_program_that_is_not_printed_is_written_to_a_file():
  """By a second compilation, next to files of other and smaller programs."""

  def fail():
    raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

  def write(compiler_options):
    folder = pathlib.Path(compiler_options["xla_dump_to"])
    (folder / "module_1.jit_step.after_optimizations.txt").write_text("HloModule jit_step")
    (folder / "module_2.add.after_optimizations.txt").write_text("HloModule")
    (folder / "module_1.jit_step.before_optimizations.txt").write_text("HloModule jit_step first")

  printed, silent = mock.Mock(jax.stages.Compiled), mock.Mock(jax.stages.Compiled)
  lowered = mock.Mock(jax.stages.Lowered)
  printed.as_text.return_value, silent.as_text.side_effect = "text", fail
  assert compile_lib.text_of(printed, lowered) == "text"
  with pytest.raises(ValueError, match="gives no text"):
    compile_lib.text_of(silent, lowered)
  lowered.compile.side_effect = write
  assert compile_lib.text_of(silent, lowered) == "HloModule jit_step"


def test_amounts_have_four_digits():
  amounts = [0, 999, 1234, 2_336_423_424, 77_371_151_482_880]
  shown = ["0 B", "999 B", "1.234 kB", "2.336 GB", "77.37 TB"]
  assert [compile_lib.amount(x) for x in amounts] == shown
  assert compile_lib.amount(None) == "?" and compile_lib.amount(5 * 10**9, "FLOP") == "5 GFLOP"


def test_all_that_was_counted_is_told():
  collectives = {"all-gather": hlo_costs.Collective(64, 3 * 10**9, 2, 10**6)}
  costs = hlo_costs.Costs(7 * 10**12, collectives, 12, ("while.3",))
  slice_ = topologies.Topology("here:1", jax.devices(), 4 * 10**9)
  report = compile_lib.Report(True, 10**9, 2 * 10**8, 9 * 10**8, costs, 61.2)
  found = compile_lib.as_json(training(), slice_, BatchShape(1024, 4, 256, 64), report)
  assert json.loads(json.dumps(found)) == found
  lines = compile_lib.describe(found).splitlines()
  told = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines)
  assert told["memory"] == "fits: peak 1 GB of 4 GB (25%); arguments 200 MB, temporaries 900 MB"
  assert told["matmuls"] == "7 TFLOP, those in loops as often as run"
  assert told["all-gather"] == "3 GB in 64; synchronous 1 MB in 2"
  assert told["collectives"] == "3 GB" and told["kernels"].startswith("12 calls of Pallas kernels")
  assert told["NOTE"] == "counted as one round: loops while.3"
  assert "support 1024, 4 queries of 256, targets of 64" in told["batch"]


PODS = sorted((tiny_lib.ROOT / "gin/pods").glob("*.gin"))


@pytest.mark.parametrize("file", PODS, ids=lambda file: file.stem)
def test_the_configuration_of_a_pod_has_its_mesh_and_batch(file):
  """Each device has one episode, or a number of them; the slice is the one in the file's name."""
  [name] = re.findall(r"--topology=(\S+)", file.read_text())
  generation, sizes = name.split(":")
  assert f"_{generation}_{sizes}" in file.stem
  given = training(files=["data/lexical.gin", f"pods/{file.name}"])
  mesh = given.run.mesh
  assert mesh.data * mesh.fsdp * mesh.tensor == math.prod(map(int, sizes.split("x")))
  assert given.run.batch_size % (mesh.data * mesh.fsdp) == 0 and given.model.remat == "full"
  support = 8192 if file.stem.endswith("_long") else 1024
  assert given.largest_shape == BatchShape(support, 4, 256, 64)
  assert getattr(given.hypermodel, "loop", "one_scan") == "one_scan"
