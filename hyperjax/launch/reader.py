"""Reads gin files into gin's state; says in one line where a file is wrong, and how.

gin's own `parse_config_file` is not used: it finds files by other rules, stops at the first missing
value, accepts a misspelt macro, fails on a missing file in a bare process (gin 0.5.0 uses
importlib.util without importing it) and logs an error for every search path that it misses.
"""

import fnmatch
import inspect
import os
import pathlib
import pkgutil
import re
import sys
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gin
from gin import config as gin_config
from gin import config_parser

from hyperjax.launch.command_line import find, library_files, library_folders, nearest

MACRO_LINE = re.compile(r"^([A-Za-z_][\w/]*)\s*=\s*(.*?)(?:\s+#\s*(.*))?$")
BINDING_NAME = re.compile(r"^[A-Za-z_][\w/.]*$")
NOT_TEXT = re.compile(r"^([@%\"'\[({]|[-+]?\.?\d)")
SPELLED = {"true": "True", "false": "False", "none": "None", "null": "None"}
DYNAMIC = config_parser.ImportStatement(
  module="__gin__.dynamic_registration",
  is_from=True,
  alias=None,
  location=config_parser.Location(None, 0, None, ""),
)


class Place(NamedTuple):
  """Where a statement stands; the command line has no line numbers."""

  source: str
  line: int | None = None

  def __str__(self):
    return self.source if self.line is None else f"{self.source}, line {self.line}"


class _Delegate(gin_config.ParserDelegate):
  """Resolves the references of one file and tells the reader which macros it uses."""

  def __init__(self, reader: "Reader", context: gin_config.ParseContext):
    super().__init__()
    self._reader = reader
    self._context = context

  def configurable_reference(self, scoped_selector: str, evaluate: bool):
    resolve(self._context, scoped_selector.rsplit("/", 1)[-1])
    return super().configurable_reference(scoped_selector, evaluate)

  def macro(self, name: str):
    self._reader.used.setdefault(name, self._reader.place)
    return super().macro(name)


def resolve(context: gin_config.ParseContext, selector: str) -> gin_config.Configurable:
  """Returns the function or class that `module.name` means in a file with these imports."""
  symbols = context._symbol_table
  if not symbols:
    if gin_config._REGISTRY.matching_selectors(selector):
      return context.get_configurable(selector)
    raise ValueError(
      f"'{selector}' is unknown: a file that configures functions begins with "
      "'from __gin__ import dynamic_registration' and imports the modules that it names."
    )
  root, *names = selector.split(".")
  if root not in symbols:
    raise ValueError(f"'{root}' is not imported in this file.{nearest(root, list(symbols))}")
  found = symbols[root]
  for name in names:
    if not hasattr(found, name):
      public = [key for key in dir(found) if not key.startswith("_")]
      raise ValueError(f"'{selector}': {root} has no '{name}'.{nearest(name, public)}")
    found, root = getattr(found, name), f"{root}.{name}"
  if not callable(found):
    raise ValueError(f"'{selector}' is a {type(found).__name__}, not a function or a class.")
  return context.get_configurable(selector)


def macro_of(line: str) -> str | None:
  """Returns the name of the macro that a line of a gin file sets."""
  found = MACRO_LINE.match(line)
  return found[1] if found else None


def is_required(value: Any) -> bool:
  """Says whether a bound value is %gin.REQUIRED."""
  reference = isinstance(value, gin_config.ConfigurableReference)
  return reference and value.scoped_selector == "gin.REQUIRED/gin.constant"


