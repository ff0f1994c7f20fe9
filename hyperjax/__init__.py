"""Hypertuning in JAX: a few examples in, an adapter out, in one forward pass."""

import importlib.util
import pathlib
import sys

__version__ = "0.1.0"


def _add_checkout_folders(root: pathlib.Path) -> None:
  """Makes `hyperjax.tasks` and `hyperjax.configs` importable where nothing has mapped them.

  In a wheel both lie inside this package. In a checkout they are `tasks/` and `gin/` beside it, and
  neither a bare checkout nor every kind of editable install maps them. `gin/` may hold no Python
  file (it would shadow gin-config), so its package exists in memory only.
  """
  in_wheel = (root / "hyperjax" / "tasks").exists()
  if in_wheel or not (root / "setup.py").exists():
    return
  __path__.append(str(root))
  name = f"{__name__}.configs"
  spec = importlib.util.spec_from_file_location(
    name, root / "gin" / "__init__.py", submodule_search_locations=[str(root / "gin")]
  )
  sys.modules[name] = sys.modules[__name__].configs = importlib.util.module_from_spec(spec)


_add_checkout_folders(pathlib.Path(__file__).resolve().parent.parent)
