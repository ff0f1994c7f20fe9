"""c4: corpora of JSONL and text files, compressed or not, and what TensorFlow Datasets has."""

import gzip
import importlib.resources
import json
import pathlib
import sys
import tempfile

import pyarrow
import pytest
import seqio
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax.data import build as build_lib
from hyperjax.data import rows
from hyperjax.data.caclm import CaclmConfig, CaclmStream
from hyperjax.data.manifest import DataConfig
from hyperjax.tasks import text
from hyperjax.tasks.c4 import Corpus, Documents, Tfds
from tests.data.fakes import PROMPT, Bytes


def lines(*texts):
  return "".join(json.dumps({"text": t, "url": "u"}) + "\n" for t in texts).encode()


def zstd(contents: bytes) -> bytes:
  out = pyarrow.BufferOutputStream()
  with pyarrow.CompressedOutputStream(out, "zstd") as stream:
    stream.write(contents)
  return out.getvalue().to_pybytes()


def write(folder, **files):
  """Writes files; `__` in a name stands for a dot."""
  folder.mkdir(exist_ok=True)
  for name, contents in files.items():
    (folder / name.replace("__", ".")).write_bytes(contents)
  return Corpus(str(folder), folder.name)


def documents(*files):
  return [row["targets"] for row in Documents(files)]


def test_every_kind_of_file_is_read_in_order(tmp_path):
  corpus = write(
    tmp_path / "jsonl", a__jsonl=lines("one", " ", "two\nlines"), b__jsonl__zst=zstd(
      lines("three", "four")), wiki__txt__jsonl=lines("five"),
    wiki__txt__jsonl__gz=gzip.compress(lines("six")),
  )  # fmt: skip
  found = documents(*corpus.splits()["train"])
  assert found == ["one", "two\nlines", "three", "four", "five", "six"]
  corpus = write(
    tmp_path / "others", a__json__gz=gzip.compress(lines("one")), b__txt=b"two\r\nthree\n",
    c__txt__gz=gzip.compress(b"four"), note__md=b"not this", xml__json__txt=b"five",
  )  # fmt: skip
  assert documents(*corpus.splits()["train"]) == ["one", "two\nthree\n", "four", "five"]


def test_what_lies_beside_jsonl_files_is_no_text(tmp_path):
  """As RedPajama's and the Pile's lists do, which are of other splits too."""
  corpus = write(
    tmp_path / "pile", val__jsonl__zst=zstd(lines("two")), SHA256SUMS__txt=b"ab  00.jsonl",
    dataset_infos__json=b'{"default": {}}', test_urls__txt=b"https://",
  )  # fmt: skip
  write(tmp_path / "pile" / "train", a00__jsonl__gz=gzip.compress(lines("one")), urls__txt=b"x")
  assert {split: documents(*files) for split, files in corpus.splits().items()} == {
    "train": ["one"], "validation": ["two"],
  }  # fmt: skip


def test_splits_are_told_by_names(tmp_path):
  corpus = write(
    tmp_path / "names", c4_validation__00000_of_00008__json=b"", latest__txt=b"", test_1__txt=b""
  )
  write(tmp_path / "names" / "validation", a__txt=b"")
  assert {split: [file.name for file in files] for split, files in corpus.splits().items()} == {
    "train": ["latest.txt"], "test": ["test_1.txt"],
    "validation": ["c4_validation.00000_of_00008.json", "a.txt"],
  }  # fmt: skip


def test_long_documents_are_cut_at_line_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(text, "MAX_CHARACTERS", 10)
  whole = "12345\n789\n" * 3 + "x" * 25
  write(tmp_path / "long", a__txt=whole.encode(), b__jsonl=lines(whole))
  for name in ("a.txt", "b.jsonl"):
    found = documents(tmp_path / "long" / name)
    assert "".join(found) == whole and max(map(len, found)) <= 10 and found[0] == "12345\n789\n"


def test_how_much_has_been_read(tmp_path):
  write(tmp_path / "some", a__jsonl=lines(*["x" * 999] * 40), b__jsonl=lines(*["x" * 999] * 40))
  rows = Documents(sorted((tmp_path / "some").iterdir()))
  found = [rows.fraction for _ in rows]
  assert found == sorted(found) and found[-1] == 1 and 0.3 < found[40] < 0.7


GZIPPED = gzip.compress(lines(*map(str, range(9999))))


@pytest.mark.parametrize("name, contents, message", [
  ("a.jsonl", lines("x") + b"{}", 'line 2: it has no "text"; it has []'),
  ("a.jsonl", b"[1]", 'line 1: an object with "text" is expected, not [1]'),
  ("a.jsonl", b'\n{"text": 3}', 'line 2: "text" must be text, not 3'),
  ("a.jsonl", b'{"text": "a', "line 1: not JSON: Unterminated string"),
  ("a.jsonl", b"[" * 10**6, "line 1: not JSON: "),
  ("a.jsonl", b'{"text": "\\ud800"}', 'line 1: "text" is not Unicode text'),
  ("a.jsonl", lines("x") + b'{"text": "\xff"}', "line 2: not UTF-8"),
  ("a.txt", b"good\ngood\n\xff\n", "line 3: not UTF-8"),
  ("a.jsonl.gz", GZIPPED[:-9], "it cannot be read: Compressed file ended"),
  ("a.txt.gz", b"no gzip", "line 1: it cannot be read: Not a gzipped file"),
  ("a.txt.gz", GZIPPED[:99] + b"\xff\xff" + GZIPPED[101:], "it cannot be read: "),
  ("a.jsonl.zst", zstd(lines("x"))[:-9], "line 1: it cannot be read: "),
])  # fmt: skip
def test_errors_name_file_and_line(tmp_path, name, contents, message):
  (tmp_path / name).write_bytes(contents)
  with pytest.raises(ValueError) as error:
    documents(tmp_path / name)
  assert str(error.value).startswith(f"{tmp_path / name}, line ") and message in str(error.value)


