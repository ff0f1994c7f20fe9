"""The loader's episodes as seqio tasks, for people who inspect, cache or evaluate with seqio.

Each query is an example with the features `hyper_inputs` (its support), `inputs` and `targets`:
int32 token ids, the same as in the loader's batches, token for token, what did not fit cut alike.
"""

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import seqio
import tensorflow as tf

from hyperjax.data import layouts
from hyperjax.data.caclm import CaclmConfig, CaclmStream
from hyperjax.data.episodes import Episode, EpisodeConfig, TrainStream
from hyperjax.data.eval_sets import eval_episodes
from hyperjax.data.layouts import Layout
from hyperjax.data.loader import Stream, fit, to_batch
from hyperjax.data.manifest import Manifest
from hyperjax.data.shapes import BatchShape
from hyperjax.data.shots import NumShots

FEATURES = ("hyper_inputs", "inputs", "targets")


def register_train_form(
  folder: str | os.PathLike, config: EpisodeConfig | CaclmConfig, *, seed: int, batch_size: int,
  num_steps: int, layout: str = "decoder",
) -> str:  # fmt: skip
  """Registers the training stream of a data folder as one task with the split `train`.

  Its examples follow the loader's order: by step, row and query. A seed given to seqio
  (`get_dataset(seed=...)`) takes the place of `seed`; `layout` is that of the downstream model's
  queries.

  Returns:
    The task's name: `hyper_<mixture>`, or `caclm_<mixture>` for a `CaclmConfig`.
  """
  manifest = Manifest.load(folder)
  caclm = isinstance(config, CaclmConfig)

  def stream(seed: int) -> Stream:
    kind = CaclmStream if caclm else TrainStream
    return kind(manifest, config, seed=seed, batch_size=batch_size, layout=layout)

  def rows(seed: int) -> Iterator[dict]:
    episodes = stream(seed)
    for step in range(num_steps):
      for row in range(batch_size):
        yield from _examples(episodes.episode(step, row), episodes.bucket(step), episodes.layout)

  name = f"{'caclm' if caclm else 'hyper'}_{manifest.values['mixture']}"
  _add(name, manifest, "train", lambda given: rows(seed if given is None else given))
  return name


def register_eval_forms(
  folder: str | os.PathLike, *, num_shots: NumShots | None, num_queries: int,
  max_queries: int | None, seed: int, layout: str = "decoder",
) -> str:  # fmt: skip
  """Registers the evaluation episodes of every task, and a mixture over them, split `test`.

  Returns:
    The mixture's name, `hyper_<mixture>_eval`; its tasks are `hyper_<task>_eval`.
  """
  manifest = Manifest.load(folder)
  laid = layouts.of(layout, manifest.vocabulary)
  names = []
  for task in manifest.tasks:

    def rows(given: int | None, task: str = task) -> Iterator[dict]:
      episodes = eval_episodes(
        manifest, task, num_shots=num_shots, num_queries=num_queries, max_queries=max_queries,
        seed=seed if given is None else given,
      )  # fmt: skip
      for episode in episodes:
        yield from _examples(episode, fit([episode], laid), laid)

    names.append(f"hyper_{task}_eval")
    _add(names[-1], manifest, "test", rows)
  mixture = f"hyper_{manifest.values['mixture']}_eval"
  if mixture in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove(mixture)
  seqio.MixtureRegistry.add(mixture, names, default_rate=1.0)
  return mixture


def _examples(
  episode: Episode, shape: BatchShape, layout: Layout
) -> Iterator[dict[str, np.ndarray]]:
  batch, _ = to_batch([episode], shape, layout)
  tokens, length = batch.query.prompts()
  support = batch.support.tokens[0, : batch.support.length[0]]
  for column in range(len(episode.queries)):
    real = batch.weights[0, column] > 0
    yield {
      "hyper_inputs": support,
      "inputs": tokens[0, column, : length[0, column]],
      "targets": batch.targets[0, column][real],
    }


def _add(
  name: str, manifest: Manifest, split: str, rows: Callable[[int | None], Iterable[dict]]
) -> None:
  def dataset(split: str, shuffle_files: bool = False, seed: int | None = None):
    del split, shuffle_files
    spec = {feature: tf.TensorSpec([None], tf.int32) for feature in FEATURES}
    return tf.data.Dataset.from_generator(lambda: rows(seed), output_signature=spec)

  vocabulary = seqio.PassThroughVocabulary(
    size=manifest.vocabulary["size"], eos_id=manifest.vocabulary["eos_id"]
  )
  feature = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    seqio.FunctionDataSource(dataset, splits=(split,)),
    preprocessors=[],
    output_features=dict.fromkeys(FEATURES, feature),
  )
