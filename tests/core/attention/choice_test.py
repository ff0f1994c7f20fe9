"""Which kernel works on which attention, and what is refused."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from hyperjax.core import attention, masks
from hyperjax.core.phi import Prefix
from hyperjax.core.positions import Bias
from hyperjax.core.sharding import MESH_AXES
from hyperjax.hypermodels.gisting_t5 import EncoderGist
from tests.models import tiny, tiny_t5

LENGTH = jnp.asarray([[700]])
CAUSAL, WHOLE = masks.Causal(), masks.Whole(LENGTH)
GIST = masks.Gist(LENGTH[0], 4, 904, 60)
CACHED = masks.Cached(LENGTH, jnp.asarray(1), 700)
BRANCHES = masks.Branches(LENGTH, jnp.zeros((1, 1, 1024), jnp.int32), 2**19)


def on(monkeypatch, platform: str, capability: str = "9.0") -> None:
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  device = types.SimpleNamespace(compute_capability=capability)
  monkeypatch.setattr(jax, "devices", lambda: [device])


def chosen(asked, mask=CAUSAL, *, length=1024, keys=None, size=0, dtype=jnp.bfloat16, bias=None):
  """Of q with `length` and k with `keys` places, behind a prefix of `size`."""
  names = []

  def record(q, k, front):
    prefix = Prefix(front, front, jnp.zeros(1, jnp.int32)) if size else None
    names.append(attention.choose(asked, q, k, mask, prefix, bias))

  shapes = (1, 1, length, 4, 64), (1, 1, keys or length, 4, 64), (1, size, 4, 64)
  jax.eval_shape(record, *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
  return names.pop()


@pytest.mark.parametrize("platform, own", [("cpu", "blocks"), ("tpu", "splash"), ("gpu", "cudnn")])
def test_auto_is_the_machines_own_where_there_is_much_to_save(monkeypatch, platform, own):
  on(monkeypatch, platform)
  assert chosen("auto") == chosen("auto", WHOLE) == own
  assert chosen("auto", length=240, keys=240) == "einsum"
  assert chosen("auto", length=256, keys=320) == ("blocks" if own == "blocks" else "einsum")
  assert chosen("splash", length=256, keys=320) == "splash"
  assert chosen("einsum") == "einsum"


def test_a_prefix_counts_and_is_not_for_cudnn(monkeypatch):
  for asked in ("auto", "splash"):
    on(monkeypatch, "tpu")
    assert chosen(asked, length=256, size=1024) == chosen(asked, GIST) == "splash"
  on(monkeypatch, "gpu")
  for asked in ("auto", "cudnn"):
    assert chosen(asked, size=16) == chosen(asked, GIST) == "einsum"


@pytest.mark.parametrize("asked", ["auto", "splash", "cudnn"])
def test_the_einsum_stays_where_a_kernel_cannot_be_told(monkeypatch, asked):
  """T5's relative bias, a mask that is only drawn, what follows a cache, T5's look in one."""
  on(monkeypatch, {"cudnn": "gpu"}.get(asked, "tpu"))
  drawn = EncoderGist(LENGTH, LENGTH, 4)
  assert chosen(asked, WHOLE, bias=Bias(jnp.zeros((1, 1, 4, 1, 1)))) == "einsum"
  assert chosen(asked, drawn) == "einsum"
  assert chosen(asked, CACHED, length=1, keys=2**20) == "einsum"
  assert chosen(asked, BRANCHES, keys=2**20) == "einsum"
  assert chosen("blocks", BRANCHES, keys=2**20) == chosen("blocks", drawn) == "blocks"
  assert chosen(asked, WHOLE, length=1, keys=2**20) == "einsum"


def test_auto_takes_no_kernel_that_cannot_run(monkeypatch):
  on(monkeypatch, "gpu")
  assert chosen("auto", dtype=jnp.float32) == "einsum"
  for capability in ("7.5", "gfx90a"):
    on(monkeypatch, "gpu", capability)
    assert chosen("auto") == "einsum"


def test_the_mesh_says_which_machine_a_program_is_for():
  """As when it is compiled for TPUs on a machine without one."""
  device = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
  mesh = AbstractMesh((2, 1, 1), MESH_AXES, (AxisType.Auto,) * 3, abstract_device=device)
  assert chosen("auto") == "blocks"
  with jax.sharding.use_abstract_mesh(mesh):
    assert chosen("auto") == "splash"


@pytest.mark.parametrize("platform, capability, name, dtype, heads, message", [
  ("cpu", "", "splash", "bfloat16", 128, "needs TPUs, and this machine has CPUs"),
  ("cpu", "", "cudnn", "bfloat16", 128, "needs NVIDIA GPUs, and this machine has CPUs"),
  ("gpu", "7.5", "cudnn", "bfloat16", 128, "capability 8.0 or more, and this one's is 7.5"),
  ("gpu", "8.0", "cudnn", "float32", 128, r"they are float32 \(gin: DTYPE\)"),
  ("gpu", "8.0", "cudnn", "bfloat16", 160, "up to 128, and this model's are of 160"),
])  # fmt: skip
def test_a_kernel_that_cannot_run_is_refused(
  monkeypatch, platform, capability, name, dtype, heads, message
):
  on(monkeypatch, platform, capability)
  with pytest.raises(ValueError, match=f"attention is '{name}', which .*{message}: set ATTENTION"):
    attention.check(name, dtype, heads)
  attention.check("auto", dtype, heads)
  attention.check("einsum", dtype, heads)


def test_an_unknown_name_is_refused_with_the_known():
  for make in (tiny.llama, tiny_t5.t5):
    with pytest.raises(ValueError, match=r"one of \['auto', .*, 'cudnn'\], not 'flash'"):
      make(attention="flash")
