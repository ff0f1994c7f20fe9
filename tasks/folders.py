"""Folders whose files are tasks, and what such sources share: names, and which tasks are taken."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from hyperjax.data.manifest import did_you_mean, set_lists

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Folder:
  """Which files of a folder are tasks, and what the tasks are called.

  Attributes:
    path: the folder.
    include: file stems to take; all, where empty.
    exclude: file stems to leave out.
    name: name of the mixture and first part of the tasks' names.
    suffixes: what the files' names end in.
  """

  path: str
  include: Sequence[str] = ()
  exclude: Sequence[str] = ()
  name: str = "folder"

  suffixes: ClassVar[tuple[str, ...]]

  def __post_init__(self):
    set_lists(self, "include", "exclude")

  def available(self) -> bool:
    return pathlib.Path(self.path).is_dir()

  def files(self) -> dict[str, pathlib.Path]:
    """Returns {task name: file}, in order of the files' names.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: no files, two files for one task, or a name in include or exclude that is none.
    """
    stems = self.stems()
    check_names(self, stems, self.folder, "task")
    include, exclude = self.include or stems, self.exclude
    chosen = [file for stem, file in stems.items() if stem in include and stem not in exclude]
    tasks = unique((f"{self.name}.{self.part(file)}", file) for file in chosen)
    if not tasks:
      raise ValueError(f"{self.folder}: include and exclude leave no task.")
    return tasks

  @property
  def folder(self) -> pathlib.Path:
    """The folder that the tasks' files lie in."""
    return pathlib.Path(self.path)

  def stems(self) -> dict[str, pathlib.Path]:
    """Returns {stem: file} of the tasks that include and exclude choose from."""
    stems: dict[str, pathlib.Path] = {}
    for file in sorted(existing(self.name, self.folder).iterdir()):
      if file.suffix in self.suffixes:
        if file.stem in stems:
          raise ValueError(f"{stems[file.stem]} and {file}: two files for one task.")
        stems[file.stem] = file
    if not stems:
      raise ValueError(f"{self.folder}: no file ends in {' or '.join(self.suffixes)}.")
    return stems

  def part(self, file: pathlib.Path) -> str:
    """Returns what a file's task is called behind the name of the mixture."""
    return legal(file.stem)


def existing(source: str, folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a source of this name; FileNotFoundError where there is none."""
  if not folder.is_dir():
    raise FileNotFoundError(f"Source '{source}': there is no folder {folder}.")
  return folder


def check_names(source: Any, known: Collection[str], folder: str | os.PathLike, what: str) -> None:
  """Refuses a name in a source's include or exclude that is none of those known."""
  for field in ("include", "exclude"):
    for name in getattr(source, field):
      if name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(f"{folder}: {field} names '{name}', which is no {what} there.{hint}")


def chosen(
  source: Any, found: Mapping[str, str], of: str = "", left_out: Iterable[str] = ()
) -> list[str]:
  """Returns the templates that a source's include and exclude, names of either kind, leave.

  Args:
    source: has path, include and exclude.
    found: {template: its data set}.
    of: what they are templates of, for errors.
    left_out: templates that are never taken.

  Raises:
    ValueError: a name in include or exclude that is none, or no template is left.
  """
  known = {*found, *found.values()}
  check_names(source, known, source.path, f"data set or template{of}")
  include, exclude = set(source.include or known), {*source.exclude, *left_out}
  names = [t for t, d in found.items() if {t, d} & include and not {t, d} & exclude]
  if not names:
    which = "that include and exclude leave" if found else "there"
    raise ValueError(f"{source.path}: no template{of} {which}.")
  return names


def unique(named: Iterable[tuple[str, T]]) -> dict[str, T]:
  """Returns {task name: what is called so}; two of one name are an error."""
  tasks: dict[str, T] = {}
  for task, value in named:
    if task in tasks:
      raise ValueError(f"{tasks[task]} and {value}: both would be task '{task}'.")
    tasks[task] = value
  return tasks


def legal(stem: str) -> str:
  """Returns a file's stem as a part of a seqio name: other characters become `_`."""
  return re.sub(r"[^\w]", "_", stem, flags=re.ASCII)
