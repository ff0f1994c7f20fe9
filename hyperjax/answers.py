"""What methods answer: a record of every query, made part by part; whole parts are kept."""

import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.progress
from flax import nnx

from hyperjax import storage
from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi
from hyperjax.data import continuations, eval_episodes, eval_sets, prompts
from hyperjax.data.episodes import Episode, Query
from hyperjax.data.eval_sets import EvalConfig, Group
from hyperjax.data.manifest import Manifest, digest
from hyperjax.data.vocabularies import Vocabulary
from hyperjax.evaluation import metrics, scoring

Record = dict[str, Any]

# Part of what stored answers are named by: raise it where scoring or decoding changes.
_SCORING = 6
# As many of the tasks that are too long are named.
_NAMED = 3
# The most batches of a part. All its phis are kept until it is scored: a part has fewer batches
# where they would take more bytes than this.
_PART_BATCHES = 8
_PHI_BYTES = 2**28


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


@dataclasses.dataclass(frozen=True)
class Part:
  """Batches of one group that are scored and stored together.

  Attributes:
    group: whose batches.
    batches: their numbers.
    size: batches of the longest part of the group: the phis of all its parts have one shape.
  """

  group: Group
  batches: range
  size: int

  @property
  def name(self) -> str:
    """What tells its episodes from those of other parts, and of other plans."""
    about = [list(self.group.tasks), dataclasses.asdict(self.group.shape)]
    return f"{digest(about)[:8]}-{self.batches.start}-{self.batches.stop}"

  def joined(self, phis: Sequence[Phi | None], batch_size: int) -> Phi | None:
    """The phis of its batches as one, filled up to `size` batches."""
    return phi_lib.join([*phis, *phis[-1:] * (self.size - len(phis))], batch_size)


