"""Registers the tasks of a configuration with seqio: of its modules, and of its sources."""

import dataclasses
import importlib
import inspect
import pkgutil
import sys
from typing import Any, NamedTuple

import seqio

from hyperjax.data import manifest as manifest_lib
from hyperjax.data import source as source_lib
from hyperjax.data import task_modules
from hyperjax.data.manifest import DataConfig

UNDECLARED = "undeclared"


class Registered(NamedTuple):
  """What a configuration's modules and sources have registered.

  Attributes:
    fingerprints: {task: its source's}.
    versions: {task: what stands for the modules} of those that modules registered.
    tasks: {source name: its tasks}.
    clusters: {task: see `source.cluster`} of those that are not their own.
  """

  fingerprints: dict[str, str]
  versions: dict[str, str]
  tasks: dict[str, list[str]]
  clusters: dict[str, str]


def register(config: DataConfig) -> Registered:
  """Registers the tasks of a configuration's modules and sources.

  Raises:
    ValueError: there is no such module.
  """
  for name in config.task_modules:
    if name in _MODULES:
      continue  # its own `register` may not bear a second call
    before = set(seqio.TaskRegistry.names())
    identity = task_modules.identity(name)  # first: no newer than what is imported
    load(name)
    _MODULES[name] = _Module(identity, set(seqio.TaskRegistry.names()) - before)
  # Of all modules: one may register what it takes from another.
  modules = {name: _MODULES[name] for name in config.task_modules}
  version = " ".join(f"{name}:{m.identity or UNDECLARED}" for name, m in modules.items())
  versions = {task: version for module in modules.values() for task in module.tasks}
  found = Registered(dict(versions), versions, {}, {})
  for source in config.sources:
    source.register()
    ours = source.fingerprints()
    found.fingerprints.update(ours)
    found.tasks[source.name] = sorted(ours)
    clusters = {task: source_lib.cluster(source, task) for task in ours}
    found.clusters.update({task: name for task, name in clusters.items() if name != task})
  return found


def load(name: str) -> None:
  """Imports a module, which registers tasks, and calls its function `register` if it has one that
  needs no argument.

  Raises:
    ValueError: there is no module of that name.
  """
  try:
    module = importlib.import_module(name)
  except ModuleNotFoundError as error:
    if not f"{name}.".startswith(f"{error.name}."):
      raise  # the module is there: what it imports is not
    raise ValueError(_not_found(name, error.name)) from None
  if _needs_nothing(getattr(module, "register", None)):
    module.register()


def _needs_nothing(register: Any) -> bool:
  """Whether it is a function that can be called as it is; any other is the module's own affair."""
  try:
    inspect.signature(register).bind()
  except (TypeError, ValueError):  # ValueError: it is built in, and does not say what it needs
    return False
  return True


def _not_found(name: str, missing: str) -> str:
  """The error for a task module that is missing, or lies in a package that is."""
  parent = missing.rpartition(".")[0]
  folders = list(getattr(sys.modules.get(parent), "__path__", sys.path))
  beside = pkgutil.iter_modules(folders) if parent else ()
  known = [f"{parent}.{module.name}" for module in beside]
  return (
    f"There is no task module '{name}' (gin: TASK_MODULES): no '{missing}' in "
    f"{', '.join(folders)}.{manifest_lib.did_you_mean(missing, known)} Give the command in the "
    "folder that holds it, or put that folder on PYTHONPATH."
  )


@dataclasses.dataclass
class _Module:
  """A task module as this process has imported it.

  Attributes:
    identity: see `task_modules`.
    tasks: what it has registered.
  """

  identity: str | None
  tasks: set[str]


# {name: module}: a second build in one process finds it imported, and its tasks registered.
_MODULES: dict[str, _Module] = {}


def mixture(config: DataConfig) -> str:
  """Returns the name of what a configuration builds, once it is registered.

  Raises:
    ValueError: it names nothing, and its modules register no task or several.
  """
  if config.mixture_or_task_name is not None:
    return config.mixture_or_task_name
  tasks = sorted(set().union(*(_MODULES[name].tasks for name in config.task_modules)))
  if len(tasks) != 1:
    raise ValueError(
      f"The task modules {list(config.task_modules)} register {len(tasks)} tasks {tasks[:5]}: name "
      "one of them, or a mixture (gin: MIXTURE_OR_TASK_NAME)."
    )
  return tasks[0]


def rates(name: str) -> dict[str, float]:
  """Returns {task: share} of a registered task or mixture, the shares' sum being 1."""
  known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
  if name not in known:
    raise ValueError(
      f"No task or mixture '{name}' is registered.{manifest_lib.did_you_mean(name, known)} "
      "Name the module or source that registers it in task_modules or sources."
    )
  provider = seqio.get_mixture_or_task(name)
  if isinstance(provider, seqio.Task):
    return {name: 1.0}
  found = {task.name: float(provider.get_rate(task)) for task in provider.tasks}
  total = sum(found.values())
  return {task: rate / total for task, rate in sorted(found.items()) if rate > 0}


def metrics(task: str) -> list[str]:
  """Returns the names of the functions that a task is scored with, as seqio has them."""
  functions = seqio.TaskRegistry.get(task).metric_fns
  plain = (getattr(fn, "func", fn) for fn in functions)
  return [getattr(fn, "__name__", type(fn).__name__) for fn in plain]


def source_fingerprint(task: seqio.Task) -> str:
  """Identifies the source of a task that nobody vouches for."""
  source = task.source
  if isinstance(source, seqio.TfdsDataSource | seqio.FileDataSource):
    return manifest_lib.digest([str(source)])
  return UNDECLARED


def identities(config: DataConfig) -> dict[str, str | None]:
  """Returns {task module: its `task_modules.identity`} of what this process has imported."""
  return {name: _MODULES[name].identity for name in config.task_modules}
