"""hyperjax convert: write a model that hyperjax loads, or has trained, as a Hugging Face folder."""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hyperjax import runs, storage
from hyperjax.data import vocabularies
from hyperjax.models import families
from hyperjax.sources import EMBEDDED

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

EPILOG = f"""\
The folder holds config.json, model.safetensors and the tokenizer; transformers and PEFT load it,
and so does every hyperjax command. Adapters name the model that they were made for by its
fingerprint. A copy that loses nothing (in float32, or in the source's own bfloat16) bears the
fingerprint of its source, so adapters for the one serve the other; a rounded copy is a model of its
own, and so is what a run has trained.

Examples:
  # the model that hyperjax carries, dequantised (540 MB)
  hyperjax convert --source {EMBEDDED} --out smollm2_135m

  # a GGUF file, in half the space
  hyperjax convert --source model.Q8_0.gguf --out model --dtype bfloat16

  # a model of the Hugging Face hub (downloads it)
  hyperjax convert --source HuggingFaceTB/SmolLM2-360M --out smollm2_360m

  # the model that a run of systems/full.gin has trained, to be frozen in runs to come:
  # MODEL_SOURCE=my_t5
  hyperjax convert --run runs/full --out my_t5
"""


def parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  p = argparse.ArgumentParser(
    prog="hyperjax convert",
    description="Write any model that hyperjax loads, or has trained, as a Hugging Face folder.",
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  model = p.add_mutually_exclusive_group(required=True)
  model.add_argument("--source", help=f"{EMBEDDED}, a folder, a .gguf file or a Hugging Face id")
  model.add_argument(
    "--run", type=os.path.expanduser,
    help="the folder of a training run that changed its downstream model",
  )  # fmt: skip
  p.add_argument("--out", required=True, type=storage.local, help="a new or empty folder")
  p.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="default: float32")
  return p


def main(argv: Sequence[str] | None = None) -> int:
  """Converts one model; returns the exit status."""
  args = parser().parse_args(argv)
  try:
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
      raise FileExistsError(f"--out {args.out} exists and is not empty; name a new folder")
    write = _write_source if args.run is None else _write_run
    write(args.source or args.run, args.out, DTYPES[args.dtype])
  except (OSError, ValueError) as e:
    print(f"hyperjax convert: {e}", file=sys.stderr)
    return 1
  print(f"{args.out}: {args.dtype}, fingerprint {families.fingerprint(args.out)}")
  return 0


def _write_source(source: str, out: pathlib.Path, dtype: Any) -> None:
  vocabulary = vocabularies.load(source)
  loaded = families.load(source, dtype=dtype)
  families.save(
    out,
    loaded.config,
    loaded.params,
    tokenizer=vocabulary,
    max_positions=families.context_length(source),
    original=loaded.fingerprint if loaded.exact else None,
  )


def _write_run(folder: str, out: pathlib.Path, dtype: Any) -> None:
  """Writes a run's downstream model as its newest checkpoint has it.

  Raises:
    ValueError: training left that model as it was.
  """
  run = runs.load(folder)
  if "downstream" not in run.trained:
    raise ValueError(
      f"--run {folder}: training did not change its downstream model; convert that with --source "
      f"{run.model.source}"
    )
  params, like = (
    nnx.to_pure_dict(nnx.state(model))
    for model in (run.downstream, families.abstract(run.config, dtype=dtype))
  )
  families.save(
    out,
    run.config,
    jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), params, like),
    tokenizer=run.vocabulary,
    max_positions=families.context_length(run.model.source),
  )


if __name__ == "__main__":
  sys.exit(main())
