"""Scores against a token-by-token computation on a random model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Batch, Continuations, DecoderQuery, Support
from hyperjax.data import layouts, loader
from hyperjax.data.episodes import Episode, Query
from hyperjax.data.shapes import BatchShape
from hyperjax.evaluation import scoring
from hyperjax.hypermodels.in_context import InContext
from hyperjax.hypermodels.tuned import NoPhi
from hyperjax.models.generate import generate
from hyperjax.models.llama import Llama, LlamaConfig
from tests.models import tiny, tiny_t5

CONFIG = LlamaConfig(
  vocab_size=23, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, d_mlp=24,
  rope_theta=100.0, norm_epsilon=1e-5, tie_embeddings=False,
)  # fmt: skip
SHAPE = BatchShape(support=8, queries=3, query=10, targets=5)


def ids(*values):
  return np.array(values, np.int32)


@pytest.fixture(scope="module")
def llama():
  return Llama(CONFIG, rngs=nnx.Rngs(0))


def episode(rng, targets) -> Episode:
  queries = tuple(
    Query(rng.integers(1, 23, rng.integers(2, 5)).astype(np.int32), ids(*target), i)
    for i, target in enumerate(targets)
  )
  shots = tuple(rng.integers(1, 23, 3).astype(np.int32) for _ in range(2))
  return Episode("t", ids(), shots, queries, (0, 1))


@pytest.fixture(scope="module")
def episodes():
  rng = np.random.default_rng(0)
  return [episode(rng, [(4, 5), (6, 7, 8)]), episode(rng, [(1,), (2, 3), (9, 9, 9, 9, 2)])]


def logits_of(llama, tokens) -> np.ndarray:
  """The logits behind a sequence's last token, read in one piece, without phi."""
  size = len(tokens)
  query = DecoderQuery(
    jnp.array([[tokens]], jnp.int32), jnp.array([[size]]), jnp.array([[[size - 1]]])
  )
  return np.asarray(llama(query, None), np.float64)[0, 0, 0]


def log_probabilities(logits):
  return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.mark.parametrize("context", [False, True], ids=["zero-shot", "in-context"])
def test_likelihoods_are_sums_over_the_targets_tokens(llama, episodes, context):
  """The reference reads each sequence, and for in-context the support before it, as one text."""
  batch, _ = loader.to_batch(episodes, SHAPE)
  phi = scoring.produce(InContext() if context else NoPhi(), llama, batch.support)
  likelihood, exact = (np.asarray(x) for x in scoring.teacher_forced(llama, phi, batch))
  for row, one in enumerate(episodes):
    for column, query in enumerate(one.queries):
      before = [*(one.support if context else []), *query.input]
      total, right = 0.0, True
      for token in query.target:
        logits = logits_of(llama, before)
        total += log_probabilities(logits)[token]
        right &= bool(logits.argmax() == token)
        before.append(token)
      assert likelihood[row, column] == pytest.approx(total, abs=1e-4)
      assert exact[row, column] == right


def alone(layout: str, texts: Continuations, place: tuple[int, int], target) -> Batch:
  """One query with one target, without padding."""
  row, column = place
  read = texts.tokens[row, column, : texts.length[row, column]]
  piece = [[(np.asarray(read), np.asarray(target))]]
  shape = BatchShape(1, 1, len(read) + len(target), len(target))
  laid = layouts.DECODER if layout == "decoder" else layouts.EncoderDecoder()
  wanted = np.asarray(target, np.int32)[None, None]
  query = laid.fill(piece, (1, 1, shape.query), wanted)
  unread = Support(wanted[0], wanted[0, :, 0])
  return Batch(unread, query, wanted, np.ones(wanted.shape, np.float32))


@pytest.mark.parametrize("layout, positions", [
  ("decoder", {}), ("encoder_decoder", {"positions": "before"}),
  ("encoder_decoder", {"positions": "none"}),
])  # fmt: skip
def test_texts_behind_one_query_are_as_likely_as_alone(layout, positions):
  """Under a phi at all sites; each row under another row of it."""
  with jax.enable_x64(True):
    if layout == "decoder":
      model, sites = tiny.llama(jnp.float64), tiny.ALL
    else:
      model, sites = tiny_t5.t5(jnp.float64), tiny_t5.ALL
    spec = model.phi_spec(sites, prefix_length=3, rank=2, alpha=2.0, **positions)
    phi = tiny.random_phi(spec, 3, dtype=jnp.float64, lengths=[1, 3, 2])
    texts, rows = tiny.continuations(2, 2, 5), np.array([2, 0])
    for most in (2, 8):  # fewer and more than what is read behind a query
      found = scoring.ask(model, phi, rows, texts, max_new_tokens=most, terminator=())
      own = phi_lib.take(phi, jnp.asarray(rows))
      ids, count = generate(
        model, own, texts.tokens, texts.length, max_new_tokens=most, terminator=(),
        limit=texts.limit,
      )  # fmt: skip
      assert found.ids.tolist() == ids.tolist() and found.count.tolist() == count.tolist()
    ours = np.asarray(found.likelihoods)
    assert ours.dtype == np.float64
    for row, column in np.ndindex(2, 2):
      own = phi_lib.take(phi, jnp.asarray(rows[row : row + 1]))
      for start, stop in ((0, 3), (3, 5)):
        one = alone(layout, texts, (row, column), texts.targets[row, column, start:stop])
        expected = scoring.teacher_forced(model, own, one)[0][0, 0]
        assert ours[row, column, start:stop].sum() == pytest.approx(float(expected), abs=1e-9)


