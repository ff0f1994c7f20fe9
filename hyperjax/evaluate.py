"""`hyperjax evaluate`: all methods on the same held-out episodes, and a report.

    hyperjax evaluate --gin_file=runs/evaluate.gin --gin.EVAL_OUTPUT_DIR=runs/mine/eval \\
      --gin.RUNS="{'hyperllama': 'runs/mine/hyperllama', 'gisting': 'runs/mine/gisting'}"
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from hyperjax import launch, progress, runs
from hyperjax.data import eval_sets, vocabularies
from hyperjax.data.episodes import Episode, Query
from hyperjax.data.eval_sets import EvalConfig, Group
from hyperjax.data.manifest import Manifest
from hyperjax.data.prompts import PromptFormat
from hyperjax.data.vocabularies import Vocabulary
from hyperjax.evaluation import metrics, plots, report, scores, scoring
from hyperjax.hypermodels.in_context import InContext
from hyperjax.hypermodels.tuned import NoPhi
from hyperjax.models import families

Record = dict[str, Any]

# Part of what stored answers are named by: raise it where scoring or decoding changes.
_SCORING = 2


@dataclasses.dataclass(frozen=True)
class Method:
  """One row of the report.

  Attributes:
    producer: what makes phi.
    downstream: the model that answers.
    identity: what its answers depend on besides the episodes; stored answers of another identity
      are not used.
    control: where its supports are, and how they differ from the other methods' (arguments of
      `eval_sets.groups`).
    reads_support: False where one seed's answers serve all seeds.
  """

  producer: nnx.Module
  downstream: nnx.Module
  identity: str
  control: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  reads_support: bool = True

  def under(self, **control: bool) -> "Method":
    """The same method under a control."""
    return dataclasses.replace(self, control={**self.control, **control})


def evaluate(
  *,
  output_dir: str,
  runs_by_method: Mapping[str, str],
  episodes: EvalConfig,
  hypermodel: str = "hyperllama",
  task_metrics: Mapping[str, str] | None = None,
  architecture: families.Config | None = None,
  data: runs.DataFolder | None = None,
  dry_run: bool = False,
) -> int:
  """Scores zero-shot, in-context, every run and the controls; writes a report.

  The control "another task's support" is left out where there is one task only.

  Answers are stored per method and seed as they are made: the same command goes on where it was
  stopped.

  Args:
    output_dir: where records, results.json, report.md and plots go.
    runs_by_method: {name in the report: folder of a training run}.
    episodes: which queries and supports.
    hypermodel: the run whose recovery is the headline and to which the controls belong.
    task_metrics: {a task, or the front part of some tasks' names: metric}, in place of the metric
      that the tasks' source names.
    architecture: what the runs' model is taken for; not checked where None.
    data: the held-out tasks; those of the hypermodel's own run where None.
    dry_run: print what would be done.
  """
  if hypermodel not in runs_by_method:
    raise ValueError(
      f"hypermodel {hypermodel!r} is none of the runs {sorted(runs_by_method)}: name its folder in "
      "RUNS, or set evaluate.hypermodel"
    )
  given = launch.configured(runs_by_method[hypermodel], "hyperjax.train", "train")
  if architecture not in (None, given["model"].architecture):
    raise ValueError(
      f"the runs' model is {given['model'].architecture}, not {architecture}: name its file of "
      "gin/models"
    )
  data = data or given["data"].held_out
  if dry_run:
    print(f"methods    zero_shot, in_context, {', '.join(runs_by_method)}, 3 controls")
    print(f"data       {data.config.title} in {data.path}")
    print(f"episodes   {episodes}")
    return 0

  vocabulary = vocabularies.load(data.config.vocabulary)
  manifest = data.open(vocabulary)
  tasks = manifest.select(episodes.include, episodes.exclude)
  chosen = scores.choose(
    {task: manifest.metrics(task) for task in tasks}, task_metrics,
    with_options=[task for task in tasks if eval_sets.have_options(manifest, task)],
  )  # fmt: skip
  left_out = eval_sets.count_left_out(manifest, episodes)
  loaded = given["model"].load()
  dtypes = given["model"].dtypes()
  layout = given["model"].architecture.layout
  methods = dict(_methods(runs_by_method, hypermodel, loaded, dtypes, manifest))
  scorer = Scorer(
    layout, vocabulary, manifest.prompt, episodes.batch_size, episodes.max_new_tokens
  )
  folder = pathlib.Path(output_dir)
  (folder / "answers").mkdir(parents=True, exist_ok=True)
  if len(tasks) == 1:  # there is no other task
    del methods["other_task_support"]
  launch.accept()
  records: dict[str, list[Record]] = {name: [] for name in methods}
  with progress.counter() as bar:
    for name, method in methods.items():
      for seed in episodes.seeds:
        draw = seed if method.reads_support else episodes.seeds[0]
        answers = _answers(folder, name, method, manifest, episodes, draw, scorer, bar)
        records[name] += [{**answer, "seed": seed} for answer in answers]
  run = launch.current()
  curve = {
    name: plots.read_curve(pathlib.Path(path) / "metrics.jsonl")
    for name, path in runs_by_method.items()
  }
  report.write(
    folder, records, hypermodel=hypermodel, config=run.config, command=run.command,
    curve={name: points for name, points in curve.items() if points} or None,
    task_metrics=chosen, left_out=left_out,
  )  # fmt: skip
  return 0


def _methods(
  runs_by_method: Mapping[str, str], hypermodel: str, loaded: tuple[nnx.Module, str], dtypes: str,
  manifest: Manifest,
) -> Iterator[tuple[str, Method]]:  # fmt: skip
  model, fingerprint = loaded
  base = f"{_SCORING} {fingerprint} {dtypes}"
  yield "zero_shot", Method(NoPhi(), model, base, reads_support=False)
  # A decoder's queries can share the support's keys and values; an encoder reads both at once.
  one_way = model.config.layout == "decoder"
  reader, place = (InContext(), {}) if one_way else (NoPhi(), {"inline": True})
  in_context = Method(reader, model, base, place)
  yield "in_context", in_context
  for name, folder in runs_by_method.items():
    run = runs.load(folder, loaded=loaded)
    read = (run.prompt.to_json(), run.vocabulary.fingerprint)
    if read != (manifest.prompt.to_json(), manifest.vocabulary["fingerprint"]):
      raise ValueError(
        f"{folder} was trained with the prompt format {run.prompt.name!r} and the vocabulary "
        f"{run.vocabulary.fingerprint[:12]}, {manifest.folder} was built with "
        f"{manifest.prompt.name!r} and {manifest.vocabulary['fingerprint'][:12]}: set PROMPT and "
        "VOCABULARY as the run has them, and another DATA_DIR"
      )
    place = {"inline": True} if run.inline else {}
    reads = run.inline or getattr(run.producer, "reads_support", True)
    method = Method(run.producer, run.downstream, f"{base} {run.trained_hash}", place, reads)
    yield name, method
    if name == hypermodel:
      yield "other_task_support", method.under(other_support=True)
      yield "shuffled_outputs", method.under(shuffle_outputs=True)
  # What shuffling does to the model that reads the support itself: the control's own measure.
  yield "in_context_shuffled", in_context.under(shuffle_outputs=True)


def _answers(
  folder, name, method, manifest: Manifest, episodes: EvalConfig, seed, scorer, bar
) -> list[Record]:
  """The records of a method under one seed, read back where they were made before."""
  about = json.dumps(
    [method.identity, manifest.values["tasks"], scorer.vocabulary.fingerprint, seed,
     dict(method.control), dataclasses.asdict(dataclasses.replace(episodes, seeds=(seed,)))]
  )  # fmt: skip
  key = hashlib.sha256(about.encode()).hexdigest()[:16]
  file = folder / "answers" / f"{name}-{seed}-{key}.json"
  if file.exists():
    return json.loads(file.read_text())
  groups = eval_sets.groups(manifest, episodes, seed, layout=scorer.layout, **method.control)
  total = sum(-(-len(group.episodes) // episodes.batch_size) for group in groups)
  task = bar.add_task(f"{name}, seed {seed}", total=total)
  records = []
  for group in groups:
    for found in scorer.score(method, group):
      records += [_with_references(record, manifest) for record in found]
      bar.advance(task)
  report.write_whole(file, json.dumps(records).encode())
  return records


def _with_references(record: Record, manifest: Manifest) -> Record:
  """The record with the texts that its answer is compared with, where its task has them."""
  split = eval_sets.query_split(manifest.splits(record["task"]))
  found = manifest.store(record["task"], split).references(record["query_id"])
  return {**record, "references": found} if found else record


@dataclasses.dataclass(frozen=True)
class Scorer:
  """Scores groups of episodes, laid out for one kind of model."""

  layout: str
  vocabulary: Vocabulary
  prompt: PromptFormat
  batch_size: int
  max_new_tokens: int | None

  def score(self, method: Method, group: Group) -> Iterator[list[Record]]:
    """Yields the records of one batch after another."""
    end, longest = self.prompt.terminator_ids(self.vocabulary), group.longest_input
    for batch, _, episodes in eval_sets.batches(group, self.batch_size):
      phi = scoring.produce(method.producer, method.downstream, batch.support)
      likelihood = np.asarray(scoring.teacher_forced(method.downstream, phi, batch)[0])
      ids, count = scoring.answers(
        method.downstream, phi, batch, end, longest, self.max_new_tokens
      )
      ranked = self._ranked(method.downstream, phi, episodes, group)
      yield [
        {
          "task": episode.task, "query_id": query.id,
          "input": self.vocabulary.decode(query.input.tolist()),
          **self._compare(ids[row, column, : count[row, column]].tolist(), query, end),
          "log_likelihood": float(likelihood[row, column]), "tokens": len(query.target),
          **ranked.get((row, column), {}),
        }
        for row, episode in enumerate(episodes)
        for column, query in enumerate(episode.queries)
      ]  # fmt: skip

  def _compare(self, ids: list[int], query: Query, end: tuple[int, ...]) -> Record:
    """The texts, and whether the answer ended in time and is the target."""
    ended = tuple(ids[-len(end) :]) == end
    prediction = self.vocabulary.decode(ids[: -len(end)] if ended else ids).strip()
    target = self._target_text(query.target)
    match = int(ended and metrics.exact_match(prediction, target))
    return {"target": target, "prediction": prediction, "exact_match": match}

  def _ranked(
    self, downstream, phi, episodes: Sequence[Episode], group: Group
  ) -> dict[tuple[int, int], Record]:
    """For queries with options, the likeliest one; the first of equals wins.

    By log-probabilities summed over its tokens, terminator included (T0, arXiv 2110.08207), and by
    their mean over its tokens (MetaICL, arXiv 2110.15943).
    """
    queries = {
      (row, column): query
      for row, episode in enumerate(episodes)
      for column, query in enumerate(episode.queries)
      if query.options
    }
    scores = []
    for option in range(max((len(q.options) for q in queries.values()), default=0)):
      asked = [eval_sets.with_targets(episode, option) for episode in episodes]
      batch = eval_sets.fill(asked, group, self.batch_size)
      scores.append(np.asarray(scoring.teacher_forced(downstream, phi, batch)[0]))
    found = {}
    for (row, column), query in queries.items():
      total = np.array([s[row, column] for s in scores[: len(query.options)]])
      likeliest = query.options[int(np.argmax(total))]
      by_token = query.options[int(np.argmax(total / [len(o) for o in query.options]))]
      found[row, column] = {
        "option_correct": int(np.array_equal(likeliest, query.target)),
        "option_by_token": self._target_text(by_token),
      }
    return found

  def _target_text(self, ids: np.ndarray) -> str:
    """The text of a target piece, without its terminator."""
    end = self.prompt.terminator_ids(self.vocabulary)
    return self.vocabulary.decode(ids[: -len(end)].tolist()).strip()


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `hyperjax evaluate`."""
  return launch.run("hyperjax.evaluate", "evaluate", argv, folder="EVAL_OUTPUT_DIR")


if __name__ == "__main__":
  sys.exit(main())
