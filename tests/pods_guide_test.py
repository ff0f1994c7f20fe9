"""docs/pods.md from its first command to its last: scripts as dry runs, other programs as stubs."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from hyperjax import __version__, launch, train
from hyperjax.data import __main__ as data_main
from tests.tiny import ROOT

GUIDE = (ROOT / "docs/pods.md").read_text()
OTHERS = ("gcloud", "xpk", "docker", "hf", "pip", "ssh-add", "hyperjax")
SCRIPT = re.compile(r"tpu_scripts/[a-z_]+\.sh")


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
  """What the guide's blocks, as one shell session, call and what its scripts would.

  Returns (calls of other programs, commands that the scripts print), each a list of words.
  """
  folder = tmp_path_factory.mktemp("guide")
  (folder / "tpu_scripts").symlink_to(ROOT / "tpu_scripts")
  (folder / "dist").mkdir()
  (folder / "dist" / f"hyperjax-{__version__}-py3-none-any.whl").touch()
  stubs = folder / "stubs"
  stubs.mkdir()
  for name in OTHERS:
    stub = stubs / name
    stub.write_text(
      f"#!{sys.executable}\nimport json, sys\n"
      f"open({str(folder / 'calls')!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n"
    )
    stub.chmod(0o755)
  blocks = re.findall(r"```bash\n(.*?)```", GUIDE, re.S)
  session = SCRIPT.sub(lambda script: f"{script[0]} --dry-run", "\n".join(blocks))
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", session], cwd=folder, capture_output=True, text=True,
    env={"PATH": f"{stubs}{os.pathsep}/usr/bin{os.pathsep}/bin", "HOME": str(folder)},
  )  # fmt: skip
  assert done.returncode == 0 and not done.stderr, done.stderr
  calls = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
  lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
  return calls, [shlex.split(line) for line in lines]


def inner(words) -> list[str]:
  """The hyperjax command that a script sends to hosts or pods."""
  line = shlex.split(words[-1].removeprefix("--command="))
  line = line[line.index("hyperjax") :]
  return line[: line.index(">>")] if ">>" in line else line


def macros(words) -> dict[str, str]:
  """{name: value} of the bindings of a command."""
  bindings = (word.removeprefix("--gin.") for word in words if word.startswith("--gin."))
  return dict(binding.split("=", 1) for binding in bindings)


def sent(guide) -> list[list[str]]:
  return [inner(words) for words in guide[1] if "-- hyperjax" in words[-1]]


def test_every_script_has_its_place_in_the_guide():
  for script in (ROOT / "tpu_scripts").glob("*.sh"):
    if not script.name.startswith(("host_", "common")):
      assert f"tpu_scripts/{script.name}" in GUIDE, script.name
  assert all((ROOT / script).exists() for script in SCRIPT.findall(GUIDE))


def test_the_scripts_go_in_order(guide):
  verbs = [words[4:6] for words in guide[1] if words[:3] == ["gcloud", "compute", "tpus"]]
  first = [verb[0] for verb in verbs]
  assert first.index("create") < first.index("scp") < first.index("delete")


def test_a_slice_and_a_cluster_run_the_same_command(guide):
  first, again, pods = sent(guide)
  assert first == again == pods


def test_every_training_command_is_whole(guide, capsys):
  commands = [*sent(guide), *(call for call in guide[0] if call[:2] == ["hyperjax", "train"])]
  distinct = {tuple(word for word in words[2:] if word != "--dry_run") for words in commands}
  assert len(distinct) == 2, "the run, and the same with flags of processes"
  for arguments in distinct:
    assert train.main([*arguments, "--dry_run"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "frozen 6,738,415,616" in out and "steps       10000, 64 episodes each" in out


def test_the_other_commands_are_whole(guide, capsys):
  calls = {call[1]: call[2:] for call in guide[0] if call[0] == "hyperjax"}
  assert calls.keys() == {"data", "train", "evaluate"}
  assert data_main.main([*calls["data"], "--dry_run"]) == 0, capsys.readouterr().err
  files = [w.removeprefix("--gin_file=") for w in calls["evaluate"] if w.startswith("--gin_file=")]
  bindings = [w.removeprefix("--gin.") for w in calls["evaluate"] if w.startswith("--gin.")]
  given = launch.arguments(files, "hyperjax.evaluate", "evaluate", bindings=bindings)
  assert given["runs_by_method"] == {"hyperllama": "runs/mtf"}
  assert dataclasses.astuple(given["mesh"]) == (1, 1, 8)


def test_the_copies_are_where_the_run_reads(guide):
  (launched, *_) = [words for words in guide[1] if "host_run.sh" in words[-1]]
  pairs = re.findall(r"--copy (\S+)=(\S+)", launched[-1])
  values = macros(inner(launched))
  assert pairs == [("gs://my-bucket/weights/llama2_7b", values["MODEL_SOURCE"])]
  uploads = [call[-1] for call in guide[0] if call[:3] == ["gcloud", "storage", "rsync"]]
  assert uploads == ["gs://my-bucket/weights", "gs://my-bucket/stores"]
  assert values["DATA_DIR"] == f"{uploads[1]}/p3"
  assert values["MODEL_DIR"] == "gs://my-bucket/runs/mtf"


def test_the_figures_are_those_of_the_command(guide):
  """The example under "What it costs" is computed from the command that it speaks of."""
  values = macros(sent(guide)[0])
  places = int(values["BATCH_SIZE"]) * (1024 + int(values["NUM_QUERIES"]) * 256)
  operations = 6 * 6.74e9 * places
  text = " ".join(GUIDE.split())
  assert f"{places:,} places" in text and f"{operations / 1e15:.1f} × 10¹⁵ operations" in text
  assert f"{operations / 64 / 197e12:.2f} seconds" in text