class Reader:
  """Reads gin files and bindings into gin's state; remembers where macros were set and used."""

  def __init__(self, search_paths: Sequence[str] = ()):
    self.search_paths = search_paths
    self.place = Place("")
    self.set: dict[str, Place] = {}
    self.used: dict[str, Place] = {}
    self.erased: dict[str, Place] = {}  # set, and then required again by a file that was read later
    self.meanings: dict[str, str] = {}
    self._imports = {DYNAMIC.module: DYNAMIC}
    self._open: list[pathlib.PurePath] = []
    gin_config._IMPORTS.add(DYNAMIC)

  def read_file(self, name: str) -> None:
    """Reads a gin file and what it includes, in order."""
    beside = str(self._open[-1]) if self._open else None
    path = find(name, self.search_paths, beside)
    if path.resolve() in [file.resolve() for file in self._open]:
      raise ValueError(f"{path} includes itself.")
    text = path.read_text()
    self._note_meanings(text)
    self._open.append(path)
    with gin_config._parse_scope() as context:
      self._read(text, str(path), context)
      self._imports |= {statement.module: statement for statement in context.imports}
      gin_config._IMPORTS.update(context.imports)
    self._open.pop()

  def read_binding(self, binding: str, module: str | None = None) -> None:
    """Reads NAME=VALUE from a command line; it may name what any file before it has imported."""
    name, equals, value = (part.strip() for part in binding.partition("="))
    self.place = Place(f"--gin.{name}")
    if not BINDING_NAME.match(name):
      raise ValueError(f"'--gin.{binding}' is not of the form --gin.NAME=VALUE.")
    if not equals or not value:
      raise ValueError(f"--gin.{name} has no value; an empty text is written as \"''\".")
    with gin_config._parse_scope() as context:
      for statement in self._imports.values():
        context.process_import(statement)
      if module:
        import_module(context, module)
      self._read(f"{name} = {literal(name, value)}", None, context)

  def _note_meanings(self, text: str) -> None:
    above: list[str] = []
    for line in text.splitlines():
      found = MACRO_LINE.match(line)
      meaning = found and (found[3] or " ".join(above))
      if meaning and not meaning.endswith(":"):  # a comment that ends so is a heading
        self.meanings.setdefault(found[1], meaning)
      above = [*above, line.strip("# ")] if line.startswith("#") else []

  def _read(self, text: str, source: str | None, context: gin_config.ParseContext) -> None:
    """Reads statements one by one; an error in one names its place."""
    command_line = self.place.source
    try:
      parser = config_parser.ConfigParser(text, _Delegate(self, context))
      while True:
        line = parser.current_token.start[0]
        self.place = Place(source, line) if source else Place(command_line)
        statement = parser.parse_statement()
        if statement is None:
          return
        if source:
          self.place = Place(source, statement.location.line_num)
        self._execute(statement, context)
    except (SyntaxError, tokenize.TokenError) as error:
      line = getattr(error, "lineno", None) or self.place.line
      message = getattr(error, "msg", None) or error.args[0]
      content = (text.splitlines() or [""])[min(line or 1, text.count("\n") + 1) - 1].strip()
      place = Place(source, line) if source else self.place
      raise ValueError(f"{place}: {first_line(message)} Read: {content}") from error
    except ValueError as error:
      if isinstance(error, _Placed):
        raise
      raise _Placed(f"{self.place}: {first_line(error)}") from error

  def _execute(self, statement: Any, context: gin_config.ParseContext) -> None:
    if isinstance(statement, config_parser.BindingStatement):
      statement = statement._replace(value=at_home(statement.value))
    if isinstance(statement, config_parser.IncludeStatement):
      self.read_file(statement.filename)
    elif isinstance(statement, config_parser.ImportStatement):
      self._import(statement, context)
    elif isinstance(statement, config_parser.BlockDeclaration):
      resolve(context, statement.selector)
    elif statement.arg_name:
      configurable = resolve(context, statement.selector)
      self._check_parameter(configurable, statement.selector, statement.arg_name)
      gin.bind_parameter((statement.scope, statement.selector, statement.arg_name), statement.value)
    else:
      name = f"{statement.scope}/{statement.selector}" if statement.scope else statement.selector
      if name in self.set and is_required(statement.value):
        self.erased[name] = self.set[name]
      self.set[name] = self.place
      gin.bind_parameter((name, "gin.macro", "value"), statement.value)

  def _import(
    self, statement: config_parser.ImportStatement, context: gin_config.ParseContext
  ) -> None:
    try:
      context.process_import(statement)
    except ModuleNotFoundError as error:
      raise ValueError(
        f"cannot import {statement.module}: {error}.{nearest_module(statement.module)}"
      ) from error

  def _check_parameter(
    self, configurable: gin_config.Configurable, selector: str, parameter: str
  ) -> None:
    if not gin_config._might_have_parameter(configurable.wrapped, parameter):
      known = list(inspect.signature(configurable.wrapped).parameters)
      raise ValueError(f"{selector} has no parameter '{parameter}'.{nearest(parameter, known)}")

  def fill(self, values: Mapping[str, str]) -> None:
    """Sets the macros that must be set still, where their names match a pattern of `values`."""
    waiting = {*self.missing(), *(name for name in self.used if name not in self.set)}
    for pattern, value in values.items():
      for name in fnmatch.filter(sorted(waiting), pattern):
        self.read_binding(f"{name}={value}")

  def check(self) -> None:
    """Raises ValueError with every macro that is unused, undefined or still required, at once."""
    problems = []
    for name in sorted(set(self.set) - set(self.used)):
      hint = nearest(name, list(self.used))
      problems.append(f"{name} is set ({self.set[name]}) but never used.{hint}")
    constants = gin_config._CONSTANTS
    for name in sorted(set(self.used) - set(self.set)):
      if not constants.matching_selectors(name):
        hint = self._way_out(name)
        problems.append(f"%{name} is used ({self.used[name]}) but set nowhere.{hint}")
    missing = self.missing()
    if missing:
      problems.append(f"{', '.join(missing)} must be set, for example --gin.{missing[0]}=VALUE:")
      for name in missing:
        problems.append(f"  {name}: {self.meanings.get(name, 'no meaning is given')}")
        if name in self.erased:
          problems.append(
            f"    (set in {self.erased[name]}, but {self.set[name]}, which is read later, asks "
            "for it again: name the run file before it)"
          )
    if problems:
      raise ValueError("\n".join(problems))

  def _way_out(self, name: str) -> str:
    """What to do about a macro that is set nowhere: in our own files no name is misspelt."""
    file = pathlib.Path(self.used[name].source).resolve()
    if not any(file.is_relative_to(folder) for folder in library_folders()):
      return nearest(name, list(self.set))
    files = [f for f in library_files() if name in map(macro_of, find(f).read_text().splitlines())]
    if not files:
      return f" Set it: --gin.{name}=VALUE."
    more = f" or {len(files) - 3} more" if len(files) > 3 else ""
    return f" Name a file that sets it: {', '.join(files[:3])}{more}."

  def macros(self) -> list[tuple[str, str, str]]:
    """Returns (name, value or "" where it is required, meaning) of every macro."""
    rows = []
    for name in sorted(self.set):
      value = gin.query_parameter(f"{name}/gin.macro.value")
      shown = "" if is_required(value) else repr(value)
      rows.append((name, shown, self.meanings.get(name, "")))
    return rows

  def missing(self) -> list[str]:
    """Returns the macros and parameters that are %gin.REQUIRED still."""
    names = []
    for (scope, selector), parameters in gin_config._CONFIG.items():
      for parameter, value in parameters.items():
        if is_required(value):
          short = ".".join(selector.split(".")[-2:])
          scoped = f"{scope}/{short}" if scope else short
          names.append(scope if selector == "gin.macro" else f"{scoped}.{parameter}")
    return names


