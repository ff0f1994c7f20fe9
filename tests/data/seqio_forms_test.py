"""The seqio tasks in hyper form hold the loader's tokens."""

import itertools
import json

import numpy as np
import pytest
import seqio

from hyperjax.data.caclm import CaclmConfig, CaclmStream
from hyperjax.data.episodes import EpisodeConfig, TrainStream
from hyperjax.data.eval_sets import eval_episodes
from hyperjax.data.loader import Loader
from hyperjax.data.manifest import Manifest
from hyperjax.data.seqio_forms import register_eval_forms, register_train_form
from tests.data.fakes import numbered, write_folder


def flat(stream, steps):
  """Every query of the loader's batches: (support, input, target) ids."""
  with Loader(stream, stop_step=steps) as loader:
    for _, batch, _ in loader:
      for row, column in np.ndindex(batch.query.length.shape):
        real = batch.weights[row, column] > 0
        if real.any():
          tokens, length = batch.query.prompts()
          yield (
            batch.support.tokens[row, : batch.support.length[row]].tolist(),
            tokens[row, column, : length[row, column]].tolist(),
            batch.targets[row, column][real].tolist(),
          )


@pytest.mark.parametrize("layout", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("seed", [None, 7])
def test_the_first_hundred_examples_are_the_loaders(tmp_path, seed, layout):
  tasks = {"a": numbered(12), "b": numbered(30, "with a longer input than can be held ")}
  write_folder(tmp_path, tasks, adds_bos=True)
  values = json.loads((tmp_path / "manifest.json").read_text())
  values["vocabulary"]["adds_eos"] = layout == "encoder_decoder"  # as T5's
  (tmp_path / "manifest.json").write_text(json.dumps(values))
  manifest = Manifest.load(tmp_path)
  config = EpisodeConfig(num_shots=(3, 5), num_queries=4, limit=(96, 24, 8))  # so much is cut
  name = register_train_form(
    tmp_path, config, seed=3, batch_size=2, num_steps=20, layout=layout
  )
  assert name == "hyper_made_up"
  stream = TrainStream(manifest, config, seed=seed or 3, batch_size=2, layout=layout)
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    None, "train", shuffle=False, seed=seed, use_cached=False
  )
  expected = list(itertools.islice(flat(stream, 20), 100))
  found = [
    tuple(row[feature].tolist() for feature in ("hyper_inputs", "inputs", "targets"))
    for row in itertools.islice(dataset.as_numpy_iterator(), 100)
  ]
  assert len(expected) == 100 and found == expected
  if layout == "encoder_decoder":
    eos = manifest.vocabulary["eos_id"]
    assert all(support[-1] == source[-1] == eos for support, source, _ in found)
  assert {value.dtype.name for value in dataset.element_spec.values()} == {"int32"}


def test_caclm_in_hyper_form(tmp_path):
  manifest = write_folder(tmp_path, {"text.a": [list(range(500))]})
  config = CaclmConfig(32, "random")
  name = register_train_form(tmp_path, config, seed=0, batch_size=2, num_steps=10)
  assert name == "caclm_made_up"
  dataset = seqio.get_mixture_or_task(name).get_dataset(None, "train", shuffle=False)
  found = [row["targets"].tolist() for row in dataset.as_numpy_iterator()]
  stream = CaclmStream(manifest, config, seed=0, batch_size=2)
  assert found == [target for _, _, target in flat(stream, 10)]


def test_evaluation_forms_are_the_evaluation_episodes(tmp_path):
  manifest = write_folder(tmp_path, {"a": numbered(9), "b": numbered(9, "x")})
  options = {"num_shots": 3, "num_queries": 2, "max_queries": 5, "seed": 1}
  name = register_eval_forms(tmp_path, **options)
  assert name == "hyper_made_up_eval"
  assert len(seqio.get_mixture_or_task(name).tasks) == 2
  dataset = seqio.get_mixture_or_task("hyper_b_eval").get_dataset(None, "test", shuffle=False)
  expected = [
    (episode.support.tolist(), query.input.tolist(), query.target.tolist())
    for episode in eval_episodes(manifest, "b", **options)
    for query in episode.queries
  ]
  found = [
    tuple(row[feature].tolist() for feature in ("hyper_inputs", "inputs", "targets"))
    for row in dataset.as_numpy_iterator()
  ]
  assert found == expected and len(found) == 5
