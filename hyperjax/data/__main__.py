"""`hyperjax data`: builds the token stores of a run's tasks, as `build` shows.

    hyperjax data --config_json FILE --out DIR     one of its folders: what train starts by itself
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from hyperjax import launch
from hyperjax.data.building import NO_ACCELERATOR
from hyperjax.data.manifest import DataConfig
from hyperjax.launch import command_line, open_files


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the builder on a gin file, or on the JSON that `building.ensure` writes."""
  argv = list(sys.argv[1:] if argv is None else argv)
  os.environ.update(NO_ACCELERATOR)
  if not any(argument.split("=")[0] == "--config_json" for argument in argv):
    return launch.run(
      "hyperjax.data.build", "build_parts", argv, folder=None,
      flags={"out": "the folder to write; it is DATA_DIR in training"},
    )  # fmt: skip
  open_files.allow_many()
  parser = argparse.ArgumentParser(prog="hyperjax data")
  parser.add_argument("--config_json", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  arguments = parser.parse_args(argv)
  try:
    from hyperjax.data import build  # only here: its processes import this file, and no TensorFlow

    config = DataConfig.from_json(json.loads(arguments.config_json.read_text()))
    build.build(config, arguments.out)
  except KeyboardInterrupt:
    return 130
  except Exception as error:
    if not command_line.raised_by_us(error, "hyperjax.data"):
      raise
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
