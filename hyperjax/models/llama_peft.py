"""PEFT's names for a Llama's modules, and its prefix: keys after RoPE, queries right behind."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from hyperjax.core import phi as phi_lib
from hyperjax.core.phi import Phi, Prefix
from hyperjax.models import peft_files, peft_format
from hyperjax.models.llama import PREFIX_SITE, LlamaConfig
from hyperjax.models.peft_format import Format
from hyperjax.models.peft_lora import Module

_MODULES = {
  "decoder.self.q": "self_attn.q_proj",
  "decoder.self.k": "self_attn.k_proj",
  "decoder.self.v": "self_attn.v_proj",
  "decoder.self.o": "self_attn.o_proj",
  "decoder.mlp.gate": "mlp.gate_proj",
  "decoder.mlp.up": "mlp.up_proj",
  "decoder.mlp.down": "mlp.down_proj",
}


def _modules(model: LlamaConfig) -> dict[str, Module]:
  return {
    site: Module(f"model.layers.{{}}.{name}", model.num_layers) for site, name in _MODULES.items()
  }


def _sizes(model: LlamaConfig) -> dict[str, int]:
  return {
    "num_layers": model.num_layers,
    "num_attention_heads": model.num_kv_heads,
    "token_dim": model.num_kv_heads * model.head_dim,
  }


def _write_prefix(node: Prefix, model: LlamaConfig) -> tuple[dict, dict]:
  sizes = _sizes(model)
  config = sizes | {
    "num_virtual_tokens": node.key.shape[2], "encoder_hidden_size": sizes["token_dim"]
  }
  pairs = np.stack([np.asarray(z[:, 0], np.float32) for z in (node.key, node.value)], 1)
  return config, {
    peft_format.PROMPT: pairs.transpose(2, 0, 1, 3, 4).reshape(pairs.shape[2], -1)
  }


def _read_prefix(
  raw: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  model: LlamaConfig,
  folder: pathlib.Path,
) -> Phi:
  peft_files.expect(raw, _sizes(model), folder)
  key, value = peft_format.pairs(
    raw, tensors, (model.num_layers, model.num_kv_heads, model.head_dim), folder
  )
  out: dict = {}
  phi_lib.insert(out, PREFIX_SITE, phi_lib.whole_prefix(jnp.asarray(key), jnp.asarray(value)))
  return out


FORMAT = Format("CAUSAL_LM", _modules, 1, _read_prefix, _write_prefix)
