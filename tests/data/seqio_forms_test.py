"""The seqio tasks in hyper form hold the loader's tokens."""

import itertools
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from hyperjax.data.caclm import CaclmConfig, CaclmStream
from hyperjax.data.episodes import EpisodeConfig
from hyperjax.data.eval_episodes import eval_episodes
from hyperjax.data.loader import Loader
from hyperjax.data.manifest import Manifest
from hyperjax.data.seqio_forms import (
  FEATURES,
  _Answers,
  register_eval_forms,
  register_train_form,
)
from hyperjax.data.vocabularies import ByteVocabulary
from tests.data.fakes import PROMPT, Bytes, numbered, write_folder


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


def features(dataset, count=None):
  """The first examples of a seqio data set: (support, input, target) ids."""
  rows = itertools.islice(dataset.as_numpy_iterator(), count)
  return [tuple(row[feature].tolist() for feature in FEATURES) for row in rows]


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("layout", ["decoder", "encoder_decoder"])
def test_the_first_thousand_examples_are_the_loaders(tmp_path, layout, inline):
  tasks = {"a": numbered(12), "b": numbered(30, "with a longer input than can be held ")}
  write_folder(tmp_path, tasks, adds_bos=True)
  values = json.loads((tmp_path / "manifest.json").read_text())
  values["vocabulary"]["adds_eos"] = layout == "encoder_decoder"  # as T5's
  (tmp_path / "manifest.json").write_text(json.dumps(values))
  manifest = Manifest.load(tmp_path)
  # So much is cut.
  config = EpisodeConfig(num_shots=(3, 5), num_queries=4, limit=(96, 24, 8), inline=inline)
  name = register_train_form(
    tmp_path, config, seed=3, batch_size=2, num_steps=130, layout=layout
  )
  assert name == "hyper_made_up"
  stream = config.stream(manifest, seed=3, batch_size=2, layout=layout)
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    None, "train", shuffle=False, seed=42, use_cached=False
  )
  expected = list(itertools.islice(flat(stream, 130), 1000))
  found = features(dataset, 1000)
  assert len(expected) == 1000 and found == expected
  if layout == "encoder_decoder":
    eos = manifest.vocabulary["eos_id"]
    assert all(support[-1] == source[-1] == eos for support, source, _ in found)
  assert {value.dtype.name for value in dataset.element_spec.values()} == {"int32"}


def test_a_thousand_examples_of_caclm_are_the_loaders(tmp_path):
  manifest = write_folder(tmp_path, {"text.a": [list(range(5000))]})
  config = CaclmConfig(32, "random")
  name = register_train_form(tmp_path, config, seed=5, batch_size=2, num_steps=500)
  assert name == "caclm_made_up"
  dataset = seqio.get_mixture_or_task(name).get_dataset(None, "train", shuffle=False)
  stream = CaclmStream(manifest, config, seed=5, batch_size=2)
  found = features(dataset)
  assert len(found) == 1000 and found == list(flat(stream, 500))


OPTIONS = {"num_shots": 3, "num_queries": 2, "max_queries": 5, "seed": 1}


def test_evaluation_forms_are_the_evaluation_episodes(tmp_path):
  manifest = write_folder(tmp_path, {"a": numbered(9), "b": numbered(9, "x")})
  name = register_eval_forms(tmp_path, Bytes(), **OPTIONS)
  assert name == "hyper_made_up_eval"
  assert len(seqio.get_mixture_or_task(name).tasks) == 2
  dataset = seqio.get_mixture_or_task("hyper_b_eval").get_dataset(None, "test", shuffle=False)
  expected = [
    (episode.support.tolist(), query.input.tolist(), query.target.tolist())
    for episode in eval_episodes(manifest, "b", **OPTIONS)
    for query in episode.queries
  ]
  found = features(dataset)
  assert found == expected and len(found) == 5
  with pytest.raises(ValueError, match="was built with another vocabulary"):
    register_eval_forms(tmp_path, Bytes(adds_bos=True), **OPTIONS)