def test_answers_are_the_likeliest_tokens_up_to_the_terminator_or_the_limit(llama):
  asked = tiny.continuations(2, 3, 6)
  tokens, length = np.asarray(asked.tokens) % CONFIG.vocab_size, np.asarray(asked.length)
  asked = dataclasses.replace(
    asked, tokens=tokens, read=asked.read % 23, targets=asked.targets % 23,
    limit=np.array([[5, 5, 3], [5, 1, 5]], np.int32),
  )  # fmt: skip
  by_hand = {}
  for row, column in np.ndindex(2, 3):
    text = tokens[row, column, : length[row, column]].tolist()
    for _ in range(asked.limit[row, column]):
      text.append(int(logits_of(llama, text).argmax()))
    by_hand[row, column] = text[length[row, column] :]
  end = (by_hand[1, 2][1],)  # some row ends early with it
  found = scoring.ask(llama, None, np.arange(2), asked, max_new_tokens=5, terminator=end)
  assert found.ids.shape == (2, 3, 5)
  for place, expected in by_hand.items():
    if end[0] in expected:
      expected = expected[: expected.index(end[0]) + 1]
    assert found.ids[place][: found.count[place]].tolist() == expected
  assert len({int(found.count[place]) for place in by_hand}) > 2


def test_what_greedy_decoding_emits_is_an_exact_match_and_nothing_else_is(llama, episodes):
  batch, _ = loader.to_batch(episodes, SHAPE)
  tokens, length = batch.query.prompts()
  produced, _ = generate(llama, None, tokens, length, max_new_tokens=SHAPE.targets, terminator=())
  produced = np.asarray(produced)
  emitted = [
    Episode(e.task, e.head, e.shots, tuple(
      Query(q.input, produced[row, column, : 2 + column], q.id)
      for column, q in enumerate(e.queries)), e.support_ids)
    for row, e in enumerate(episodes)
  ]  # fmt: skip
  batch, _ = loader.to_batch(emitted, SHAPE)
  exact = np.asarray(scoring.teacher_forced(llama, None, batch)[1])
  real = batch.weights.sum(-1) > 0
  assert exact[real].tolist() == [1.0] * 5
  for position in range(2):
    changed = [
      Episode(e.task, e.head, e.shots, tuple(
        Query(q.input, np.where(np.arange(len(q.target)) == position, q.target % 22 + 1, q.target)
              .astype(np.int32), q.id)
        for q in e.queries), e.support_ids)
      for e in emitted
    ]  # fmt: skip
    batch, _ = loader.to_batch(changed, SHAPE)
    exact = np.asarray(scoring.teacher_forced(llama, None, batch)[1])
    assert exact[real].tolist() == [0.0] * 5


def test_prompts_hold_no_target(episodes):
  batch, _ = loader.to_batch(episodes, SHAPE)
  tokens, length = batch.query.prompts()
  for row, one in enumerate(episodes):
    for column, query in enumerate(one.queries):
      assert length[row, column] == len(query.input)
      expected = np.zeros(SHAPE.query, np.int32)
      expected[: len(query.input)] = query.input
      np.testing.assert_array_equal(tokens[row, column], expected)


def test_no_phi_is_none_and_in_context_is_a_prefix_of_the_supports_length(llama, episodes):
  batch, _ = loader.to_batch(episodes, SHAPE)
  assert scoring.produce(NoPhi(), llama, batch.support) is None
  prefix = scoring.produce(InContext(), llama, batch.support)["decoder"]["self"]["prefix"]
  assert prefix.key.shape[:3] == (2, 2, SHAPE.support)
  assert np.asarray(prefix.length).reshape(2, -1)[-1].tolist() == [len(e.support) for e in episodes]
  assert jnp.isfinite(prefix.key).all()
