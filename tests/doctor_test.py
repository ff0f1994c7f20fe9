"""Tests of the doctor on made-up installations: clean, clashing, mixed, and without seqio."""

import base64
import hashlib
import importlib.metadata
import pathlib

import pytest

from hyperjax import doctor


def install(folder: pathlib.Path, name: str, files: dict[str, str], version="1.0"):
  """Writes a distribution with its RECORD, over whatever lies there, and returns it."""
  info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
  info.mkdir(parents=True)
  (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
  record = []
  for path, text in files.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    record.append(f"{path},sha256={digest},{len(text)}\n")
  (info / "RECORD").write_text("".join(record))
  return importlib.metadata.Distribution.at(info)


RELEASE = {"seqio/__init__.py": "release", "seqio/utils.py": "release too"}
NIGHTLY = {"seqio/__init__.py": "nightly", "seqio/utils.py": "release too"}


def test_a_sole_owner_is_clean(tmp_path):
  check = doctor.check_owner("seqio", install(tmp_path, "seqio", RELEASE), None)
  assert check.ok and check.detail == "1.0, the one owner of its 2 files"


def test_an_empty_shim_is_no_rival(tmp_path):
  shim = install(tmp_path, "seqio-nightly", {})
  assert doctor.check_owner("seqio", install(tmp_path, "seqio", RELEASE), shim).ok


def test_a_rival_that_won_is_found_by_its_files(tmp_path):
  release = install(tmp_path, "seqio", RELEASE)
  check = doctor.check_owner("seqio", release, install(tmp_path, "seqio-nightly", NIGHTLY))
  assert not check.ok
  assert "seqio-nightly 1.0 also claims 2 files" in check.detail
  assert "1 of 2 files are not the release's (seqio/__init__.py...)" in check.detail


def test_a_rival_that_lost_still_clashes(tmp_path):
  rival = install(tmp_path, "seqio-nightly", NIGHTLY)
  check = doctor.check_owner("seqio", install(tmp_path, "seqio", RELEASE), rival)
  assert not check.ok and "not the release's" not in check.detail


def test_files_deleted_by_uninstalling_the_rival_are_missed(tmp_path):
  release = install(tmp_path, "seqio", RELEASE)
  (tmp_path / "seqio" / "utils.py").unlink()
  assert "1 of 2 files" in doctor.check_owner("seqio", release, None).detail


def test_a_rival_alone_is_a_clash(tmp_path):
  check = doctor.check_owner("seqio", None, install(tmp_path, "seqio-nightly", NIGHTLY))
  assert not check.ok and not check.optional and "the release is not installed" in check.detail


def test_seqio_is_optional_where_stores_are_only_read():
  check = doctor.check_owner("seqio", None, None)
  assert check.optional and "can be read, but not built" in check.detail


def test_the_repair_names_both_packages_and_the_shims():
  command = doctor.repair_owners()
  assert "uninstall -y seqio-nightly tfds-nightly" in command
  assert "--force-reinstall --no-deps seqio tensorflow-datasets" in command
  assert str(doctor.SHIMS / "tfds-nightly") in command


def test_a_wheel_has_no_shims_to_name(monkeypatch, tmp_path):
  monkeypatch.setattr(doctor, "SHIMS", tmp_path / "absent")
  assert doctor.repair_owners().endswith("--no-deps seqio tensorflow-datasets")


@pytest.mark.parametrize(("optional", "status"), [(True, 0), (False, 1)])
def test_only_what_is_needed_fails(monkeypatch, capsys, optional, status):
  broken = doctor.Check("thing", False, "is broken", "mend it", optional)
  monkeypatch.setattr(doctor, "check_owners", lambda: [broken])
  assert doctor.main([]) == status
  out = capsys.readouterr().out
  assert "is broken\n      repair: mend it" in out and "jax" in out
