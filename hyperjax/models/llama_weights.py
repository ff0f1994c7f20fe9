"""Llama's weights: Hugging Face folders and GGUF files in, Hugging Face folders out."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hyperjax import sources
from hyperjax.core.positions import Llama3Scaling, rope_frequencies
from hyperjax.models import weights
from hyperjax.models.llama import Llama, LlamaConfig
from hyperjax.models.weights import EMBEDDED, Entry, Loaded

__all__ = [
  "EMBEDDED", "RANDOM", "context_length", "fingerprint", "load", "note_origin", "random",
  "read_config", "save",
]

RANDOM = "random"

# transformers' defaults for keys that config.json may leave out.
_DEFAULT_THETA, _DEFAULT_EPSILON, _DEFAULT_CONTEXT = 10000.0, 1e-6, 2048

# Keys of config.json that do not change the numbers of a forward pass.
_HARMLESS = frozenset("""
  _name_or_path architectures attention_dropout bad_words_ids bos_token_id
  chunk_size_feed_forward dtype eos_token_id finetuning_task id2label initializer_range
  is_decoder is_encoder_decoder is_llama_config label2id max_length max_position_embeddings
  max_sequence_length min_length output_attentions output_hidden_states pad_token_id
  pretraining_tp problem_type return_dict task_specific_params tokenizer_class torch_dtype
  transformers.js_config transformers_version unsloth_version use_cache use_return_dict
""".split())
# Keys that would change them: the one value that this model computes.
_FIXED = {
  "attention_bias": False,
  "hidden_act": "silu",
  "mlp_bias": False,
  "model_type": "llama",
  "partial_rotary_factor": 1.0,
  "rope_interleaved": False,
}
_DIMENSIONS = frozenset("""
  head_dim hidden_size intermediate_size num_attention_heads num_hidden_layers num_key_value_heads
  rms_norm_eps rope_parameters rope_scaling rope_theta tie_word_embeddings vocab_size
""".split())
_LLAMA3_KEYS = tuple(f.name for f in dataclasses.fields(Llama3Scaling))

# The same of GGUF's metadata under 'llama.'.
_GGUF_HARMLESS = frozenset({"context_length", "vocab_size"})
_GGUF_FIXED = {
  "attention.causal": True,
  "expert_count": 0,
  "expert_used_count": 0,
  "rope.scaling.type": "none",
  "rope.scaling.factor": 1.0,
}
_GGUF_DIMENSIONS = frozenset("""
  attention.head_count attention.head_count_kv attention.key_length
  attention.layer_norm_rms_epsilon attention.value_length block_count embedding_length
  feed_forward_length rope.dimension_count rope.freq_base
""".split())
# GGUF keeps Llama 3's scaling only as its effect on each frequency; these are the published ones.
_ROPE_FREQS = "rope_freqs.weight"
_PUBLISHED_SCALINGS = (Llama3Scaling(8.0, 1.0, 4.0, 8192), Llama3Scaling(32.0, 1.0, 4.0, 8192))

# A buffer that old checkpoints carry along.
_UNUSED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|rope_freqs\.weight")


def _table(c: LlamaConfig) -> list[Entry]:
  """Which of our arrays is which tensor."""

  def layer(path, hf, gguf, num_inputs=0, rotated_heads=0):
    names = {"hf": f"model.layers.{{}}.{hf}.weight", "gguf": f"blk.{{}}.{gguf}.weight"}
    return Entry(f"decoder.{path}", names, num_inputs, rotated_heads)

  table = [
    Entry("embed", {"hf": "model.embed_tokens.weight", "gguf": "token_embd.weight"}),
    layer("self_norm.scale", "input_layernorm", "attn_norm"),
    layer("self.q", "self_attn.q_proj", "attn_q", 1, c.num_heads),
    layer("self.k", "self_attn.k_proj", "attn_k", 1, c.num_kv_heads),
    layer("self.v", "self_attn.v_proj", "attn_v", 1),
    layer("self.o", "self_attn.o_proj", "attn_output", 2),
    layer("mlp_norm.scale", "post_attention_layernorm", "ffn_norm"),
    layer("mlp.gate", "mlp.gate_proj", "ffn_gate", 1),
    layer("mlp.up", "mlp.up_proj", "ffn_up", 1),
    layer("mlp.down", "mlp.down_proj", "ffn_down", 1),
    Entry("norm.scale", {"hf": "model.norm.weight", "gguf": "output_norm.weight"}),
  ]
  if not c.tie_embeddings:
    table.append(Entry("head", {"hf": "lm_head.weight", "gguf": "output.weight"}))
  return table


def _abstract(config: LlamaConfig) -> dict[str, Any]:
  """The parameter tree with shapes only."""
  model = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0)))
  return nnx.to_pure_dict(nnx.state(model))


def read_config(source: str | pathlib.Path) -> LlamaConfig:
  """The architecture of a source, from its metadata alone.

  Raises:
    ValueError: a key that would change the numbers and is not handled: its name and value.
  """
  path = weights.resolve(source)
  return _read(path)[0]


def context_length(source: str | pathlib.Path) -> int:
  """The longest text that the source's model was trained for, in tokens."""
  return _read(weights.resolve(source))[1]


