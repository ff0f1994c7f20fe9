"""The command in this process on a tiny model: what it prints, saves, repeats and refuses."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from flax import nnx

from hyperjax import launch, runs, systems, train
from hyperjax.core.batch import Batch, DecoderQuery, Support
from hyperjax.data.episodes import TrainStream
from hyperjax.data.manifest import Manifest
from hyperjax.hypermodels.hyperllama import HyperLlamaConfig
from hyperjax.progress import compilations
from hyperjax.training import step as step_lib
from tests import tiny as tiny_lib

tiny = tiny_lib.fixture


def stop(number=signal.SIGTERM) -> None:
  """What a user's Ctrl-C, or a machine that is taken away, does."""
  os.kill(os.getpid(), number)


def poison(trained):
  """Parameters that are no numbers, made without compiling anything."""
  return jax.tree.map(
    lambda x: jax.device_put(np.full(x.shape, np.nan, x.dtype), x.sharding), trained
  )


def close(one, other, tolerance) -> None:
  left, right = tiny_lib.saved(one), tiny_lib.saved(other)
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_allclose(left[name], right[name], atol=tolerance, rtol=0, err_msg=name)


@pytest.fixture
def watched_step(monkeypatch):
  """A list of hooks: each is called as hook(number, trained, batch) before a training step, and may
  return other parameters to go on with."""
  hooks = []
  original = step_lib.make_train_step

  def make(*arguments):
    compiled, calls = original(*arguments), iter(range(10**6))

    def step(trained, state, frozen, batch):
      number = next(calls)
      for hook in hooks:
        trained = hook(number, trained, batch) or trained
      return compiled(trained, state, frozen, batch)

    return step

  monkeypatch.setattr(train.step_lib, "make_train_step", make)
  return hooks


# ---- Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, weights", [("bfloat16", 269e6), ("float32", 538e6)])
def test_the_quickstarts_training_step_needs_less_than_three_gigabytes(dtype, weights):
  """What XLA reserves for the largest batch, frozen weights and optimizer included; the weights of
  the model alone are half a gigabyte in float32, and there is no second copy of them."""
  given = launch.arguments(
    ["examples/quickstart.gin"], "hyperjax.train", "train", bindings=[f"DTYPE={dtype!r}"]
  )
  parts = systems.abstract_parts(given["hypermodel"], given["model"].abstract())
  transform = given["optimizer"].build(given["run"].steps, parts.axes)
  state = jax.eval_shape(transform.init, parts.trained)
  episodes, rows = given["data"].episodes, given["run"].batch_size
  support, query, targets = episodes.limit
  ints = lambda *shape: np.zeros((rows, *shape), np.int32)
  each = (episodes.num_queries,)
  batch = Batch(
    Support(ints(support), ints()),
    DecoderQuery(ints(*each, query), ints(*each), ints(*each, targets)),
    ints(*each, targets),
    np.zeros((rows, *each, targets), np.float32),
  )
  train_step = step_lib.make_train_step(parts.graph, transform, given["objective"])
  program = train_step.lower(parts.trained, state, parts.frozen, batch).compile()
  memory = program.memory_analysis()
  frozen = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts.frozen))
  assert frozen == pytest.approx(weights, rel=0.01)
  trained = sum(x.size * 4 for x in jax.tree.leaves((parts.trained, state)))
  assert memory.argument_size_in_bytes < frozen + trained + 10**6
  assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 3.0e9


