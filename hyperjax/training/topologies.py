"""TPU topologies as targets of compilation: none of their chips has to be there."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

GIB = 2**30

# What XLA lets a program have of a device's memory, in GiB. A device is a chip; of v4, a core.
_HBM = {
  "TPU v4": 15.25,
  "TPU v5 lite": 15.75,
  "TPU v5": 95.73,
  "TPU v6 lite": 31.24,
}
EXAMPLES = "v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:8x8"
_NAME = re.compile(r"v\w+:\d+(x\d+)*")

# libtpu reads these as it is loaded. Without them it asks a metadata server that is not there, and
# refuses a second process on this machine.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of TPUs.

  Attributes:
    name: 'v5e:4x4': the generation, and how many chips there are along each axis of its torus.
    devices: its devices, which can be compiled for and nothing else.
    hbm: bytes of memory that a program may have on each.
  """

  name: str
  devices: Sequence[jax.Device]
  hbm: int


def prepare() -> None:
  """Has this process, which does nothing else, compile for slices that are not there."""
  jax.config.update("jax_platforms", "cpu")  # this machine's own devices are not wanted
  # jax cannot read a TPU's programs back from its cache without a TPU.
  jax.config.update("jax_enable_compilation_cache", False)


def require_compiler() -> None:
  """Refuses to go on where libtpu, which holds XLA's TPU compiler, is not installed.

  Raises:
    ValueError: names what installs it.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      "compiling for TPUs needs the package libtpu, which is not installed (a TPU is not needed): "
      f"pip install 'jax[tpu]=={jax.__version__}', which names the libtpu of this jax"
    )


def load(name: str) -> Topology:
  """The topology of that name.

  Raises:
    ValueError: there is no such topology, or no compiler for it.
  """
  require_compiler()
  if not _NAME.fullmatch(name):
    raise ValueError(f"topology {name!r} is not of the form of {EXAMPLES}")
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  try:
    devices = topologies.get_topology_desc(topology_name=name, platform="tpu").devices
  except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"libtpu knows no topology {name!r} ({reason}); known: {EXAMPLES}") from error
  kind = devices[0].device_kind
  if kind not in _HBM:
    raise ValueError(
      f"topology {name!r} has devices of the kind {kind!r}, whose memory is not known here; known: "
      f"{', '.join(_HBM)}"
    )
  return Topology(name, devices, int(_HBM[kind] * GIB))
