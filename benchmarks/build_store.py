"""How fast a token store is built, and how fast batches are read from it.

    python -m benchmarks.build_store --examples 1000000
    python -m benchmarks.build_store --examples 50000 --documents

An example is a made-up line of words, about 30 tokens long with its answer; a document has about
600 tokens. The store is written into a temporary folder. Batches are counted as the loader gives
them: 10 shots and 8 queries, or CACLM windows of 512 tokens; only real tokens count.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import random
import sys
import tempfile
import threading
import time

import psutil

from hyperjax.data.caclm import CaclmConfig
from hyperjax.data.episodes import EpisodeConfig
from hyperjax.data.loader import Loader
from hyperjax.data.manifest import DataConfig
from hyperjax.tasks import lexical_words

NAME = "made_up"


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--examples", type=int, default=1_000_000, help="how many (default: 1000000)")
  p.add_argument("--documents", action="store_true", help="documents instead of examples")
  p.add_argument("--vocabulary", default="smollm2-135m-instruct", help="as for hyperjax train")
  p.add_argument("--batches", type=int, default=50, help="of 32 episodes each (default: 50)")
  return p


@dataclasses.dataclass(frozen=True)
class MadeUp:
  """A source of one task."""

  examples: int
  documents: bool
  name: str = NAME

  def available(self) -> bool:
    return True

  def fingerprints(self) -> dict[str, str]:
    return {NAME: "1"}

  def register(self) -> None:
    from hyperjax.tasks import registry  # only here: the processes that tokenise import this file

    rows = functools.partial(make, self.examples, self.documents)
    registry.add_rows(NAME, ".", {"train": rows}, documents=self.documents)


def make(count: int, documents: bool):
  draw = random.Random(0)
  words = lexical_words.NOUNS + lexical_words.VERBS + lexical_words.ADJECTIVES
  for _ in range(count):
    chosen = draw.choices(words, k=600 if documents else 23)
    if documents:
      yield {"targets": " ".join(chosen)}
    else:
      yield {"inputs": " ".join(chosen[:21]), "targets": " ".join(chosen[21:])}


def sampled(stream, batches: int) -> tuple[int, float]:
  """The real tokens of a loader's batches, and the seconds that they took."""
  with Loader(stream, stop_step=batches + 1) as loader:
    next(iter(loader))
    start, tokens = time.perf_counter(), 0
    for _, _, info in itertools.islice(loader, batches):
      tokens += info.counts.support_tokens + info.counts.query_tokens
    return tokens, time.perf_counter() - start


class Memory:
  """The most memory of this process and those below it at once, in MiB; a context manager."""

  def __enter__(self) -> "Memory":
    self.peak, self._end = 0, threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._end.set()
    self._thread.join()

  def _watch(self) -> None:
    this = psutil.Process()
    while not self._end.wait(1):
      with contextlib.suppress(psutil.NoSuchProcess):
        processes = [this, *this.children(recursive=True)]
        self.peak = max(self.peak, sum(p.memory_info().rss for p in processes) // 2**20)


def cpu_seconds() -> float:
  """Of this process and those that it has waited for."""
  return sum(os.times()[:4])


def main() -> int:
  args = parser().parse_args()
  from hyperjax.data import build  # only here: it imports TensorFlow

  config = DataConfig(NAME, args.vocabulary, sources=[MadeUp(args.examples, args.documents)])
  with tempfile.TemporaryDirectory() as out:
    start, spent = time.perf_counter(), cpu_seconds()
    with Memory() as memory:
      manifest = build.build(config, out)
    seconds, spent = time.perf_counter() - start, cpu_seconds() - spent
    episodes = CaclmConfig() if args.documents else EpisodeConfig(num_shots=10, num_queries=8)
    read, reading = sampled(episodes.stream(manifest, seed=0, batch_size=32), args.batches)
  tokens = manifest.split(NAME, "train")["tokens"]
  print(json.dumps({
    "examples": args.examples, "tokens": tokens, "seconds": round(seconds, 1),
    "tokens_per_second": round(tokens / seconds), "cpu_seconds": round(spent, 1),
    "peak_mib": memory.peak,
    "batch_tokens_per_second": round(read / reading),
  }))  # fmt: skip
  return 0


if __name__ == "__main__":
  sys.exit(main())
