"""PEFT's names for a T5's modules, its soft prompt, and the one prefix that it can hold: the
decoder's own.

An encoder's prefix, or one of the cross-attention, PEFT 0.21.2 cannot hold at all.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from hyperjax.core import phi as phi_lib
from hyperjax.core.phi import Phi
from hyperjax.models import peft_files, peft_format
from hyperjax.models.peft_format import Format
from hyperjax.models.peft_lora import Module
from hyperjax.models.t5 import PROMPT_SITE, T5Config

_PREFIX_SITE = "decoder.self.prefix"


def _modules(model: T5Config) -> dict[str, Module]:
  gated = model.activation.startswith("gated")
  mlp = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
  out = {}
  for stack, depth, attentions in (
    ("encoder", model.num_encoder_layers, {"self": "SelfAttention"}),
    ("decoder", model.num_decoder_layers, {"self": "SelfAttention", "cross": "EncDecAttention"}),
  ):
    layer = f"{stack}.block.{{}}.layer"
    for index, (attention, name) in enumerate(attentions.items()):
      for x in "qkvo":
        out[f"{stack}.{attention}.{x}"] = Module(f"{layer}.{index}.{name}.{x}", depth)
    for ours, theirs in (mlp | {"down": "wo"}).items():
      name = f"{layer}.{len(attentions)}.DenseReluDense.{theirs}"
      out[f"{stack}.mlp.{ours}"] = Module(name, depth)
  return out


def _read_prefix(
  raw: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  model: T5Config,
  folder: pathlib.Path,
) -> Phi:
  """A prefix of the decoder, whose rows T5's relative bias takes for earlier tokens.

  PEFT 0.21.2 doubles the stored pairs of key and value and deals out two to each layer, of which
  the self-attention takes the first: layer l has pair 2l modulo their number.
  """
  width = model.num_heads * model.head_dim
  peft_files.expect(raw, {"num_attention_heads": model.num_heads, "token_dim": width}, folder)
  stored = raw.get("num_layers") or model.num_encoder_layers
  if stored < model.num_decoder_layers:
    raise ValueError(
      f"{folder / peft_files.CONFIG}: num_layers is {stored}; PEFT gives a prefix to so many "
      f"layers only, and the model's decoder has {model.num_decoder_layers}"
    )
  pairs = peft_format.pairs(raw, tensors, (stored, model.num_heads, model.head_dim), folder)
  taken = 2 * np.arange(model.num_decoder_layers) % stored
  key, value = (jnp.asarray(x[taken]) for x in pairs)
  out: dict = {}
  phi_lib.insert(out, _PREFIX_SITE, phi_lib.whole_prefix(key, value, positions="before"))
  return out


FORMAT = Format("SEQ_2_SEQ_LM", _modules, 2, _read_prefix, prompt_site=PROMPT_SITE)
