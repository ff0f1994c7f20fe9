"""T5's weights, v1.0 and v1.1 (LM-adapted, Flan): Hugging Face folders in and out."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from hyperjax.models.config_files import HARMLESS, check_keys, need, refuse
from hyperjax.models.t5 import ACTIVATIONS, T5, T5Config
from hyperjax.models.weights import Entry, Family

# transformers' defaults for keys that config.json may leave out.
_DEFAULTS = {
  "layer_norm_epsilon": 1e-6,
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
  "feed_forward_proj": "relu",
}

# Keys of config.json that do not change the numbers of a forward pass.
_HARMLESS = HARMLESS | frozenset("""
  classifier_dropout dropout_rate gradient_checkpointing initializer_factor n_positions output_past
""".split())
# Keys that would change them: the one value that this model computes.
_FIXED = {
  "add_cross_attention": False,
  "is_decoder": False,
  "is_encoder_decoder": True,
  "pruned_heads": {},
  "tie_encoder_decoder": False,
}
_DIMENSIONS = frozenset("""
  d_ff d_kv d_model dense_act_fn is_gated_act num_decoder_layers num_heads num_layers
  scale_decoder_outputs tie_word_embeddings vocab_size
""".split())
# What transformers derives from `feed_forward_proj`.
_DERIVED = {
  "relu": {"dense_act_fn": "relu", "is_gated_act": False},
  "gated-gelu": {"dense_act_fn": "gelu_new", "is_gated_act": True},
}

# Mesh TensorFlow's checkpoints carry it; transformers reads it in no version.
_UNUSED = re.compile(
  r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"


def _table(c: T5Config) -> list[Entry]:
  """Which of our arrays is which tensor."""
  gated = c.activation.startswith("gated")

  def at(path, name, num_inputs=0, **more):
    return Entry(path, {"hf": f"{name}.weight"}, num_inputs, **more)

  def attention(path, name):
    inputs = {"q": 1, "k": 1, "v": 1, "o": 2}
    return [at(f"{path}.{x}", f"{name}.{x}", n) for x, n in inputs.items()]

  def stack(ours, sublayers):
    block = f"{ours}.block.{{}}.layer"
    out = [
      at(f"{ours}_bias", f"{ours}.block.0.layer.0.SelfAttention.relative_attention_bias"),
      at(f"{ours}_norm.scale", f"{ours}.final_layer_norm"),
    ]
    for index, (name, module) in enumerate(sublayers):
      out.append(at(f"{ours}.{name}_norm.scale", f"{block}.{index}.layer_norm"))
      out += attention(f"{ours}.{name}", f"{block}.{index}.{module}")
    dense = f"{block}.{len(sublayers)}.DenseReluDense"
    out.append(at(f"{ours}.mlp_norm.scale", f"{block}.{len(sublayers)}.layer_norm"))
    names = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    return out + [
      at(f"{ours}.mlp.{x}", f"{dense}.{y}", 1) for x, y in (names | {"down": "wo"}).items()
    ]

  tied = (_HEAD,) if c.tie_embeddings else ()
  return [
    at("embed", "shared", rows=True, aliases=(*_EMBEDDINGS, *tied)),
    *stack("encoder", [("self", "SelfAttention")]),
    *stack("decoder", [("self", "SelfAttention"), ("cross", "EncDecAttention")]),
    *([] if c.tie_embeddings else [Entry("head", {"hf": _HEAD}, rows=True)]),
  ]


def _from_hf(raw: Mapping[str, Any], where: pathlib.Path) -> tuple[T5Config, None]:
  """The configuration that config.json describes; relative positions set no longest text."""
  check_keys(raw, where, _FIXED, _HARMLESS | _DIMENSIONS | _DEFAULTS.keys())
  raw = _DEFAULTS | {k: v for k, v in raw.items() if v is not None}
  activation = raw["feed_forward_proj"]
  if activation not in ACTIVATIONS:
    refuse(where, "feed_forward_proj", activation, " or ".join(map(repr, sorted(ACTIVATIONS))))
  check_keys(
    {k: raw[k] for k in _DERIVED[activation] if k in raw}, where, _DERIVED[activation], ()
  )
  depth = need(raw, "num_layers", where)
  config = T5Config(
    vocab_size=need(raw, "vocab_size", where),
    d_model=need(raw, "d_model", where),
    num_encoder_layers=depth,
    num_decoder_layers=raw.get("num_decoder_layers", depth),
    num_heads=need(raw, "num_heads", where),
    head_dim=need(raw, "d_kv", where),
    d_mlp=need(raw, "d_ff", where),
    activation=activation,
    tie_embeddings=_tied(raw, where),
    norm_epsilon=float(raw["layer_norm_epsilon"]),
    num_buckets=raw["relative_attention_num_buckets"],
    max_distance=raw["relative_attention_max_distance"],
    start_id=raw.get("decoder_start_token_id", raw.get("pad_token_id", 0)),
  )
  return config, None


def _tied(raw: Mapping[str, Any], where: pathlib.Path) -> bool:
  """Whether the embeddings are the output layer too, and its input is scaled.

  transformers 4 says so by `tie_word_embeddings`. transformers 5 always writes that as true and
  says by `scale_decoder_outputs` what it was.
  """
  tied, scaled = raw.get("tie_word_embeddings", True), raw.get("scale_decoder_outputs")
  if scaled and not tied:
    refuse(where, "scale_decoder_outputs", scaled, "False where tie_word_embeddings is False")
  return bool(tied if scaled is None else scaled)


def _to_hf(c: T5Config, context: int | None) -> dict[str, Any]:
  """config.json in the form that transformers 4 and 5 both read."""
  del context
  return {
    "architectures": ["T5ForConditionalGeneration"],
    "is_encoder_decoder": True,
    "vocab_size": c.vocab_size,
    "d_model": c.d_model,
    "num_layers": c.num_encoder_layers,
    "num_decoder_layers": c.num_decoder_layers,
    "num_heads": c.num_heads,
    "d_kv": c.head_dim,
    "d_ff": c.d_mlp,
    "feed_forward_proj": c.activation,
    "layer_norm_epsilon": c.norm_epsilon,
    "relative_attention_num_buckets": c.num_buckets,
    "relative_attention_max_distance": c.max_distance,
    "tie_word_embeddings": c.tie_embeddings,
    "decoder_start_token_id": c.start_id,
    "pad_token_id": c.start_id,
  }


FAMILY = Family("t5", T5Config, T5, _table, _from_hf, _to_hf, unused=_UNUSED)
