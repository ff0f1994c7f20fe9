"""hyperjax's commands, as the benchmarks run them."""

import concurrent.futures
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hyperjax import storage


def gin_arguments(files: Sequence[str], macros: Mapping[str, Any]) -> tuple[str, ...]:
  """The command line of gin files and bindings."""
  bindings = (f"--gin.{name}={value}" for name, value in macros.items())
  return (*(f"--gin_file={file}" for file in files), *bindings)


def run(module: str, arguments: Sequence[str], log: pathlib.Path | None = None) -> None:
  """Runs a command in a process of its own; exits with its status where it fails.

  Args:
    module, arguments: the command.
    log: the file that gets what it prints; the terminal where None.
  """
  print(">", module, *arguments, *(("    log:", log) if log else ()), flush=True)
  command, start = [sys.executable, "-m", module, *arguments], time.monotonic()
  if log is None:
    status = subprocess.run(command, check=False).returncode
  else:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
      status = subprocess.run(command, check=False, stdout=file, stderr=file).returncode
    minutes = (time.monotonic() - start) / 60
    print(f"{log}: ended with status {status} after {minutes:.1f} minutes", flush=True)
  if status:
    sys.exit(status)


def at_once(work: Iterable[Callable[[], None]], jobs: int) -> None:
  """Does pieces of work that do not need each other, so many at a time.

  Each has a share of the cores to itself (on Linux): small models keep one core busy better than
  several. Where one fails, none is begun any more.
  """
  if jobs == 1:
    for piece in work:
      piece()
    return
  shares: queue.Queue = queue.Queue()
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  for i in range(jobs):
    shares.put(cores[i % len(cores) :: jobs] if cores else [])

  def pin() -> None:
    # Of this thread, and of the processes that it starts.
    if share := shares.get():
      os.sched_setaffinity(0, share)

  failed = threading.Event()

  def guarded(piece: Callable[[], None]) -> None:
    if not failed.is_set():
      try:
        piece()
      except BaseException:
        failed.set()
        raise

  with concurrent.futures.ThreadPoolExecutor(jobs, initializer=pin) as pool:
    for done in [pool.submit(guarded, piece) for piece in work]:
      done.result()


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
    storage.write_whole(file, json.dumps(given, indent=2) + "\n")
  before = json.loads(file.read_text())
  for name, value in given.items():
    if before.get(name) != value:
      sys.exit(f"{file}: made with {name} {before.get(name)}, not {value}: name another --out")
