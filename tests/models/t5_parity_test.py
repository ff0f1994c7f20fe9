"""Our T5 against Hugging Face transformers' T5ForConditionalGeneration, from the same weights.

Needs torch and fails without it: a parity test that skips proves nothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers.models.t5 import modeling_t5

from hyperjax.core import positions
from hyperjax.core.batch import EncoderDecoderQuery
from hyperjax.models import families
from hyperjax.models.generate import generate
from hyperjax.models.t5 import T5Config

TOLERANCE = 1e-4

BASE = T5Config(
  vocab_size=97, d_model=48, num_encoder_layers=2, num_decoder_layers=2, num_heads=6, head_dim=8,
  d_mlp=80, activation="relu", tie_embeddings=True,
)
CHANGES = {
  "v1.0": {},
  "v1.1": dict(activation="gated-gelu", tie_embeddings=False),
  "relu, untied": dict(tie_embeddings=False),
  "gated, tied": dict(activation="gated-gelu"),
  "deep encoder": dict(activation="gated-gelu", tie_embeddings=False, num_encoder_layers=4),
  "deep decoder": dict(num_decoder_layers=3),
  "wide heads": dict(num_heads=3, head_dim=20),
  "buckets": dict(num_buckets=8, max_distance=12),
  "epsilon": dict(norm_epsilon=0.1),
  "start": dict(start_id=5),
}
CONFIGS = {name: dataclasses.replace(BASE, **changes) for name, changes in CHANGES.items()}
EQUAL_DEPTHS = [n for n, c in CONFIGS.items() if c.num_encoder_layers == c.num_decoder_layers]


def test_every_field_of_the_config_is_varied():
  fields = {f.name for f in dataclasses.fields(T5Config)}
  assert {name for changes in CHANGES.values() for name in changes} == fields - {
    "vocab_size", "d_model", "d_mlp"  # other values of these are other shapes only
  }


def hugging_face(c: T5Config):
  """A random model; its untied head is a parameter of its own, which transformers 5 forgets."""
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(transformers.T5Config(
    vocab_size=c.vocab_size, d_model=c.d_model, num_layers=c.num_encoder_layers,
    num_decoder_layers=c.num_decoder_layers, num_heads=c.num_heads, d_kv=c.head_dim, d_ff=c.d_mlp,
    feed_forward_proj=c.activation, tie_word_embeddings=c.tie_embeddings,
    layer_norm_epsilon=c.norm_epsilon, relative_attention_num_buckets=c.num_buckets,
    relative_attention_max_distance=c.max_distance, decoder_start_token_id=c.start_id,
  )).eval()
  if not c.tie_embeddings:
    model.lm_head.weight = torch.nn.Parameter(torch.empty(c.vocab_size, c.d_model))
  for name, parameter in model.named_parameters():
    wide = {"relative_attention_bias": 2.0, "shared": 0.3, "layer_norm": 0.1}
    std = next((s for key, s in wide.items() if key in name), 1.2 * c.d_model**-0.5)
    torch.nn.init.normal_(parameter, mean=float("layer_norm" in name), std=std)
  model.generation_config.eos_token_id = None
  return model


def read_back(folder):
  model, info = transformers.T5ForConditionalGeneration.from_pretrained(
    folder, dtype=torch.float32, output_loading_info=True
  )
  assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
  return model.eval()


def ours(loaded: families.Loaded):
  return nnx.merge(nnx.graphdef(families.abstract(loaded.config)), loaded.params)


@functools.cache
def texts(c: T5Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tokens [3, 30], lengths, targets; the padding is made of tokens that mean something."""
  rng = np.random.default_rng(0)
  tokens, targets = (rng.integers(0, c.vocab_size, (3, n), dtype=np.int32) for n in (30, 25))
  return tokens, np.array([30, 17, 1], np.int32), targets


def our_logits(model, phi=None) -> np.ndarray:
  tokens, length, targets = (jnp.asarray(x)[:, None] for x in texts(model.config))
  query = EncoderDecoderQuery(tokens, length, targets)
  return np.asarray(jax.jit(lambda m, q, p: m(q, p))(model, query, phi))[:, 0]


def inputs_of(c: T5Config) -> dict[str, torch.Tensor]:
  tokens, length, _ = texts(c)
  mask = np.arange(tokens.shape[1]) < length[:, None]
  return {
    "input_ids": torch.tensor(tokens, dtype=torch.long), "attention_mask": torch.tensor(mask).long()
  }


def their_logits(model, c: T5Config) -> np.ndarray:
  targets = texts(c)[2]
  before = np.pad(targets[:, :-1], [(0, 0), (1, 0)], constant_values=c.start_id)
  with torch.no_grad():
    before = torch.tensor(before, dtype=torch.long)
    return model(**inputs_of(c), decoder_input_ids=before).logits.numpy()


