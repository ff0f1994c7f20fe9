"""cached: tasks that `seqio_cache_tasks` has written (with Beam, on Dataflow), read from there.

`Tasks(path, tasks)` names them; the modules that register them go to TASK_MODULES. What of a task
was cached is not computed anew: its source need not be on this machine.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from hyperjax.data.manifest import did_you_mean, digest, set_lists
from hyperjax.data.seqio_cache import CachedSplit


@dataclasses.dataclass(frozen=True)
class Tasks:
  """Tasks in one cache.

  Attributes:
    path: the cache: what --output_cache_dir was.
    tasks: the tasks' names.
    name: what this source is called.
  """

  path: str
  tasks: Sequence[str]
  name: str = "cached"

  def __post_init__(self):
    set_lists(self, "tasks")

  def available(self) -> bool:
    return pathlib.Path(self.path).is_dir()

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task name: hash of its files, as `CachedSplit` has it}.

    Raises:
      FileNotFoundError: a task is not cached here, or not to its end.
      ValueError: one of its files is not as it must be.
    """
    found = {}
    for task in self.tasks:
      folder = self._folder(task)
      if not (folder / "COMPLETED").exists():
        raise FileNotFoundError(f"Task '{task}': {folder} holds no finished cache of it.")
      infos = sorted(folder.glob("info.*.json"))
      names = [file.name.removeprefix("info.").removesuffix(".json") for file in infos]
      found[task] = digest([task, *(CachedSplit(folder, name).fingerprint() for name in names)])
    return found

  def register(self) -> None:
    """Makes seqio look into the cache.

    Raises:
      ValueError: a task is unknown, or cannot be cached, or another cache stands before this one.
    """
    import seqio

    known = seqio.TaskRegistry.names()
    for task in self.tasks:
      if task not in known:
        raise ValueError(
          f"Source '{self.name}': no task '{task}' is registered.{did_you_mean(task, known)} Name "
          "the module that registers it in task_modules."
        )
      if not seqio.TaskRegistry.get(task).supports_caching:
        raise ValueError(f"Task '{task}' has no CacheDatasetPlaceholder: it cannot be cached.")
    seqio.add_global_cache_dirs([self.path])
    for task in self.tasks:
      found = seqio.TaskRegistry.get(task).cache_dir
      if found and pathlib.Path(found) != self._folder(task):
        raise ValueError(f"Task '{task}': seqio reads it from another cache, {found}.")

  def _folder(self, task: str) -> pathlib.Path:
    return pathlib.Path(self.path, *task.split(":"))
