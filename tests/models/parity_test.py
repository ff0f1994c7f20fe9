"""Our logits against Hugging Face transformers' LlamaForCausalLM, both reading the same weights.

Needs torch and fails without it: a parity test that skips proves nothing.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from hyperjax import convert, sources
from hyperjax.core.batch import DecoderQuery
from hyperjax.core.positions import Llama3Scaling
from hyperjax.data import vocabularies
from hyperjax.models import families, weights
from hyperjax.models.llama import Llama, LlamaConfig

TOLERANCE = 1e-3
TEXT = "Q: three hundred and five\nA: 305\n\nQ: Der Hund schläft, 1984 times.\nA:"

BASE = dict(
  vocab_size=97, d_model=48, num_layers=3, num_heads=6, num_kv_heads=6, head_dim=8, d_mlp=80,
  rope_theta=1e4, norm_epsilon=1e-5, tie_embeddings=True,
)
CONFIGS = {
  "tied": {},
  "grouped": dict(num_kv_heads=2),
  "untied": dict(tie_embeddings=False, num_kv_heads=3),
  "wide_heads": dict(head_dim=20, num_kv_heads=2),
  "epsilon": dict(norm_epsilon=0.1, rope_theta=500.0),
  # An original context of 64 puts frequencies on each side of both thresholds and between.
  "llama3_scaling": dict(
    rope_theta=5e5, head_dim=16, num_kv_heads=2, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64)
  ),
}


def our_logits(config: LlamaConfig, params, tokens: np.ndarray) -> np.ndarray:
  graph, _ = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
  rows, length = tokens.shape
  every = jnp.broadcast_to(jnp.arange(length), (rows, 1, length))
  query = DecoderQuery(jnp.asarray(tokens)[:, None], jnp.full((rows, 1), length), every)
  return np.asarray(nnx.merge(graph, params)(query))[:, 0]


def their_logits(model, tokens: np.ndarray) -> np.ndarray:
  with torch.no_grad():
    return model.eval()(torch.tensor(tokens, dtype=torch.long)).logits.numpy()


def assert_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
  print(f"largest difference {np.abs(ours - theirs).max():.2g}, spread {ours.std():.2g}")
  assert ours.std() > 0.1
  np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


def hugging_face(folder: pathlib.Path):
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, output_loading_info=True
  )
  assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
  return model


def random_tokens(vocab_size: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, vocab_size, (2, 40), dtype=np.int32)


@pytest.mark.parametrize("name", CONFIGS)
def test_hugging_face_computes_our_logits_from_what_we_save(name, tmp_path):
  config = LlamaConfig(**{**BASE, **CONFIGS[name]})
  loaded = families.random(config, seed=1)
  families.save(tmp_path / "m", config, loaded.params)
  tokens = random_tokens(config.vocab_size)
  ours = our_logits(config, loaded.params, tokens)
  assert_equal(ours, their_logits(hugging_face(tmp_path / "m"), tokens))


@pytest.mark.parametrize("name", CONFIGS)
def test_we_compute_hugging_faces_logits_from_what_it_saves(name, tmp_path):
  c = LlamaConfig(**{**BASE, **CONFIGS[name]})
  rope = {"rope_type": "default", "rope_theta": c.rope_theta}
  if c.rope_scaling is not None:
    s = c.rope_scaling
    rope |= {
      "rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_freq_factor,
      "high_freq_factor": s.high_freq_factor,
      "original_max_position_embeddings": s.original_max_position_embeddings,
    }
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=c.vocab_size, hidden_size=c.d_model, num_hidden_layers=c.num_layers,
    num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads, head_dim=c.head_dim,
    intermediate_size=c.d_mlp, rms_norm_eps=c.norm_epsilon, tie_word_embeddings=c.tie_embeddings,
    rope_parameters=rope, initializer_range=0.3,
  ))
  model.save_pretrained(tmp_path, max_shard_size="40KB")
  assert len(list(tmp_path.glob("*.safetensors"))) > 1
  loaded = families.load(tmp_path)
  assert loaded.config == c
  tokens = random_tokens(c.vocab_size)
  assert_equal(our_logits(c, loaded.params, tokens), their_logits(model, tokens))


@pytest.fixture(scope="module")
def embedded():
  return families.load(sources.EMBEDDED)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
  folder = tmp_path_factory.mktemp("converted") / "smollm2"
  assert convert.main(["--source", sources.EMBEDDED, "--out", str(folder)]) == 0
  return folder


def prompt() -> np.ndarray:
  ids = vocabularies.load(sources.EMBEDDED).encode_batch([TEXT])
  return np.asarray(ids, np.int32)


def test_smollm2_equals_transformers_own_reading_of_the_gguf(embedded):
  path = sources.resolve(sources.EMBEDDED)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  )
  ids = prompt()
  assert_equal(our_logits(embedded.config, embedded.params, ids), their_logits(model, ids))


def test_the_converted_folder_is_the_embedded_model(embedded, converted):
  model = hugging_face(converted)
  tokenizer = transformers.AutoTokenizer.from_pretrained(converted)
  ids = np.asarray([tokenizer(TEXT)["input_ids"]], np.int32)
  np.testing.assert_array_equal(ids, prompt())
  assert_equal(our_logits(embedded.config, embedded.params, ids), their_logits(model, ids))


def test_converting_and_loading_again_changes_no_bit(embedded, converted):
  again = families.load(converted)
  assert again.config == embedded.config
  mine = dict(weights.leaves(embedded.params))
  theirs = dict(weights.leaves(again.params))
  assert mine.keys() == theirs.keys()
  for path in mine:
    np.testing.assert_array_equal(mine[path], theirs[path], err_msg=path)


def test_the_gguf_tokenizer_gives_transformers_ids():
  path = sources.resolve(sources.EMBEDDED)
  theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  vocabulary = vocabularies.load(sources.EMBEDDED)
  for text in TEXTS:
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert vocabulary.encode_batch([text]) == [ids], text
  starts_with_bos = theirs("a")["input_ids"][0] == vocabulary.bos_id
  assert vocabulary.adds_bos == starts_with_bos


TEXTS = (
  TEXT,
  "",
  " leading and trailing  spaces   ",
  "tabs\tand\r\nnew\n\n\nlines",
  "naïve façade, Straße, Ελλάδα, Россия, 漢字かな交じり, עברית, हिन्दी, 😀👩‍👩‍👧",
  "def f(x):\n  return x ** 2  # comment",
  "It's we'll I'd DON'T",
  "<|im_start|>user\nhi<|im_end|>",
)
