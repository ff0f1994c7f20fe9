"""The loader's episodes as seqio tasks, for people who inspect, cache or evaluate with seqio.

Each query is an example with the features `hyper_inputs` (its support), `inputs` and `targets`:
int32 token ids, the same as in the loader's batches, token for token, what did not fit cut alike.
The seed is given here: one that is given to seqio changes nothing, since `seqio_cache_tasks` and
`seqio.Evaluator` give seeds of their own.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsInt

import numpy as np
import seqio
import tensorflow as tf

from hyperjax.data import eval_episodes, layouts, prompts
from hyperjax.data.caclm import CaclmConfig
from hyperjax.data.episodes import Episode, EpisodeConfig
from hyperjax.data.layouts import Layout
from hyperjax.data.loader import fit, to_batch
from hyperjax.data.manifest import Manifest
from hyperjax.data.prompts import PromptFormat
from hyperjax.data.shapes import BatchShape
from hyperjax.data.shots import NumShots
from hyperjax.evaluation import text_metrics

FEATURES = ("hyper_inputs", "inputs", "targets")
_IDS, _TEXTS = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.string)


def register_train_form(
  folder: str | os.PathLike, config: EpisodeConfig | CaclmConfig, *, seed: int, batch_size: int,
  num_steps: int, layout: str = "decoder",
) -> str:  # fmt: skip
  """Registers the training stream of a data folder as one task with the split `train`.

  Its examples follow the loader's order: by step, row and query. `layout` is that of the downstream
  model's queries.

  Returns:
    The task's name: `hyper_<mixture>`, or `caclm_<mixture>` for a `CaclmConfig`.
  """
  manifest = Manifest.load(folder)
  caclm = isinstance(config, CaclmConfig)

  def rows() -> Iterator[dict]:
    stream = config.stream(manifest, seed=seed, batch_size=batch_size, layout=layout)
    for step in range(num_steps):
      for row in range(batch_size):
        yield from _examples(stream.episode(step, row), stream.bucket(step), stream.layout)

  name = f"{'caclm' if caclm else 'hyper'}_{manifest.values['mixture']}"
  known = manifest.vocabulary
  vocabulary = seqio.PassThroughVocabulary(known["size"], known["eos_id"])
  _add(name, "train", rows, dict.fromkeys(FEATURES, _IDS), vocabulary)
  return name


def register_eval_forms(
  folder: str | os.PathLike, vocabulary, *, num_shots: NumShots | None, num_queries: int,
  max_queries: int | None, seed: int, layout: str = "decoder",
) -> str:  # fmt: skip
  """Registers the evaluation episodes of every task, and a mixture over them, split `test`.

  `vocabulary` is the loaded one that the folder was built with; `layout` is that of the downstream
  model's queries.

  A task has the metrics of texts that its source names, else exact match: `seqio.Evaluator` decodes
  the ids of an answer and compares the text with the references. It hands `hyper_inputs` to what
  predicts with `seqio.EncDecFeatureConverter(pack=False, passthrough_features={"hyper_inputs":
  seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)})`.

  Returns:
    The mixture's name, `hyper_<mixture>_eval`; its tasks are `hyper_<task>_eval`.

  Raises:
    ValueError: the folder was built with another vocabulary.
  """
  manifest = Manifest.load(folder)
  if manifest.vocabulary["fingerprint"] != vocabulary.fingerprint:
    raise ValueError(f"{folder} was built with another vocabulary than this one: name that one.")
  laid = layouts.of(layout, manifest.vocabulary)
  answers = _Answers(vocabulary, manifest.prompt)
  spec = {**dict.fromkeys(FEATURES, _IDS), "references": _TEXTS}
  names = []
  for task in manifest.tasks:
    store = manifest.store(task, eval_episodes.query_split(manifest.splits(task)))

    def rows(task: str = task, store=store) -> Iterator[dict]:
      episodes = eval_episodes.eval_episodes(
        manifest, task, num_shots=num_shots, num_queries=num_queries, max_queries=max_queries,
        seed=seed,
      )  # fmt: skip
      for episode in episodes:
        examples = _examples(episode, fit([episode], laid), laid)
        for query, example in zip(episode.queries, examples, strict=True):
          yield {**example, "references": store.references(query.id) or []}

    named = filter(None, map(text_metrics.named, manifest.metrics(task)))
    names.append(f"hyper_{task}_eval")
    _add(
      names[-1], "test", rows, spec, answers, postprocess_fn=_with_references,
      metric_fns=list(named) or [text_metrics.exact_match],
    )  # fmt: skip
  mixture = f"hyper_{manifest.values['mixture']}_eval"
  if mixture in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove(mixture)
  seqio.MixtureRegistry.add(mixture, names, default_rate=1.0)
  return mixture


class _Answers(seqio.PassThroughVocabulary):
  """The ids of targets and answers; decoded, their texts without what ends them."""

  def __init__(self, vocabulary, prompt: PromptFormat):
    super().__init__(vocabulary.size, vocabulary.eos_id)
    self._vocabulary, self._end = vocabulary, tuple(prompt.terminator_ids(vocabulary))

  def _decode(self, ids: Iterable[SupportsInt]) -> str:
    return prompts.text_of(list(map(int, ids)), self._end, self._vocabulary)


def _with_references(
  text: str, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> str | list[str]:
  """A target becomes the list of its references, or of itself alone where it has none."""
  if not is_target:
    return text
  return [reference.decode() for reference in example["references"]] or [text]


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
  name: str, split: str, rows: Callable[[], Iterable[dict]], spec: Mapping[str, tf.TensorSpec],
  vocabulary: seqio.Vocabulary, **options: Any,
) -> None:  # fmt: skip
  def dataset(split: str, shuffle_files: bool = False, seed: int | None = None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_generator(rows, output_signature=dict(spec))

  feature = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    seqio.FunctionDataSource(dataset, splits=(split,)),
    preprocessors=[seqio.CacheDatasetPlaceholder()],
    output_features=dict.fromkeys(FEATURES, feature),
    **options,
  )
