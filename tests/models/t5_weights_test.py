"""T5's weights: configurations as the hub has them, tensors under several names, mixed types."""

import dataclasses
import functools
import json
import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from hyperjax.models import families, tensor_files, weights
from hyperjax.models.llama import LlamaConfig
from hyperjax.models.t5 import T5Config
from tests.models import sizes

CONFIG = T5Config(
  vocab_size=50, d_model=16, num_encoder_layers=2, num_decoder_layers=3, num_heads=2, head_dim=12,
  d_mlp=24, activation="gated-gelu", tie_embeddings=False,
)
TIED = dataclasses.replace(CONFIG, tie_embeddings=True, activation="relu")
MODELS = pathlib.Path(__file__).parents[2] / "gin" / "models"
ABSENT = "absent"

random = functools.cache(families.random)


def saved(path, config):
  families.save(path, config, random(config).params)
  return path


@pytest.fixture
def folder(tmp_path):
  return saved(tmp_path / "model", CONFIG)


@pytest.fixture
def tied(tmp_path):
  return saved(tmp_path / "tied", TIED)


def edit_config(folder, **changes) -> None:
  file = folder / "config.json"
  raw = {**json.loads(file.read_text()), **changes}
  file.write_text(json.dumps({k: v for k, v in raw.items() if v != ABSENT}))


def edit_tensors(folder, edit) -> None:
  tensors = load_file(folder / "model.safetensors")
  edit(tensors)
  save_file(tensors, folder / "model.safetensors")


def assert_same(one, other) -> None:
  one, other = dict(weights.leaves(one)), dict(weights.leaves(other))
  assert one.keys() == other.keys()
  for path in one:
    assert one[path].dtype == other[path].dtype, path
    np.testing.assert_array_equal(one[path], other[path], err_msg=path)


@pytest.mark.parametrize("config", [CONFIG, TIED])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_saving_and_loading_changes_no_bit(config, dtype, tmp_path):
  loaded = families.random(config, dtype=dtype)
  families.save(tmp_path / "m", config, loaded.params)
  again = families.load(tmp_path / "m", dtype=dtype)
  assert again.config == config and again.exact
  assert_same(again.params, loaded.params)


def test_the_last_product_of_an_mlp_stays_float32(folder):
  loaded = families.load(folder, dtype=jnp.bfloat16)
  types = {path: leaf.dtype for path, leaf in weights.leaves(loaded.params)}
  wide = {path for path, dtype in types.items() if dtype == jnp.float32}
  assert wide == {"encoder.mlp.down", "decoder.mlp.down"}
  assert {str(types[path]) for path in types.keys() - wide} == {"bfloat16"}
  assert not loaded.exact
  want = families.abstract(CONFIG, dtype=jnp.bfloat16)
  assert jax.tree.map(lambda x: x.dtype, nnx.to_pure_dict(nnx.state(want))) == jax.tree.map(
    lambda x: x.dtype, loaded.params
  )


def test_a_copy_of_a_half_sized_model_is_exact(folder, tmp_path):
  half = families.load(folder, dtype=jnp.bfloat16)
  families.save(tmp_path / "half", CONFIG, half.params)
  types = tensor_files.open_tensors(tmp_path / "half")
  wide = {n for n in types.shapes if types.dtype(n) == np.float32}
  assert wide == {n for n in types.shapes if n.endswith(".wo.weight")}
  again = families.load(tmp_path / "half", dtype=jnp.bfloat16)
  assert again.exact
  families.save(tmp_path / "copy", CONFIG, again.params, original=again.fingerprint)
  assert families.fingerprint(tmp_path / "copy") == again.fingerprint


