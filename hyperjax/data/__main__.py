"""`hyperjax data`: builds token stores and a manifest from a task or mixture.

    hyperjax data --gin_file=... --out DIR
    hyperjax data --config_json FILE --out DIR     what train and evaluate start by themselves
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from hyperjax import launch
from hyperjax.data import build
from hyperjax.data.manifest import NO_ACCELERATOR, DataConfig


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the builder on a gin file, or on the JSON that `manifest.ensure` writes."""
  argv = list(sys.argv[1:] if argv is None else argv)
  os.environ.update(NO_ACCELERATOR)
  if not any(argument.split("=")[0] == "--config_json" for argument in argv):
    return launch.run(
      "hyperjax.data.build", "build", argv, flags={"out": "the data folder to write"}
    )
  parser = argparse.ArgumentParser(prog="hyperjax data")
  parser.add_argument("--config_json", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  arguments = parser.parse_args(argv)
  config = DataConfig.from_json(json.loads(arguments.config_json.read_text()))
  build.build(config, arguments.out)
  return 0


if __name__ == "__main__":
  sys.exit(main())
