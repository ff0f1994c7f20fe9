"""Starts a command from gin files: the only package that knows gin.

A command is a plain function. Its module's main is `launch.run("hyperjax.train", "train", argv)`,
which imports the function under its real name (a gin file can name it, also from another command),
reads gin files and bindings, and calls the function with the arguments that they configure:

    from __gin__ import dynamic_registration
    from hyperjax import train
    TRAIN_STEPS = %gin.REQUIRED  # optimizer steps of this run
    train.train.steps = %TRAIN_STEPS

Order: model, system, run, then the command line; what is read later wins. A gin file is looked for
as given, in --gin_search_paths, among the files that come with hyperjax, and beside the file that
includes it. `arguments` and `configured` give another command what a run was configured
with, without touching the configuration that the command itself runs under.
"""

import contextlib
import copy
import importlib
import inspect
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
from gin import config as gin_config

from hyperjax import storage
from hyperjax.launch import command_line, open_files, processes
from hyperjax.launch.reader import DYNAMIC, Reader, first_line, import_module, resolve

__all__ = [
  "Borrowed", "accept", "arguments", "config_of", "configured", "current", "parse", "run",
]  # fmt: skip


# ---- What a configuration says ------------------------------------------------------------------


def parse(
  files: Sequence[str | os.PathLike],
  bindings: Sequence[str] = (),
  *,
  search_paths: Sequence[str] = (),
  module: str | None = None,
) -> Reader:
  """Reads gin files, then NAME=VALUE bindings, into an emptied configuration.

  Args:
    files: names of gin files, in order; later ones win.
    bindings: "NAME=VALUE" or "module.Class.field=VALUE"; applied last.
    search_paths: folders to look for gin files in.
    module: a module whose short name the bindings may use without a file having imported it.

  Returns the reader; call its check() before using the configuration. Raises ValueError or
  FileNotFoundError that names file and line.
  """
  gin.clear_config()
  reader = Reader(search_paths)
  for file in files:
    reader.read_file(os.fspath(file))
  for binding in bindings:
    reader.read_binding(binding, module)
  return reader


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
  """Gives a block a gin configuration of its own and puts the caller's back afterwards."""
  state = (gin_config._CONFIG, gin_config._IMPORTS, gin_config._OPERATIVE_CONFIG)
  state += (gin_config._SINGLETONS,)
  saved, locked = [copy.copy(part) for part in state], gin.config_is_locked()
  try:
    yield
  finally:
    gin.clear_config()
    for part, content in zip(state, saved, strict=True):
      part.update(content)
    gin_config._set_config_is_locked(locked)


def registered(module: str, function: str) -> Callable:
  """Returns a module's function, known to gin from now on."""
  with gin_config._parse_scope() as context:
    context.process_import(DYNAMIC)
    short = import_module(context, module)
    return resolve(context, f"{short}.{function}").wrapped


def call_arguments(function: Callable) -> dict[str, Any]:
  """Returns the configured arguments of a function, references resolved."""
  try:
    return gin.get_bindings(function)
  except RecursionError as error:
    name = f"{function.__module__}.{function.__qualname__}"
    raise ValueError(f"a value of {name} refers to itself, through macros or classes.") from error
  except TypeError as error:
    if "required" not in str(error) or "argument" not in str(error):
      raise
    raise ValueError(f"{first_line(error)}; set it in a gin file.") from error