def cache(task, folder):
  """What seqio_cache_tasks does with a task, without Beam: records, their description, counts."""
  folder.mkdir(parents=True)
  for split in task.splits:
    rows = task.source.get_dataset(
      split, shuffle=False, seed=7, shard_info=seqio.ShardInfo(index=0, num_shards=1)
    )
    rows = list(task.preprocess_precache(rows, seed=7))
    with tf.io.TFRecordWriter(str(folder / f"{split}.tfrecord-00000-of-00001")) as writer:
      for row in rows:
        writer.write(seqio.dict_to_tfexample(row).SerializeToString())
    described = {
      name: {"shape": [None] * value.shape.rank, "dtype": value.dtype.name}
      for name, value in rows[0].items()
    }
    info = {"num_shards": 1, "features": described, "seqio_version": seqio.__version__}
    (folder / f"info.{split}.json").write_text(json.dumps(info))
    (folder / f"stats.{split}.json").write_text(json.dumps({"examples": len(rows)}))
  (folder / "COMPLETED").write_text("")


@pytest.fixture
def cache_dir(tmp_path):
  folder = tmp_path / "cache"
  before = list(seqio.get_global_cache_dirs())
  seqio.set_global_cache_dirs([str(folder)])
  yield folder
  seqio.set_global_cache_dirs(before)


def test_forms_are_cached_and_read_back_by_seqio(tmp_path, cache_dir):
  """seqio_cache_tasks gives seeds of its own to a source; they must change nothing."""
  write_folder(tmp_path, {"a": numbered(9), "b": numbered(9, "x")})
  train = register_train_form(
    tmp_path, EpisodeConfig(num_shots=3, num_queries=2), seed=0, batch_size=2, num_steps=3
  )
  register_eval_forms(tmp_path, Bytes(), **OPTIONS)
  for name, split in ((train, "train"), ("hyper_b_eval", "test")):
    task = seqio.TaskRegistry.get(name)
    assert task.supports_caching
    cache(task, cache_dir / name)
    read = lambda cached, task=task, split=split: features(
      task.get_dataset(None, split, shuffle=False, use_cached=cached)
    )
    assert read(True) == read(False) and read(True)


def test_an_answer_is_read_up_to_an_eos():
  vocabulary = ByteVocabulary()
  answer, more = vocabulary.encode_batch(["one", "two;"])
  answers = _Answers(vocabulary, PROMPT)
  assert answers.decode([*answer, vocabulary.eos_id, *more]) == answers.decode(answer) == "one"


def test_seqio_evaluates_a_form(tmp_path):
  """A model that answers with the output of the support's first example."""
  rows = [{"input": f"{i}", "output": f"Word {i % 2}", "references": [f"word {i % 2}", "a word"]}
          for i in range(6)]  # fmt: skip
  write_folder(tmp_path, {"scored": rows, "plain": numbered(6)})
  values = json.loads((tmp_path / "manifest.json").read_text())
  values["tasks"]["scored"]["metrics"] = ["rank_classification", "rouge_l", "exact_match"]
  (tmp_path / "manifest.json").write_text(json.dumps(values))
  name = register_eval_forms(tmp_path, Bytes(), **{**OPTIONS, "max_queries": None})
  converter = seqio.EncDecFeatureConverter(
    pack=False,
    passthrough_features={"hyper_inputs": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)},
  )
  evaluator = seqio.Evaluator(name, converter, eval_split="test")
  asked = {"scored": [], "plain": []}

  def predict(dataset):
    for number, row in dataset.as_numpy_iterator():
      support = Bytes().decode(row["hyper_inputs"])
      target = Bytes().decode(row["decoder_target_tokens"])
      answer = support.split(";")[0].split("=")[1]
      asked["plain" if "out" in target else "scored"].append((answer, target.removesuffix(";")))
      yield int(number), Bytes().encode_batch([f"{answer};"])[0]

  metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=lambda d: list(predict(d)))
  found = metrics.result()
  right = {task: [a == t for a, t in pairs] for task, pairs in asked.items()}
  assert list(map(len, right.values())) == [6, 6] and 0 < sum(right["scored"]) < 6
  share = sum(right["scored"]) / 6
  # Where the number is wrong, one of two words is right: F = 1/2.
  assert found["hyper_scored_eval"] == {
    "rouge_l": pytest.approx(share + (1 - share) / 2), "exact_match": pytest.approx(share)
  }  # fmt: skip
  assert found["hyper_plain_eval"] == {"exact_match": sum(right["plain"]) / 6}
