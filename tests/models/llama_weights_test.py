"""Llama's weights: configurations, Hugging Face folders, GGUF files written by the gguf package."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import gguf
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from hyperjax.core.positions import Llama3Scaling, rope_frequencies
from hyperjax.models import families, weights
from hyperjax.models.llama import Llama, LlamaConfig
from tests.models import sizes

CONFIG = LlamaConfig(
  vocab_size=50, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, d_mlp=64,
  rope_theta=1e4, norm_epsilon=1e-5, tie_embeddings=True,
)
UNTIED = dataclasses.replace(CONFIG, tie_embeddings=False, head_dim=12)
MODELS = pathlib.Path(__file__).parents[2] / "gin" / "models"


def flat(params) -> dict[str, np.ndarray]:
  return {path: np.asarray(x) for path, x in weights.leaves(params)}


def assert_same(one, other) -> None:
  one, other = flat(one), flat(other)
  assert one.keys() == other.keys()
  for path in one:
    assert one[path].dtype == other[path].dtype
    np.testing.assert_array_equal(one[path], other[path], err_msg=path)


random = functools.cache(families.random)


@pytest.fixture
def folder(tmp_path):
  """A saved tiny model."""
  path = tmp_path / "model"
  families.save(path, CONFIG, random(CONFIG).params)
  return path


def test_a_damaged_configuration_is_named(folder):
  (folder / "config.json").write_text("")
  with pytest.raises(ValueError, match=r"model/config.json is damaged: Expecting value"):
    families.read_config(folder)


ABSENT = "absent"


def edit_config(folder, **changes) -> None:
  file = folder / "config.json"
  raw = {**json.loads(file.read_text()), **changes}
  file.write_text(json.dumps({k: v for k, v in raw.items() if v != ABSENT}))


def edit_tensors(folder, edit) -> None:
  tensors = load_file(folder / "model.safetensors")
  edit(tensors)
  save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_saving_and_loading_changes_no_bit(config, dtype, tmp_path):
  loaded = families.random(config, dtype=dtype)
  families.save(tmp_path / "m", config, loaded.params, max_positions=77)
  again = families.load(tmp_path / "m", dtype=dtype)
  assert again.config == config
  assert_same(again.params, loaded.params)
  assert families.context_length(tmp_path / "m") == 77


def test_the_parameters_are_the_models_own_tree(folder):
  state = nnx.to_pure_dict(nnx.state(Llama(CONFIG, rngs=nnx.Rngs(0))))
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(families.load(folder).params) == shapes(state)


def test_shards_change_neither_parameters_nor_fingerprint(folder, tmp_path):
  whole = families.load(folder)
  families.save(tmp_path / "parts", CONFIG, whole.params, max_shard_bytes=20_000)
  files = sorted(p.name for p in (tmp_path / "parts").glob("*.safetensors"))
  assert len(files) > 2 and "model.safetensors" not in files
  parts = families.load(tmp_path / "parts")
  assert_same(parts.params, whole.params)
  assert parts.fingerprint == whole.fingerprint == families.fingerprint(folder)


def test_a_missing_shard_is_named(tmp_path):
  families.save(tmp_path / "m", CONFIG, random(CONFIG).params, max_shard_bytes=20_000)
  victim = sorted((tmp_path / "m").glob("*.safetensors"))[1]
  victim.unlink()
  with pytest.raises(FileNotFoundError, match=victim.name):
    families.load(tmp_path / "m")


def test_a_fingerprint_sees_config_name_shape_and_bytes(folder):
  first = families.fingerprint(folder)
  edit_config(folder, rope_theta=123.0)
  second = families.fingerprint(folder)

  def touch(tensors):
    tensors["model.norm.weight"][-1] += 1

  edit_tensors(folder, touch)
  assert len({first, second, families.fingerprint(folder)}) == 3


@pytest.mark.parametrize(("key", "value"), [
  ("attention_bias", True),
  ("mlp_bias", True),
  ("hidden_act", "gelu"),
  ("model_type", "mistral"),
  ("model_type", ABSENT),
  ("sliding_window", 4096),
  ("quantization_config", {"bits": 4}),
  ("partial_rotary_factor", 0.5),
  ("rope_interleaved", True),
  ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
  ("rope_scaling", {"type": "linear", "factor": 2.0}),
  ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
  ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.25}),
  ("residual_multiplier", 0.5),
])
def test_a_key_that_would_change_the_numbers_is_refused_by_name(key, value, folder):
  edit_config(folder, **{key: value})
  with pytest.raises(ValueError, match="would change the model's numbers") as e:
    families.load(folder)
  assert "config.json" in str(e.value)
  assert key in str(e.value) or "partial_rotary_factor" in str(e.value)


@pytest.mark.parametrize("changes", [
  {"pretraining_tp": 4, "use_cache": False, "attention_dropout": 0.1, "sliding_window": None},
  {"head_dim": ABSENT, "attention_bias": ABSENT, "mlp_bias": ABSENT},
  {"head_dim": None, "rope_scaling": ABSENT},
  {"rope_theta": ABSENT, "rope_scaling": ABSENT},
  {"rope_theta": ABSENT, "rope_parameters": {"rope_type": "default", "rope_theta": 10000}},
])
def test_harmless_keys_and_defaults_give_the_same_config(changes, folder):
  edit_config(folder, **changes)
  assert families.read_config(folder) == CONFIG


def test_llama3_scaling_is_read_in_every_form(folder):
  scaling = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  want = Llama3Scaling(**scaling)
  for changes in (
    {"rope_scaling": {"rope_type": "llama3", **scaling}},
    {"rope_scaling": {"type": "llama3", "rope_type": "llama3", **scaling}},
    {"rope_scaling": None,
     "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **scaling}},
  ):
    edit_config(folder, **changes)
    assert families.read_config(folder) == dataclasses.replace(CONFIG, rope_scaling=want)
  del scaling["high_freq_factor"]
  edit_config(folder, rope_parameters={"rope_type": "llama3", **scaling})
  with pytest.raises(ValueError, match="lacks 'high_freq_factor'"):
    families.read_config(folder)


def test_a_missing_tensor_is_named(folder):
  edit_tensors(folder, lambda t: t.pop("model.layers.1.self_attn.k_proj.weight"))
  with pytest.raises(ValueError, match="lacks the tensor 'model.layers.1.self_attn.k_proj.weight'"):
    families.load(folder)


def test_an_unused_tensor_is_named(folder):
  bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)}
  edit_tensors(folder, lambda t: t.update(bias))
  with pytest.raises(ValueError, match=r"holds the tensor 'model.layers.0.self_attn.q_proj.bias'"):
    families.load(folder)


def test_a_tensor_of_another_shape_is_named(folder):
  edit_config(folder, intermediate_size=60)
  with pytest.raises(ValueError, match=r"'model.layers.0.mlp.\w+_proj.weight' has shape"):
    families.load(folder)


def test_a_tied_head_may_be_stored_if_it_repeats_the_embedding(folder):
  head = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
  edit_tensors(folder, lambda t: t.update({"lm_head.weight": head}))
  assert families.load(folder).config == CONFIG
  edit_tensors(folder, lambda t: t.update({"lm_head.weight": 1 + head}))
  with pytest.raises(ValueError, match="'model.embed_tokens.weight' and 'lm_head.weight' differ"):
    families.load(folder)


def test_buffers_of_old_checkpoints_are_passed_over(folder):
  buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
  edit_tensors(folder, lambda t: t.update(buffer))
  assert families.load(folder).config == CONFIG


def test_a_source_that_is_not_the_configured_model_is_refused(folder):
  other = dataclasses.replace(CONFIG, rope_theta=5e5)
  with pytest.raises(ValueError, match=r"has rope_theta 10000.0, the configured model 500000.0"):
    families.load(folder, config=other)
  assert families.load(folder, config=CONFIG).config == CONFIG


def test_random_weights_are_never_silent():
  with pytest.raises(ValueError, match="'random' needs an explicit config"):
    families.load("random")
  one, same, other = (families.load("random", config=CONFIG, seed=s) for s in (0, 0, 1))
  assert_same(one.params, same.params)
  assert one.fingerprint == same.fingerprint != other.fingerprint
  assert not np.array_equal(one.params["embed"], other.params["embed"])


def test_an_existing_folder_is_kept_and_a_failed_one_leaves_nothing(folder, tmp_path):
  loaded = families.load(folder)
  with pytest.raises(FileExistsError, match="not empty"):
    families.save(folder, CONFIG, loaded.params)

  class Broken:
    bos_id, eos_id = None, 0

    def save(self, path):
      assert (path / "model.safetensors").exists()
      raise RuntimeError("disk full")

  with pytest.raises(RuntimeError, match="disk full"):
    families.save(tmp_path / "new", CONFIG, loaded.params, tokenizer=Broken())
  assert [p.name for p in tmp_path.iterdir()] == [folder.name]


# llama.cpp's convert_hf_to_gguf reorders the rows of q and k like this.
def permuted(w: np.ndarray, heads: int) -> np.ndarray:
  return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


GGUF_NAMES = {
  "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
  "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
  "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}


def write_gguf(path, c: LlamaConfig, folder, kind=None, arch="llama", extra=None, freqs=None):
  writer = gguf.GGUFWriter(path, arch)
  writer.add_block_count(c.num_layers)
  writer.add_context_length(256)
  writer.add_embedding_length(c.d_model)
  writer.add_feed_forward_length(c.d_mlp)
  writer.add_head_count(c.num_heads)
  writer.add_head_count_kv(c.num_kv_heads)
  writer.add_rope_dimension_count(c.head_dim)
  writer.add_key_length(c.head_dim)
  writer.add_value_length(c.head_dim)
  writer.add_rope_freq_base(c.rope_theta)
  writer.add_layer_norm_rms_eps(c.norm_epsilon)
  writer.add_token_list(["<a>", "ü"])
  if extra:
    writer.add_float32(*extra)
  for name, x in load_file(folder / "model.safetensors").items():
    stem = name.removesuffix(".weight")
    for hf, theirs in GGUF_NAMES.items():
      stem = stem.replace(hf, theirs)
    stem = stem.replace("model.layers.", "blk.")
    heads = {"attn_q": c.num_heads, "attn_k": c.num_kv_heads}.get(stem.split(".")[-1])
    x = permuted(x, heads) if heads else x
    if kind is None or x.ndim == 1:
      writer.add_tensor(f"{stem}.weight", x)
    else:
      writer.add_tensor(f"{stem}.weight", gguf.quants.quantize(x, kind), raw_dtype=kind)
  if freqs is not None:
    writer.add_tensor("rope_freqs.weight", freqs.astype(np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_gguf_holds_the_same_model_as_the_folder(config, tmp_path):
  families.save(tmp_path / "m", config, random(config).params)
  write_gguf(tmp_path / "m.gguf", config, tmp_path / "m")
  loaded = families.load(tmp_path / "m.gguf")
  assert loaded.config == config
  assert families.context_length(tmp_path / "m.gguf") == 256
  assert_same(loaded.params, families.load(tmp_path / "m").params)


@pytest.mark.parametrize(("kind", "error"), [("BF16", 0.01), ("F16", 0.002), ("Q8_0", 0.02)])
def test_gguf_is_dequantised(kind, error, folder, tmp_path):
  write_gguf(tmp_path / "m.gguf", CONFIG, folder, gguf.GGMLQuantizationType[kind])
  found = flat(families.load(tmp_path / "m.gguf").params)
  for path, want in flat(families.load(folder).params).items():
    assert np.abs(found[path] - want).max() <= error * np.abs(want).max(), path


def test_gguf_of_another_family_or_with_unknown_settings_is_refused(folder, tmp_path):
  write_gguf(tmp_path / "a.gguf", CONFIG, folder, arch="qwen2")
  with pytest.raises(ValueError, match="general.architecture is 'qwen2'"):
    families.load(tmp_path / "a.gguf")
  write_gguf(tmp_path / "b.gguf", CONFIG, folder, extra=("llama.rope.scaling.factor", 2.0))
  with pytest.raises(ValueError, match="rope.scaling.factor is 2.0"):
    families.load(tmp_path / "b.gguf")
  write_gguf(tmp_path / "c.gguf", CONFIG, folder, extra=("llama.logit_scale", 0.5))
  with pytest.raises(ValueError, match="logit_scale is 0.5"):
    families.load(tmp_path / "c.gguf")


def test_a_gguf_whose_tensors_are_cut_short_is_refused(folder, tmp_path):
  file = tmp_path / "m.gguf"
  write_gguf(file, CONFIG, folder)
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=r"m.gguf is cut short: tensor '\S+' ends at byte \d+$"):
    families.load(file)


def test_gguf_rope_frequencies_are_a_known_scaling_or_refused(folder, tmp_path):
  scaling = Llama3Scaling(32.0, 1.0, 4.0, 8192)
  wide = dataclasses.replace(CONFIG, rope_theta=5e5)
  freqs = rope_frequencies(8, 5e5) / rope_frequencies(8, 5e5, scaling)
  write_gguf(tmp_path / "m.gguf", wide, folder, freqs=freqs)
  assert families.read_config(tmp_path / "m.gguf").rope_scaling == scaling
  assert families.load(tmp_path / "m.gguf").config.rope_scaling == scaling
  write_gguf(tmp_path / "n.gguf", wide, folder, freqs=2 * freqs)
  with pytest.raises(ValueError, match="'rope_freqs.weight' is no known Llama 3 scaling"):
    families.read_config(tmp_path / "n.gguf")


def gin_model(name: str) -> tuple[LlamaConfig, str]:
  gin.parse_config((MODELS / f"{name}.gin").read_text())
  config = gin.query_parameter("MODEL/gin.macro.value").scoped_configurable_fn()
  source = gin.query_parameter("MODEL_SOURCE/gin.macro.value")
  gin.clear_config()
  return config, source


@pytest.mark.parametrize("name", sizes.LLAMA)
def test_the_gin_files_describe_the_published_models(name):
  config, source = gin_model(name)
  assert source != "random"
  model = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0)))
  assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == sizes.LLAMA[name]


def test_every_gin_file_of_a_model_is_tested():
  assert {p.stem for p in MODELS.glob("llama*.gin")} <= sizes.LLAMA.keys() | {"llama_tiny"}
  config, source = gin_model("llama_tiny")
  assert families.load(source, config=config).config == config


def test_the_embedded_model_is_what_its_gin_file_says():
  config, source = gin_model("smollm2_135m")
  assert families.read_config(source) == config


def test_loading_never_holds_the_model_twice():
  script = (
    "import re, jax\n"
    "from hyperjax import sources\n"
    "from hyperjax.models import families as w\n"
    "status = lambda: open('/proc/self/status').read()\n"
    "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s*(\\d+)', status()).group(1))\n"
    "before = peak()\n"
    "params = w.load(sources.EMBEDDED).params\n"
    "print((peak() - before) / sum(x.nbytes for x in jax.tree.leaves(params)))\n"
  )
  root = pathlib.Path(__file__).parents[2]
  out = subprocess.run(
    [sys.executable, "-c", script], cwd=root, check=True, capture_output=True, text=True
  )
  assert 1.0 < float(out.stdout) < 1.7
