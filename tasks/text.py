"""text: a folder of plain text files for language modelling (CACLM), one task a file.

`Folder(path)` registers a task `<name>.<file stem>` per `.txt` file and a mixture `<name>` over
them, with rates by size. A file is one document, or several where a separator is given. Documents
of more than `MAX_CHARACTERS` are cut at line ends: no tokenizer is given a gigabyte at once.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping

from hyperjax.data import rows
from hyperjax.data.manifest import digest, file_digest
from hyperjax.tasks import folders

MAX_CHARACTERS = 2**20


@dataclasses.dataclass(frozen=True)
class Folder(folders.Folder):
  """A folder of text files.

  Attributes:
    separator: the text between two documents of a file, such as "\\n\\n\\n"; None: a file is one.
    path, include, exclude, name: see `folders.Folder`.
  """

  name: str = "text"
  separator: str | None = None

  suffixes = (".txt",)

  def __post_init__(self):
    super().__post_init__()
    if self.separator == "":
      raise ValueError("text.Folder: separator is empty; use None for one document a file.")

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task name: hash of its file}."""
    return {
      task: digest([task, file_digest(file), self.separator])
      for task, file in self.files().items()
    }

  def register(self) -> None:
    """Registers the tasks and the mixture with seqio."""
    from hyperjax.tasks import registry

    files = self.files()
    for task, file in files.items():
      registry.add_documents(task, file, functools.partial(load, file, self.separator))
    registry.add_mixture(
      self.name, {task: float(file.stat().st_size) for task, file in files.items()}
    )


def load(path: str | os.PathLike, separator: str | None = None) -> list[str]:
  """Reads a file's documents.

  Raises:
    ValueError: names the file: as `rows.lines` says, or it holds no text.
  """
  text = "".join(line for _, line in rows.lines(path)).replace("\r\n", "\n")
  documents = [text] if separator is None else text.split(separator)
  pieces = [piece for document in documents for piece in cut(document) if piece.strip()]
  if not pieces:
    raise ValueError(f"{path}: it holds no text.")
  return pieces


def cut(document: str) -> Iterator[str]:
  """Yields a document in pieces, cut at line ends where it is too long for one."""
  start = 0
  while len(document) - start > MAX_CHARACTERS:
    end = start + MAX_CHARACTERS
    stop = document.rfind("\n", start, end) + 1 or end
    yield document[start:stop]
    start = stop
  yield document[start:]
