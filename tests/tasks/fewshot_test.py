"""fewshot: reading folders of tasks, and an error for all that is wrong in them."""

import hashlib
import json
from unittest.mock import Mock

import pytest

from hyperjax.data import manifest
from hyperjax.tasks import fewshot
from hyperjax.tasks.fewshot import Folder

GOOD = [{"input": "a", "output": "b"}, {"input": 1, "output": 2.5, "options": ["x", 2.5]}]


def load(path) -> list[dict]:
  return list(fewshot.load(path))


def write(path, value):
  path.write_text(value if isinstance(value, str) else json.dumps(value))
  return path


def test_json_and_jsonl_read_alike(tmp_path):
  whole = write(tmp_path / "a.json", GOOD)
  lines = write(tmp_path / "b.jsonl", "\n\n".join(map(json.dumps, GOOD)) + "\n")
  expected = [
    {"input": "a", "output": "b"}, {"input": "1", "output": "2.5", "options": ["x", "2.5"]}
  ]  # fmt: skip
  assert load(whole) == load(lines) == expected


def test_of_jsonl_one_row_at_a_time_is_read(tmp_path):
  rows = fewshot.load(write(tmp_path / "a.jsonl", json.dumps(GOOD[0]) + "\n{"))
  assert next(rows) == GOOD[0]
  with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not JSON"):
    next(rows)


@pytest.mark.parametrize(
  "example,message",
  [
    ({"input": "a"}, "the field 'output' is missing"),
    ({"output": "a"}, "the field 'input' is missing"),
    ({"input": "a", "outptu": "b"}, "unknown field 'outptu'; allowed: input, output, options. "
                                    "Did you mean 'output'?"),
    ({"input": "a", "output": " "}, "the output is empty"),
    ({"input": "a", "output": "b", "options": ["b", "c", "b"]}, "option 'b' occurs twice"),
    ({"input": "a", "output": "b", "options": ["c"]}, "the output 'b' is none of its options"),
    ({"input": "a", "output": "b", "options": ["b", " "]}, "an option is empty"),
    ({"input": "a", "output": "b", "options": "b"}, "options must be a list, not 'b'"),
    ({"input": "a\ud800", "output": "b"}, "input is not Unicode text"),
    ({"input": "a", "output": ["b"]}, r"output must be text or a number, not \['b'\]"),
    ({"input": "a", "output": True}, "output must be text or a number, not True"),
    ({"input": None, "output": "b"}, "input must be text or a number, not None"),
    (["a", "b"], "an object with input, output is expected"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path, example, message):
  with pytest.raises(ValueError, match=rf"a\.json, row 3: ?.*{message}"):
    load(write(tmp_path / "a.json", [*GOOD, example]))
  with pytest.raises(ValueError, match=rf"a\.jsonl, line 3: ?.*{message}"):
    load(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, [*GOOD, example]))))


def test_files_that_are_no_list_of_examples(tmp_path):
  with pytest.raises(ValueError, match=r"a\.json: not JSON: .*\(column 2\)"):
    load(write(tmp_path / "a.json", "[,"))
  with pytest.raises(ValueError, match=r"a\.json: not JSON: .*\(line 2, column 1\)"):
    load(write(tmp_path / "a.json", "[\n,"))
  with pytest.raises(ValueError, match=r"b\.jsonl, line 2: not JSON: .*\(column 9\)"):
    load(write(tmp_path / "b.jsonl", '{"input": "a", "output": "b"}\n{"input"\n'))
  with pytest.raises(ValueError, match=r"b\.jsonl, line 1: not JSON: NaN is no JSON value"):
    load(write(tmp_path / "b.jsonl", '{"input": "a", "output": NaN}'))
  with pytest.raises(ValueError, match=r"c\.json must hold a list of objects"):
    load(write(tmp_path / "c.json", {"input": "a", "output": "b"}))
  with pytest.raises(ValueError, match=r"d\.json holds no rows"):
    load(write(tmp_path / "d.json", []))


def test_a_string_may_hold_any_line_separator(tmp_path):
  line = json.dumps({"input": "a\u2028b\x85", "output": "c"}, ensure_ascii=False)
  assert load(write(tmp_path / "a.jsonl", line)) == [{"input": "a\u2028b\x85", "output": "c"}]


@pytest.fixture
def folder(tmp_path):
  for stem in ("plural", "past-tense", "next_item"):
    write(tmp_path / f"{stem}.json", GOOD)
  write(tmp_path / "README.md", "not a task")
  return tmp_path


def test_names_are_made_legal(folder):
  tasks = Folder(str(folder)).files()
  assert list(tasks) == ["fewshot.next_item", "fewshot.past_tense", "fewshot.plural"]
  write(folder / "past_tense.json", GOOD)
  with pytest.raises(ValueError, match="both would be task 'fewshot.past_tense'"):
    Folder(str(folder)).files()


def test_include_and_exclude_are_file_stems(folder):
  assert list(Folder(str(folder), include=["plural"], name="my").files()) == ["my.plural"]
  assert len(Folder(str(folder), exclude=["past-tense"]).files()) == 2
  with pytest.raises(ValueError, match="exclude names 'past_tense', .*Did you mean 'past-tense'"):
    Folder(str(folder), exclude=["past_tense"]).files()
  with pytest.raises(ValueError, match="leave no task"):
    Folder(str(folder), include=["plural"], exclude=["plural"]).files()
  with pytest.raises(ValueError, match="Folder: include must be a list, not 'plural'"):
    Folder(str(folder), include="plural")
  with pytest.raises(FileNotFoundError, match="there is no folder"):
    Folder(str(folder / "nowhere")).files()


def test_a_fingerprint_follows_the_contents(folder):
  before = Folder(str(folder)).fingerprints()
  write(folder / "plural.json", [*GOOD, {"input": "c", "output": "d"}])
  after = Folder(str(folder)).fingerprints()
  assert [task for task in before if before[task] != after[task]] == ["fewshot.plural"]


def test_a_file_is_hashed_once_while_it_stays_as_it_is(folder, monkeypatch):
  hashed = Mock(wraps=hashlib.file_digest)
  monkeypatch.setattr(manifest.hashlib, "file_digest", hashed)
  first = Folder(str(folder), name="one").fingerprints()
  again = Folder(str(folder), name="one").fingerprints()
  Folder(str(folder), name="two").fingerprints()
  assert first == again and hashed.call_count == 3
  write(folder / "plural.json", GOOD[:1])
  changed = Folder(str(folder), name="one").fingerprints()
  assert changed.items() - first.items() == {("one.plural", changed["one.plural"])}
  assert hashed.call_count == 4


def test_two_files_for_one_task(folder):
  write(folder / "plural.jsonl", "")
  with pytest.raises(ValueError, match="two files for one task"):
    Folder(str(folder)).files()
