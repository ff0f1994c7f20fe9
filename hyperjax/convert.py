"""hyperjax convert: write any model that hyperjax loads as a Hugging Face folder."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import jax.numpy as jnp

from hyperjax.data import vocabularies
from hyperjax.models import families
from hyperjax.sources import EMBEDDED

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

EPILOG = f"""\
The folder holds config.json, model.safetensors and the tokenizer; transformers and PEFT load it,
and so does every hyperjax command. Adapters name the model that they were made for by its
fingerprint. A copy that loses nothing (in float32, or in the source's own bfloat16) bears the
fingerprint of its source, so adapters for the one serve the other; a rounded copy is a model of its
own.

Examples:
  # the model that hyperjax carries, dequantised (540 MB)
  hyperjax convert --source {EMBEDDED} --out smollm2_135m

  # a GGUF file, in half the space
  hyperjax convert --source model.Q8_0.gguf --out model --dtype bfloat16

  # a model of the Hugging Face hub (downloads it)
  hyperjax convert --source HuggingFaceTB/SmolLM2-360M --out smollm2_360m
"""


def parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  p = argparse.ArgumentParser(
    prog="hyperjax convert",
    description="Write any model that hyperjax loads as a Hugging Face folder.",
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  p.add_argument(
    "--source",
    required=True,
    help=f"{EMBEDDED}, a folder, a .gguf file or a Hugging Face id",
  )
  p.add_argument("--out", required=True, type=pathlib.Path, help="a new or empty folder")
  p.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="default: float32")
  return p


def main(argv: Sequence[str] | None = None) -> int:
  """Converts one model; returns the exit status."""
  args = parser().parse_args(argv)
  try:
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
      raise FileExistsError(f"--out {args.out} exists and is not empty; name a new folder")
    vocabulary = vocabularies.load(args.source)
    loaded = families.load(args.source, dtype=DTYPES[args.dtype])
    families.save(
      args.out,
      loaded.config,
      loaded.params,
      tokenizer=vocabulary,
      max_positions=families.context_length(args.source),
      original=loaded.fingerprint if loaded.exact else None,
    )
  except (OSError, ValueError) as e:
    print(f"hyperjax convert: {e}", file=sys.stderr)
    return 1
  print(f"{args.out}: {args.dtype}, fingerprint {families.fingerprint(args.out)}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
