"""A run opened by its folder alone, and what the commands share."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax import launch, runs, sources, systems
from hyperjax.core.batch import Support
from hyperjax.data import shapes as shapes_lib
from hyperjax.data import vocabularies
from hyperjax.data.episodes import EpisodeConfig
from hyperjax.data.manifest import DataConfig, Manifest
from hyperjax.evaluation import scoring
from hyperjax.models import families
from tests import tiny as tiny_lib
from tests.models import tiny as models

tiny = tiny_lib.fixture


@pytest.fixture(scope="module")
def given(tiny):
  return launch.configured(tiny.run, "hyperjax.train", "train")


def test_a_run_has_the_parameters_of_its_newest_checkpoint(tiny, given):
  run = runs.load(tiny.run)
  assert run.step == tiny_lib.STEPS and run.folder == tiny.run
  saved = tiny_lib.saved(tiny.run)
  name = "['trained']['producer']['gist']"
  np.testing.assert_array_equal(run.producer.gist[...], saved[name])
  initial = systems.build_parts(
    given["hypermodel"], run.downstream, systems.encoder(run.vocabulary), given["run"].seed
  ).trained
  assert np.abs(initial["producer"]["gist"] - saved[name]).max() > 1e-3
  assert run.provenance == {
    "hypermodel": "HyperLlama", "step": tiny_lib.STEPS, "mixture": "fewshot",
    "data": given["data"].config.hash(),
  }  # fmt: skip
  assert run.config == given["model"].architecture
  assert run.model_fingerprint == run.model.load()[1]
  assert run.prompt.name == "qa" and run.longest_support == 1024


def test_a_loaded_model_is_used_and_not_copied(tiny, given):
  loaded = given["model"].load()
  run = runs.load(tiny.run, loaded=loaded)
  assert run.downstream is loaded[0]


def test_initial_values_make_room_for_the_checkpoints(tiny, monkeypatch):
  restore, given = runs.Checkpoints.restore, []

  def watched(self, trained, *rest):
    given.extend(jax.tree.leaves(trained))
    return restore(self, trained, *rest)

  monkeypatch.setattr(runs.Checkpoints, "restore", watched)
  runs.load(tiny.run)
  assert given and {type(x) for x in given} == {jax.ShapeDtypeStruct}


def test_the_longest_support_of_a_run():
  read = lambda data, run, *more: launch.arguments(
    ["models/llama_tiny.gin", "systems/hyperllama.gin", f"data/{data}.gin", f"runs/{run}.gin"],
    "hyperjax.train", "train",
    bindings=["MODEL_DIR='m'", "DATA_DIR='d'", "TRAIN_STEPS=70", *more],
  )  # fmt: skip
  assert runs.longest_support(read("lexical", "mtf", "EPISODE_LIMIT=(160, 24, 8)")) == 160
  assert runs.longest_support(read("text", "hyperpretrain", "TEXT_DIR='t'")) is None
  shapes = [shapes_lib.BatchShape(support, 8, 16, 8) for support in (64, 192, 32)]
  assert EpisodeConfig(shapes=shapes).longest_support == 192


@pytest.fixture
def moved(tiny, tmp_path):
  """Where the base model lies meanwhile; nothing is left where the run's config.gin names it."""
  there = tmp_path / "moved"
  tiny.model.rename(there)
  yield there
  there.rename(tiny.model)


def test_the_base_model_may_have_moved(tiny, moved):
  """And its vocabulary with it: one folder holds both."""
  run = runs.load(tiny.run, source=str(moved))
  assert run.model.source == str(moved) and run.step == tiny_lib.STEPS
  assert run.vocabulary.fingerprint == vocabularies.load(moved).fingerprint


def test_a_vocabulary_of_another_place_stays_there(tiny, tmp_path):
  weights, run = tmp_path / "weights", tmp_path / "run"
  shutil.copytree(tiny.model, weights, ignore=shutil.ignore_patterns("tokenizer*"))
  shutil.copytree(tiny.run, run)
  with open(run / "config.gin", "a") as file:
    file.write(f"\nVOCABULARY = {sources.EMBEDDED!r}\n")
  assert runs.load(run, source=str(weights)).vocabulary.size == 49152


def test_reading_a_run_changes_nothing_in_it(tiny):
  """The run may be going on: what is being written there is not ours to tidy up."""
  unfinished = tiny.run / "checkpoints" / "99.orbax-checkpoint-tmp"
  unfinished.mkdir()
  before = sorted(tiny.run.rglob("*"))
  try:
    assert runs.load(tiny.run).step == tiny_lib.STEPS
    assert sorted(tiny.run.rglob("*")) == before
  finally:
    unfinished.rmdir()


