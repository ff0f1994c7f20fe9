"""text: documents of plain text files."""

import pytest

from hyperjax.tasks import text
from hyperjax.tasks.text import Folder, load


def test_a_file_is_one_document_or_several(tmp_path):
  file = tmp_path / "a.txt"
  file.write_text("one\n\n\ntwo\nlines\n\n\n\n")
  assert load(file) == ["one\n\n\ntwo\nlines\n\n\n\n"]
  assert load(file, "\n\n\n") == ["one", "two\nlines"]


def test_a_byte_order_mark_is_no_text(tmp_path):
  (tmp_path / "a.txt").write_bytes("\ufeffone".encode())
  assert load(tmp_path / "a.txt") == ["one"]


def test_a_long_document_is_cut_at_line_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(text, "MAX_CHARACTERS", 10)
  file = tmp_path / "a.txt"
  file.write_text("12345\n789\n" * 3 + "x" * 25)
  pieces = load(file)
  assert "".join(pieces) == file.read_text()
  assert max(map(len, pieces)) <= 10 and pieces[0] == "12345\n789\n"


def test_errors_name_the_file(tmp_path):
  (tmp_path / "empty.txt").write_text(" \n")
  with pytest.raises(ValueError, match=r"empty\.txt: it holds no text"):
    load(tmp_path / "empty.txt")
  with pytest.raises(ValueError, match="include names 'emty'.*Did you mean 'empty'"):
    Folder(str(tmp_path), include=["emty"]).files()
  with pytest.raises(ValueError, match="separator is empty"):
    Folder(str(tmp_path), separator="")


def test_the_separator_is_part_of_the_fingerprint(tmp_path):
  (tmp_path / "a.txt").write_text("text")
  one, other = Folder(str(tmp_path)), Folder(str(tmp_path), separator="\n\n")
  assert one.fingerprints().keys() == {"text.a"}
  assert one.fingerprints() != other.fingerprints()