class _Placed(ValueError):
  """An error whose message already says where."""


def at_home(value: Any) -> Any:
  """Returns a bound value whose texts begin with a home folder in place of ~/ or ~name/.

  Neither a shell does that to --gin.NAME=~/x nor does gin, and a folder called ~ would be made.
  """
  if isinstance(value, str):
    return os.path.expanduser(value) if "/" in value else value
  if isinstance(value, list | tuple):
    return type(value)(map(at_home, value))
  if isinstance(value, dict):
    return {key: at_home(item) for key, item in value.items()}
  return value


def first_line(error: object) -> str:
  """Returns a message without the notes on places and calls that gin appends to it."""
  return str(error).split("\n", 1)[0].strip()


def import_module(context: gin_config.ParseContext, module: str) -> str:
  """Makes a module known to one file's names; returns its short name."""
  statement = DYNAMIC._replace(module=module, is_from="." in module)
  context.process_import(statement)
  return statement.bound_name()


def nearest_module(module: str) -> str:
  """Returns a hint that names the module nearest to one that cannot be imported."""
  parent, _, name = module.rpartition(".")
  package = sys.modules.get(parent)
  if package is None or not hasattr(package, "__path__"):
    return ""
  return nearest(name, [found.name for found in pkgutil.iter_modules(package.__path__)])


def literal(name: str, value: str) -> str:
  """Returns a command line's value in gin's syntax: a text needs no quotes if nothing else fits.

  Raises ValueError where a value only resembles a number, a list, a reference or a keyword, so
  that 2*16 or false never becomes a text.
  """
  if is_literal(value):
    return value
  if value.lower() in SPELLED:
    raise ValueError(f"--gin.{name}={value}: write {SPELLED[value.lower()]}.")
  if NOT_TEXT.match(value):
    raise ValueError(
      f"--gin.{name}={value} is not a value that gin knows (a text with quotes, a number, True, "
      "False, None, a list, tuple or dict of these, @module.name or @module.name(), %MACRO). "
      "Gin has no arithmetic."
    )
  return repr(value)


class _Anything(config_parser.ParserDelegate):
  """Accepts any reference: only the syntax matters."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return scoped_configurable_name

  def macro(self, scoped_configurable_name):
    return scoped_configurable_name


def is_literal(value: str) -> bool:
  """Says whether a value is one whole gin value."""
  try:
    parser = config_parser.ConfigParser(value, _Anything())
    parser.parse_value()
    parser._skip([tokenize.NEWLINE, tokenize.NL])
  except (SyntaxError, tokenize.TokenError):
    return False
  return parser.current_token.type == tokenize.ENDMARKER
