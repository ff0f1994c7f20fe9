"""Model configurations as files have them: every key is understood, harmless, or an error."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

# Keys that every family's config.json may have and that change no number of a forward pass.
HARMLESS = frozenset("""
  _name_or_path architectures bad_words_ids begin_suppress_tokens bos_token_id
  chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype early_stopping
  encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
  forced_bos_token_id forced_eos_token_id id2label initializer_range is_decoder is_encoder_decoder
  label2id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
  num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
  problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
  sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class
  top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p
  use_bfloat16 use_cache use_return_dict
""".split())


def refuse(where: pathlib.Path, key: str, value: Any, allowed: str) -> None:
  """Raises the error that names a key, its value and what is allowed."""
  raise ValueError(
    f"{where}: {key} is {value!r}, which would change the model's numbers and is not supported; "
    f"allowed: {allowed}"
  )


def check_keys(
  raw: Mapping[str, Any], where: pathlib.Path, fixed: Mapping[str, Any], known: Collection[str]
) -> None:
  """Refuses every key but those known, and of the fixed ones any value but theirs.

  Raises:
    ValueError: names the key, its value and what is allowed.
  """
  for key, value in raw.items():
    if key in fixed:
      if value is not None and value != fixed[key]:
        refuse(where, key, value, repr(fixed[key]))
    elif key not in known and value is not None:
      refuse(where, key, value, "leaving it out")


def need(raw: Mapping[str, Any], key: str, where: pathlib.Path) -> Any:
  """The value of a key that must be there."""
  if raw.get(key) is None:
    raise ValueError(f"{where} lacks {key!r}")
  return raw[key]
