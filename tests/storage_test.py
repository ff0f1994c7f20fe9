"""Folders of buckets: copied whole or not at all, read and written under their own names."""

import asyncio
import contextlib
import errno
import fcntl
import os
import pathlib
import platform
import re
import threading
from unittest.mock import Mock

import gcsfs
import pytest

from hyperjax import adapt, convert, predict, report, storage
from tests import bucket as bucket_lib

bucket = bucket_lib.fixture


def test_what_is_an_address(tmp_path):
  assert storage.in_bucket("gs://mine/run") and not storage.in_bucket(tmp_path / "gs:")
  assert str(storage.folder("gs://mine/run") / "a") == "gs://mine/run/a"
  assert storage.folder(tmp_path) / "a" == tmp_path / "a"


@pytest.mark.parametrize("bucket, path, message", [
  (False, "gs://mine/data", "^DATA_DIR is gs://mine/data, not a folder: mount it.$"),
  (False, "s3://mine/data", "^DATA_DIR is s3://mine/data, not a folder: mount it.$"),
  (True, "s3://mine", "^DATA_DIR is s3://mine, not a folder or a gs:// address: mount it.$"),
  (True, "gs://mine", None), (True, "data/gs:", None), (False, "/data", None),
])  # fmt: skip
def test_an_address_that_is_not_served_is_refused(bucket, path, message):
  with contextlib.nullcontext() if message is None else pytest.raises(ValueError, match=message):
    storage.check_address(path, "DATA_DIR", "mount it", bucket=bucket)


@pytest.mark.parametrize("command, arguments", [
  (adapt, "--examples=ten.jsonl --out=gs://mine/a"),
  (predict, "--adapter=a --inputs=gs://mine/in.jsonl"),
  (convert, "--run=run --out=gs://mine/model"),
  (report, "runs/mine --out=s3://mine/compared"),
])
def test_an_address_is_not_taken_for_a_local_folder(capsys, command, arguments):
  with pytest.raises(SystemExit):
    command.parser().parse_args(arguments.split())
  assert re.search(r"(gs|s3)://mine/\S+ is an address, and this is", capsys.readouterr().err)


@pytest.mark.parametrize("command, arguments", [
  (adapt, "--checkpoint=~/run --examples=~/ten.jsonl --out=~/mine"),
  (predict, "--adapter=~/mine --inputs=~/in.jsonl --out=~/out.jsonl"),
  (convert, "--run=~/run --out=~/model"),
  (report, "runs/mine --out=~/compared"),
])  # fmt: skip
def test_each_command_knows_the_home_folder(monkeypatch, command, arguments):
  """A shell leaves the sign as it is behind another word."""
  monkeypatch.setenv("HOME", "/home/me")
  given = vars(command.parser().parse_args(arguments.split()))
  found = re.findall(r"/home/me/[\w.]+", str(given))
  assert [path.replace("/home/me", "~") for path in found] == re.findall(r"~[^ ]+", arguments)
  assert "~" not in str(given)


def test_without_gcsfs_an_address_is_refused(monkeypatch):
  monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"^gs://mine/run: reading buckets needs gcsfs: pip install"):
    storage.folder("gs://mine/run")


def test_a_folder_is_copied_once(bucket, tmp_path, capsys):
  bucket.put("stores/one/meta.json", b"{}")
  bucket.put("stores/one/00000/tokens.bin", bytes(range(256)) * 99)
  bucket.put("stores/one/empty", b"")
  bucket.put("stores/one-more/meta.json", b"other")
  to = tmp_path / "copies" / "one"
  storage.copy_folder("gs://mine/stores/one", to)
  copied = {str(file.relative_to(to)): file for file in to.rglob("*") if file.is_file()}
  assert copied.keys() == {"meta.json", "00000/tokens.bin", "empty"}
  assert copied["00000/tokens.bin"].read_bytes() == bytes(range(256)) * 99
  assert [path.name for path in to.parent.iterdir()] == ["one"]
  assert capsys.readouterr().out == f"copying gs://mine/stores/one to {to}\n"
  bucket.objects.clear()
  storage.copy_folder("gs://mine/stores/one", to)


def test_a_copy_that_fails_leaves_nothing(bucket, tmp_path):
  with pytest.raises(FileNotFoundError, match="^gs://mine/none: no such folder in the bucket"):
    storage.copy_folder("gs://mine/none", tmp_path / "none")
  bucket.put("a/one", b"1")
  bucket.put("a/two", b"2")
  bucket.forbidden.add("a/two")
  with pytest.raises(OSError, match="may not be read"):
    storage.copy_folder("gs://mine/a", tmp_path / "a")
  assert not list(tmp_path.iterdir())