# ---- Dry runs ------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_and_makes_nothing(tiny, tmp_path, capsys):
  before = sorted(tiny.base.rglob("*"))
  assert tiny.train(tmp_path / "run", "--dry_run") == 0
  out = capsys.readouterr().out
  # Gist: 2 x 32. LoRA of rank 2 in each of 2 layers: q 32 -> 64, k and v 32 -> 32, o 64 -> 32.
  trained = 2 * 32 + 2 * 2 * ((32 + 64) + 2 * (32 + 32) + (64 + 32))
  # Embedding; per layer q, k, v, o, a gated MLP and two norms; the last norm.
  frozen = 49152 * 32 + 2 * (2 * 32 * 64 + 2 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
  assert f"trained {trained:,}; frozen {frozen:,}" in out
  assert f"memory      {4 * (frozen + 4 * trained) / 2**30:.2f} GiB" in out
  assert f"steps       {tiny_lib.STEPS}, 2 episodes each: 3 shots, 2 queries" in out
  assert f"data        fewshot in {tiny.data / 'train'}: 4 tasks, 160 examples" in out
  assert f"held out    held_out in {tiny.data / 'held_out'}: 2 tasks, 80 examples" in out
  assert not any(tmp_path.iterdir()) and sorted(tiny.base.rglob("*")) == before


def test_a_dry_run_builds_no_data(tiny, tmp_path, capsys):
  assert tiny.train(tmp_path / "run", "--dry_run", DATA_DIR=tmp_path / "data") == 0
  assert f"fewshot in {tmp_path / 'data' / 'train'}: not built yet" in capsys.readouterr().out
  assert not any(tmp_path.iterdir())


# ---- The loop ------------------------------------------------------------------------------------


def test_nothing_compiles_after_the_first_step_of_each_shape(tiny, tmp_path, watched_step):
  counts, shapes = [], []

  def hook(_, trained, batch):
    counts.append(compilations())
    shapes.append(batch.support.tokens.shape)

  watched_step.append(hook)
  assert tiny.train(tmp_path / "run", TRAIN_STEPS=12, CHECKPOINT_PERIOD=4, EVAL_PERIOD=4) == 0
  firsts = [shapes.index(shape) for shape in set(shapes)]
  assert len(firsts) == 2 and len(counts) == 12
  # From a step's start to the next one's: the step, evaluations and checkpoints are in it.
  last_first = max(firsts)
  evaluations = {4}  # the first one compiles the evaluation
  compiled = {i + 1 for i, (a, b) in enumerate(zip(counts, counts[1:], strict=False)) if b > a}
  assert compiled <= {first + 1 for first in firsts} | evaluations
  assert counts[-1] == counts[max(last_first + 1, 4)]


def test_a_second_compilation_of_a_shape_stops_the_run(tiny, tmp_path, monkeypatch):
  original = step_lib.make_train_step

  def make(*arguments):
    compiled, calls = original(*arguments), iter(range(100))

    def step(*given):
      if next(calls) == 6:
        jax.jit(lambda x: x * 3 + 7)(np.arange(11.0))
      return compiled(*given)

    return step

  monkeypatch.setattr(train.step_lib, "make_train_step", make)
  with pytest.raises(RuntimeError, match=r"step 6 compiled again for BatchShape\(.*static"):
    tiny.train(tmp_path / "run", TRAIN_STEPS=12)


def test_a_run_repeats_from_its_own_configuration_alone(tiny, tmp_path):
  arguments = [f"--gin_file={tiny.run / 'config.gin'}", f"--gin.MODEL_DIR={tmp_path / 'again'}"]
  assert train.main(arguments) == 0
  tiny_lib.assert_same(tmp_path / "again", tiny.run)


def test_a_finished_run_stays_as_it_is(tiny, capsys):
  files = [path for path in tiny.run.rglob("checkpoints/**/*") if path.is_file()]
  before = {path: path.read_bytes() for path in files}
  lines = (tiny.run / "metrics.jsonl").read_text()
  assert tiny.train(tiny.run, EVAL_PERIOD=tiny_lib.STEPS) == 0
  assert f"all {tiny_lib.STEPS} steps were done before" in capsys.readouterr().out
  assert before and all(path.read_bytes() == content for path, content in before.items())
  assert [json.loads(x) for x in lines.splitlines()] == [
    json.loads(x) for x in (tiny.run / "metrics.jsonl").read_text().splitlines()
  ]


def test_what_was_not_measured_any_more_is_measured_on_resuming(tiny, tmp_path, monkeypatch):
  """The step is saved first: a run that ends while it measures loses no step, and no point."""
  given = dict(TRAIN_STEPS=4, EVAL_PERIOD=2, CHECKPOINT_PERIOD=100)
  measure, asked = train.Watch.measure, []

  def ends_at_last(self, *system):
    asked.append(1)
    if len(asked) < 3:
      return measure(self, *system)
    while not (tmp_path / "run" / "checkpoints" / "4").exists():  # it is written meanwhile
      time.sleep(0.05)
    return {}["gone"]

  monkeypatch.setattr(train.Watch, "measure", ends_at_last)
  with pytest.raises(KeyError, match="gone"):
    tiny.train(tmp_path / "run", **given)
  monkeypatch.setattr(train.Watch, "measure", measure)
  for _ in range(2):  # once
    assert tiny.train(tmp_path / "run", **given) == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    watched = [line["step"] for line in lines if "held_out/exact_match" in line]
    assert watched == [0, 2, 4]


def test_another_seed_gives_another_run(tiny, tmp_path):
  assert tiny.train(tmp_path / "run", TRAIN_STEPS=3, RANDOM_SEED=1) == 0
  left, right = tiny_lib.saved(tmp_path / "run"), tiny_lib.saved(tiny.run)
  assert any(not np.array_equal(left[name], right[name]) for name in left)


def test_accumulation_changes_nothing_but_rounding(tiny, tmp_path):
  given = dict(TRAIN_STEPS=3, WARMUP_STEPS=1, BATCH_SIZE=4, MAX_BUCKETS=1)
  assert tiny.train(tmp_path / "whole", **given) == 0
  assert tiny.train(tmp_path / "parts", **given, **{"train.RunConfig.accumulate": 2}) == 0
  close(tmp_path / "whole", tmp_path / "parts", 1e-4)
  line = lambda run: json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[0])
  for name in ("loss", "gradient_norm", "exact_match", "target_tokens"):
    assert line("parts")[name] == pytest.approx(line("whole")[name], rel=1e-4)