@pytest.mark.parametrize(("key", "value", "allowed"), [
  ("feed_forward_proj", "gated-silu", "'gated-gelu' or 'relu'"),
  ("feed_forward_proj", "gelu", "'gated-gelu' or 'relu'"),
  ("dense_act_fn", "silu", "'gelu_new'"),
  ("is_gated_act", False, "True"),
  ("is_encoder_decoder", False, "True"),
  ("is_decoder", True, "False"),
  ("tie_encoder_decoder", True, "False"),
  ("pruned_heads", {"0": [1]}, "{}"),
  ("scale_decoder_outputs", True, "False where tie_word_embeddings is False"),
  ("quantization_config", {"bits": 4}, "leaving it out"),
  ("relative_attention_kind", "rotary", "leaving it out"),
  ("model_type", "mt5", "'llama' or 't5'"),
  ("model_type", ABSENT, "'llama' or 't5'"),
])
def test_a_key_that_would_change_the_numbers_is_refused_by_name(key, value, allowed, folder):
  edit_config(folder, **{key: value})
  with pytest.raises(ValueError, match="would change the model's numbers") as e:
    families.load(folder)
  assert f"config.json: {key} is " in str(e.value) and str(e.value).endswith(f"allowed: {allowed}")
  assert value == ABSENT or repr(value) in str(e.value)