def test_a_line_that_does_not_end_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, "MAX_LINE", 100)
  (tmp_path / "a.txt").write_bytes(b"x" * 99 + b"\n" + b"x" * 101)
  with pytest.raises(ValueError, match="line 2: it has more than 100 bytes"):
    documents(tmp_path / "a.txt")


@settings(max_examples=300)
@given(
  st.sampled_from(["a.jsonl", "a.txt", "a.json.gz", "a.jsonl.zst"]),
  st.one_of(
    st.binary(max_size=60),
    st.lists(st.binary(max_size=9) | st.just(b'{"text": "x"}')).map(b"\n".join),
    st.recursive(st.none() | st.text() | st.integers(), lambda v: st.lists(v) | st.dictionaries(
      st.just("text") | st.text(), v)).map(lambda value: json.dumps(value).encode()),
  ),
  st.booleans(),
)  # fmt: skip
def test_any_bytes_are_read_or_refused(name, contents, compressed):
  packed = {".gz": gzip.compress, ".zst": zstd}.get(pathlib.Path(name).suffix)
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / name
    file.write_bytes(packed(contents) if packed and compressed else contents)
    try:
      found = documents(file)
    except ValueError as error:
      assert str(error).startswith(f"{file}, line ")
    else:
      assert all(document.strip() for document in found)


def test_a_corpus_serves_caclm(tmp_path):
  corpus = write(
    tmp_path / "web", a__jsonl=lines(*["all work and no play " * 40] * 3),
    b_validation__jsonl=lines("no work and all play " * 40),
  )  # fmt: skip
  config = DataConfig("web", "bytes", prompt=PROMPT, sources=[corpus])
  manifest = build_lib.build(config, tmp_path / "out", vocabulary=Bytes())
  assert manifest.splits("web") == ("train", "validation")
  assert len(manifest.store("web", "train")) == 3
  query = CaclmStream(manifest, CaclmConfig(64), seed=0, batch_size=1).episode(0, 0).queries[0]
  joined = Bytes().decode(query.input) + Bytes().decode(query.target)
  assert len(joined) == 32 and joined in "all work and no play " * 40


def test_fingerprints_follow_the_files(tmp_path):
  corpus = write(tmp_path / "prints", a__jsonl=lines("x"), b__jsonl=lines("y"))
  first = corpus.fingerprints()
  assert first == corpus.fingerprints() and first.keys() == {"prints"}
  write(tmp_path / "prints", b__jsonl=lines("z"))
  assert corpus.fingerprints() != first


def test_folders_without_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="Source 'c4': there is no folder .*nowhere"):
    Corpus(str(tmp_path / "nowhere")).splits()
  with pytest.raises(ValueError, match=r"no file ends in \.jsonl, \.json or \.txt"):
    Corpus(str(tmp_path)).splits()
  blank = write(tmp_path / "blank", a__txt=b" \n")
  with pytest.raises(ValueError, match="Task 'blank', split 'train': it yields no examples"):
    build_lib.build(DataConfig("blank", "bytes", sources=[blank]), tmp_path, vocabulary=Bytes())


def test_what_tfds_has_prepared(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  # TFDS needs it to write, not to read.
  monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)
  texts = [f"text {i}" for i in range(30)]
  tfds.dataset_builders.store_as_tfds_dataset(
    name="c4", config="en", version="3.1.0", data_dir=tmp_path,
    features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
    split_datasets={"train": [(i, {"text": text}) for i, text in enumerate(texts)]},
  )  # fmt: skip
  monkeypatch.undo()
  splits = {"train": "train", "validation": "train[:2]"}
  source = Tfds(splits=splits, path=str(tmp_path), name="small")
  config = DataConfig("small", "bytes", prompt=PROMPT, sources=[source])
  assert DataConfig.from_json(config.to_json()) == config
  manifest = build_lib.build(config, tmp_path / "out", vocabulary=Bytes())
  store = manifest.store("small", "train")
  assert sorted(Bytes().decode(store.piece(i)) for i in range(30)) == sorted(texts)
  assert len(manifest.store("small", "validation")) == 2


def test_what_tfds_lacks_is_not_downloaded(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  source = Tfds(name="absent")
  assert not source.available()
  source.register()
  assert "absent" in seqio.TaskRegistry.names()
  with pytest.raises(FileNotFoundError, match=r"c4/en/3.1.0 holds no data set.*tfds build c4/en"):
    build_lib.build(DataConfig("absent", "bytes", sources=[source]), tmp_path, vocabulary=Bytes())