def test_an_initial_checkpoint_is_where_training_starts(tiny, tmp_path, watched_step):
  first = {}

  def hook(number, trained, batch):
    first.update(jax.tree.map(np.array, trained)) if number == 0 else stop()

  watched_step.append(hook)
  status = tiny.train(tmp_path / "run", INITIAL_CHECKPOINT_PATH=tiny.run)
  assert status == 75
  expected = {n: x for n, x in tiny_lib.saved(tiny.run).items() if n.startswith("['trained']")}
  found = jax.tree_util.tree_leaves_with_path({"trained": first})
  assert len(found) == len(expected) > 3
  for path, leaf in found:
    np.testing.assert_array_equal(leaf, expected[jax.tree_util.keystr(path)])
  # The optimizer begins anew: after two steps it has counted two.
  optimizer = tiny_lib.saved(tmp_path / "run")
  counts = {int(x) for n, x in optimizer.items() if "optimizer" in n and x.dtype == np.int32}
  assert counts == {2}


def test_a_model_that_was_frozen_before_starts_as_it_is(tiny, tmp_path, watched_step, monkeypatch):
  """As of HyperT5+ behind the hyperpretraining of HyperT5."""
  first = {}

  def hook(number, trained, batch):
    first.update(jax.tree.map(np.array, trained)) if number == 0 else stop()

  watched_step.append(hook)
  model = nnx.to_pure_dict(nnx.state(runs.load(tiny.run).downstream))
  monkeypatch.setattr(HyperLlamaConfig, "train", ("producer", "downstream"))
  assert tiny.train(tmp_path / "run", INITIAL_CHECKPOINT_PATH=tiny.run) == 75
  before = {n: x for n, x in tiny_lib.saved(tiny.run).items() if n.startswith("['trained']")}
  found = jax.tree_util.tree_leaves_with_path({"trained": {"producer": first["producer"]}})
  assert len(found) == len(before) > 3
  for path, leaf in found:
    np.testing.assert_array_equal(leaf, before[jax.tree_util.keystr(path)])
  jax.tree.map(np.testing.assert_array_equal, first["downstream"], model)


def test_ctrl_c_saves_and_the_same_command_goes_on(tiny, tmp_path, watched_step, capsys):
  folder = tmp_path / "run"
  watched_step.append(lambda number, *_: stop(signal.SIGINT) if number == 4 else None)
  assert tiny.train(folder, CHECKPOINT_PERIOD=1000) == 130
  assert (
    f"stopped by SIGINT after step 5; state is saved in {folder}: the same command goes on from "
    "there\n"
  ) in capsys.readouterr().out
  watched_step.clear()
  assert tiny.train(folder, CHECKPOINT_PERIOD=1000) == 0
  assert f"resuming {folder} at step 5 of {tiny_lib.STEPS}" in capsys.readouterr().out
  tiny_lib.assert_same(folder, tiny.run)
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == list(range(1, tiny_lib.STEPS + 1))
  minutes = [line["minutes"] for line in lines]
  assert minutes == sorted(minutes) and minutes[0] > 0, "a resumed run goes on counting"


