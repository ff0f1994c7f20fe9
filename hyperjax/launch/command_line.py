"""The command line of every command that gin configures; knows no gin.

Flags are T5X's: --gin_file (repeatable, later wins), --gin.NAME=VALUE (applied last),
--gin_search_paths, --tfds_data_dir, --dry_run.
"""

import argparse
import difflib
import inspect
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType

import hyperjax
from hyperjax import storage


def nearest(name: str, known: Sequence[str]) -> str:
  """Returns " Did you mean ...?", or nothing where no known name is near."""
  near = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.5)
  return f" Did you mean '{near[0]}'?" if near else ""


def library_folders() -> list[pathlib.Path]:
  """Returns the folders of the gin files that come with hyperjax: a checkout's, the package's."""
  package = pathlib.Path(hyperjax.__file__).resolve().parent
  checkout = package.parent
  folders = [checkout / "gin"] if (checkout / "setup.py").exists() else []
  return [folder for folder in [*folders, package / "configs"] if folder.is_dir()]


def library_files() -> list[str]:
  """Returns the names, as --gin_file takes them, of the gin files that come with hyperjax."""
  found = {str(f.relative_to(root)) for root in library_folders() for f in root.rglob("*.gin")}
  return sorted(found)


def find(
  name: str, search_paths: Sequence[str] = (), beside: str | None = None
) -> pathlib.PurePath:
  """Returns the file that a gin file's name means; `gin/models/x.gin` may be `models/x.gin` too.

  Raises FileNotFoundError, naming the nearest file that exists.
  """
  name = os.path.expanduser(name)
  if storage.in_bucket(name):
    file = storage.folder(name)
    if not file.exists():
      raise FileNotFoundError(f"gin file '{name}' does not exist.")
    return file
  beside_folders = [pathlib.Path(beside).parent] if beside else []
  folders = [*map(pathlib.Path, search_paths), *library_folders(), *beside_folders]
  names = [name, name.removeprefix("gin/")]
  for candidate in [pathlib.Path(name), *(folder / n for folder in folders for n in names)]:
    if candidate.is_file():
      return candidate
  known = {str(f.relative_to(folder)): f for folder in folders for f in folder.rglob("*.gin")}
  known |= {str(f): f for f in pathlib.Path(name).parent.glob("*.gin")}
  same = [key for key in known if pathlib.Path(key).name == pathlib.Path(name).name]
  hint = f" Did you mean '{same[0]}'?" if same else nearest(names[1], list(known))
  included = f" (included by {beside})" if beside else ""
  searched = ", ".join(map(str, [pathlib.Path.cwd(), *folders]))
  raise FileNotFoundError(
    f"gin file '{name}'{included} does not exist.{hint} Looked in {searched}."
  )


class _Parser(argparse.ArgumentParser):
  """Reports a wrong flag as a ValueError, like every other wrong input."""

  def error(self, message: str):
    raise ValueError(f"{message}. See --help.")


