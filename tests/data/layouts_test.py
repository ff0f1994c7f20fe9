"""Where inputs and targets lie, for each kind of model; episodes that hold their support inside."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from hyperjax.data import eval_sets, layouts
from hyperjax.data.caclm import CaclmConfig
from hyperjax.data.episodes import EpisodeConfig, inline
from hyperjax.data.loader import Loader, fit, to_batch
from tests.data.fakes import Bytes, numbered, write_folder

EOS = 2


@pytest.fixture(scope="module", params=[False, True], ids=["eos", "bos"])
def manifest(request, tmp_path_factory):
  tasks = {"f.a": numbered(60), "g.b": numbered(60, "a rather long input, number ")}
  return write_folder(tmp_path_factory.mktemp("data"), tasks, adds_bos=request.param)


def stream(manifest, layout="encoder_decoder", **changes):
  config = EpisodeConfig(num_shots=4, num_queries=3, limit=(400, 100, 20), **changes)
  return config.stream(manifest, seed=5, batch_size=2, layout=layout)


def load(train, step):
  with Loader(train) as loader:
    return loader.load(step)


def real(tokens, length):
  return tokens[:length].tolist()


def test_an_encoder_reads_the_input_and_a_decoder_the_target(manifest):
  train = stream(manifest)
  end = [EOS] if manifest.vocabulary["adds_eos"] else []
  for step in range(6):
    batch, info = load(train, step)
    assert info.counts.inputs_cut == info.counts.targets_cut == info.counts.shots_dropped == 0
    for row in range(2):
      episode = train.episode(step, row)
      support = real(batch.support.tokens[row], batch.support.length[row])
      assert support == [*episode.support, *end]
      for column, query in enumerate(episode.queries):
        length = batch.query.length[row, column]
        assert real(batch.query.tokens[row, column], length) == [*query.input, *end]
        assert batch.query.targets is batch.targets
        weights = batch.weights[row, column]
        assert batch.targets[row, column][weights > 0].tolist() == query.target.tolist()


def test_what_answers_follow_is_the_query_without_its_target(manifest):
  end = [EOS] if manifest.vocabulary["adds_eos"] else []
  for name, behind in (("decoder", []), ("encoder_decoder", end)):
    train = stream(manifest, layout=name)
    batch, _ = load(train, 0)
    tokens, length = batch.query.prompts()
    for row in range(2):
      for column, query in enumerate(train.episode(0, row).queries):
        assert real(tokens[row, column], length[row, column]) == [*query.input, *behind]


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_inline_puts_the_support_before_each_input(manifest, layout):
  apart, inside = stream(manifest, layout), stream(manifest, layout, inline=True)
  for step in range(6):
    batch, info = load(inside, step)
    assert batch.query.tokens.shape[2] == inside.bucket(step).query
    assert info.counts.inputs_cut == info.counts.shots_dropped == 0
    for row in range(2):
      found = inside.episode(step, row)
      # Buckets differ, so that the two streams visit tasks in another order.
      same = [e for s in range(40) for r in range(2)
              for e in [apart.episode(s, r)] if e.task == found.task]  # fmt: skip
      assert same and not len(found.support)
      for query in found.queries:
        text = Bytes().decode(query.input)
        assert text.count(";") == 4 and text.endswith("=")
        assert query.input.tolist().count(1) == manifest.vocabulary["adds_bos"]


@hypothesis.given(st.integers(1, 90), st.sampled_from(layouts.LAYOUTS))
@hypothesis.settings(deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_inline_drops_whole_examples_from_the_far_end(manifest, size, name):
  layout = layouts.of(name, manifest.vocabulary)
  episode = stream(manifest, layout=name).episode(0, 0)
  full, fitted = inline(episode), inline(episode, size, layout)
  for query, whole, part in zip(episode.queries, full.queries, fitted.queries, strict=True):
    own = query.input[episode.bos :].tolist()
    assert whole.input.tolist() == [*episode.support, *own] and whole.dropped == 0
    kept = [i for shot in episode.shots[part.dropped :] for i in shot]
    assert part.input.tolist() == [*episode.head, *kept, *own]
    fits = layout.length(len(part.input), len(query.target)) <= size
    assert fits or part.dropped == 4
    if part.dropped:
      more = len(part.input) + len(episode.shots[part.dropped - 1])
      assert layout.length(more, len(query.target)) > size
  short = dataclasses.replace(fit([full], layout), query=size)
  dropped = sum(q.dropped for q in fitted.queries)
  assert to_batch([fitted], short, layout)[1].shots_dropped == dropped


def test_evaluation_holds_the_support_inside_too(manifest):
  config = eval_sets.EvalConfig(num_shots=3, num_queries=4, max_queries=8)
  plain = eval_sets.groups(manifest, config, 1)
  inside = eval_sets.groups(manifest, config, 1, layout="encoder_decoder", inline=True)
  by_id = {(e.task, e.queries[0].id): e for g in plain for e in g.episodes}
  count = 0
  for group in inside:
    batch, counts = to_batch(list(group.episodes), group.shape, group.layout)
    assert batch.real_tokens() == counts.support_tokens + counts.query_tokens
    assert counts.inputs_cut == counts.targets_cut == 0
    for episode in group.episodes:
      count += 1
      source = by_id[episode.task, episode.queries[0].id]
      for ours, theirs in zip(episode.queries, source.queries, strict=True):
        own = theirs.input[source.bos :]
        assert ours.input.tolist() == [*source.support, *own]
  assert count == len(by_id) == 4


def test_windows_of_text_fit_either_layout(tmp_path):
  rng = np.random.default_rng(0)
  documents = [rng.integers(3, 200, 300).tolist() for _ in range(4)]
  manifest = write_folder(tmp_path, {"text.a": documents})
  for cuts in ("equal", "random"):
    for layout in layouts.LAYOUTS:
      config = CaclmConfig(window=64, cuts=cuts)
      text = config.stream(manifest, seed=1, batch_size=3, layout=layout)
      for step in range(10):
        batch, info = load(text, step)
        counts = info.counts
        assert counts.inputs_cut == counts.targets_cut == counts.supports_cut == 0
        assert batch.weights.sum() == counts.target_tokens


def test_an_unknown_layout_names_the_nearest(manifest):
  with pytest.raises(ValueError, match="'encoder'; the nearest is '.*coder.*' of"):
    layouts.of("encoder", manifest.vocabulary)