@pytest.mark.parametrize("contents, message", [
  ([], "is not the folder of a run: no config.gin in it"),
  (["config.gin"], "holds no complete checkpoint"),
])
def test_a_folder_without_a_whole_run_is_refused(tiny, tmp_path, contents, message):
  for name in contents:
    (tmp_path / name).write_bytes((tiny.run / name).read_bytes())
  with pytest.raises(FileNotFoundError, match=message) as error:
    runs.load(tmp_path)
  assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_the_folder_of_another_command_is_refused(tmp_path):
  imports = "from __gin__ import dynamic_registration\nfrom hyperjax import evaluate\n"
  (tmp_path / "config.gin").write_text(f"{imports}evaluate.evaluate.output_dir = 'x'\n")
  with pytest.raises(ValueError) as error:
    runs.load(tmp_path)
  assert str(error.value) == (
    f"{tmp_path}/config.gin configures no training: name a training run's MODEL_DIR"
  )


def test_another_model_is_refused(tiny, given, tmp_path):
  config = given["model"].architecture
  params = families.random(config, seed=2).params
  families.save(tmp_path / "other", config, params, tokenizer=vocabularies.load(tiny.model))
  message = "was trained on a frozen model with fingerprint"
  manifest = Manifest.load(tiny.data / "train")
  with pytest.raises(ValueError, match=message):
    runs.load(tiny.run, source=str(tmp_path / "other"))
  with pytest.raises(ValueError, match=message):
    runs.check(tiny.run, families.fingerprint(tmp_path / "other"), manifest)
  runs.check(tiny.run, families.fingerprint(tiny.model), manifest)


def test_a_dtype_is_chosen_for_this_machine(given):
  model = given["model"]
  assert model.compute_dtype() == jnp.float32  # the tests run on a CPU
  assert dataclasses.replace(model, dtype="bfloat16").compute_dtype() == jnp.bfloat16
  with pytest.raises(ValueError, match="ModelConfig.dtype must be one of .* not 'half'"):
    dataclasses.replace(model, dtype="half")


def test_a_kernel_that_was_asked_for_elsewhere_is_chosen_anew(monkeypatch):
  """A run that was trained on a TPU is opened where there is none."""
  there = runs.ModelConfig(models.CONFIG, "random", attention="splash")
  monkeypatch.setattr(launch, "configured", lambda *_: {"model": there, "data": "the data"})
  here = runs.ModelConfig(models.CONFIG, "random")
  assert runs.configured("folder") == {"model": here, "data": "the data"}
  with pytest.raises(ValueError, match="is .splash., which needs TPUs.*has CPUs: set ATTENTION to"):
    there.load()
  assert there.abstract().attention == "splash"  # plans for another machine are made


def test_a_half_precision_model_serves(tiny, given):
  run = runs.load(tiny.run, loaded=dataclasses.replace(given["model"], dtype="bfloat16").load())
  assert {x.dtype for x in jax.tree.leaves(run.downstream)} == {jnp.dtype("bfloat16")}
  ids = run.vocabulary.encode_batch(["Q: word 1\nA: yes\n"])
  support = Support(np.array(ids, np.int32), np.array([len(ids[0])], np.int32))
  phi = scoring.produce(run.producer, run.downstream, support)
  assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(phi))


class _Other(vocabularies.Vocabulary):
  size, fingerprint = 7, "other"

  def __init__(self):
    pass

  def encode_batch(self, texts):
    raise NotImplementedError

  def decode(self, ids):
    raise NotImplementedError

  def save(self, folder):
    raise NotImplementedError


def test_data_of_another_vocabulary_is_refused(tiny, given):
  folder = given["data"].data
  with pytest.raises(ValueError) as error:
    folder.open(_Other())
  assert str(error.value).startswith(f"{tiny.data / 'train'} was built with a vocabulary of 49152")
  assert "has 7 (other): build it again with hyperjax data, or name another DATA_DIR" in (
    str(error.value)
  )


def test_data_at_another_address_than_a_buckets_is_refused():
  """It would be looked for, and built, in a local folder of that name."""
  folder = runs.DataFolder(DataConfig("mine", "bytes"), "s3://mine/data", "train")
  with pytest.raises(ValueError, match="^DATA_DIR is s3://mine/data, not a folder or a gs:// add"):
    folder.open(_Other())
  assert str(dataclasses.replace(folder, folder="gs://mine/data").path) == "gs://mine/data/train"


def test_a_copied_data_folder_serves_without_its_sources(tiny, given, tmp_path):
  """Trained on another machine: the stores are there, the files of the tasks are not."""
  shutil.copytree(tiny.data / "train", tmp_path / "data" / "train")
  data = given["data"].data
  [source] = data.config.sources
  away = dataclasses.replace(source, path=str(tmp_path / "none"))
  moved = dataclasses.replace(
    data, folder=str(tmp_path / "data"), config=dataclasses.replace(data.config, sources=[away])
  )
  manifest = moved.open(vocabularies.load(tiny.model))
  assert sorted(manifest.tasks) == sorted(
    f"fewshot.{name}" for name in tiny_lib.examples() if name not in tiny_lib.HELD_OUT
  )
  text = (tmp_path / "data" / "train" / "manifest.json").read_text()
  assert str(tiny.base) not in text and json.loads(text)["mixture"] == "fewshot"