def gin_bindings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Splits --gin.NAME=VALUE and --gin.NAME VALUE from the other arguments.

  Returns ["NAME=VALUE", ...] and the rest.
  """
  bindings, rest, given = [], [], list(argv)
  while given:
    argument = given.pop(0)
    if not argument.startswith("--gin."):
      rest.append(argument)
    elif "=" in argument or not given or given[0].startswith("--"):
      bindings.append(argument.removeprefix("--gin."))
    else:
      bindings.append(f"{argument.removeprefix('--gin.')}={given.pop(0)}")
  return bindings, rest


def program(module: str) -> str:
  """Returns what starts a command: `hyperjax NAME`, or Python where the module is a user's own.

  A command of hyperjax has the name of its module, or of the package that it lies in.
  """
  package, *names = module.split(".")
  return f"hyperjax {names[0]}" if package == "hyperjax" else f"python -m {module}"


def header(module: str, command: str) -> str:
  """Returns the comment on top of config.gin: how it came to be, how to repeat it."""
  command = command.replace("\n", "\n#   ")  # arguments may have several lines
  return (
    f"# The whole configuration of a run, written by hyperjax {hyperjax.__version__}:\n"
    f"#   {command}\n"
    f"# To repeat it: {program(module)} --gin_file=THIS_FILE\n\n"
  )


def command_of(config: str) -> str | None:
  """Returns the `program` whose run a config.gin is of, by its `header`; None where it has none."""
  found = re.search(r"^# To repeat it: (.+) --gin_file=THIS_FILE$", config, re.MULTILINE)
  return found and found[1]


def parse(
  argv: Sequence[str], module: str, flags: Mapping[str, str], switches: Collection[str] = ()
) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags and the gin bindings of a command line.

  Args:
    argv: the arguments.
    module: the command's module, for the usage line.
    flags: {parameter of the command's function: what it means}; each becomes a flag.
    switches: those of them that take no value: given, they are 'True'.

  Raises ValueError for an unknown flag, naming the nearest.
  """
  bindings, rest = gin_bindings(argv)
  parser = _Parser(
    prog=program(module),
    usage="%(prog)s --gin_file=FILE [--gin_file=FILE ...] [--gin.NAME=VALUE ...] [FLAGS]",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    add_help=False,
  )
  add = parser.add_argument
  add("--help", "-h", action="store_true", help="explain this command (and the gin files given)")
  add("--gin_file", action="append", default=[], metavar="FILE",
      help="a gin file: your own, one that comes with hyperjax, or a gs:// address; repeatable, a "
      "later one wins: model, system, data, run")
  add("--gin.NAME", dest="_", metavar="VALUE",
      help="set a macro, or a parameter (--gin.module.Class.field=VALUE); applied last. A text "
      "needs no quotes unless it could be another value")
  add("--gin_search_paths", action="append", default=[], metavar="FOLDERS",
      help="folders to look for gin files in, separated by commas")
  add("--tfds_data_dir", metavar="FOLDER",
      help="where TensorFlow Datasets keeps its data, from which stores are built; training looks "
      "whether it has changed since")
  add("--dry_run", action="store_true", help="read and check everything, then stop")
  add("--debug", action="store_true", help="show the traceback of an error in the input too")
  for name, meaning in flags.items():
    kind = {"action": "store_const", "const": "True"} if name in switches else {
      "metavar": name.upper()
    }
    add(f"--{name}", help=meaning, **kind)
  known = [option.lstrip("-") for option in parser._option_string_actions]
  options, unknown = parser.parse_known_args(rest)
  if unknown:
    name = unknown[0].split("=")[0].lstrip("-")
    kind = "flag" if unknown[0].startswith("-") else "argument"
    raise ValueError(f"unknown {kind} '{unknown[0]}'.{nearest(name, known)} See --help.")
  options.gin_search_paths = [
    os.path.expanduser(folder)
    for group in options.gin_search_paths for folder in group.split(",") if folder
  ]
  if options.tfds_data_dir:
    os.environ["TFDS_DATA_DIR"] = os.path.expanduser(options.tfds_data_dir)
  options.flags_help = parser.format_help()
  return options, bindings


def help_text(
  options: argparse.Namespace, module: str, function: Callable, macros: Sequence[tuple[str, ...]]
) -> str:
  """Returns the help: usage, flags, what the command does, an example, the macros to set.

  Args:
    options: what `parse` returned.
    module: the command's module.
    function: its function, whose docstring says what it does.
    macros: (name, value or "" where it must be set, meaning) of the gin files given.
  """
  parts = [inspect.getdoc(function) or "", options.flags_help.strip()]
  parts.append(f"Example:\n{example(module)}")
  for title, required in (("Must be set", True), ("May be set", False)):
    rows = [row for row in macros if (not row[1]) == required]
    lines = [f"  --gin.{name}={value or '...'}" + f"\n      {text}" * bool(text)
             for name, value, text in rows]
    if lines:
      parts.append(f"{title}:\n" + "\n".join(lines))
  if not macros:
    files = ", ".join(library_files()) or "none"
    wrapped = textwrap.fill(files, 98, initial_indent="  ", subsequent_indent="  ")
    parts.append(f"Gin files that come with hyperjax (add one to learn its macros):\n{wrapped}")
  return "\n\n".join(part for part in parts if part) + "\n"


def example(module: str) -> str:
  """The commands that a module's docstring shows; where it shows none, the usual form of one."""
  shown = re.findall(r"^ *(hyperjax (?:.*\\\n)*.*)", sys.modules[module].__doc__ or "", re.M)
  return "\n".join("  " + re.sub(r"\n *", "\n    ", command) for command in shown) or (
    f"  {program(module)} --gin_file=models/MODEL.gin --gin_file=systems/SYSTEM.gin \\\n"
    "    --gin_file=data/DATA.gin --gin_file=runs/RUN.gin --gin.MODEL_DIR=/tmp/my_run"
  )


def raised_by_us(error: BaseException, module: str) -> bool:
  """Says whether our code stopped on purpose, with a message that says all.

  That is a ValueError or FileNotFoundError (the input is refused), a FloatingPointError (a run went
  wrong in its numbers) or another OSError (a file cannot be written) that it raised itself. One
  that a library raises below our code is a defect, and keeps its traceback.
  """
  if not isinstance(error, ValueError | OSError | FloatingPointError):
    return False
  innermost: TracebackType | None = error.__traceback__
  while innermost is not None and innermost.tb_next is not None:
    innermost = innermost.tb_next
  package = "" if innermost is None else innermost.tb_frame.f_globals.get("__name__", "")
  return package.split(".")[0] in ("hyperjax", module.split(".")[0])


def describe(error: BaseException) -> str:
  """Returns an error's message without gin's notes on the calls that it passed through."""
  return re.sub(r"\n  In call to configurable [^\n]*", "", str(error))
