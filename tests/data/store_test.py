"""Stores: what is written is read, pieces are unique, nothing half-written is taken for whole."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax.data import store as store_lib
from hyperjax.data.encode import encode
from hyperjax.data.manifest import Manifest
from hyperjax.data.store import DOCUMENTS, EXAMPLES, Chunk, Store
from tests.data.fakes import (
  PROMPT,
  Bytes,
  Cased,
  chunk,
  filled,
  numbered,
  write_documents,
  write_examples,
  write_folder,
)

TEXT = st.text(max_size=8)
ROW = st.fixed_dictionaries(
  {"input": TEXT, "output": st.text(min_size=1, max_size=8)},
  optional={
    "options": st.lists(TEXT, max_size=3, unique=True), "definition": TEXT,
    "references": st.lists(TEXT, max_size=3),
  },
)


@settings(max_examples=50)
@given(st.lists(ROW, max_size=12))
def test_examples_come_back(rows):
  with tempfile.TemporaryDirectory() as folder:
    write_examples(Path(folder) / "s", rows)
    store, bytes_ = Store(Path(folder) / "s"), Bytes()
    assert len(store) == len(rows)
    encode_target = lambda text: PROMPT.encode_targets(bytes_, [text])[0]
    for i, row in enumerate(rows):
      assert store.input(i).tolist() == PROMPT.encode_inputs(bytes_, [row["input"]])[0]
      assert store.target(i).tolist() == encode_target(row["output"])
      options = store.options(i)
      assert ([o.tolist() for o in options] if options else []) == list(
        map(encode_target, row.get("options", []))
      )
      assert store.references(i) == row.get("references", [])
      definition = store.definition(i)
      assert (definition is None) == (not row.get("definition"))
      for j in range(i):
        assert (store.input_piece(i) == store.input_piece(j)) == (rows[j]["input"] == row["input"])
        same_target = rows[j]["output"] == row["output"]
        assert (store.target_piece(i) == store.target_piece(j)) == same_target


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=20), min_size=1), st.booleans())
def test_documents_come_back(documents, large):
  size = 2**16 + 1 if large else 2**16
  with tempfile.TemporaryDirectory() as folder:
    meta = write_documents(Path(folder) / "s", documents, size)
    assert meta["dtype"] == ("uint32" if large else "uint16")
    store = Store(Path(folder) / "s")
    assert [store.piece(i).tolist() for i in range(len(store))] == documents
    assert store.piece(0).dtype == np.int32
    assert store.window(len(documents) - 1, 1, 3).tolist() == documents[-1][1:4]


def test_statistics_count_examples_not_pieces(tmp_path):
  rows = [{"input": "a", "output": "b"}] * 3 + [{"input": "long", "output": "b"}]
  meta = write_examples(tmp_path / "s", rows)
  assert meta["distinct_inputs"] == 2 and meta["examples"] == 4 and meta["pieces"] == 3
  assert meta["lengths"]["input"]["mean"] == (3 * 2 + 5) / 4
  assert meta["lengths"]["shot"]["max"] == 7


def test_equal_tokens_share_a_piece_whatever_their_texts(tmp_path):
  rows = [
    {"input": "a", "output": "x"}, {"input": "A", "output": "X"}, {"input": "x", "output": "a"},
  ]  # fmt: skip
  for name, size in (("one", 3), ("more", 1)):  # in one chunk, or in several
    with store_lib.writing(tmp_path / name, kind=EXAMPLES, vocabulary_size=259) as writer:
      for i in range(0, 3, size):
        writer.add(encode(list(map(filled, rows[i : i + size])), Cased(), PROMPT))
    store = Store(tmp_path / name)
    assert store.meta["distinct_inputs"] == 2 and store.meta["pieces"] == 4
    # An input and a target are never one piece, though their prompts may write them alike.
    assert store.pairs[0].tolist() == store.pairs[1].tolist() and len(set(store.pairs.flat)) == 4
    assert [Bytes().decode(store.input(i)) for i in range(3)] == ["a=", "a=", "x="]


def test_targets_at_which_no_answer_ends_are_counted(tmp_path):
  """`PROMPT` ends with ";": each example with such a target counts, and no option does."""
  rows = [
    {"input": "a", "output": "b;c"}, {"input": "b", "output": "b;c"}, {"input": "c", "output": ";"},
    {"input": "d;", "output": "b", "options": ["b", "c;"]},
  ]  # fmt: skip
  assert write_examples(tmp_path / "s", rows)["ends_early"] == 3
  assert write_examples(tmp_path / "none", rows[3:])["ends_early"] == 0


def test_options_with_the_same_tokens_are_refused(tmp_path):
  """Were they not, each would be as likely as the other, and any answer right."""
  rows = [{"input": str(i), "output": "b", "options": ["a", "b"]} for i in range(3)]
  alike = {"input": "4", "output": "B", "options": ["a", "B", "b"]}
  write_examples(tmp_path / "bytes", [*rows, alike])  # in these they differ
  with pytest.raises(ValueError, match="^task test, example 4: its options 'B' and 'b' have the "
                     r"same tokens in this vocabulary.* \(gin: VOCABULARY\)"):
    with store_lib.writing(
      tmp_path / "s", kind=EXAMPLES, vocabulary_size=259, source="task test"
    ) as writer:
      writer.add(encode(list(map(filled, rows)), Cased(), PROMPT))
      writer.add(encode(list(map(filled, [rows[0], alike, rows[0]])), Cased(), PROMPT))
  assert not (tmp_path / "s").exists()


def test_an_interrupted_write_leaves_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    with store_lib.writing(tmp_path / "s", kind=DOCUMENTS, vocabulary_size=9) as writer:
      writer.add(chunk([[1, 2]]))
      raise KeyboardInterrupt
  assert list(tmp_path.iterdir()) == []
  assert not store_lib.complete(tmp_path / "s")
  with pytest.raises(FileNotFoundError, match="not a complete token store"):
    len(Store(tmp_path / "s"))


def test_other_versions_are_refused(tmp_path):
  meta = write_documents(tmp_path / "s", [[1]])
  (tmp_path / "s" / "meta.json").write_text(json.dumps({**meta, "version": 0}))
  assert not store_lib.complete(tmp_path / "s")
  with pytest.raises(ValueError, match="version 0.*rebuild"):
    len(Store(tmp_path / "s"))


def test_ids_beyond_the_vocabulary_are_refused(tmp_path):
  with pytest.raises(ValueError, match="70000 do not fit uint16"):
    with store_lib.writing(tmp_path / "s", kind=EXAMPLES, vocabulary_size=9) as writer:
      writer.add(Chunk(np.array([70000]), np.array([1]), [b"x"]))


def sharded(path, documents, *, check=lambda: None, start=0):
  """Writes documents, each a chunk of its own."""
  chunks = (chunk([document]) for document in documents[start:])
  store_lib.write_documents(path, chunks, vocabulary_size=2**16, check=check)


def same_store(one, other):
  assert {k: v for k, v in one.meta.items() if k != "shards"} == {
    k: v for k, v in other.meta.items() if k != "shards"
  }
  assert one.lengths.tolist() == other.lengths.tolist()
  for i in range(len(one)):
    assert one.piece(i).tolist() == other.piece(i).tolist()
    size = int(one.lengths[i])
    assert one.window(i, size // 3, size // 2).tolist() == (
      other.window(i, size // 3, size // 2).tolist()
    )


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 9), max_size=9), min_size=1), st.integers(1, 12))
def test_shards_are_read_as_one_store(documents, size):
  with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
    patch.setattr(store_lib, "_SHARD_TOKENS", size)
    write_documents(Path(folder) / "whole", documents, 2**16)
    sharded(Path(folder) / "shards", documents)
    shards = Store(Path(folder) / "shards")
    assert shards.meta["shards"] == sum(1 for _ in Path(folder).glob("shards/0*"))
    same_store(Store(Path(folder) / "whole"), shards)


def test_an_interrupted_store_of_documents_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(store_lib, "_SHARD_TOKENS", 4)
  documents = [[i] * 3 for i in range(7)]
  sharded(tmp_path / "whole", documents)

  checks = iter([None, None, KeyboardInterrupt])

  def check():
    if error := next(checks):
      raise error

  with pytest.raises(KeyboardInterrupt):
    sharded(tmp_path / "s", documents, check=check)
  assert not store_lib.complete(tmp_path / "s")
  assert [path.name for path in sorted((tmp_path / "s").iterdir())] == ["00000", "00001"]
  kept = (tmp_path / "s" / "00000" / "tokens.bin").stat().st_mtime_ns
  assert store_lib.num_documents(tmp_path / "s") == 4
  sharded(tmp_path / "s", documents, start=4)
  assert (tmp_path / "s" / "00000" / "tokens.bin").stat().st_mtime_ns == kept
  assert contents(tmp_path / "s") == contents(tmp_path / "whole")
  # All shards are there, but not what makes them one.
  (tmp_path / "s" / "meta.json").unlink()
  sharded(tmp_path / "s", documents, start=store_lib.num_documents(tmp_path / "s"))
  assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


@settings(max_examples=30)
@given(st.lists(ROW, min_size=1, max_size=12), st.integers(1, 5))
def test_chunks_make_the_store_that_one_chunk_makes(rows, size):
  """But for the order of pieces."""
  rows = list(map(filled, rows))
  with tempfile.TemporaryDirectory() as folder:
    for name, step in (("one", len(rows)), ("more", size)):
      with store_lib.writing(Path(folder) / name, kind=EXAMPLES, vocabulary_size=259) as writer:
        for i in range(0, len(rows), step):
          writer.add(encode(rows[i : i + step], Bytes(), PROMPT))
    one, more = Store(Path(folder) / "one"), Store(Path(folder) / "more")
    assert one.meta == more.meta
    for i in range(len(rows)):
      for read in (Store.input, Store.target, Store.definition, Store.options, Store.references):
        found, expected = read(more, i), read(one, i)
        assert str(found) == str(expected)
      for j in range(i):
        for piece in (Store.input_piece, Store.target_piece):
          assert (piece(one, i) == piece(one, j)) == (piece(more, i) == piece(more, j))


@pytest.mark.parametrize("name", ["../x", "stores/..", "/x", "stores/a/b", "x"])
def test_a_manifest_names_no_folder_elsewhere(tmp_path, name):
  """Those of a bucket come from whoever wrote it, and stores are copied to where they say."""
  write_folder(tmp_path, {"t": numbered(3)})
  file = tmp_path / "manifest.json"
  values = json.loads(file.read_text())
  values["tasks"]["t"]["splits"]["train"]["store"] = name
  file.write_text(json.dumps(values))
  with pytest.raises(ValueError, match="task 't' names .*, no folder in its stores"):
    Manifest.load(tmp_path).store("t", "train")