def _read(path: pathlib.Path) -> tuple[LlamaConfig, int]:
  if path.is_dir():
    file = path / "config.json"
    if not file.exists():
      raise FileNotFoundError(f"{path} has no config.json; a Hugging Face model folder has one")
    raw = json.loads(file.read_text())
    return _from_hf(raw, file), raw.get("max_position_embeddings", _DEFAULT_CONTEXT)
  return _from_gguf(path)


def _refuse(where: pathlib.Path, key: str, value: Any, allowed: str) -> None:
  raise ValueError(
    f"{where}: {key} is {value!r}, which would change the model's numbers and is not supported; "
    f"allowed: {allowed}"
  )


def _check_keys(raw: Mapping[str, Any], where: pathlib.Path, fixed, known) -> None:
  for key, value in raw.items():
    if key in fixed:
      if value is not None and value != fixed[key]:
        _refuse(where, key, value, repr(fixed[key]))
    elif key not in known and value is not None:
      _refuse(where, key, value, "leaving it out")


def _need(raw: Mapping[str, Any], key: str, where: pathlib.Path) -> Any:
  if raw.get(key) is None:
    raise ValueError(f"{where} lacks {key!r}")
  return raw[key]


def _from_hf(raw: Mapping[str, Any], where: pathlib.Path) -> LlamaConfig:
  _check_keys({"model_type": "(none)", **raw}, where, _FIXED, _HARMLESS | _DIMENSIONS)
  theta, scaling = _hf_rope(raw, where)
  width, heads = (_need(raw, k, where) for k in ("hidden_size", "num_attention_heads"))
  kv_heads, head_dim = raw.get("num_key_value_heads"), raw.get("head_dim")
  if head_dim is None and width % heads:
    raise ValueError(f"{where}: hidden_size {width} is not a multiple of {heads} heads")
  return LlamaConfig(
    vocab_size=_need(raw, "vocab_size", where),
    d_model=width,
    num_layers=_need(raw, "num_hidden_layers", where),
    num_heads=heads,
    num_kv_heads=heads if kv_heads is None else kv_heads,
    head_dim=width // heads if head_dim is None else head_dim,
    d_mlp=_need(raw, "intermediate_size", where),
    rope_theta=theta,
    norm_epsilon=float(raw.get("rms_norm_eps", _DEFAULT_EPSILON)),
    tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
    rope_scaling=scaling,
  )


def _hf_rope(
  raw: Mapping[str, Any], where: pathlib.Path
) -> tuple[float, Llama3Scaling | None]:
  """Theta and scaling, as transformers 4 writes them (two keys) or 5 (`rope_parameters`)."""
  field = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
  rope = dict(raw.get(field) or {})
  theta = rope.pop("rope_theta", None)
  if theta is None:
    theta = raw.get("rope_theta", _DEFAULT_THETA)
  # transformers 4 once wrote 'type' and later 'rope_type', often both.
  kinds = {rope.pop(k) for k in ("rope_type", "type") if k in rope} or {"default"}
  kind = kinds.pop()
  if kinds or kind not in ("default", "llama3"):
    _refuse(where, f"{field} of type", kind, "'default' or 'llama3'")
  scaling = None
  if kind == "llama3":
    values = {k: _need(rope, k, where) for k in _LLAMA3_KEYS}
    scaling = Llama3Scaling(**values)
    rope = {k: v for k, v in rope.items() if k not in _LLAMA3_KEYS}
  _check_keys(rope, where, {"partial_rotary_factor": 1.0}, ())
  return float(theta), scaling