def test_a_run_on_a_mesh_is_the_run_on_one_device(tiny, tmp_path, monkeypatch):
  """4 heads and 2 of keys and values on a tensor axis of 4, episodes and width on 2; a checkpoint
  resumes on another mesh."""
  given = dict(TRAIN_STEPS=4, EVAL_PERIOD=4)
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8", prepend=" ")
  mesh, one = tmp_path / "mesh", tmp_path / "one"
  process = tiny.start(mesh, "--gin_file=meshes/fsdp_tensor.gin", LOOP="'one_scan'", **given)
  assert tiny.train(one, **given) == 0
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out
  read = lambda folder: [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
  for ours, theirs in zip(read(mesh), read(one), strict=True):
    for name in theirs.keys() & {"loss", "gradient_norm", "held_out/log_likelihood"}:
      assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
  assert tiny.train(mesh, TRAIN_STEPS=5) == tiny.train(one, TRAIN_STEPS=5) == 0
  close(mesh, one, 1e-3)


def test_ctrl_c_before_training_is_one_line(tiny, tmp_path, capsys, monkeypatch):
  def interrupted(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(train.systems, "build_parts", interrupted)
  assert tiny.train(tmp_path / "run") == 130
  assert capsys.readouterr().err == "interrupted; the same command starts again where it can\n"
  assert not (tmp_path / "run").exists()


def test_fewer_steps_than_were_done_are_refused(tiny, capsys):
  message = tiny_lib.refused(capsys, tiny.train(tiny.run, TRAIN_STEPS=tiny_lib.STEPS - 1))
  assert f"holds a checkpoint of step {tiny_lib.STEPS}, beyond TRAIN_STEPS" in message


@pytest.mark.parametrize("macros", [
  dict(OPTIMIZER="@optimizers.Adafactor()"), dict(DISTILLATION=0.5),
], ids=str)  # fmt: skip
def test_other_optimizers_and_objectives_train(tiny, tmp_path, macros):
  folder = tmp_path / "run"
  assert tiny.train(folder, TRAIN_STEPS=24, **macros) == 0
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  losses = [line["loss"] for line in lines]
  assert np.mean(losses[-6:]) < np.mean(losses[:6])
  assert all(("kl" in line) == ("DISTILLATION" in macros) for line in lines)


def test_hyperpretraining_then_fine_tuning(tiny, tmp_path, capsys):
  """CACLM on running text; the fine-tuning run starts from its parameters."""
  texts = tmp_path / "texts"
  texts.mkdir()
  for name in ("train", "held"):
    (texts / f"{name}.txt").write_text(" ".join(f"sentence {i} of {name}." for i in range(200)))
  folder = tmp_path / "pretrained"
  arguments = [
    "--gin_file=models/llama_tiny.gin", "--gin_file=systems/hyperllama.gin",
    "--gin_file=data/text.gin", "--gin_file=runs/hyperpretrain.gin",
    *(f"--gin.{name}={value}" for name, value in {
      "MODEL_SOURCE": tiny.model, "VOCABULARY": tiny.model, "TEXT_DIR": texts,
      "TEXT_HELD_OUT": "['held']", "DATA_DIR": tmp_path / "data", "MODEL_DIR": folder,
      "TRAIN_STEPS": 4, "WARMUP_STEPS": 1, "WINDOW": 32, "BATCH_SIZE": 2, "NUM_GIST": 2,
      "SINK_TEXT": "''", "LORA_RANK": 2,
    }.items()),
  ]  # fmt: skip
  assert train.main([*arguments, "--gin.EVAL_PERIOD=2"]) == 2
  assert "running text has no few-shot queries to evaluate" in capsys.readouterr().err
  assert train.main(arguments) == 0
  assert Manifest.load(tmp_path / "data" / "train").tasks == ("text.train",)
  assert tiny.train(tmp_path / "run", TRAIN_STEPS=3, INITIAL_CHECKPOINT_PATH=folder) == 0


def test_a_signal_in_the_last_step_does_not_undo_the_end(tiny, tmp_path, watched_step, capsys):
  watched_step.append(lambda number, *_: stop() if number == 2 else None)
  assert tiny.train(tmp_path / "run", TRAIN_STEPS=3) == 0
  assert "all 3 steps done" in capsys.readouterr().out


def test_a_loss_that_is_not_a_number_stops_the_run(tiny, tmp_path, capsys, watched_step):
  folder = tmp_path / "run"

  def hook(number, trained, batch):
    return poison(trained) if number == 5 else None

  watched_step.append(hook)
  message = tiny_lib.refused(capsys, tiny.train(folder, CHECKPOINT_PERIOD=2), 1)
  given = launch.configured(folder, "hyperjax.train", "train")
  manifest = Manifest.load(tiny.data / "train")
  stream = TrainStream(manifest, given["data"].episodes, seed=0, batch_size=2)
  tasks = sorted({stream.episode(5, row).task for row in range(2)})
  assert message == (
    f"step 5: loss nan, gradient norm nan; its episodes are of {', '.join(tasks)}; the last good "
    f"checkpoint is step 4 in {folder / 'checkpoints'}"
  )
  assert all(np.isfinite(x).all() for x in tiny_lib.saved(folder).values())
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
  # The cause is gone: the same command goes on from the good checkpoint.
  watched_step.clear()
  assert tiny.train(folder, CHECKPOINT_PERIOD=1000) == 0
  tiny_lib.assert_same(folder, tiny.run)


def test_without_a_good_checkpoint_the_message_says_so(tiny, tmp_path, capsys, watched_step):
  watched_step.append(lambda number, trained, _: poison(trained))
  message = tiny_lib.refused(capsys, tiny.train(tmp_path / "run"), 1)
  assert message.startswith("step 0: loss nan") and "there is no checkpoint before it" in message


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("values, message", [
  (dict(TRAIN_STEPS=0), "RunConfig.steps must be at least 1, not 0"),
  (dict(BATCH_SIZE=0), "RunConfig.batch_size must be at least 1, not 0"),
  (dict(CHECKPOINT_PERIOD=0), "RunConfig.checkpoint_period must be at least 1, not 0"),
  (dict(EVAL_PERIOD=-1), "RunConfig.eval_period must be at least 0, not -1"),
  (dict(RESUME_STEP=0), f"resume_step must be in 1..{tiny_lib.STEPS} (TRAIN_STEPS), not 0"),
  (dict(RESUME_STEP=9, TRAIN_STEPS=8), "resume_step must be in 1..8 (TRAIN_STEPS), not 9"),
  ({"train.RunConfig.accumulate": 3}, "RunConfig.batch_size 2 is not a multiple of accumulate 3"),
  (dict(DTYPE="float16"), "ModelConfig.dtype must be one of"),
  (dict(REMAT="som"), "'som'"),
  (dict(ATTENTION="flash"), "attention must be one of ['auto', 'einsum', 'blocks', 'spla"),
  (dict(PROMPT="qq"), "'qq'"),
  (dict(NUM_GIST=0), "GistConfig.num_gist must be at least 1, not 0"),
  (dict(NUM_SHOTS=0), "num_shots is 0; want 1 <= low <= high"),
  (dict(DISTILLATION=-1.0), "distillation -1.0"),
  (dict(LEARNING_RATE=0.0), "Schedule.peak must be positive, not 0.0"),
  ({"episodes.EpisodeConfig.inline": True}, "so HyperLlamaConfig would have none to read: name"),
])
def test_a_wrong_value_is_named_before_anything_is_built(tiny, tmp_path, capsys, values, message):
  status = tiny.train(tmp_path / "run", "--dry_run", **values)
  assert message in tiny_lib.refused(capsys, status)
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("values, message", [
  (dict(MESH_FSDP=2), "a mesh of data 1 x fsdp 2 x tensor 1 does not fit 3 devices (gin: "),
  (dict(), "2 episodes cannot be shared out evenly over data 3 x fsdp 1: BATCH_SIZE (each part of"),
  ({"MESH_FSDP": 3, "BATCH_SIZE": 6, "train.RunConfig.accumulate": 6}, "1 episodes cannot be"),
])  # fmt: skip
@pytest.mark.parametrize("more", [["--dry_run"], []], ids=["planned", "begun"])
def test_a_mesh_or_batch_that_does_not_fit_is_refused_before_work(
  tiny, tmp_path, capsys, monkeypatch, values, message, more
):
  three = jax.devices()[:1] * 3
  monkeypatch.setattr(jax, "devices", lambda: three)
  refused = tiny_lib.refused(capsys, tiny.train(tmp_path / "run", *more, **values))
  assert refused.startswith(message) and not any(tmp_path.iterdir())


def test_a_run_for_a_larger_machine_is_planned_here(tiny, tmp_path, capsys):
  plan = lambda episodes: tiny.train(
    tmp_path / "run", "--dry_run", MESH_DATA=1, MESH_FSDP=64, BATCH_SIZE=episodes
  )
  assert plan(128) == 0
  out = capsys.readouterr().out
  here = jax.device_count()
  assert f"devices     data 1 x fsdp 64 x tensor 1: 64, where this machine has {here}\n" in out
  message = tiny_lib.refused(capsys, plan(100))
  assert message.startswith("100 episodes cannot be shared out evenly over data 1 x fsdp 64: ")


@pytest.mark.parametrize("more", [["--dry_run"], []], ids=["planned", "begun"])
@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor"])
def test_a_warm_up_as_long_as_the_run_is_refused_before_work(
  tiny, tmp_path, capsys, more, optimizer
):
  macros = {"DATA_DIR": tmp_path / "data", "OPTIMIZER": f"@optimizers.{optimizer}()"}
  status = tiny.train(tmp_path / "run", *more, WARMUP_STEPS=10, TRAIN_STEPS=10, **macros)
  assert tiny_lib.refused(capsys, status) == (
    "WARMUP_STEPS (Schedule.warmup_steps) is 10, but the run has 10 steps, and the warm-up must "
    "end before it does: set it to less, such as 1"
  )
  assert not any(tmp_path.iterdir())


def test_a_warm_up_may_end_with_the_run_in_sight(tiny, tmp_path):
  assert tiny.train(tmp_path / "run", "--dry_run", WARMUP_STEPS=9, TRAIN_STEPS=10) == 0


def test_missing_macros_are_listed_with_their_meaning(tiny, capsys):
  status = train.main([f"--gin_file={tiny.gin}"])
  assert status == 2
  error = capsys.readouterr().err
  assert "MODEL_DIR must be set" in error and "folder of this run: checkpoints" in error


def test_a_misspelt_macro_is_refused(tiny, tmp_path, capsys):
  message = tiny_lib.refused(capsys, tiny.train(tmp_path / "run", TRAIN_STEP=3))
  assert "TRAIN_STEP is set" in message and "Did you mean 'TRAIN_STEPS'?" in message


def test_missing_data_without_seqio_names_the_command(tiny, tmp_path, capsys, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name, *a: None if name == "seqio" else find(name, *a)
  )
  folder = tmp_path / "data" / "train"
  message = tiny_lib.refused(capsys, tiny.train(tmp_path / "run", DATA_DIR=tmp_path / "data"))
  assert message == (
    f"{folder} is not a finished data folder and seqio is not installed here. Build it: hyperjax "
    f"data --config_json {folder}.config.json --out {folder}"
  )
  assert json.loads(pathlib.Path(f"{folder}.config.json").read_text())


def test_a_vocabulary_other_than_the_datas_is_refused(tiny, tmp_path, capsys):
  # The same token ids, but a tokenizer that sets BOS before each text.
  folder = tmp_path / "vocabulary"
  folder.mkdir()
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (folder / name).write_bytes((tiny.model / name).read_bytes())
  config = json.loads((folder / "tokenizer_config.json").read_text())
  config["eos_token"] = "<|endoftext|>"
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  message = tiny_lib.refused(capsys, tiny.train(tmp_path / "run", VOCABULARY=folder))
  assert message.startswith(f"{tiny.data / 'train'} was built with a vocabulary of 49152 tokens (")
  assert str(folder) in message and "build it again with hyperjax data" in message


def test_a_changed_source_is_refused_with_the_command_that_rebuilds(tiny, tmp_path, capsys):
  file = tiny.tasks / "digits.json"
  original = file.read_text()
  try:
    file.write_text(original.replace('"3"', '"4"'))
    message = tiny_lib.refused(capsys, tiny.train(tmp_path / "run"))
  finally:
    file.write_text(original)
  folder = tiny.data / "train"
  assert message.startswith(f"{folder}: the source of task 'fewshot.digits' has changed.")
  assert message.endswith(
    f"Name another DATA_DIR, or rebuild it: hyperjax data --config_json {folder}.config.json "
    f"--out {folder}"
  )


def test_an_unknown_task_is_refused_with_the_nearest_name(tiny, tmp_path, capsys):
  status = tiny.train(tmp_path / "run", **{"episodes.EpisodeConfig.exclude": "['fewshot.digit']"})
  message = tiny_lib.refused(capsys, status)
  assert "no task 'fewshot.digit'. Did you mean 'fewshot.digits'?" in message


def test_too_few_examples_are_refused(tiny, tmp_path, capsys):
  message = tiny_lib.refused(capsys, tiny.train(tmp_path / "run", NUM_SHOTS=40))
  assert "has too few examples for num_shots=40" in message
  assert "it needs at least 41" in message


def test_a_model_of_another_shape_is_refused(tiny, tmp_path, capsys):
  status = tiny.train(tmp_path / "run", **{"llama.LlamaConfig.d_mlp": 96})
  message = tiny_lib.refused(capsys, status)
  assert "d_mlp" in message and "96" in message and "64" in message


@pytest.mark.parametrize("values, changed", [
  (dict(RANDOM_SEED=7), "seed is 7, was 0"),
  (dict(LORA_RANK=4), "rank is 4, was 2"),
  (dict(NUM_SHOTS=2), "episodes.num_shots"),
  (dict(INITIAL_CHECKPOINT_PATH="other"), "initial_checkpoint is 'other', was None"),
  (dict(SHUFFLED=0.5), "episodes.shuffled is 0.5, was 0.0"),
  (dict(DISTILLATION=1.0), "objective.distillation is 1.0, was 0.0"),
  ({"train.RunConfig.batch_size": 5}, "batch_size is 5, was "),
])
def test_checkpoints_of_another_run_are_not_gone_on_from(tiny, capsys, values, changed):
  """Lengths and periods may differ: they do in many tests here."""
  names = ("config.gin", "config-operative.gin", "metrics.jsonl")
  before = [(tiny.run / name).read_bytes() for name in names]
  message = tiny_lib.refused(capsys, tiny.train(tiny.run, TRAIN_STEPS=60, **values))
  assert message.startswith(f"{tiny.run} has checkpoints of another run (") and changed in message
  assert f"with INITIAL_CHECKPOINT_PATH={tiny.run} it starts from the" in message
  assert [(tiny.run / name).read_bytes() for name in names] == before


def test_a_configuration_that_cannot_be_read_does_not_stop_a_run_for_good(tiny, tmp_path, capsys):
  folder = tmp_path / "run"
  shutil.copytree(tiny.run, folder)
  (folder / "config.gin").write_text("NO_SUCH_THING = @nobody.Knows()\n")
  message = tiny_lib.refused(capsys, tiny.train(folder))
  assert "cannot be read (" in message and "take config.gin away from there" in message
  (folder / "config.gin").unlink()
  assert tiny.train(folder) == 0
  assert "all 40 steps were done before" in capsys.readouterr().out


@pytest.mark.parametrize("values, message", [
  (dict(NUM_GIST=3), "trained.producer.gist has shape (2, 32) in the file and (3, 32) in this run"),
  (dict(INITIAL_CHECKPOINT_PATH="none/such"), "none/such"),
])
def test_an_initial_checkpoint_that_does_not_fit_is_refused(
  tiny, tmp_path, capsys, values, message, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  given = {"INITIAL_CHECKPOINT_PATH": tiny.run, **values}
  assert message in tiny_lib.refused(capsys, tiny.train(tmp_path / "run", **given))
  assert not (tmp_path / "none").exists()


def test_a_checkpoint_for_another_frozen_model_is_refused(tiny, tmp_path, capsys):
  given = dict(MODEL_SOURCE="random", INITIAL_CHECKPOINT_PATH=tiny.run)
  message = tiny_lib.refused(capsys, tiny.train(tmp_path / "run", **given))
  assert "was trained on a frozen model with fingerprint" in message
  assert "use the model that the run's config.gin names" in message


def test_run_config_is_checked_where_it_is_made():
  good = train.RunConfig(steps=4, batch_size=4, accumulate=2)
  for name in ("steps", "batch_size", "accumulate", "checkpoint_period"):
    with pytest.raises(ValueError, match=f"RunConfig.{name} must be at least 1, not 0"):
      dataclasses.replace(good, **{name: 0})
