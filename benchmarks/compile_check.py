"""Compiles training steps for TPU pods, without one, and compares what they need with what is
recorded in compile_check.json: bytes of memory and of collectives, products, kernels.

    python -m benchmarks.compile_check                        # all, some minutes each
    python -m benchmarks.compile_check --only NAME [NAME ...]
    python -m benchmarks.compile_check --record               # what is found is right from now on

The compiler is deterministic: with the versions that are recorded a difference has its cause in
hyperjax, and the exit status is 1. With other versions differences are printed only. What is
finished is kept in --out, and compiled again only when the step (or a version) has changed.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyperjax import compile as compile_lib
from hyperjax import launch, storage
from hyperjax.launch import command_line
from hyperjax.training import topologies

RECORD = pathlib.Path(__file__).with_suffix(".json")
UNREAD = ["MODEL_DIR='not_read'", "DATA_DIR='not_read'", "TRAIN_STEPS=1_000_000"]
DATA = "data/lexical.gin"  # read by nobody: batches have the largest shape of the configuration
TINY = ["runs/mtf.gin", "meshes/fsdp.gin"]
SMALL = ["BATCH_SIZE=4", "NUM_QUERIES=2", "EPISODE_LIMIT=(32, 16, 4)", "REMAT='full'"]

# {name: (topology, gin files, bindings)}. The first two take seconds: `make test` has them.
CONFIGURATIONS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
  "tiny_hyperllama_v5e_2x2": (
    "v5e:2x2", ["models/llama_tiny.gin", "systems/hyperllama.gin", DATA, *TINY],
    [*SMALL, "LOOP='one_scan'"],
  ),
  "tiny_hypert5_v5e_2x2": (
    "v5e:2x2", ["models/t5_tiny.gin", "systems/hypert5_prefix.gin", DATA, *TINY], SMALL
  ),
  **{
    name: (topology, [DATA, f"pods/{name}.gin"], [])
    for name, topology in {
      "hyperllama_7b_v5e_4x4": "v5e:4x4",
      "hyperllama_7b_v5e_4x4_long": "v5e:4x4",
      "hyperllama_7b_v5e_8x8_tensor": "v5e:8x8",
      "hyperllama_7b_v5e_16x16": "v5e:16x16",
      "hyperllama_7b_v5p_4x4x4": "v5p:4x4x4",
      "hyperllama_7b_v6e_8x8": "v6e:8x8",
      "hyperllama_70b_v5p_4x8x8": "v5p:4x8x8",
      "hyperllama_70b_v6e_16x16": "v6e:16x16",
      "hypert5_prefix_xl_v5e_8x8": "v5e:8x8",
      "hypert5_lora_xl_v5e_8x8": "v5e:8x8",
      "hypert5_prefix_xxl_v5e_8x8": "v5e:8x8",
      "hypert5_lora_xxl_v5e_8x8": "v5e:8x8",
    }.items()
  },
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these configurations")
  p.add_argument("--record", action="store_true", help=f"write what is found to {RECORD.name}")
  p.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("runs/compile_check"), metavar="FOLDER",
    help="where finished compilations are kept (default: runs/compile_check)",
  )  # fmt: skip
  return p


def chosen(names: Sequence[str]) -> list[str]:
  """The names, all where none is given; exits where one is unknown."""
  for name in names:
    if name not in CONFIGURATIONS:
      sys.exit(f"no configuration {name!r}.{command_line.nearest(name, [*CONFIGURATIONS])}")
  return [*names] or [*CONFIGURATIONS]


def training(name: str) -> compile_lib.Training:
  """What a configuration trains."""
  _, files, bindings = CONFIGURATIONS[name]
  given = launch.arguments(files, "hyperjax.train", "train", bindings=[*UNREAD, *bindings])
  return compile_lib.Training.of(given)


def measure(name: str, out: pathlib.Path) -> dict[str, Any]:
  """What a configuration needs: from its file in `out`, else compiled and written there."""
  topology = topologies.load(CONFIGURATIONS[name][0])
  given = training(name)
  shape = given.largest_shape
  lowered = given.lower(topology, shape)
  key = {
    "topology": topology.name, "program": compile_lib.program_hash(lowered),
    "versions": compile_lib.versions(),
  }  # fmt: skip
  file = out / f"{name}.json"
  if file.exists() and (kept := json.loads(file.read_text()))["key"] == key:
    return kept["found"]
  print(f"{name}: compiling", flush=True)
  report = compile_lib.make(lowered)
  found = compile_lib.as_json(given, topology, shape, report)
  out.mkdir(parents=True, exist_ok=True)
  storage.write_whole(file, json.dumps({"key": key, "found": found}, indent=2) + "\n")
  return found


def recorded(found: Mapping[str, Any]) -> dict[str, Any]:
  """Of what was found what is the same each time."""
  return {name: found[name] for name in ("fits", "memory", "costs")}


def differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
  """A line for each value that moved."""
  if isinstance(before, Mapping) and isinstance(now, Mapping):
    for key in [*before, *(key for key in now if key not in before)]:
      yield from differences(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))
  elif before != now:
    numbers = all(isinstance(x, int) and not isinstance(x, bool) for x in (before, now))
    share = f"  ({now / before - 1:+.2%})" if numbers and before else ""
    yield f"{where:<52} {_shown(before):>20} -> {_shown(now)}{share}"


def _shown(value: Any) -> str:
  whole = isinstance(value, int) and not isinstance(value, bool)
  return f"{value:,}" if whole else json.dumps(value)


def check(
  record: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], versions: Mapping[str, str]
) -> int:
  """Prints what moved since it was recorded; 1 where hyperjax is the cause, else 0.

  Args:
    record: what is recorded: `versions` and `configurations`.
    found: {configuration: what was found now}.
    versions: with which.
  """
  other = list(differences(record["versions"], versions))
  moved = 0
  for name, now in found.items():
    before = record["configurations"].get(name)
    lines = [] if before is None else list(differences(before, recorded(now)))
    moved += bool(lines)
    print(f"{name}: {'not recorded' if before is None else 'moved' if lines else 'as recorded'}")
    print("".join(f"  {line}\n" for line in lines), end="")
  if other:
    print("these versions are not the recorded ones, so nothing follows from a difference:")
    print("".join(f"  {line}\n" for line in other), end="")
  elif moved:
    print(f"{moved} of {len(found)} moved. Where that is meant: the same command with --record")
  return int(moved > 0 and not other)


def renewed(
  record: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], versions: Mapping[str, str]
) -> dict[str, Any]:
  """The record with what was found; arguments as `check` has them.

  Raises:
    SystemExit: other configurations are recorded with other versions.
  """
  kept = {name: x for name, x in record["configurations"].items() if name not in found}
  if kept and record["versions"] != versions:
    sys.exit(f"{', '.join(kept)} are recorded with other versions: record all, without --only")
  made = {name: recorded(now) for name, now in found.items()}
  both = {**kept, **made}
  return {
    "versions": dict(versions),
    "configurations": {name: both[name] for name in CONFIGURATIONS if name in both},
  }


def main() -> int:
  arguments = parser().parse_args()
  topologies.prepare()
  record = json.loads(RECORD.read_text())
  found = {}
  for name in chosen(arguments.only):
    found[name] = measure(name, arguments.out)
    print(f"{name}\n{compile_lib.describe(found[name])}\n", flush=True)
  if arguments.record:
    text = json.dumps(renewed(record, found, compile_lib.versions()), indent=2) + "\n"
    storage.write_whole(RECORD, text)
    return 0
  return check(record, found, compile_lib.versions())


if __name__ == "__main__":
  sys.exit(main())