def _from_gguf(path: pathlib.Path) -> tuple[LlamaConfig, int]:
  header = sources.gguf_header(path)
  family = header.metadata.get("general.architecture")
  if family != "llama":
    _refuse(path, "general.architecture", family, "'llama'")
  raw = {
    k.removeprefix("llama."): v for k, v in header.metadata.items() if k.startswith("llama.")
  }
  _check_keys(raw, path, _GGUF_FIXED, _GGUF_HARMLESS | _GGUF_DIMENSIONS)
  width, heads = (_need(raw, k, path) for k in ("embedding_length", "attention.head_count"))
  head_dim = raw.get("attention.key_length", raw.get("rope.dimension_count", width // heads))
  for key in ("attention.value_length", "rope.dimension_count"):
    if raw.get(key, head_dim) != head_dim:
      _refuse(path, f"llama.{key}", raw[key], f"the keys' {head_dim}")
  if "token_embd.weight" not in header.tensors:
    raise ValueError(f"{path} lacks the tensor 'token_embd.weight'")
  theta = _shortest(raw.get("rope.freq_base", _DEFAULT_THETA))
  config = LlamaConfig(
    vocab_size=header.tensors["token_embd.weight"].shape[0],
    d_model=width,
    num_layers=_need(raw, "block_count", path),
    num_heads=heads,
    num_kv_heads=raw.get("attention.head_count_kv", heads),
    head_dim=head_dim,
    d_mlp=_need(raw, "feed_forward_length", path),
    rope_theta=theta,
    norm_epsilon=_shortest(_need(raw, "attention.layer_norm_rms_epsilon", path)),
    tie_embeddings="output.weight" not in header.tensors,
    rope_scaling=_gguf_scaling(path, head_dim, theta) if _ROPE_FREQS in header.tensors else None,
  )
  return config, raw.get("context_length", _DEFAULT_CONTEXT)


def _shortest(x: float) -> float:
  """The decimal that was meant: GGUF stores 1e-5 as a float32, 9.99999974e-06."""
  return float(str(np.float32(x)))


def _gguf_scaling(path: pathlib.Path, head_dim: int, theta: float) -> Llama3Scaling:
  found = weights.Gguf(path).tensor(_ROPE_FREQS)
  for scaling in _PUBLISHED_SCALINGS:
    plain, scaled = (rope_frequencies(head_dim, theta, s) for s in (None, scaling))
    if found.shape == plain.shape and np.allclose(found, plain / scaled, rtol=1e-4):
      return scaling
  factors = ", ".join(str(s.factor) for s in _PUBLISHED_SCALINGS)
  raise ValueError(
    f"{path}: the tensor {_ROPE_FREQS!r} is no known Llama 3 scaling (factors {factors}); "
    "use the model's Hugging Face folder, whose config.json names the scaling"
  )


def load(
  source: str | pathlib.Path,
  *,
  dtype: Any = jnp.float32,
  config: LlamaConfig | None = None,
  seed: int = 0,
) -> Loaded:
  """Loads a model, one stacked array at a time.

  Args:
    source: see `sources.resolve`; or RANDOM for random weights, which needs `config`.
    dtype: of all arrays.
    config: what the caller takes the model for; an error where the source differs.
    seed: of random weights.

  Raises:
    FileNotFoundError: no such source.
    ValueError: missing or unused tensors, wrong shapes, a configuration that is not supported.
  """
  if source == RANDOM:
    if config is None:
      raise ValueError(f"model source {RANDOM!r} needs an explicit config (gin: MODEL)")
    return random(config, seed=seed, dtype=dtype)
  path = weights.resolve(source)
  found, _ = _read(path)
  _check_same(config or found, found, path)
  tensors = weights.open_tensors(path)
  table, abstract = _table(found), _abstract(found)
  ignored = {name for name in tensors.shapes if _UNUSED.fullmatch(name)}
  if found.tie_embeddings and _repeats_embedding(tensors):
    ignored.add("lm_head.weight")
  weights.check_tensors(tensors, table, abstract, path, ignored)
  params = weights.read(tensors, table, abstract, dtype)
  return Loaded(found, params, weights.identity(path, tensors, found), str(source))


def _check_same(asked: LlamaConfig, found: LlamaConfig, path: pathlib.Path) -> None:
  for field in dataclasses.fields(LlamaConfig):
    want, have = getattr(asked, field.name), getattr(found, field.name)
    if want != have:
      raise ValueError(f"{path} has {field.name} {have!r}, the configured model {want!r}")


def _repeats_embedding(tensors: weights.Tensors) -> bool:
  """Whether a tied checkpoint also stores its head, as some writers do."""
  if "lm_head.weight" not in tensors.shapes or "model.embed_tokens.weight" not in tensors.shapes:
    return False
  head, embed = (tensors.tensor(n) for n in ("lm_head.weight", "model.embed_tokens.weight"))
  return np.array_equal(head, embed)


def random(config: LlamaConfig, *, seed: int = 0, dtype: Any = jnp.float32) -> Loaded:
  """A model with random weights, for tests and benchmarks."""
  params = nnx.to_pure_dict(nnx.state(Llama(config, rngs=nnx.Rngs(seed), dtype=dtype)))
  name = f"{RANDOM} {seed} {jnp.dtype(dtype).name} {json.dumps(dataclasses.asdict(config))}"
  return Loaded(config, params, hashlib.sha256(name.encode()).hexdigest(), RANDOM)


def fingerprint(source: str | pathlib.Path) -> str:
  """Names a model by the hash of its config and, per tensor, its name, shape, and first and last
  64 KiB in the source file: the same for a folder however it is sharded. A folder of which
  `note_origin` says that it is a copy without loss bears the name of its original."""
  path = weights.resolve(source)
  return weights.identity(path, weights.open_tensors(path), _read(path)[0])


def note_origin(folder: str | os.PathLike, original: str) -> None:
  """Records that a folder's numbers are, without loss, those of the model with a fingerprint."""
  path = pathlib.Path(folder)
  weights.note_origin(path, weights.open_tensors(path), _read(path)[0], original)


def save(
  folder: str | os.PathLike,
  config: LlamaConfig,
  params: Mapping[str, Any],
  *,
  tokenizer: Any = None,
  max_positions: int | None = None,
  max_shard_bytes: int = 2 * 10**9,
) -> None:
  """Writes a Hugging Face folder, whole or not at all.

  Args:
    folder: the new folder.
    config: the architecture.
    params: as `Loaded.params`; written in their own dtype, which all share.
    tokenizer: a vocabulary, whose files are written along.
    max_positions: the context length to record; transformers' default where None.
    max_shard_bytes: size at which the weights are split into several files.

  Raises:
    FileExistsError: the folder exists and is not empty.
  """
  dtypes = {str(x.dtype) for x in jax.tree.leaves(params)}
  if len(dtypes) != 1:
    raise ValueError(f"parameters of one dtype expected, not of {sorted(dtypes)}")
  raw = _to_hf(config, dtypes.pop())
  raw["max_position_embeddings"] = max_positions or _DEFAULT_CONTEXT
  if tokenizer is not None:
    raw |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
  weights.write(
    folder,
    _table(config),
    params,
    raw,
    extra=None if tokenizer is None else tokenizer.save,
    max_shard_bytes=max_shard_bytes,
  )


def _to_hf(c: LlamaConfig, dtype: str) -> dict[str, Any]:
  """config.json in the form that transformers 4 and 5 both read."""
  scaling = None
  if c.rope_scaling is not None:
    scaling = {"rope_type": "llama3", **dataclasses.asdict(c.rope_scaling)}
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": dtype,
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_hidden_layers": c.num_layers,
    "num_attention_heads": c.num_heads,
    "num_key_value_heads": c.num_kv_heads,
    "head_dim": c.head_dim,
    "intermediate_size": c.d_mlp,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": c.norm_epsilon,
    "rope_theta": c.rope_theta,
    "rope_scaling": scaling,
    "tie_word_embeddings": c.tie_embeddings,
  }
