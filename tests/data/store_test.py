"""Stores: what is written is read, pieces are unique, nothing half-written is taken for whole."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax.data import store as store_lib
from hyperjax.data.store import DOCUMENTS, EXAMPLES, Store
from tests.data.fakes import PROMPT, Bytes, write_documents, write_examples

TEXT = st.text(max_size=8)
ROW = st.fixed_dictionaries(
  {"input": TEXT, "output": st.text(min_size=1, max_size=8)},
  optional={
    "options": st.lists(TEXT, max_size=3), "definition": TEXT,
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
      assert (definition is None) == ("definition" not in row)
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


def test_an_interrupted_write_leaves_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    with store_lib.writing(tmp_path / "s", kind=DOCUMENTS, vocabulary_size=9) as writer:
      writer.add_document([1, 2])
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
      writer.add_piece("input", "x", [70000])
