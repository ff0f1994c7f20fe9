"""c4: corpora of text for language modelling (CACLM), such as C4 and RedPajama, one task each.

`Corpus(path)` reads a folder as such corpora are distributed, `Tfds()` what TensorFlow Datasets has
prepared. Neither is read or downloaded at import.

    c4-train.00000-of-01024.json.gz         {"text": "Beginners BBQ Class ...", ...} one a line
    c4-validation.00000-of-00008.json.gz
    arxiv/arxiv_00a1.jsonl, book.txt        also .zst; subfolders are searched

A folder that has .jsonl files is made of these alone: what lies beside them are lists of addresses
and sums (RedPajama's urls.txt, the Pile's SHA256SUMS.txt).
A file or folder whose name has the word "validation" or "test" is of that split, all others are of
"train". Files are read in order of name, line by line: a corpus need not fit into memory. A text
file is one document. Documents are cut at line ends like those of `text`; blank ones are left out.
No line may be longer than `rows.MAX_LINE`.
"""

import dataclasses
import functools
import gzip
import io
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from hyperjax.data import rows
from hyperjax.data.manifest import digest, file_digest, sample_digest
from hyperjax.tasks import text

_KINDS = re.compile(r"\.(jsonl|json|txt)(?:\.(?:gz|zst))?$")
_HELD_OUT = re.compile(r"(?<![a-z])(?:(val(?:id(?:ation)?)?)|test)(?![a-z])")


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A folder of JSONL and text files as one task.

  Attributes:
    path: the folder.
    name: the task's.
  """

  path: str
  name: str = "c4"

  def available(self) -> bool:
    return pathlib.Path(self.path).is_dir()

  def splits(self) -> dict[str, list[pathlib.Path]]:
    """Returns {split: its files in order}.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it holds no such files.
    """
    root = pathlib.Path(self.path)
    if not root.is_dir():
      raise FileNotFoundError(f"Source '{self.name}': there is no folder {root}.")
    found = [file for file in sorted(root.rglob("*")) if _kind(file) and file.is_file()]
    if not found:
      raise ValueError(f"{root}: no file ends in .jsonl, .json or .txt, or these with .gz or .zst.")
    splits: dict[str, list[pathlib.Path]] = {}
    for file in [file for file in found if _kind(file) == "jsonl"] or found:
      held_out = _HELD_OUT.search(str(file.relative_to(root)).lower())
      split = "validation" if held_out and held_out[1] else "test" if held_out else "train"
      splits.setdefault(split, []).append(file)
    return splits

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task name: hash of its files' names, sizes, first and last 64 KiB}."""
    root = pathlib.Path(self.path)
    files = [
      [split, str(file.relative_to(root)), sample_digest(file)]
      for split, files in self.splits().items()
      for file in files
    ]
    return {self.name: digest([self.name, files])}

  def register(self) -> None:
    """Registers the task with seqio."""
    from hyperjax.tasks import registry

    splits = self.splits()
    registry.add_rows(
      self.name, self.path,
      {split: functools.partial(Documents, files) for split, files in splits.items()},
      documents=True, files=[file for files in splits.values() for file in files],
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tfds:
  """A data set of TensorFlow Datasets with the feature "text" as one task.

  It must have been prepared (`tfds build c4/en`): nothing is downloaded here.

  Attributes:
    dataset: its name, with configuration and version.
    splits: {split: TFDS's split, or a slice of one}.
    path: TFDS's folder; "": the one that --tfds_data_dir names, or TFDS's own default.
    name: the task's.
  """

  dataset: str = "c4/en:3.1.0"
  splits: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {"train": "train", "validation": "validation"}
  )
  path: str = ""
  name: str = "c4"

  @property
  def _info(self) -> pathlib.Path:
    root = self.path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = pathlib.Path(root).expanduser() / self.dataset.replace(":", "/")
    return folder / "dataset_info.json"

  def available(self) -> bool:
    return self._info.exists()

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task name: hash of what TFDS recorded when it prepared the data set}.

    Raises:
      FileNotFoundError: it is not prepared.
    """
    if not self.available():
      raise FileNotFoundError(
        f"Source '{self.name}': {self._info.parent} holds no data set that TFDS has prepared. "
        f"Prepare it (tfds build {self.dataset}) or name another folder (--tfds_data_dir)."
      )
    return {self.name: digest([self.name, self.dataset, self.splits, file_digest(self._info)])}

  def register(self) -> None:
    """Registers the task with seqio."""
    import seqio

    from hyperjax.tasks import registry

    source = seqio.TfdsDataSource(
      self.dataset, tfds_data_dir=self.path or None, splits=dict(self.splits), read_only=True
    )
    rekey = functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"})
    registry.add(
      self.name, self._info.parent, source, preprocessors=[rekey],
      output_features={"targets": registry.text_feature()},
    )  # fmt: skip


class Documents:
  """The documents of files as rows, read as a stream.

  Attributes:
    fraction: how much of the files' bytes has been read.
  """

  def __init__(self, files: Sequence[str | os.PathLike]):
    self._files, self.fraction = files, 0.0

  def __iter__(self) -> Iterator[dict[str, str]]:
    """Yields {"targets": document}.

    Raises:
      ValueError: names the file and the line: no UTF-8, no JSON, no "text", a line that is too
        long, a compressed file that is cut off or broken.
    """
    total, before = sum(map(os.path.getsize, self._files)) or 1, 0
    for file in self._files:
      with open(file, "rb") as raw:
        for document in read(pathlib.Path(file), raw):
          self.fraction = (before + raw.tell()) / total
          for piece in text.cut(document):
            if piece.strip():
              yield {"targets": piece}
      before += os.path.getsize(file)


def read(path: pathlib.Path, raw: io.BufferedIOBase) -> Iterator[str]:
  """Yields the documents of an open file; of a long text file, pieces."""
  lines = rows.lines(path, _opened(path, raw))
  if _kind(path) != "txt":
    for where, line in lines:
      if line.strip():
        yield _text(rows.parse(line.strip(), where), where)
    return
  gathered, characters = [], 0
  for _, line in lines:
    if characters + len(line) > text.MAX_CHARACTERS:
      yield "".join(gathered)
      gathered, characters = [], 0
    gathered.append(line.replace("\r\n", "\n"))
    characters += len(line)
  yield "".join(gathered)


def _kind(path: pathlib.Path) -> str | None:
  """A file's ending, without that of its compression; None where it is no text of a corpus."""
  found = _KINDS.search(path.name)
  return found and found[1]


def _opened(path: pathlib.Path, raw: io.BufferedIOBase) -> io.BufferedIOBase:
  if path.suffix == ".gz":
    return gzip.open(raw)
  if path.suffix == ".zst":
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
  return raw


def _text(value, where: str) -> str:
  if not isinstance(value, dict):
    raise ValueError(f'{where}: an object with "text" is expected, not {value!r:.60}.')
  if "text" not in value:
    raise ValueError(f'{where}: it has no "text"; it has {sorted(value)}.')
  found = value["text"]
  if not isinstance(found, str):
    raise ValueError(f'{where}: "text" must be text, not {found!r:.60}.')
  return rows.text(found, f'{where}: "text"')
