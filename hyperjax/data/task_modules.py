"""What stands for a module of tasks, read from its file: training never imports one."""

import ast
import hashlib
import importlib.util
import pathlib


def identity(name: str) -> str | None:
  """Returns a module's `VERSION`, or a hash of its file where it sets none.

  A `VERSION` is a literal at the file's top level, and vouches for what the module registers,
  whatever else changes in the file. None where the module has no file on this machine.
  """
  path = file(name)
  if path is None:
    return None
  contents = path.read_bytes()
  version = _version(contents)
  return hashlib.sha256(contents).hexdigest() if version is None else str(version)


def file(name: str) -> pathlib.Path | None:
  """Returns a module's file, a package's `__init__.py`; None where there is none on this machine.

  Nothing is imported: `importlib.util.find_spec` would import the packages that it lies in.
  """
  top, *rest = name.split(".")
  try:
    spec = importlib.util.find_spec(top)
  except ValueError:  # what was not imported from a file, such as __main__
    spec = None
  if spec is None:
    return None
  if not rest:
    places = [pathlib.Path(spec.origin or "")]
  else:
    stems = [pathlib.Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
    places = [place for stem in stems for place in (stem / "__init__.py", stem.with_suffix(".py"))]
  return next((place for place in places if place.is_file()), None)


def _version(contents: bytes) -> object:
  """The value that a module's file gives `VERSION`; None where it gives it no literal."""
  try:
    statements = ast.parse(contents).body
  except (SyntaxError, ValueError):  # whoever imports it is told
    return None
  version = None
  for statement in statements:
    match statement:
      case ast.Assign(targets=[ast.Name(id="VERSION")], value=value) | ast.AnnAssign(
        target=ast.Name(id="VERSION"), value=value
      ):
        version = value.value if isinstance(value, ast.Constant) else None
  return version
