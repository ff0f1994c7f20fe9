"""Files of tensors, whatever the family: damaged ones are refused, whole ones read exactly."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hyperjax import sources
from hyperjax.models import tensor_files, weights

TENSORS = {
  "a": np.arange(12, dtype=np.float32).reshape(3, 4),
  "b": np.arange(5, dtype=np.float16),
  "c": np.linspace(-3, 3, 8).astype(ml_dtypes.bfloat16).reshape(2, 2, 2),
}


@pytest.fixture
def folder(tmp_path):
  save_file(TENSORS, tmp_path / "model.safetensors")
  return tmp_path


def test_tensors_are_read_as_written(folder):
  tensors = tensor_files.open_tensors(folder)
  assert tensors.shapes == {name: x.shape for name, x in TENSORS.items()}
  for name, x in TENSORS.items():
    found = tensors.tensor(name)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("keep", [4, 60, -1])
def test_a_file_that_is_cut_short_is_refused(keep, folder):
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(ValueError, match="model.safetensors is cut short"):
    tensor_files.open_tensors(folder)


def test_a_damaged_index_or_header_is_named(folder):
  file = folder / "model.safetensors"
  whole = file.read_bytes()
  file.write_bytes(whole.replace(b'"shape":[3,4]', b'"shape":[3;4]'))
  with pytest.raises(ValueError, match="model.safetensors is damaged: its header is no JSON"):
    tensor_files.open_tensors(folder)
  (folder / tensor_files.INDEX).write_text('{"weight_map": ')
  with pytest.raises(ValueError, match="model.safetensors.index.json is damaged: "):
    tensor_files.open_tensors(folder)


def test_a_header_whose_shapes_and_places_disagree_is_refused(folder):
  """Else a part of a tensor would be read from the next one."""
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes().replace(b'"shape":[3,4]', b'"shape":[3,9]'))
  with pytest.raises(ValueError, match=r"is damaged: tensor 'a' has the shape \[3, 9\] of F32 and"):
    tensor_files.open_tensors(folder)


def test_a_dtype_that_is_not_a_weights_is_refused(tmp_path):
  save_file({"x": np.arange(3, dtype=np.int8)}, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match="tensor 'x' has dtype I8; allowed: .*BF16"):
    tensor_files.open_tensors(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path):
  (tmp_path / "pytorch_model.bin").touch()
  with pytest.raises(FileNotFoundError, match="pytorch_model.bin"):
    tensor_files.open_tensors(tmp_path)


def test_an_index_that_disagrees_with_its_shards_is_refused(folder):
  listed = {name: "model.safetensors" for name in [*TENSORS, "ghost"]}
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": listed}))
  with pytest.raises(ValueError, match="disagree about the tensor 'ghost'"):
    tensor_files.open_tensors(folder)


def test_a_gguf_that_is_none_or_cut_short_is_refused(tmp_path):
  file = tmp_path / "m.gguf"
  file.write_bytes(b"GG")
  with pytest.raises(ValueError, match="is not a GGUF file"):
    tensor_files.open_tensors(file)
  file.write_bytes(b"PK\3\4" + bytes(40))
  with pytest.raises(ValueError, match="is not a little-endian GGUF file"):
    tensor_files.open_tensors(file)
  whole = sources.resolve(sources.EMBEDDED)
  with open(whole, "rb") as f:
    file.write_bytes(f.read(5000))
  with pytest.raises(ValueError, match="damaged or truncated GGUF"):
    tensor_files.open_tensors(file)


def test_sources_that_do_not_exist_say_what_is_allowed(tmp_path):
  for name in ("smollm2", str(tmp_path / "gone"), str(tmp_path / "gone.gguf"), "a/b.gguf"):
    with pytest.raises(FileNotFoundError, match="no such file or folder; allowed are 'smollm2-"):
      sources.resolve(name)


def test_a_hub_id_without_a_network_is_one_clear_error(monkeypatch):
  import huggingface_hub

  def offline(*args, **kwargs):
    raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand more")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  with pytest.raises(FileNotFoundError, match=r"'some/model'.*\(no connection\).*name the folder"):
    sources.resolve("some/model")


@given(
  inputs=st.lists(st.integers(1, 4), min_size=1, max_size=2),
  outputs=st.lists(st.integers(1, 4), min_size=1, max_size=2),
)
def test_an_entry_is_its_own_inverse_and_a_linear_map(inputs, outputs):
  shape = (*inputs, *outputs)
  kernel = np.random.default_rng(0).normal(size=shape)
  entry = weights.Entry("x", {"hf": "x"}, num_inputs=len(inputs))
  theirs = entry.theirs(kernel)
  assert theirs.shape == entry.file_shape(shape)
  np.testing.assert_array_equal(entry.ours(theirs, shape, "hf"), kernel)
  x = np.random.default_rng(1).normal(size=inputs)
  np.testing.assert_allclose(
    theirs @ x.ravel(), np.tensordot(x, kernel, len(inputs)).ravel(), atol=1e-12
  )


@pytest.mark.parametrize("rotated", [False, True])
def test_a_part_of_a_kernel_is_a_part_of_its_tensor(rotated):
  """Cut along the first input axis and the first output axis, as FSDP and tensor parallelism do."""
  shape = (6, 4, 10)
  kernel = np.random.default_rng(0).normal(size=shape)
  entry = weights.Entry("x", {"hf": "x"}, num_inputs=1, rotated=rotated)
  tensor = entry.theirs(kernel)
  if rotated:  # llama.cpp puts the halves of each head's rows side by side
    tensor = tensor.reshape(4, 2, 5, 6).swapaxes(1, 2).reshape(40, 6)
  index = slice(2, 5), slice(1, 3), slice(None)
  part = entry.file_part(shape, index)
  assert part == (slice(10, 30), slice(2, 5))
  found = entry.ours(tensor[part], (3, 2, 10), "gguf")
  np.testing.assert_array_equal(found, kernel[index])
  assert entry.file_part(shape, (slice(0, 6), slice(None), slice(0, 10))) == ()
  with pytest.raises(ValueError, match="is cut along another axis than the first"):
    entry.file_part(shape, (slice(None), slice(None), slice(0, 5)))


def test_a_part_of_a_tensor_is_read_alone(folder):
  tensors = tensor_files.open_tensors(folder)
  for name, part in (("a", (slice(1, 3), slice(0, 2))), ("b", (slice(2, 4),))):
    np.testing.assert_array_equal(tensors.tensor(name, part), TENSORS[name][part])
