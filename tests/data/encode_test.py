"""Encoding on all cores: the order of what comes back, errors, what the processes load."""

import sys

import pytest

from hyperjax.data import encode as encode_lib
from hyperjax.data.encode import Encoder, encode
from tests.data.fakes import PROMPT, Bytes, filled


def rows(*texts):
  return [{"targets": text} for text in texts]


def test_equal_texts_of_a_chunk_share_a_piece():
  chunk = encode(
    [filled({"input": "a", "output": "b", "options": ["b", "a"], "references": ["x", "yz"]}),
     filled({"input": "a", "output": "a", "definition": "d"})],
    Bytes(), PROMPT,
  )  # fmt: skip
  assert chunk.examples.tolist() == [[0, 1, -1, 0, 0], [0, 2, 3, 2, 2]]
  assert chunk.options.tolist() == [1, 2] and chunk.references == [b"x", b"yz"]
  assert chunk.lengths.tolist() == [2, 2, 2, 2] and len(set(chunk.digests)) == 4


@pytest.mark.parametrize("few", [0, 5, 2**20])
def test_chunks_come_back_in_order(monkeypatch, few):
  monkeypatch.setattr(encode_lib, "_FEW", few)
  items = [rows(*["x" * i] * i) for i in range(12)]
  with Encoder(Bytes(), PROMPT) as encoder:
    found = [chunk.lengths.tolist() for chunk in encoder.map(items)]
  assert found == [[i] * i for i in range(12)]


def test_an_error_comes_behind_what_precedes_it():
  def items():
    yield rows("a")
    raise ValueError("bad")

  found = []
  with Encoder(Bytes(), PROMPT) as encoder, pytest.raises(ValueError, match="bad"):
    found.extend(map(len, encoder.map(items())))
  assert found == [1]


def _modules() -> set[str]:
  return {"tensorflow", "seqio", "jax"} & set(sys.modules)


def test_the_processes_load_little(monkeypatch):
  monkeypatch.setattr(encode_lib, "_FEW", 0)
  with Encoder(Bytes(), PROMPT) as encoder:
    assert [len(chunk) for chunk in encoder.map([rows("a")])] == [1]
    assert encoder._pool.submit(_modules).result() == set()
