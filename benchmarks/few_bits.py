"""What a frozen base in few bits saves and costs: the bytes of its weights on this machine's
device, and how a finished run answers held-out queries on it, always of the same episodes.

    python -m benchmarks.few_bits --run runs/quickstart/hyperllama --queries 16

The run was trained on the base as its own configuration has it; nothing is trained here. Exact
match is by teacher forcing, which equals greedy decoding. Prints JSON lines.
"""

import argparse
import dataclasses
import json
import sys
from typing import Any

import jax
from flax import nnx

from hyperjax import runs, systems, train
from hyperjax.core import quantised
from hyperjax.training import step as step_lib


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--run", required=True, help="the folder of a training run")
  p.add_argument(
    "--bits", type=int, nargs="*", choices=sorted(quantised.TYPES), default=[8, 4],
    help="besides none (default: 8 4)",
  )  # fmt: skip
  p.add_argument("--queries", type=int, default=16, help="of each held-out task (default: 16)")
  return p


def measure(folder: str, bits: int | None, queries: int) -> dict[str, Any]:
  """Bytes, and means over the run's held-out tasks, with its base in so many bits.

  Raises:
    FileNotFoundError: the folder holds no run.
    ValueError: the run has no held-out tasks to ask, or has trained its base.
  """
  given = runs.configured(folder)
  data = given["data"]
  if runs.held_out(given) is None:
    raise ValueError(
      f"{folder} was trained without held-out tasks, or on running text, which has none: name "
      "another --run"
    )
  model = dataclasses.replace(given["model"], bits=bits)
  systems.check_fits(
    given["hypermodel"], model.architecture, bits, "name a run that leaves them frozen"
  )
  downstream, fingerprint = model.load()
  run = runs.load(folder, loaded=(downstream, fingerprint))
  parts = step_lib.split(step_lib.System(run.producer, run.downstream))
  asked = dataclasses.replace(data.evaluation, max_queries=queries)
  watch = train.Watch.open(
    dataclasses.replace(data, evaluation=asked), run.vocabulary, parts.graph, run.config.layout
  )
  arrays = nnx.to_pure_dict(nnx.state(downstream))
  stored = sum(x.on_device_size_in_bytes() for x in jax.tree.leaves(arrays))
  return {
    "weights": model.dtypes(),
    "bytes": stored,
    "of_bfloat16": stored / (2 * quantised.numbers(arrays)),
    "queries": sum(int(mask.sum()) for _, mask in watch.batches),
    **watch.measure(parts.trained, parts.frozen),
  }


def main() -> int:
  args = parser().parse_args()
  try:
    for bits in (None, *args.bits):
      print(json.dumps(measure(args.run, bits, args.queries)), flush=True)
  except (OSError, ValueError) as error:
    print(f"benchmarks.few_bits: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
