"""hyperjax's commands, as the benchmarks run them."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


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
