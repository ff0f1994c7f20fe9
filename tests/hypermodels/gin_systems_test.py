"""The gin files of generated phis: what system each describes."""

import jax
import pytest
from flax import nnx

from hyperjax import launch, systems
from hyperjax.hypermodels.gisting_t5 import FullGistingT5Config, GistingT5Config
from hyperjax.hypermodels.heads import EmitLowRank, EmitPrefix, HeadsConfig
from hyperjax.hypermodels.hyperllama_lora import HyperLlamaLoRAConfig
from hyperjax.hypermodels.hypert5 import HyperT5Config
from hyperjax.models.t5 import T5Config
from tests import tiny

BINDINGS = ("MODEL_DIR='m'", "DATA_DIR='d'", "TRAIN_STEPS=1")
BOTH = ("producer", "downstream")


def given(model, system, *bindings, files=()):
  """The arguments of a training run."""
  names = [f"models/{model}.gin", f"systems/{system}.gin", "data/lexical.gin", "runs/mtf.gin"]
  return launch.arguments(
    [*names, *files], "hyperjax.train", "train", bindings=[*BINDINGS, *bindings]
  )


def number(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("system, kind, train", [
  ("hypert5_prefix", HyperT5Config, BOTH[:1]),
  ("hypert5_lora", HyperT5Config, BOTH[:1]),
  ("hypert5_prefix_plus", HyperT5Config, BOTH),
  ("hypert5_lora_plus", HyperT5Config, BOTH),
  ("gisting_t5", GistingT5Config, BOTH[:1]),
  ("gisting_t5_full", FullGistingT5Config, BOTH),
])  # fmt: skip
def test_a_t5_system(system, kind, train):
  """Nothing is read of a model that is not there."""
  arguments = given("t5_1_1_small", system, "MODEL_SOURCE='not_there'", "VOCABULARY='neither'")
  config, model = arguments["hypermodel"], arguments["model"]
  assert type(config) is kind and systems.trained_parts(config) == train
  parts = systems.abstract_parts(config, model.abstract())
  assert parts.trained.keys() == set(train)
  size = number(jax.tree.leaves(nnx.state(model.abstract())))
  assert number(parts.frozen) == (0 if len(train) == 2 else size)
  if kind is HyperT5Config:
    assert type(config.emit) is (EmitPrefix if "prefix" in system else EmitLowRank)
    assert config.source == "not_there" and config.architecture == model.architecture
    # The body is the whole T5 but for its output layer; slots and heads come on top.
    body = number(parts.trained["producer"]["body"])
    assert body == size - model.architecture.vocab_size * model.architecture.d_model
    assert body < number(parts.trained["producer"]) < 1.5 * body


def test_hyperllama_lora():
  arguments = given("smollm2_135m", "hyperllama_lora", "EMIT_RANK=4")
  config = arguments["hypermodel"]
  assert type(config) is HyperLlamaLoRAConfig and config.emit.rank == 4
  parts = systems.abstract_parts(config, arguments["model"].abstract())
  assert parts.trained["producer"]["gist"].shape == (4, 576)
  assert 0 < number(parts.trained) < number(parts.frozen) / 10


@pytest.mark.parametrize("model", ["t5_tiny", "smollm2_135m"])
def test_the_body_may_be_another_t5(model):
  """Also where the downstream model is none."""
  arguments = given(model, "hypert5_prefix", files=[tiny.ROOT / "docs" / "examples" / "body.gin"])
  config = arguments["hypermodel"]
  assert isinstance(config.architecture, T5Config) and config.architecture.d_model == 512
  assert config.architecture != arguments["model"].architecture
  assert config.source == "random"
  assert number(systems.abstract_parts(config, arguments["model"].abstract()).trained) > 0


def test_without_a_body_a_llama_downstream_is_refused_with_the_macros_to_set():
  with pytest.raises(ValueError, match=r"must be a T5Config.*\(gin: BODY, BODY_SOURCE\)"):
    given("llama_tiny", "hypert5_lora")


@pytest.mark.parametrize("system, macros, emit", [
  ("hypert5_prefix", dict(PREFIX_LENGTH=3, KEY_SCALE=0.5, VALUE_SCALE=0.25),
   EmitPrefix(3, 0.5, 0.25)),
  ("hypert5_lora", dict(EMIT_RANK=3, EMIT_ALPHA=0.5, EMIT_SITES=["*.self.k"]),
   EmitLowRank(3, 0.5, ["*.self.k"])),
])  # fmt: skip
def test_the_macros_reach_the_emission_and_the_heads(system, macros, emit):
  macros = macros | dict(HEADS="per_layer", HEAD_WIDTH=7)
  bindings = [f"{name}={value!r}" for name, value in macros.items()]
  config = given("t5_tiny", system, *bindings)["hypermodel"]
  assert config.emit == emit and config.heads == HeadsConfig("per_layer", 7)
