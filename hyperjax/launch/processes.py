"""Several processes as one run: found by themselves on Cloud TPU, named by flags elsewhere.

JAX is imported by those who join only: the processes that build data do without it.
"""

import os
import sys
from collections.abc import Mapping

FLAGS = {
  "coordinator_address": "HOST:PORT of process 0 of a run of several processes, the same in all; "
  "none of these three is needed on Cloud TPU",
  "num_processes": "how many processes the run has",
  "process_id": "which of them this one is, from 0",
}
# Seconds until all must have come: some may still be copying their data.
_JOIN = 600
# Seconds of silence after which a process is taken for dead, and the others end.
_HEARTBEAT = 30

_joined = False


def named(values: Mapping[str, str | None]) -> tuple[str, int, int] | None:
  """Returns (address, number of processes, this one's id) as flags give them; None without flags.

  Raises:
    ValueError: only some of the flags are given, or one cannot be meant.
  """
  if not any(values.values()):
    return None
  lacking = [f"--{name}" for name in FLAGS if not values[name]]
  if lacking:
    raise ValueError(f"give {' and '.join(lacking)} too, in every process of the run. See --help.")
  address, number, process = (str(values[name]) for name in FLAGS)
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal():
    raise ValueError(f"--coordinator_address={address} is not HOST:PORT, as in 10.0.0.2:8476.")
  if not number.isdecimal() or not process.isdecimal() or int(process) >= int(number):
    raise ValueError(
      f"--process_id={process} --num_processes={number}: processes count from 0 to one less than "
      "their number."
    )
  return address, int(number), int(process)


def join(values: Mapping[str, str | None]) -> None:
  """Makes this process one of its run's; called before JAX touches a device.

  JAX itself ends a process (SIGABRT, status 134, with a message) whose others do not come in time,
  and later one whose others have died.

  Args:
    values: {flag: value}, of `FLAGS`. Without them, a process that computes on Cloud TPUs finds the
      others by itself, and any other process is a run of its own.

  Raises:
    ValueError: as `named`.
  """
  global _joined
  import jax

  flags = named(values)
  # JAX sets the platforms by itself where it finds TPUs.
  if flags is None and "tpu" not in (jax.config.jax_platforms or "").split(","):
    return
  timeouts = {"initialization_timeout": _JOIN, "heartbeat_timeout_seconds": _HEARTBEAT}
  try:
    jax.distributed.initialize(*(flags or ()), **timeouts)
  except ValueError as error:
    if flags is not None:
      raise
    print(f"this TPU host runs alone: it knows of no others ({error})", file=sys.stderr)
    return
  _joined = True
  print(
    f"process {jax.process_index()} of {jax.process_count()}, with {jax.local_device_count()} of "
    f"{jax.device_count()} devices ({jax.devices()[0].device_kind})", flush=True,
  )  # fmt: skip


def writes() -> bool:
  """Whether this process writes what a run has once: its configuration and its metrics."""
  if not _joined:
    return True
  import jax

  return jax.process_index() == 0


def joined() -> bool:
  """Whether this process is one of a run of several."""
  return _joined


def fail(status: int) -> int:
  """Ends a process of several at once; on its own, returns the status for the usual way out.

  The usual way waits for all other processes, and these may be waiting for this one's part of a
  sum. They learn of its end and stop too.
  """
  if _joined:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status
