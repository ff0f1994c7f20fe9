"""PEFT's format, whatever the family: which phi it holds, and what in it would change the numbers.

`llama_peft` and `t5_peft` say what the modules are called and how a prefix lies in its tensor.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from hyperjax.core import phi as phi_lib
from hyperjax.core.phi import Phi, Prefix, Prompt
from hyperjax.models import peft_lora
from hyperjax.models.peft_files import CONFIG, TENSORS, check_names, expect, positive
from hyperjax.models.peft_lora import Module

PROMPT = "prompt_embeddings"
_PREFIX, _SOFT_PROMPT = "PREFIX_TUNING", "PROMPT_TUNING"

# Keys of adapter_config.json that do not change the numbers of an inference pass.
_HARMLESS = frozenset("""
  auto_mapping base_model_name_or_path eva_config inference_mode lora_dropout megatron_core
  peft_type peft_version qalora_group_size revision runtime_config task_type
""".split())
# What each type reads; of every other key only these values, or an empty one, are supported.
_READ = {
  _PREFIX: {"num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim",
            "encoder_hidden_size", "num_transformer_submodules"},
  _SOFT_PROMPT: {
    "num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim",
    "num_transformer_submodules", "prompt_tuning_init", "prompt_tuning_init_text",
    "tokenizer_name_or_path", "tokenizer_kwargs",
  },
  peft_lora.KIND: {"r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern",
                   "alpha_pattern"},
}  # fmt: skip
_FIXED = {
  _PREFIX: {"init_weights": (True,)},
  _SOFT_PROMPT: {},
  # Other initialisations of LoRA (PiSSA, OLoRA, ...) change the base weights when they load.
  peft_lora.KIND: {"bias": ("none",), "init_lora_weights": (True, "gaussian", "orthogonal", "eva")},
}
_EMPTY = (None, False, [], {}, "")


@dataclasses.dataclass(frozen=True)
class Format:
  """How PEFT holds a phi of one model family.

  Attributes:
    task_type: PEFT's name for the kind of model.
    modules: configuration -> the module of every site of a low-rank update.
    submodules: PEFT's own `num_transformer_submodules`.
    read_prefix: (adapter_config.json, tensors, configuration, folder) -> phi.
    write_prefix: (prefix, configuration) -> entries of adapter_config.json, and the tensors; None
      where PEFT cannot hold the family's prefixes.
    prompt_site: of the soft prompt that PEFT's PROMPT_TUNING is; None for a family without one.
  """

  task_type: str
  modules: Callable[[Any], Mapping[str, Module]]
  submodules: int
  read_prefix: Callable[[Mapping, Mapping, Any, pathlib.Path], Phi]
  write_prefix: Callable[[Prefix, Any], tuple[dict, dict]] | None = None
  prompt_site: str | None = None

  def write(
    self, phi: Phi, model: Any, source: str
  ) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """adapter_config.json and adapter_model.safetensors; None where PEFT cannot hold the phi.

    Args:
      phi: of batch 1, its prefixes and prompts without padding.
      model: the base's configuration.
      source: recorded as base_model_name_or_path.
    """
    nodes = phi_lib.sites(phi)
    config = {
      "base_model_name_or_path": source, "inference_mode": True, "task_type": self.task_type
    }
    modules = self.modules(model)
    if nodes.keys() <= modules.keys():
      return config | peft_lora.config(nodes, modules), peft_lora.tensors(nodes, modules)
    node, *others = nodes.values()
    if not others and isinstance(node, Prompt):
      prompt = np.asarray(node.value[0, 0], np.float32)
      number, width = prompt.shape
      return config | {
        "peft_type": _SOFT_PROMPT, "num_virtual_tokens": number, "token_dim": width,
        "num_transformer_submodules": 1,
      }, {PROMPT: prompt}  # fmt: skip
    if others or not isinstance(node, Prefix) or self.write_prefix is None:
      return None
    entries, tensors = self.write_prefix(node, model)
    kind = {
      "peft_type": _PREFIX, "prefix_projection": False,
      "num_transformer_submodules": self.submodules,
    }  # fmt: skip
    return config | kind | entries, tensors

  def read(
    self,
    raw: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    model: Any,
    folder: pathlib.Path,
  ) -> Phi:
    """The phi of PEFT's files.

    Args:
      raw: adapter_config.json.
      tensors: adapter_model.safetensors.
      model: the base's configuration.
      folder: named in errors.

    Raises:
      ValueError: a setting that would change the numbers, missing or unknown tensors, wrong shapes.
    """
    where = folder / CONFIG
    kind = raw.get("peft_type")
    supported = [k for k in sorted(_READ) if k != _SOFT_PROMPT or self.prompt_site is not None]
    if kind not in supported:
      raise ValueError(f"{where}: peft_type is {kind!r}; supported: {', '.join(supported)}")
    for key, value in raw.items():
      if key in _HARMLESS or key in _READ[kind] or value in _EMPTY:
        continue
      if value not in _FIXED[kind].get(key, ()):
        _refuse(where, key, value, _FIXED[kind].get(key, ()))
    if kind == peft_lora.KIND:
      return peft_lora.read(raw, tensors, self.modules(model), folder)
    if kind == _SOFT_PROMPT:
      return self._read_prompt(raw, tensors, model, folder)
    submodules = raw.get("num_transformer_submodules")
    if submodules not in (None, self.submodules):
      _refuse(where, "num_transformer_submodules", submodules, (self.submodules,))
    return self.read_prefix(raw, tensors, model, folder)

  def _read_prompt(self, raw, tensors, model, folder) -> Phi:
    expect(raw, {"token_dim": model.d_model}, folder)
    number, parts = positive(raw, "num_virtual_tokens", folder), self.submodules
    if raw.get("num_transformer_submodules") is not None:
      parts = positive(raw, "num_transformer_submodules", folder)
    # PEFT 0.21.2 keeps rows for the decoder too unless told, and uses the first ones alone.
    check_names(folder / TENSORS, tensors, {PROMPT: (parts * number, model.d_model)})
    out: dict = {}
    prompt = jnp.asarray(tensors[PROMPT][:number])[None, None]
    phi_lib.insert(out, self.prompt_site, phi_lib.whole_prompt(prompt))
    return out


def _refuse(where: pathlib.Path, key: str, value: Any, allowed: Sequence[Any]) -> None:
  options = " or ".join(repr(v) for v in allowed) or "leaving it out"
  raise ValueError(
    f"{where}: {key} is {value!r}, which would change the adapter's numbers and is not supported; "
    f"allowed: {options}"
  )


def pairs(
  raw: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  sizes: tuple[int, int, int],
  folder: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray]:
  """The keys and values [L, 1, P, K, H] of a prefix's one tensor, for sizes (L, K, H).

  Raises:
    ValueError: the tensor is missing, or of another shape.
  """
  number = positive(raw, "num_virtual_tokens", folder)
  layers, heads, head_dim = sizes
  check_names(folder / TENSORS, tensors, {PROMPT: (number, 2 * layers * heads * head_dim)})
  # One row per virtual token: layer 0's key, layer 0's value, layer 1's key, ...
  split = tensors[PROMPT].reshape(number, layers, 2, heads, head_dim)
  return tuple(split[:, :, i].swapaxes(0, 1)[:, None] for i in (0, 1))