def arguments(
  files: Sequence[str | os.PathLike],
  module: str,
  function: str,
  *,
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> dict[str, Any]:
  """Returns the keyword arguments that gin files give a function, or a class, of a module.

  Objects that it refers to as @module.Class() are constructed, anew at each call. A reference
  without () would be called later, under the caller's configuration: write files accordingly.
  """
  with _isolated():
    reader = parse(files, bindings, search_paths=search_paths, module=module)
    target = registered(module, function)
    reader.check()
    gin.finalize()
    return call_arguments(target)


def configured(
  folder: str | os.PathLike, module: str, function: str, *, bindings: Sequence[str] = ()
) -> dict[str, Any]:
  """Returns the keyword arguments that a run's own config.gin gave its function."""
  return arguments([config_of(folder)], module, function, bindings=bindings)


def config_of(folder: str | os.PathLike) -> str:
  """Returns the path of a run's config.gin; raises FileNotFoundError if the folder has none."""
  path = storage.folder(folder) / "config.gin"
  if not path.exists():
    raise FileNotFoundError(f"{os.fspath(folder)} is not the folder of a run: no config.gin in it.")
  return os.fspath(path)


# ---- Running ------------------------------------------------------------------------------------


class Borrowed(NamedTuple):
  """Another command's gin files, which a command takes without running that one.

  Attributes:
    module, function: the other command's.
    parameter: of the command's own function: it gets {argument: value} of the other one.
    unread: {macro, or a pattern such as '*_DIR': value} for macros that must be set, but on which
      nothing here depends.
  """

  module: str
  function: str
  parameter: str
  unread: Mapping[str, str]


def run(
  module: str,
  function: str,
  argv: Sequence[str] | None = None,
  *,
  folder: str | None = "MODEL_DIR",
  flags: Mapping[str, str] | None = None,
  distributed: bool = False,
  borrowed: Borrowed | None = None,
) -> int:
  """Runs a command: reads the command line and gin files, calls the function, returns its status.

  Writes config.gin (the whole configuration; naming it as the only --gin_file repeats the run) and
  config-operative.gin (what was used, with Python's defaults) into the run's folder once the
  function accepts its input (see `accept`), at the latest when it returns; the second once more
  afterwards. A function that refuses its input leaves the folder's files as they are.

  Args:
    module: the command's module by its real name, "hyperjax.train".
    function: the function in it; it gets `dry_run` if it has a parameter of that name.
    argv: arguments; the process's own if None.
    folder: the macro that names the folder of the run; None: it has none of its own.
    flags: {parameter of the function: what it means}: `--out X` binds the parameter out, and
      `--suggest` binds True where the parameter is a bool.
    distributed: whether several processes may be one run of it; it then has the flags of
      `processes.FLAGS`, only process 0 writes the configuration, and the folder may be a bucket's.
    borrowed: whose gin files it takes, where not its own; no folder is written then.

  Returns:
    What the function returns if that is a number, else 0; 2 where the input was refused, 1 where
    the function raised FloatingPointError, 130 after Ctrl-C. Each is one message, not a traceback,
    unless --debug is given. A process of several does not return from a failure: it ends, so that
    the others do not wait for it.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  open_files.allow_many()
  try:
    return _run(module, function, argv, folder, flags or {}, distributed, borrowed)
  except (KeyboardInterrupt, Exception) as error:
    message, status = _explained(error, argv, module)
    if not message and not processes.joined():
      raise
    print(message or "".join(traceback.format_exception(error)), file=sys.stderr)
    return processes.fail(status)


def _explained(error: BaseException, argv: Sequence[str], module: str) -> tuple[str, int]:
  """Returns the message of a failed command, "" where it is the traceback, and the exit status."""
  interrupted = isinstance(error, KeyboardInterrupt)
  refused = isinstance(error, ValueError | FileNotFoundError)
  if "--debug" in argv or not (interrupted or command_line.raised_by_us(error, module)):
    return "", 1
  if interrupted:
    return "interrupted; the same command starts again where it can", 130
  return f"error: {command_line.describe(error)}", 2 if refused else 1


def _run(
  module: str, function: str, argv: list[str], folder: str | None, flags: Mapping[str, str],
  distributed: bool, borrowed: Borrowed | None,
) -> int:  # fmt: skip
  of_processes = processes.FLAGS if distributed else {}
  short = module.rsplit(".", 1)[-1]
  parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
  switches = [name for name in flags if parameters[name].annotation is bool]
  options, bindings = command_line.parse(argv, module, {**flags, **of_processes}, switches)
  for name in flags:
    if (value := getattr(options, name)) is not None:
      text = repr(value) if "str" in str(parameters[name].annotation) else value
      bindings.append(f"{short}.{function}.{name}={text}")
  reader = parse(options.gin_file, bindings, search_paths=options.gin_search_paths, module=module)
  target = registered(module, function)
  if borrowed:
    lender = registered(borrowed.module, borrowed.function)
    reader.fill(borrowed.unread)
  if options.help:
    print(command_line.help_text(options, module, target, reader.macros()), end="")
    return 0
  reader.check()
  gin.finalize()
  command = f"{command_line.program(module)} {shlex.join(argv)}".rstrip()
  config = command_line.header(module, command) + gin.config_str(max_line_length=100)
  lent = {}
  if borrowed:
    check_complete(lender, ".".join([borrowed.module.rsplit(".", 1)[-1], borrowed.function]), {})
    lent = {borrowed.parameter: call_arguments(lender)}
  check_complete(target, f"{short}.{function}", flags, lent)
  given = {**call_arguments(target), **lent}
  if "dry_run" in parameters:
    given["dry_run"] = options.dry_run
  elif options.dry_run:
    print(config, end="")
    return 0
  writes = not (options.dry_run or borrowed) and folder in reader.set
  run_folder = folder_of_run(folder, module, bucket=distributed) if writes else None
  if distributed and not options.dry_run:
    processes.join({name: getattr(options, name) for name in of_processes})
  record = _Record(run_folder if processes.writes() else None, config, target)
  # Unlocked: modules that a command imports as it runs may register with gin, as those of t5 do.
  with _running(Run(command, config, record)), gin.unlock_config():
    try:
      status = target(**given)
    except BaseException:
      with contextlib.suppress(Exception):  # what is on its way says more
        record.finish()
      raise
    record.finish()
    record.accept()
  return status if isinstance(status, int) and not isinstance(status, bool) else 0


class _Record:
  """Writes config.gin and config-operative.gin into the folder of a run, if it has one."""

  def __init__(self, folder: str | None, config: str, target: Callable):
    self._folder, self._config, self._target = folder, config, target
    self._accepted = False

  def accept(self) -> None:
    """Writes both files, the first time that it is called."""
    if self._folder is None or self._accepted:
      return
    # The function is called with its arguments already resolved, so gin has no record of it.
    selector = gin_config._inverse_lookup(self._target).selector
    bound = gin.get_bindings(self._target, resolve_references=False)
    defaults = gin_config._get_default_configurable_parameter_values(self._target, None, None)
    gin_config._OPERATIVE_CONFIG[("", selector)] = defaults | bound
    storage.write_whole(os.path.join(self._folder, "config.gin"), self._config)
    self._accepted = True
    self.finish()

  def finish(self) -> None:
    """Writes what was used in the end."""
    if self._accepted:
      text = gin.operative_config_str(max_line_length=100)
      storage.write_whole(os.path.join(self._folder, "config-operative.gin"), text)


class Run(NamedTuple):
  """The command line of a run, its whole configuration as gin, and what writes them down."""

  command: str
  config: str
  record: _Record


_RUNS: list[Run] = []


@contextlib.contextmanager
def _running(run: Run) -> Iterator[None]:
  _RUNS.append(run)
  try:
    yield
  finally:
    _RUNS.pop()


def current() -> Run:
  """Returns the run that is going on, for reports to quote; raises LookupError outside of one."""
  if not _RUNS:
    raise LookupError("no command was started by launch.run.")
  return _RUNS[-1]


def accept() -> None:
  """Writes the configuration of the run that is going on into its folder.

  A function calls it once it has checked its input and before long work, so that the folder of a
  run that is killed later holds its configuration. Without a run (called as a library): nothing.
  """
  if _RUNS:
    _RUNS[-1].record.accept()


def check_complete(
  target: Callable, name: str, flags: Mapping[str, str], lent: Collection[str] = ()
) -> None:
  """Raises ValueError with all parameters of a function that have no value, at once."""
  given = gin.get_bindings(target, resolve_references=False)
  lacking = [
    parameter.name
    for parameter in inspect.signature(target).parameters.values()
    if parameter.default is parameter.empty
    and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    and parameter.name not in (*given, *lent, "dry_run")
  ]
  if lacking and lacking[0] in flags:
    raise ValueError(f"give --{lacking[0]}: {flags[lacking[0]]}. See --help.")
  if lacking:
    raise ValueError(
      f"{name} needs {', '.join(lacking)}: name the gin files that set them, or give "
      f"--gin.{name}.{lacking[0]}=VALUE. See --help."
    )


def folder_of_run(macro: str, module: str, *, bucket: bool) -> str | None:
  """Returns the folder that a macro names; None if it names none.

  Raises ValueError where it is no text, an address that the command does not write to (a file of
  that name would be local), a folder that cannot be made or not be written to, or that of another
  command's run. `bucket` says whether the command, of that module, writes to buckets.
  """
  value = copy.deepcopy(gin.query_parameter(f"{macro}/gin.macro.value"))
  if value is not None and not isinstance(value, str):
    raise ValueError(f"{macro} is {value!r}, not a text; quote it: '--gin.{macro}=\"...\"'.")
  if value is not None:
    mounted = "mount the bucket and name the folder in it, such as /gcs/runs/mine (docs/pods.md)"
    storage.check_address(value, macro, mounted, bucket=bucket)
    storage.folder(value)  # an error where buckets cannot be read
    if not storage.in_bucket(value):
      _check_can_be_written(macro, value)
    _check_whose(macro, value, module)
  return value


def _check_can_be_written(macro: str, folder: str) -> None:
  """Raises ValueError where a local folder, or its nearest parent that is there, takes no files."""
  path = pathlib.Path(folder).absolute()
  there = next(one for one in (path, *path.parents) if os.path.lexists(one))
  if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
    why = "may not be written to" if there.is_dir() else "is no folder"
    raise ValueError(f"{macro} is {folder}, but {there} {why}: name another folder.")


def _check_whose(macro: str, folder: str, module: str) -> None:
  """Raises ValueError where a folder is that of another command's run: that one's config.gin, which
  says what it was, would be replaced."""
  file, ours = storage.folder(folder) / "config.gin", command_line.program(module)
  theirs = command_line.command_of(file.read_text()) if file.exists() else None
  if theirs not in (None, ours):
    raise ValueError(
      f"{macro} is {folder}, the folder of a run of {theirs} (its config.gin says so): name "
      f"another folder, such as {os.path.join(folder, ours.split()[-1])}."
    )
