"""hyperjax's commands, as the benchmarks run them."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hyperjax import launch


def gin_arguments(files: Sequence[str], macros: Mapping[str, Any]) -> tuple[str, ...]:
  """The command line of gin files and bindings."""
  bindings = (f"--gin.{name}={value}" for name, value in macros.items())
  return (*(f"--gin_file={file}" for file in files), *bindings)


def run(module: str, arguments: Sequence[str]) -> None:
  """Runs a command in a process of its own; exits with its status where it fails."""
  print(">", module, *arguments, flush=True)
  status = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
  if status:
    sys.exit(status)


def check_same(out: pathlib.Path, given: Mapping[str, Any]) -> None:
  """A folder holds one experiment: what is finished in it is not made again.

  Args:
    out: the folder; `arguments.json` in it says what it was made with.
    given: what this experiment is made with.

  Raises:
    SystemExit: the folder was made with other arguments.
  """
  given = {name: str(value) for name, value in given.items()}
  file = out / "arguments.json"
  if not file.exists():
    launch.write_whole(out, file.name, json.dumps(given, indent=2) + "\n")
  before = json.loads(file.read_text())
  for name, value in given.items():
    if before.get(name) != value:
      sys.exit(f"{file}: made with {name} {before.get(name)}, not {value}: name another --out")
