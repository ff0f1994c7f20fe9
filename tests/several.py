"""Real processes that train, forked from one that has imported everything: importing takes a slow
core longer than a tiny run does.

    python -m tests.several      starts them: reads JSON lines, answers each with one
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from hyperjax import train
from tests import ports
from tests import tiny as tiny_lib

TIMEOUT = 240  # seconds, for a machine that is busy


@dataclasses.dataclass(frozen=True)
class Layout:
  """Processes, the devices of each, and the mesh over all of them: data, fsdp, tensor."""

  processes: int
  devices: int
  mesh: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Run:
  """The processes of one run.

  Attributes:
    pids: one for each process.
    logs: files of what each of them printed.
  """

  pids: list[int]
  logs: list[pathlib.Path]

  def text(self) -> str:
    """What all of them printed."""
    return "\n".join(f"{log}:\n{log.read_text()}" for log in self.logs)


class Starter:
  """Starts runs, and asks how their processes ended."""

  def __init__(self, tiny: tiny_lib.Tiny, folder: pathlib.Path):
    # What XLA warns of is wanted in the logs.
    environment = tiny.environment() | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    self._tiny, self._folder, self._count = tiny, folder, 0
    self._process = subprocess.Popen(
      [sys.executable, "-m", "tests.several"], cwd=tiny_lib.ROOT, env=environment, text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

  def start(self, folder, layout: Layout, environment: dict | None = None, **macros) -> Run:
    """Starts `hyperjax train` in as many processes as the layout has."""
    address = f"localhost:{ports.free()}"
    sizes = dict(zip(("MESH_DATA", "MESH_FSDP", "MESH_TENSOR"), layout.mesh, strict=True))
    pids, logs = [], []
    for process in range(layout.processes):
      flags = [f"--coordinator_address={address}", f"--num_processes={layout.processes}",
               f"--process_id={process}"]  # fmt: skip
      logs.append(self._folder / f"{self._count}_{process}.log")
      pids.append(self._ask({
        "arguments": self._tiny.arguments(
          folder, *(flags if layout.processes > 1 else []), **sizes, **macros
        ),
        "environment": {
          "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
                       f"--xla_force_host_platform_device_count={layout.devices}",
          **(environment or {}),
        },
        "wide": macros.get("DTYPE") == "float64",
        "log": str(logs[-1]),
      }))  # fmt: skip
    self._count += 1
    return Run(pids, logs)

  def statuses(self, run: Run, seconds: float = TIMEOUT) -> list[int | None]:
    """The exit statuses (less than 0: of a signal); None of one that still runs after that time."""
    end = time.monotonic() + seconds
    return [self._ask({"pid": pid, "seconds": max(0, end - time.monotonic())}) for pid in run.pids]

  def wait_until(self, condition: Callable[[], bool], run: Run) -> None:
    """Returns when the condition holds; fails where a process of the run ends before that."""
    end = time.monotonic() + TIMEOUT
    while not condition():
      going = self.statuses(run, 0) == [None] * len(run.pids)
      assert going and time.monotonic() < end, run.text()
      time.sleep(0.01)

  def _ask(self, request: dict) -> int | None:
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def close(self) -> None:
    """Ends what still runs."""
    self._process.stdin.close()
    self._process.wait()


@contextlib.contextmanager
def starting(tiny: tiny_lib.Tiny, folder: pathlib.Path) -> Iterator[Starter]:
  starter = Starter(tiny, folder)
  try:
    yield starter
  finally:
    starter.close()


def _serve() -> dict | None:
  """Forks a process for each request; returns the request in that process, None at the end."""
  running = set()
  for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if "pid" not in request:
      pid = os.fork()
      if not pid:
        return request
      running.add(pid)
      print(pid, flush=True)
      continue
    status = _ended(request["pid"], request["seconds"])
    if status is not None:
      running.discard(request["pid"])
    print(json.dumps(status), flush=True)
  for pid in running:
    os.kill(pid, 9)
  return None


def _ended(pid: int, seconds: float) -> int | None:
  end = time.monotonic() + seconds
  while True:
    found, status = os.waitpid(pid, os.WNOHANG)
    if found:
      return os.waitstatus_to_exitcode(status)
    if time.monotonic() > end:
      return None
    time.sleep(0.02)


def _become(arguments: Sequence[str], environment: dict[str, str], wide: bool, log: str) -> int:
  os.environ.update(environment)
  jax.config.update("jax_enable_x64", wide)
  for number, path in ((0, os.devnull), (1, log), (2, log)):
    file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, number)
  return train.main(arguments)


if __name__ == "__main__":
  wanted = _serve()
  sys.exit(_become(**wanted) if wanted else 0)