def cut(method: Method, group: Group, batch_size: int) -> list[Part]:
  """A group's batches in parts of about one size, whose phis do not take too much memory."""
  integers = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
  support = Support(integers(batch_size, group.shape.support), integers(batch_size))
  phi = jax.eval_shape(scoring.produce, method.producer, method.downstream, support)
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(phi))
  most = max(1, min(_PART_BATCHES, _PHI_BYTES // max(1, size)))
  batches = group.num_batches(batch_size)
  each = -(-batches // -(-batches // most))
  return [
    Part(group, range(start, min(start + each, batches)), each)
    for start in range(0, batches, each)
  ]


@dataclasses.dataclass(frozen=True)
class Scorer:
  """Asks methods the queries of one configuration.

  Attributes:
    layout: of the queries that the downstream model reads.
    vocabulary, manifest: the data's.
    config: which queries, and supports.
    context: tokens that the downstream model was trained for; None without a limit. What goes
      beyond is asked all the same, and remarked on once.
  """

  layout: str
  vocabulary: Vocabulary
  manifest: Manifest
  config: EvalConfig
  context: int | None = None
  _plans: dict[Any, eval_sets.Plan] = dataclasses.field(default_factory=dict, repr=False)

  def key(self, method: Method, seed: int) -> str:
    """What a method's answers under one seed depend on."""
    config = dataclasses.asdict(dataclasses.replace(self.config, seeds=(seed,)))
    about = [
      _SCORING, method.identity, self.manifest.values["tasks"], self.vocabulary.fingerprint, seed,
      dict(method.control), config,
    ]  # fmt: skip
    return digest(about)[:16]

  def parts(self, method: Method, seed: int) -> list[Part]:
    """All queries of one seed."""
    control = dict(method.control)
    shuffle = control.pop("shuffle_outputs", False)
    place = tuple(sorted(control.items()))
    if place not in self._plans:
      plan = eval_sets.plan(self.manifest, self.config, layout=self.layout, **control)
      # Other plans ask the same of the same tasks, with supports elsewhere or of other tasks.
      if not self._plans and (note := remark(plan.tokens, self.context)):
        print(note, file=sys.stderr)
      self._plans[place] = plan
    groups = self._plans[place].draw(seed, shuffle_outputs=shuffle)
    return [
      part for group in groups for part in cut(method, group, self.config.batch_size)
    ]

  def score(
    self, method: Method, part: Part, advance: Callable[[float], None] = lambda share: None
  ) -> list[Record]:
    """The records of a part; calls `advance` with shares of it that are done."""
    end, group = self.manifest.prompt.terminator_ids(self.vocabulary), part.group
    phis, episodes = [], []
    for number in part.batches:
      support, real = eval_sets.supports(group, self.config.batch_size, number)
      phis.append(scoring.produce(method.producer, method.downstream, support))
      episodes += real
    phi = part.joined(phis, self.config.batch_size)
    del phis
    answered = ask_all(method.downstream, phi, episodes, group, self.config, end, advance)
    return [
      {
        "task": episode.task, "query_id": query.id,
        "input": self.vocabulary.decode(query.input.tolist()),
        **self._compare(found.ids, query, end),
        "log_likelihood": float(found.likelihoods[continuations.target_number(query)]),
        "tokens": len(query.target), **self._ranked(query, found.likelihoods, end),
        **self._references(episode.task, query),
      }
      for source, episode in enumerate(episodes)
      for column, query in enumerate(episode.queries)
      for found in [answered[source, column]]
    ]  # fmt: skip

  def _compare(self, ids: list[int], query: Query, end: tuple[int, ...]) -> Record:
    """The texts, and whether the answer ended in time and is the target.

    Up to its terminator, as targets are: what goes on behind an EOS is another answer, though its
    text may be the target's.
    """
    target = query.target.tolist()
    whole = [self.vocabulary.decode(x[: -len(end)]) for x in (ids, target)]
    match = int(tuple(ids[-len(end) :]) == end and metrics.exact_match(*whole))
    target, prediction = (prompts.text_of(x, end, self.vocabulary) for x in (target, ids))
    return {"target": target, "prediction": prediction, "exact_match": match}

  def _ranked(self, query: Query, found: np.ndarray, end: tuple[int, ...]) -> Record:
    """For a query with options, the likeliest one; the first of equals wins.

    By log-probabilities summed over its tokens, terminator included (T0, arXiv 2110.08207), and by
    their mean over its tokens (MetaICL, arXiv 2110.15943).
    """
    if not query.options:
      return {}
    total = found[: len(query.options)]
    likeliest = query.options[int(np.argmax(total))]
    by_token = query.options[int(np.argmax(total / [len(ids) for ids in query.options]))]
    return {
      "option_correct": int(np.array_equal(likeliest, query.target)),
      "option_by_token": prompts.text_of(by_token.tolist(), end, self.vocabulary),
    }

  def _references(self, task: str, query: Query) -> Record:
    """The texts that the answer is compared with, where its task has them."""
    split = eval_episodes.query_split(self.manifest.splits(task))
    found = self.manifest.store(task, split).references(query.id)
    return {"references": found} if found else {}


def remark(tokens: Mapping[str, int], context: int | None) -> str | None:
  """What to tell the user where a model reads more than it was trained for; None for nothing.

  Args:
    tokens: {task: the most that it reads at once}.
    context: what the model was trained for; None without a limit.
  """
  if context is None:
    return None
  most = sorted(((count, task) for task, count in tokens.items() if count > context), reverse=True)
  if not most:
    return None
  names = ", ".join(task for _, task in most[:_NAMED])
  more = f" and {len(most) - _NAMED} more tasks" if len(most) > _NAMED else ""
  return (
    f"note: a support and a query of {names}{more} have up to {most[0][0]} tokens together, the "
    f"model was trained for {context}: answers may be worse; NUM_SHOTS asks for fewer examples"
  )


@dataclasses.dataclass
class Answer:
  """What came of a query.

  Attributes:
    likelihoods: [its continuations] float32, in nats, as `continuations.of` orders them.
    ids: the greedy answer, terminator included.
  """

  likelihoods: np.ndarray
  ids: list[int]


def ask_all(
  downstream: nnx.Module, phi: Phi | None, episodes: Sequence[Episode], group: Group,
  config: EvalConfig, terminator: tuple[int, ...], advance: Callable[[float], None],
) -> dict[tuple[int, int], Answer]:  # fmt: skip
  """Asks all queries of some episodes, in full batches.

  Args:
    downstream: the model.
    phi: with a row for every episode (or one for all).
    episodes: of the group.
    group: has the shapes.
    config: how many rows a batch has, and tokens an answer may have.
    terminator: what ends an answer.
    advance: called with the share that is done, after each batch.

  Returns:
    {(episode, query): what came of it}.
  """
  width = continuations.width(group.shape.queries)
  most = lambda task: (
    group.tasks[task] if config.max_new_tokens is None else config.max_new_tokens
  )
  rows = [
    row
    for source, episode in enumerate(episodes)
    for row in continuations.rows(episode, width, group.layout, most(episode.task), source)
  ]
  computed = []  # all are dispatched before the first one is waited for
  for part, shape in continuations.pack(rows, group.continuations, config.batch_size):
    asked, sources = continuations.fill(
      part, episodes, shape, config.batch_size, width, group.layout
    )
    answers = scoring.ask(
      downstream, phi, sources, asked, max_new_tokens=shape.answer, terminator=terminator
    )
    computed.append((part, answers))
  out = {
    (source, column): Answer(np.zeros(len(continuations.of(query)), np.float32), [])
    for source, episode in enumerate(episodes)
    for column, query in enumerate(episode.queries)
  }
  for part, answers in computed:
    likelihoods, ids, count = map(np.asarray, answers)
    for number, row in enumerate(part):
      for place, lane in enumerate(row.lanes):
        found, query = out[row.source, lane.column], episodes[row.source].queries[lane.column]
        totals = continuations.totals(lane, query, likelihoods[number, place])
        found.likelihoods[lane.start : lane.stop] = totals
        if lane.start == 0:
          found.ids = ids[number, place, : count[number, place]].tolist()
    advance(1 / len(computed))
  return out


def collect(
  folder: pathlib.Path, name: str, method: Method, seed: int, scorer: Scorer,
  bar: rich.progress.Progress,
) -> list[Record]:  # fmt: skip
  """The records of a method under one seed, read back where they were made before.

  Each part is stored as it ends, in a folder beside the file that takes its place when all have.
  """
  file = folder / f"{name}-{seed}-{scorer.key(method, seed)}.json"
  kept = file.with_suffix("")
  if file.exists():
    records = json.loads(file.read_bytes())
  else:
    records, done = [], 0
    parts = scorer.parts(method, seed)
    task = bar.add_task(f"{name}, seed {seed}", total=sum(len(part.batches) for part in parts))
    for part in parts:
      stored = kept / f"{part.name}.json"
      if stored.exists():
        records += json.loads(stored.read_bytes())
      else:
        size = len(part.batches)
        found = scorer.score(method, part, lambda share, n=size: bar.advance(task, share * n))
        storage.write_whole(stored, json.dumps(found).encode())
        records += found
      done += len(part.batches)
      bar.update(task, completed=done)
    storage.write_whole(file, json.dumps(records).encode())
  shutil.rmtree(kept, ignore_errors=True)
  return records