# As the hub has them: google-t5/t5-small, google/t5-v1_1-small, google/flan-t5-small; and the
# latter as transformers 5 writes it.
V1 = {
  "architectures": ["T5WithLMHeadModel"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
  "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
  "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
  "num_heads": 8, "num_layers": 6, "output_past": True, "pad_token_id": 0,
  "relative_attention_num_buckets": 32, "vocab_size": 32128,
  "task_specific_params": {"summarization": {"early_stopping": True, "num_beams": 4}},
}  # fmt: skip
V1_1 = {
  **V1, "architectures": ["T5ForConditionalGeneration"], "d_ff": 1024, "num_heads": 6,
  "num_layers": 8, "num_decoder_layers": 8, "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False, "gradient_checkpointing": False, "use_cache": True,
  "transformers_version": "4.23.0", "torch_dtype": "float32",
}  # fmt: skip
FLAN = {**V1_1, "dense_act_fn": "gelu_new", "is_gated_act": True,
        "relative_attention_max_distance": 128, "classifier_dropout": 0.0}  # fmt: skip
FIVE = {**FLAN, "tie_word_embeddings": True, "scale_decoder_outputs": False, "dtype": "float32",
        "is_decoder": False, "task_specific_params": None}  # fmt: skip


@pytest.mark.parametrize("raw", [V1, V1_1, FLAN, FIVE], ids=["v1.0", "v1.1", "flan", "five"])
def test_published_configurations_are_read(raw, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(raw))
  first = raw is V1
  assert families.read_config(tmp_path) == T5Config(
    vocab_size=32128, d_model=512, num_encoder_layers=6 if first else 8,
    num_decoder_layers=6 if first else 8, num_heads=8 if first else 6, head_dim=64,
    d_mlp=2048 if first else 1024, activation="relu" if first else "gated-gelu",
    tie_embeddings=first,
  )
  assert families.context_length(tmp_path) is None


@pytest.mark.parametrize(("changes", "field", "value"), [
  ({"num_decoder_layers": None}, "num_decoder_layers", 2),
  ({"decoder_start_token_id": ABSENT, "pad_token_id": 9}, "start_id", 9),
  ({"decoder_start_token_id": ABSENT, "pad_token_id": ABSENT}, "start_id", 0),
  ({"relative_attention_max_distance": 40}, "max_distance", 40),
  ({"relative_attention_num_buckets": 16}, "num_buckets", 16),
  ({"layer_norm_epsilon": 0.5}, "norm_epsilon", 0.5),
])
def test_a_key_or_its_default_sets_a_field(changes, field, value, folder):
  edit_config(folder, **changes)
  assert families.read_config(folder) == dataclasses.replace(CONFIG, **{field: value})


def test_a_missing_key_is_named(folder):
  edit_config(folder, d_kv=ABSENT)
  with pytest.raises(ValueError, match=r"config.json lacks 'd_kv'"):
    families.read_config(folder)


ENCODER, DECODER, HEAD = (
  "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"
)
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


@pytest.mark.parametrize("names", [(ENCODER,), (ENCODER, DECODER, HEAD), (HEAD,)])
@pytest.mark.parametrize("keep", [True, False])
def test_a_tied_embedding_may_have_any_of_its_names(names, keep, tied):
  def rename(tensors):
    embedding = tensors["shared.weight"] if keep else tensors.pop("shared.weight")
    tensors.update(dict.fromkeys(names, embedding))

  edit_tensors(tied, rename)
  loaded = families.load(tied)
  assert_same(loaded.params, random(TIED).params)


@pytest.mark.parametrize("name", [ENCODER, DECODER, HEAD])
def test_tensors_that_should_be_one_and_differ_are_named(name, tied):
  edit_tensors(tied, lambda t: t.update({name: t["shared.weight"] + 1}))
  with pytest.raises(ValueError, match=f"tensors 'shared.weight' and '{name}' differ"):
    families.load(tied)


def test_an_untied_head_is_needed_and_is_no_embedding(folder):
  embedding = load_file(folder / "model.safetensors")["shared.weight"]
  edit_tensors(folder, lambda t: t.update({ENCODER: embedding, DECODER: embedding}))
  assert_same(families.load(folder).params, random(CONFIG).params)
  edit_tensors(folder, lambda t: t.pop(HEAD))
  with pytest.raises(ValueError, match="lacks the tensor 'lm_head.weight'"):
    families.load(folder)


def test_the_bias_that_no_model_reads_is_passed_over(folder):
  edit_tensors(folder, lambda t: t.update({UNUSED: np.zeros((32, 2), np.float32)}))
  assert families.load(folder).config == CONFIG
  other = UNUSED.replace("block.0", "block.1")
  edit_tensors(folder, lambda t: t.update({other: np.zeros((32, 2), np.float32)}))
  with pytest.raises(ValueError, match=f"holds the tensor '{other}'"):
    families.load(folder)


def test_missing_and_misshapen_tensors_are_named(folder):
  edit_config(folder, d_ff=30)
  with pytest.raises(ValueError, match=r"DenseReluDense.w.*' has shape"):
    families.load(folder)
  edit_config(folder, d_ff=24)
  edit_tensors(folder, lambda t: t.pop("decoder.block.2.layer.1.EncDecAttention.k.weight"))
  with pytest.raises(ValueError, match=r"lacks .*'decoder.block.2.layer.1.EncDecAttention.k"):
    families.load(folder)


def test_another_family_or_model_than_configured_is_refused(folder):
  llama = LlamaConfig(50, 16, 2, 2, 2, 8, 24, 1e4, 1e-5, True)
  with pytest.raises(ValueError, match="holds a model of the family 't5', not 'llama'"):
    families.load(folder, config=llama)
  with pytest.raises(ValueError, match="has start_id 0, the configured model 4"):
    families.load(folder, config=dataclasses.replace(CONFIG, start_id=4))


def gin_model(name: str):
  gin.parse_config((MODELS / f"{name}.gin").read_text())
  config = gin.query_parameter("MODEL/gin.macro.value").scoped_configurable_fn()
  source = gin.query_parameter("MODEL_SOURCE/gin.macro.value")
  gin.clear_config()
  return config, source


@pytest.mark.parametrize("name", sizes.T5)
def test_the_gin_files_describe_the_published_models(name):
  config, source = gin_model(name)
  size, count = name.split("_")[-1], sizes.T5[name]
  assert source == (
    f"google/t5-{size}-lm-adapt" if name.startswith("t5") else f"google/flan-t5-{size}"
  )
  model = families.abstract(config)
  assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == count
  header = (MODELS / f"{name}.gin").read_text().splitlines()[0]
  unit, number = ("B", count / 1e9) if count >= 1e9 else ("M", count / 1e6)
  assert any(f"{number:.{d}f}{unit} parameters" in header for d in (0, 1, 2)), header


def test_every_gin_file_of_a_published_t5_is_tested():
  files = [*MODELS.glob("t5_1_1_*"), *MODELS.glob("flan_t5_*")]
  assert {file.stem for file in files} == sizes.T5.keys()
  config, source = gin_model("t5_tiny")
  assert families.load(source, config=config).config == config