def test_folders_are_copied_at_once_and_stay_where_another_one_fails(bucket, tmp_path, monkeypatch):
  names = [f"{i:02}" for i in range(2 * storage._AT_ONCE)]
  for name in names:
    bucket.put(f"stores/{name}/meta.json", name.encode())
  get, running, most = gcsfs.GCSFileSystem._get, [], []

  async def slowly(self, address, to, **options):
    running.append(address)
    most.append(len(running))
    await asyncio.sleep(0.2)
    await get(self, address, to, **options)
    running.remove(address)

  monkeypatch.setattr(gcsfs.GCSFileSystem, "_get", slowly)
  (tmp_path / "00").mkdir()  # is there already
  copies = {f"gs://mine/stores/{name}": tmp_path / name for name in names}
  with pytest.raises(FileNotFoundError, match="^gs://mine/stores/none: no such folder"):
    storage.copy_folders({**copies, "gs://mine/stores/none": tmp_path / "none"})
  assert 1 < max(most) <= storage._AT_ONCE
  assert sorted(path.name for path in tmp_path.iterdir()) == names
  assert not any((tmp_path / "00").iterdir())
  assert (tmp_path / "31" / "meta.json").read_bytes() == b"31"
  reads = len(bucket.read)
  storage.copy_folders(copies)
  assert len(bucket.read) == reads


def test_what_a_killed_copy_has_left_is_removed(bucket, tmp_path):
  bucket.put("a/one", b"1")
  mine, others = f".a.{platform.node()}.x.partial", ".a.another-machine.x.partial"
  for name in (mine, others):
    (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / name / "deep" / "half").write_text("old")
  storage.copy_folder("gs://mine/a", tmp_path / "a")
  assert {path.name for path in tmp_path.iterdir()} == {"a", others}
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["one"]
  assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_where_another_machine_was_the_first_its_copy_stays(bucket, tmp_path, monkeypatch):
  """They share a disk, and perhaps no lock."""
  bucket.put("a/one", b"1")
  rename = pathlib.Path.rename

  def late(self, to):
    (to / "deep").mkdir(parents=True)
    return rename(self, to)

  monkeypatch.setattr(pathlib.Path, "rename", late)
  storage.copy_folder("gs://mine/a", tmp_path / "a")
  assert [path.name for path in tmp_path.iterdir()] == ["a"]
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["deep"]


def test_of_two_that_ask_for_a_folder_one_waits_and_copies_nothing(bucket, tmp_path):
  bucket.put("a/one", b"1")
  handle = os.open(tmp_path, os.O_RDONLY)
  fcntl.flock(handle, fcntl.LOCK_EX)
  other = threading.Thread(target=storage.copy_folder, args=("gs://mine/a", tmp_path / "a"))
  other.start()
  other.join(0.5)
  assert other.is_alive()
  (tmp_path / "a").mkdir()
  os.close(handle)
  other.join()
  assert bucket.read == [] and list((tmp_path / "a").iterdir()) == []


def test_a_disk_that_locks_no_folders_is_copied_to(bucket, tmp_path, monkeypatch):
  bucket.put("a/one", b"1")
  monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.EBADF, "no lock")))
  other = f".a.{platform.node()}.x.partial"  # which goes on
  (tmp_path / other).mkdir()
  storage.copy_folder("gs://mine/a", tmp_path / "a")
  assert {path.name for path in tmp_path.iterdir()} == {"a", other}


@pytest.mark.parametrize("content", ["1ä\n", "1ä\n".encode(), iter([b"1", "ä\n".encode()])])
def test_a_file_is_written_whole_in_place_of_the_old_one(tmp_path, content):
  path = tmp_path / "new" / "file.txt"
  path.parent.mkdir()
  path.write_text("old")
  storage.write_whole(path, content)
  assert path.read_bytes() == b"1\xc3\xa4\n" and path.stat().st_mode & 0o777 == 0o644
  assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
  "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, error):
  path = tmp_path / "file.txt"
  path.write_text("old")

  def pieces():
    yield b"ne"
    raise error

  with pytest.raises(type(error)) as found:
    storage.write_whole(path, pieces())
  if isinstance(error, OSError):
    assert str(found.value) == f"{path} could not be written: No space left on device"
  assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"


def test_a_folder_that_cannot_be_made_is_said_with_the_file(tmp_path):
  (tmp_path / "a").write_text("")
  with pytest.raises(OSError, match=rf"^{tmp_path}/a/b could not be written: File exists$"):
    storage.write_whole(tmp_path / "a" / "b", "")


def test_a_text_is_one_object(bucket):
  storage.write_whole("gs://mine/run/config.gin", "A = 1")
  assert bucket.names() == ["run/config.gin"]
  assert storage.folder("gs://mine/run/config.gin").read_text() == "A = 1"
  assert [file.name for file in storage.folder("gs://mine/run").iterdir()] == ["config.gin"]
