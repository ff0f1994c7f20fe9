"""Tests of what gets installed: one owner per import package, all folders shipped, all pins set."""

import importlib.metadata
import pathlib
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hyperjax import __version__, doctor
from tests.architecture_test import LIBRARY, ROOT, imported, read

PYTHONS = ("3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def declared():
  """What setup.py hands to setuptools."""
  seen = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(setuptools, "setup", seen.update)
    runpy.run_path(str(ROOT / "setup.py"))
  return seen


def pins(name: str) -> list[Requirement]:
  """Returns the requirements of a file, less comments and local folders."""
  lines = read(name).splitlines()
  return [Requirement(line) for line in lines if line and line[0] not in "#.-"]


def pinned(requirements: list[Requirement], python: str) -> dict[str, str]:
  """Returns {name: version} that a file installs on one Python, and checks that it is one each."""
  environment = {"python_version": python, "sys_platform": "linux"}
  found = {}
  for requirement in requirements:
    if requirement.marker and not requirement.marker.evaluate(environment):
      continue
    (specifier,) = requirement.specifier
    name = canonicalize_name(requirement.name)
    assert specifier.operator == "==" and name not in found, requirement
    found[name] = specifier.version
  return found


# ---- Owners ------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", doctor.check_owners(), ids=lambda check: check.name)
def test_each_import_package_has_one_owner(check):
  assert check.ok, f"{check.detail}; repair: {check.repair}"


def test_pip_check_passes():
  done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_the_requirements_name_every_shim():
  shims = {f"./{path.parent.relative_to(ROOT)}" for path in ROOT.glob("packaging/shims/*/setup.py")}
  lines = [*read("requirements.txt").splitlines(), *read("requirements-model.txt").splitlines()]
  assert shims == {line for line in lines if line.startswith("./")} and len(shims) == 4


# ---- Pins --------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned(declared, python):
  versions = pinned(pins("requirements.txt"), python)
  for requirement in map(Requirement, declared["install_requires"]):
    version = versions.get(canonicalize_name(requirement.name))
    assert version, f"requirements.txt does not pin {requirement.name} on Python {python}"
    assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_test_requirement_is_pinned(declared, python):
  both = pins("requirements.txt") + pins("requirements-test.txt")
  versions = pinned(both, python)
  names = {canonicalize_name(Requirement(line).name) for line in declared["extras_require"]["test"]}
  assert names <= set(versions)


@pytest.mark.parametrize("python", PYTHONS)
def test_what_reads_buckets_is_pinned_apart(declared, python):
  versions = pinned(pins("requirements.txt") + pins("requirements-gcs.txt"), python)
  (name,) = declared["extras_require"]["gcs"]
  assert versions[name] and name not in pinned(pins("requirements.txt"), python)


def test_running_needs_no_torch():
  assert not {"torch", "peft"} & set(pinned(pins("requirements.txt"), "3.11"))


def test_libtpu_is_the_one_that_jax_asks_for():
  asked = [r for r in map(Requirement, importlib.metadata.requires("jax")) if r.name == "libtpu"]
  lines = (ROOT / "requirements-tpu.txt").read_text().splitlines()
  pinned = [Requirement(line) for line in lines if not line.startswith("#")]
  given = {"sys_platform": "linux", "platform_machine": "x86_64"}
  here = [p for p in pinned if p.marker.evaluate(given)]
  (version,) = (spec.version for p in here for spec in p.specifier)
  assert asked and all(a.specifier.contains(version) for a in asked)


def test_every_import_is_declared(declared):
  names = {canonicalize_name(Requirement(line).name) for line in declared["install_requires"]}
  providers = importlib.metadata.packages_distributions()
  needed = {
    target.split(".")[0]
    for path in LIBRARY
    for _, target in imported(path, compile(read(path), path, "exec", 0x400))
  }
  needed -= {"hyperjax", "__gin__", *sys.stdlib_module_names}
  undeclared = {
    top for top in needed if not names & set(map(canonicalize_name, providers.get(top, [])))
  }
  assert "jax" in needed and not undeclared


# ---- Files -------------------------------------------------------------------------------------


def test_the_version_is_written_once_in_each_place(declared):
  assert declared["version"] == __version__


def test_every_folder_is_a_package(declared):
  tops = {"hyperjax": "hyperjax", "tasks": "hyperjax.tasks", "gin": "hyperjax.configs"}
  folders = {
    path.parent.relative_to(ROOT)
    for top in tops
    for path in (ROOT / top).rglob("*")
    if path.suffix in (".py", ".gin", ".json", ".txt")
  }
  expected = {".".join([tops[folder.parts[0]], *folder.parts[1:]]) for folder in folders}
  assert expected <= set(declared["packages"]) and len(expected) > 8


def test_every_code_folder_has_an_init():
  folders = {path.parent for top in ("hyperjax", "tasks") for path in (ROOT / top).rglob("*.py")}
  assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
  """A copy of what a wheel is built from: a build folder would leak into the next wheel."""
  folder = tmp_path_factory.mktemp("source")
  for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
    if (ROOT / name).exists():
      shutil.copy(ROOT / name, folder)
  for name in ("hyperjax", "tasks", "gin"):
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
  return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> pathlib.Path:
  """The wheel, as pip builds it."""
  out = tmp_path_factory.mktemp("wheel")
  command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
  done = subprocess.run(
    [*command, "--wheel-dir", out, source], cwd=out, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr
  (path,) = out.glob("hyperjax-*.whl")
  return path


def test_the_wheel_holds_every_file(source, wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  inside = {"hyperjax": "hyperjax", "tasks": "hyperjax/tasks", "gin": "hyperjax/configs"}
  wanted = {
    f"{target}/{path.relative_to(source / top).as_posix()}"
    for top, target in inside.items()
    for path in (source / top).rglob("*")
    if path.suffix in (".py", ".gin", ".json", ".txt")
  }
  assert not sorted(wanted - names)
  assert any(name.endswith(".gin") for name in names)
  assert {name.split("/")[0] for name in names} == {"hyperjax", f"hyperjax-{__version__}.dist-info"}
  assert any(name.endswith("LICENSE") for name in names)


_WHERE = """
import hyperjax, hyperjax.configs, hyperjax.tasks
print(hyperjax.__file__, hyperjax.tasks.__file__, hyperjax.configs.__path__[0], sep='\\n')
"""


def where(folder: pathlib.Path, tmp_path: pathlib.Path) -> list[pathlib.Path]:
  """Returns where hyperjax, its tasks and its configs come from with only `folder` on the path."""
  program = f"import sys; sys.path.insert(0, {str(folder)!r}){_WHERE}"
  done = subprocess.run(
    [sys.executable, "-I", "-S", "-c", program],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  return [pathlib.Path(line) for line in done.stdout.splitlines()]


def test_an_installed_wheel_finds_tasks_and_configs(wheel, tmp_path):
  zipfile.ZipFile(wheel).extractall(tmp_path / "site")
  home = tmp_path / "site" / "hyperjax"
  assert where(tmp_path / "site", tmp_path) == [
    *(home / "__init__.py", home / "tasks" / "__init__.py", home / "configs")
  ]


def test_a_bare_checkout_finds_tasks_and_configs(tmp_path):
  assert where(ROOT, tmp_path) == [
    *(ROOT / "hyperjax" / "__init__.py", ROOT / "tasks" / "__init__.py", ROOT / "gin")
  ]
