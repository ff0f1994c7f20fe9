"""Rows of users' files: what is read, what is refused, and where."""

import io

import hypothesis
import pytest
from hypothesis import strategies as st

from hyperjax.data import rows


def test_lines_have_their_places(tmp_path):
  file = tmp_path / "a.txt"
  file.write_bytes("one\r\ntwo\u2028still two\n\nlast".encode())
  assert list(rows.lines(file)) == [
    (f"{file}, line 1", "one\r\n"), (f"{file}, line 2", "two\u2028still two\n"),
    (f"{file}, line 3", "\n"), (f"{file}, line 4", "last"),
  ]  # fmt: skip
  assert list(rows.lines("elsewhere", io.BytesIO(b"x"))) == [("elsewhere, line 1", "x")]


def test_a_byte_order_mark_is_no_text(tmp_path):
  """In front of the first line alone, as Windows' editors write it."""
  mark = "\ufeff".encode()
  for name, contents in (("a.jsonl", b'{"input": "x"}\n'), ("a.json", b'[{"input": "x"}]')):
    (tmp_path / name).write_bytes(mark + contents)
    assert [row.fields for row in rows.read(tmp_path / name, ["input"])] == [{"input": "x"}]
  (tmp_path / "a.txt").write_bytes(mark + b"x\n" + mark + b"y")
  assert [line for _, line in rows.lines(tmp_path / "a.txt")] == ["x\n", "\ufeffy"]
  (tmp_path / "a.txt").write_bytes(mark)
  assert [line for _, line in rows.lines(tmp_path / "a.txt")] == [""]
  (tmp_path / "a.txt").write_bytes(mark + b"\xff")
  with pytest.raises(ValueError, match=r"a\.txt, line 1: not UTF-8"):
    list(rows.lines(tmp_path / "a.txt"))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no\.json does not exist"):
    rows.document(tmp_path / "no.json")
  with pytest.raises(ValueError, match=f"{tmp_path}, line 1: it cannot be read: .*directory"):
    list(rows.lines(tmp_path))


def test_a_line_may_be_as_long_as_the_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, "MAX_LINE", 20)
  file = tmp_path / "a.jsonl"
  file.write_bytes(b'{"input": "123456"}\n' * 2)
  assert len(rows.read(file, ["input"])) == 2
  file.write_bytes(b'{"input": "123456"}\n{"input": "1234567"}\n')
  with pytest.raises(ValueError, match=r"a\.jsonl, line 2: it has more than 20 bytes"):
    rows.read(file, ["input"])


LINE = st.sampled_from([b'{"input": "a", "output": "b"}', b'{"input": 1}', b"[]", b"NaN", b""])


@hypothesis.given(
  st.sampled_from(["any.json", "any.jsonl"]),
  st.binary(max_size=40) | st.lists(LINE | st.binary(max_size=9)).map(b"\n".join),
)
def test_any_bytes_are_rows_or_an_error_that_names_the_file(tmp_path_factory, name, contents):
  file = tmp_path_factory.getbasetemp() / name
  file.write_bytes(contents)
  try:
    found = rows.read(file, ["input"], ["output"])
  except ValueError as error:
    assert str(file) in str(error)
  else:
    assert found
    for row in found:
      assert row.where.startswith(str(file)) and row.fields["input"].strip()
