"""Slices of TPUs by name; with libtpu, where `make test` has put it, and without."""

import importlib.util

import pytest

from hyperjax.core import sharding
from hyperjax.training import topologies

with_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is not on the path: make test puts it there, from requirements-tpu.txt",
)


def test_without_its_compiler_a_slice_is_refused(monkeypatch):
  monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"libtpu, which is not installed.*pip install 'jax\[tpu\]="):
    topologies.load("v5e:4x4")


@pytest.mark.parametrize("name", ["v5e-16", "v5e:", "4x4", "v5e:4x", ""])
def test_another_form_is_refused(monkeypatch, name):
  monkeypatch.setattr(topologies, "require_compiler", lambda: None)
  with pytest.raises(ValueError, match="not of the form of v5e:4x4"):
    topologies.load(name)


@with_libtpu
@pytest.mark.parametrize("name, devices, gib", [
  ("v5e:4x4", 16, 15.75), ("v5p:2x2x1", 4, 95.73), ("v6e:8x8", 64, 31.24), ("v4:2x2x1", 8, 15.25),
])  # fmt: skip
def test_a_slice_has_devices_with_memory(name, devices, gib):
  found = topologies.load(name)
  assert len(found.devices) == devices and found.hbm == int(gib * 2**30)


@with_libtpu
def test_a_slice_that_there_is_not_is_refused():
  with pytest.raises(ValueError, match="knows no topology 'v5e:2x7'.*known: v5e:4x4"):
    topologies.load("v5e:2x7")


@with_libtpu
@pytest.mark.parametrize("name, mesh", [
  ("v6e:8x8", (1, 16, 4)), ("v6e:4x4", (2, 4, 2)), ("v5p:4x4x4", (1, 32, 2)),
])  # fmt: skip
def test_a_mesh_may_split_the_axes_of_a_torus(name, mesh):
  """jax.make_mesh does so on v5e only."""
  devices = topologies.load(name).devices
  built = sharding.MeshConfig(*mesh).build(devices)
  assert tuple(built.shape.values()) == mesh
  assert {device.id for device in built.devices.flat} == {device.id for device in devices}