def assert_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
  print(f"largest difference {np.abs(ours - theirs).max():.2g}, spread {ours.std():.2g}")
  assert ours.std() > 0.1
  np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_hugging_face_computes_our_logits_from_what_we_save(name, tmp_path):
  config = CONFIGS[name]
  loaded = families.random(config, seed=1)
  families.save(tmp_path / "m", config, loaded.params)
  theirs = read_back(tmp_path / "m")
  assert theirs.config.decoder_start_token_id == config.start_id
  assert_equal(our_logits(ours(loaded)), their_logits(theirs, config))


@pytest.mark.parametrize("name", CONFIGS)
def test_we_compute_hugging_faces_logits_from_what_it_saves(name, tmp_path):
  config = CONFIGS[name]
  theirs = hugging_face(config)
  theirs.save_pretrained(tmp_path, max_shard_size="40KB")
  assert len(list(tmp_path.glob("*.safetensors"))) > 1
  loaded = families.load(tmp_path)
  assert loaded.config == config
  assert_equal(our_logits(ours(loaded)), their_logits(theirs, config))


@pytest.mark.parametrize("name", ["v1.0", "v1.1"])
def test_a_soft_prompt_is_what_hugging_face_makes_of_embeddings(name, tmp_path):
  config = CONFIGS[name]
  theirs = hugging_face(config)
  theirs.save_pretrained(tmp_path)
  prompt = np.random.default_rng(1).standard_normal((7, config.d_model)).astype(np.float32)
  inputs = inputs_of(config)
  rows = torch.tensor(prompt).expand(3, -1, -1)
  inputs["inputs_embeds"] = torch.cat([rows, theirs.shared(inputs.pop("input_ids"))], 1)
  inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (7, 0), value=1)
  before = np.pad(texts(config)[2][:, :-1], [(0, 0), (1, 0)], constant_values=config.start_id)
  with torch.no_grad():
    before = torch.tensor(before, dtype=torch.long)
    scores = theirs(**inputs, decoder_input_ids=before).logits.numpy()
  model = ours(families.load(tmp_path))
  found = our_logits(model, model.prompted(jnp.asarray(prompt)))
  assert_equal(found, scores)
  assert np.abs(found - our_logits(model)).max() > 100 * TOLERANCE


NEW = 12


def our_answers(model) -> np.ndarray:
  tokens, length, _ = (jnp.asarray(x)[:, None] for x in texts(model.config))
  ids, _ = generate(model, None, tokens, length, max_new_tokens=NEW, terminator=())
  print(ids[:, 0])
  assert len({tuple(row) for row in ids[:, 0].tolist()}) > 1
  return np.asarray(ids)[:, 0]


@pytest.mark.parametrize("name", EQUAL_DEPTHS)
def test_greedy_answers_are_those_of_hugging_face(name, tmp_path):
  theirs = hugging_face(CONFIGS[name])
  theirs.save_pretrained(tmp_path)
  with torch.no_grad():
    out = theirs.generate(**inputs_of(CONFIGS[name]), max_new_tokens=NEW, do_sample=False)
  np.testing.assert_array_equal(our_answers(ours(families.load(tmp_path))), out[:, 1:].numpy())


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - EQUAL_DEPTHS))
def test_greedy_answers_with_unequal_depths(name, tmp_path):
  """transformers' generate() makes a cache of the encoder's depth and fails: a loop without it."""
  theirs, c = hugging_face(CONFIGS[name]), CONFIGS[name]
  theirs.save_pretrained(tmp_path)
  ids = torch.full((3, 1), c.start_id)
  with torch.no_grad():
    for _ in range(NEW):
      scores = theirs(**inputs_of(c), decoder_input_ids=ids, use_cache=False).logits[:, -1]
      ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
  np.testing.assert_array_equal(our_answers(ours(families.load(tmp_path))), ids[:, 1:].numpy())


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (8, 12), (64, 1000)])
def test_relative_distances_fall_into_the_same_buckets(bidirectional, num_buckets, max_distance):
  at = np.arange(-1500, 1501)
  theirs = modeling_t5.T5Attention._relative_position_bucket(
    torch.tensor(at), bidirectional, num_buckets, max_distance
  )
  table = jnp.eye(num_buckets)  # head n is 1 in bucket n
  bias = positions.relative_bias(
    table, jnp.zeros((1, 1), jnp.int32), jnp.asarray(at)[None],
    bidirectional=bidirectional, max_distance=max_distance,
  )  # fmt: skip
  np.testing.assert_array_equal(np.argmax(bias[0, :, 0], 0), theirs.numpy())
