"""The convert command; models/parity_test.py tests that transformers reads what it writes."""

import json

import numpy as np
import pytest

from hyperjax import convert, sources
from hyperjax.data import vocabularies
from hyperjax.models import families, tensor_files, weights
from hyperjax.models.llama import LlamaConfig

CONFIG = LlamaConfig(
  vocab_size=49152, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_mlp=24,
  rope_theta=1e4, norm_epsilon=1e-5, tie_embeddings=False,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A tiny model with the embedded model's tokenizer."""
  folder = tmp_path_factory.mktemp("source") / "model"
  families.save(
    folder,
    CONFIG,
    families.random(CONFIG).params,
    tokenizer=vocabularies.load(sources.EMBEDDED),
    max_positions=123,
  )
  return folder


def test_the_copy_is_the_source_and_its_fingerprint_is_printed(source, tmp_path, capsys):
  out = tmp_path / "deep" / "copy"
  assert convert.main(["--source", str(source), "--out", str(out)]) == 0
  assert families.fingerprint(out) in capsys.readouterr().out
  one, other = families.load(source), families.load(out)
  assert one.config == other.config
  ours, copied = dict(weights.leaves(one.params)), dict(weights.leaves(other.params))
  assert ours.keys() == copied.keys()
  for path in ours:
    np.testing.assert_array_equal(ours[path], copied[path], err_msg=path)
  assert vocabularies.load(out).fingerprint == vocabularies.load(source).fingerprint
  assert other.fingerprint == families.fingerprint(out) == one.fingerprint
  raw = json.loads((out / "config.json").read_text())
  assert (raw["bos_token_id"], raw["eos_token_id"], raw["max_position_embeddings"]) == (1, 2, 123)


def test_a_copy_without_loss_goes_by_its_originals_fingerprint(source, tmp_path, capsys):
  half, whole = tmp_path / "half", tmp_path / "whole"
  convert.main(["--source", str(source), "--out", str(half), "--dtype", "bfloat16"])
  assert convert.main(["--source", str(half), "--out", str(whole)]) == 0
  assert families.fingerprint(whole) == families.load(whole).fingerprint
  assert families.fingerprint(whole) == families.fingerprint(half)
  note = whole / "hyperjax_origin.json"
  note.write_text("{}")
  with pytest.raises(ValueError, match="hyperjax_origin.json is damaged: delete it"):
    families.fingerprint(whole)
  note.unlink()
  assert families.fingerprint(whole) != families.fingerprint(half)


def test_a_half_sized_copy_of_a_half_sized_source_loses_nothing(source, tmp_path):
  half, copy, other = (str(tmp_path / name) for name in ("half", "copy", "other"))
  convert.main(["--source", str(source), "--out", half, "--dtype", "bfloat16"])
  assert convert.main(["--source", half, "--out", copy, "--dtype", "bfloat16"]) == 0
  assert families.fingerprint(copy) == families.fingerprint(half)
  assert (tmp_path / "copy/hyperjax_origin.json").exists()
  convert.main(["--source", half, "--out", other, "--dtype", "float16"])
  assert families.fingerprint(other) != families.fingerprint(half)
  assert not (tmp_path / "other/hyperjax_origin.json").exists()


def test_no_copy_is_ever_seen_without_its_origin(source, tmp_path, monkeypatch):
  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(weights, "note_origin", killed)
  with pytest.raises(KeyboardInterrupt):
    convert.main(["--source", str(source), "--out", str(tmp_path / "copy")])
  assert not list(tmp_path.iterdir())


def test_a_copy_that_has_changed_is_a_model_of_its_own(source, tmp_path):
  out = tmp_path / "copy"
  assert convert.main(["--source", str(source), "--out", str(out)]) == 0
  file = out / "model.safetensors"
  contents = bytearray(file.read_bytes())
  contents[-1] ^= 1
  file.write_bytes(contents)
  changed = families.fingerprint(out)
  assert changed != families.fingerprint(source)
  (out / "hyperjax_origin.json").unlink()
  assert families.fingerprint(out) == changed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_the_files(dtype, source, tmp_path):
  out = str(tmp_path / "m")
  assert convert.main(["--source", str(source), "--out", out, "--dtype", dtype]) == 0
  assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == dtype
  tensors = tensor_files.open_tensors(tmp_path / "m")
  assert {str(tensors.tensor(name).dtype) for name in tensors.shapes} == {dtype}
  assert families.fingerprint(out) != families.fingerprint(source)


def test_a_folder_with_something_in_it_is_left_alone(source, tmp_path, capsys):
  (tmp_path / "mine").write_text("precious")
  assert convert.main(["--source", str(source), "--out", str(tmp_path)]) == 1
  assert f"{tmp_path} exists and is not empty" in capsys.readouterr().err
  assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_filled(source, tmp_path):
  assert convert.main(["--source", str(source), "--out", str(tmp_path)]) == 0
  assert (tmp_path / "model.safetensors").exists()


def test_an_unknown_source_is_one_sentence(tmp_path, capsys):
  assert convert.main(["--source", "nowhere", "--out", str(tmp_path / "m")]) == 1
  error = capsys.readouterr().err
  assert "'nowhere'" in error and sources.EMBEDDED in error and error.count("\n") == 1
  assert not (tmp_path / "m").exists()


def test_the_help_teaches_with_examples(capsys):
  with pytest.raises(SystemExit):
    convert.main(["--help"])
  assert f"hyperjax convert --source {sources.EMBEDDED} --out" in capsys.readouterr().out
