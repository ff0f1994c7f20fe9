"""How long ranking options takes, beside one large batch in which every option is a query.

    python -m benchmarks.rank_options --gin_file=models/smollm2_135m.gin \\
      --gin_file=systems/hyperllama.gin --gin_file=data/lexical.gin --gin_file=runs/mtf.gin

Made-up queries of 20 to 60 tokens with 2 to 5 options of 1 to 6 tokens, all mixed, as `hyperjax
evaluate` scores them, each query read once: padding, the making of batches and the choice of an
answer's first token count, the making of phi does not. The large batch is full of random tokens, of
as many a query and a target as inputs and options together have on average; its time is scaled to
their number. The weights are random, so no model has to be there.
"""

import argparse
import json
import sys
import time
from collections import Counter

import jax
import numpy as np
from flax import nnx

from benchmarks.beside import best
from benchmarks.hyperjax_side import configured, encode, make_batch
from benchmarks.work import Shape
from hyperjax import answers, systems
from hyperjax.data import continuations, eval_sets, loader
from hyperjax.data.episodes import Episode, Query
from hyperjax.data.layouts import DECODER
from hyperjax.evaluation import scoring
from hyperjax.progress import compilations


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--gin_file", action="append", required=True, help="as for hyperjax train")
  p.add_argument("--gin", action="append", default=[], metavar="NAME=VALUE", help="as there")
  p.add_argument("--options", type=int, default=10_000, help="how many (default: 10000)")
  p.add_argument("--batch_size", type=int, default=8, help="episodes (default: 8)")
  p.add_argument("--num_queries", type=int, default=10, help="of an episode (default: 10)")
  p.add_argument("--large", type=int, default=32, help="episodes of the large batch (default: 32)")
  return p


def make_episodes(options: int, num_queries: int, vocabulary: int) -> list[Episode]:
  """Episodes of random tokens with at least so many options."""
  draw = np.random.default_rng(0)
  length = lambda low, high: draw.integers(low, high + 1)
  ids = lambda low, high: draw.integers(0, vocabulary, length(low, high)).astype(np.int32)
  episodes = []
  while options > 0:
    queries = []
    for number in range(num_queries):
      texts = tuple(ids(1, 6) for _ in range(draw.integers(2, 6)))
      queries.append(Query(ids(20, 60), texts[0], number, texts))
      options -= len(texts)
    shots = tuple(ids(20, 60) for _ in range(4))
    episodes.append(Episode("made_up", ids(0, 0), shots, tuple(queries), (0,) * 4))
  return episodes


def group_of(episodes: list[Episode], num_queries: int) -> eval_sets.Group:
  """The episodes, with the shapes that an evaluation plans for them."""
  width = continuations.width(num_queries)
  rows = [row for e in episodes for row in continuations.rows(e, width, DECODER, 1)]
  planned = continuations.plan(Counter(row.sizes.rounded() for row in rows), width)
  return eval_sets.Group(
    {"made_up": 1}, loader.fit(episodes), episodes, DECODER, planned
  )


def rank(method: answers.Method, group: eval_sets.Group, size: int) -> tuple[float, int]:
  """The seconds that all options take, and the programs compiled in that time."""
  seconds, before, config = 0.0, None, eval_sets.EvalConfig(batch_size=size)
  for part in answers.cut(method, group, size):
    read = [eval_sets.supports(group, size, number) for number in part.batches]
    phis = [scoring.produce(method.producer, method.downstream, support) for support, _ in read]
    phi = jax.block_until_ready(part.joined(phis, size))
    episodes = [e for _, real in read for e in real]
    if before is None:
      compile_all(method, group, size, phi)
      before = compilations()
    start = time.perf_counter()
    answers.ask_all(method.downstream, phi, episodes, group, config, (), lambda share: None)
    seconds += time.perf_counter() - start
  return seconds, compilations() - before


def compile_all(method, group, size: int, phi) -> None:
  """Computes a row once in each shape."""
  width = continuations.width(group.shape.queries)
  rows = [(e, r) for e in group.episodes for r in continuations.rows(e, width, group.layout, 1)]
  for shape in group.continuations:
    episode, row = next((e, row) for e, row in rows if shape.holds(row.sizes))
    asked, sources = continuations.fill([row], [episode], shape, size, width, group.layout)
    found = scoring.ask(
      method.downstream, phi, sources, asked, max_new_tokens=shape.answer, terminator=()
    )
    jax.block_until_ready(found)


def main() -> int:
  args = parser().parse_args()
  given = configured(args.gin_file, args.gin)
  downstream, _ = given["model"].load()
  vocabulary = given["model"].architecture.vocab_size
  parts = systems.build_parts(given["hypermodel"], downstream, encode, 0)
  system = nnx.merge(parts.graph, parts.trained, parts.frozen)
  method = answers.Method(system.producer, system.downstream, "")
  episodes = make_episodes(args.options, args.num_queries, vocabulary)
  group = group_of(episodes, args.num_queries)
  seconds, compiled = rank(method, group, args.batch_size)
  assert compiled == 0, f"{compiled} programs were compiled after the first batch of each shape"

  texts = [(q, ids) for e in episodes for q in e.queries for ids in continuations.of(q)]
  tokens = sum(DECODER.length(len(q.input), len(ids)) for q, ids in texts)
  target = round(sum(len(ids) for _, ids in texts) / len(texts))
  query = round(tokens / len(texts))
  shape = Shape(args.large, group.shape.support, args.num_queries, query, target)
  batch = make_batch(shape, vocabulary)
  phi = scoring.produce(method.producer, method.downstream, batch.support)
  score = lambda: scoring.teacher_forced(method.downstream, phi, batch)[0]
  one = best(lambda: jax.block_until_ready(score()), repeats=3)
  large = one * tokens / (args.large * args.num_queries * query)
  digits = lambda x: float(f"{x:.4g}")
  print(json.dumps({
    "device": jax.devices()[0].device_kind, "options": len(texts), "tokens": tokens,
    "shapes": [[s.query, s.read, s.targets] for s in group.continuations],
    "seconds": digits(seconds), "large_batch_seconds": digits(large),
    "ratio": digits(seconds / large),
  }))  # fmt: skip
  return 0


if __name__ == "__main__":
  sys.exit(main())
