"""Llama's weights: Hugging Face folders and GGUF files in, Hugging Face folders out."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperjax import sources
from hyperjax.core.positions import Llama3Scaling, rope_frequencies
from hyperjax.models.config_files import HARMLESS, check_keys, need, refuse
from hyperjax.models.llama import Llama, LlamaConfig
from hyperjax.models.tensor_files import Gguf
from hyperjax.models.weights import Entry, Family

# transformers' defaults for keys that config.json may leave out.
_DEFAULT_THETA, _DEFAULT_EPSILON, _DEFAULT_CONTEXT = 10000.0, 1e-6, 2048

# Keys of config.json that do not change the numbers of a forward pass.
_HARMLESS = HARMLESS | frozenset("""
  attention_dropout is_llama_config max_position_embeddings max_sequence_length pretraining_tp
  unsloth_version
""".split())
# Keys that would change them: the one value that this model computes.
_FIXED = {
  "attention_bias": False,
  "hidden_act": "silu",
  "mlp_bias": False,
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

  def layer(path, hf, gguf, num_inputs=0, rotated=False):
    names = {"hf": f"model.layers.{{}}.{hf}.weight", "gguf": f"blk.{{}}.{gguf}.weight"}
    return Entry(f"decoder.{path}", names, num_inputs, rotated)

  # Some writers store the head of a tied model too.
  tied = ("lm_head.weight",) if c.tie_embeddings else ()
  names = {"hf": "model.embed_tokens.weight", "gguf": "token_embd.weight"}
  table = [
    Entry("embed", names, rows=True, aliases=tied),
    layer("self_norm.scale", "input_layernorm", "attn_norm"),
    layer("self.q", "self_attn.q_proj", "attn_q", 1, True),
    layer("self.k", "self_attn.k_proj", "attn_k", 1, True),
    layer("self.v", "self_attn.v_proj", "attn_v", 1),
    layer("self.o", "self_attn.o_proj", "attn_output", 2),
    layer("mlp_norm.scale", "post_attention_layernorm", "ffn_norm"),
    layer("mlp.gate", "mlp.gate_proj", "ffn_gate", 1),
    layer("mlp.up", "mlp.up_proj", "ffn_up", 1),
    layer("mlp.down", "mlp.down_proj", "ffn_down", 1),
    Entry("norm.scale", {"hf": "model.norm.weight", "gguf": "output_norm.weight"}),
  ]
  if not c.tie_embeddings:
    table.append(Entry("head", {"hf": "lm_head.weight", "gguf": "output.weight"}, rows=True))
  return table


def _from_hf(
  raw: Mapping[str, Any], where: pathlib.Path
) -> tuple[LlamaConfig, int]:
  """The configuration and context length that config.json describes."""
  check_keys(raw, where, _FIXED, _HARMLESS | _DIMENSIONS)
  theta, scaling = _hf_rope(raw, where)
  width, heads = (need(raw, k, where) for k in ("hidden_size", "num_attention_heads"))
  kv_heads, head_dim = raw.get("num_key_value_heads"), raw.get("head_dim")
  if head_dim is None and width % heads:
    raise ValueError(f"{where}: hidden_size {width} is not a multiple of {heads} heads")
  config = LlamaConfig(
    vocab_size=need(raw, "vocab_size", where),
    d_model=width,
    num_layers=need(raw, "num_hidden_layers", where),
    num_heads=heads,
    num_kv_heads=heads if kv_heads is None else kv_heads,
    head_dim=width // heads if head_dim is None else head_dim,
    d_mlp=need(raw, "intermediate_size", where),
    rope_theta=theta,
    norm_epsilon=float(raw.get("rms_norm_eps", _DEFAULT_EPSILON)),
    tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
    rope_scaling=scaling,
  )
  return config, raw.get("max_position_embeddings", _DEFAULT_CONTEXT)


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
    refuse(where, f"{field} of type", kind, "'default' or 'llama3'")
  scaling = None
  if kind == "llama3":
    values = {k: need(rope, k, where) for k in _LLAMA3_KEYS}
    scaling = Llama3Scaling(**values)
    rope = {k: v for k, v in rope.items() if k not in _LLAMA3_KEYS}
  check_keys(rope, where, {"partial_rotary_factor": 1.0}, ())
  return float(theta), scaling


def _from_gguf(path: pathlib.Path) -> tuple[LlamaConfig, int]:
  header = sources.gguf_header(path)
  raw = {
    k.removeprefix("llama."): v for k, v in header.metadata.items() if k.startswith("llama.")
  }
  check_keys(raw, path, _GGUF_FIXED, _GGUF_HARMLESS | _GGUF_DIMENSIONS)
  width, heads = (need(raw, k, path) for k in ("embedding_length", "attention.head_count"))
  head_dim = raw.get("attention.key_length", raw.get("rope.dimension_count", width // heads))
  for key in ("attention.value_length", "rope.dimension_count"):
    if raw.get(key, head_dim) != head_dim:
      refuse(path, f"llama.{key}", raw[key], f"the keys' {head_dim}")
  if "token_embd.weight" not in header.tensors:
    raise ValueError(f"{path} lacks the tensor 'token_embd.weight'")
  theta = _shortest(raw.get("rope.freq_base", _DEFAULT_THETA))
  config = LlamaConfig(
    vocab_size=header.tensors["token_embd.weight"].shape[0],
    d_model=width,
    num_layers=need(raw, "block_count", path),
    num_heads=heads,
    num_kv_heads=raw.get("attention.head_count_kv", heads),
    head_dim=head_dim,
    d_mlp=need(raw, "feed_forward_length", path),
    rope_theta=theta,
    norm_epsilon=_shortest(need(raw, "attention.layer_norm_rms_epsilon", path)),
    tie_embeddings="output.weight" not in header.tensors,
    rope_scaling=_gguf_scaling(path, head_dim, theta) if _ROPE_FREQS in header.tensors else None,
  )
  return config, raw.get("context_length", _DEFAULT_CONTEXT)


def _shortest(x: float) -> float:
  """The decimal that was meant: GGUF stores 1e-5 as a float32, 9.99999974e-06."""
  return float(str(np.float32(x)))


def _gguf_scaling(path: pathlib.Path, head_dim: int, theta: float) -> Llama3Scaling:
  found = Gguf(path).tensor(_ROPE_FREQS)
  for scaling in _PUBLISHED_SCALINGS:
    plain, scaled = (rope_frequencies(head_dim, theta, s) for s in (None, scaling))
    if found.shape == plain.shape and np.allclose(found, plain / scaled, rtol=1e-4):
      return scaling
  factors = ", ".join(str(s.factor) for s in _PUBLISHED_SCALINGS)
  raise ValueError(
    f"{path}: the tensor {_ROPE_FREQS!r} is no known Llama 3 scaling (factors {factors}); "
    "use the model's Hugging Face folder, whose config.json names the scaling"
  )


def _to_hf(c: LlamaConfig, context: int | None) -> dict[str, Any]:
  """config.json in the form that transformers 4 and 5 both read."""
  scaling = None
  if c.rope_scaling is not None:
    scaling = {"rope_type": "llama3", **dataclasses.asdict(c.rope_scaling)}
  return {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": context or _DEFAULT_CONTEXT,
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


FAMILY = Family(
  "llama", LlamaConfig, Llama, _table, _from_hf, _to_hf, from_gguf=_from_gguf, unused=_UNUSED
)
