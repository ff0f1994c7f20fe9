"""Tests of tpu_scripts/: what they would run, and that shellcheck has nothing to say."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

SCRIPTS = sorted((pathlib.Path(__file__).resolve().parent.parent / "tpu_scripts").glob("*.sh"))
RUN = next(script for script in SCRIPTS if script.name == "run_on_all_hosts.sh")
WHERE = ("--name", "pod", "--zone", "us-central2-b")


def run(*arguments, **options):
  """Runs run_on_all_hosts.sh."""
  return subprocess.run([RUN, *arguments], capture_output=True, text=True, **options)


def dry_run(*arguments) -> list[str]:
  """Returns the words of the command that a dry run prints."""
  done = run(*WHERE, "--dry-run", *arguments)
  assert done.returncode == 0, done.stderr
  return shlex.split(done.stdout)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_is_silent(script):
  shellcheck = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
  assert shellcheck, "shellcheck is missing: pip install -r requirements-test.txt"
  done = subprocess.run([shellcheck, script], capture_output=True, text=True)
  assert not done.stdout and done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_help_teaches(script):
  done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
  assert done.stdout.startswith("usage: ") and "Example" in done.stdout


def test_dry_run_prints_the_command():
  assert dry_run("--project=mine", "--", "hyperjax", "train") == [
    *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=us-central2-b"),
    *("--project=mine", "--worker=all", "--command=hyperjax train"),
  ]


def test_arguments_survive_both_shells():
  words = ["printf", "%s|", "--gin.X='a b'", "$HOME", "a;b", "", 'c"d', "*"]
  remote = dry_run("--", *words)[-1].removeprefix("--command=")
  assert shlex.split(remote) == words
  host = subprocess.run(["bash", "-c", remote], capture_output=True, text=True, check=True)
  assert host.stdout == "".join(f"{word}|" for word in words[2:])


def test_detach_leaves_the_output_in_the_log(tmp_path):
  log = tmp_path / "my log"
  remote = dry_run("--detach", str(log), "--", "echo", "hello")[-1].removeprefix("--command=")
  assert remote.startswith("nohup ") and remote.endswith(" &")
  host = subprocess.run(["bash", "-c", f"{remote} wait"], capture_output=True, text=True)
  assert host.returncode == 0 and not host.stdout
  assert log.read_text() == "hello\n"


def test_it_runs_what_the_dry_run_prints(tmp_path):
  gcloud = tmp_path / "gcloud"
  gcloud.write_text('#!/usr/bin/env bash\nprintf "%s\\n" gcloud "$@"\n')
  gcloud.chmod(0o755)
  path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
  done = run(*WHERE, "--", "echo", "a b", env={**os.environ, "PATH": path})
  assert done.stdout.splitlines() == dry_run("--", "echo", "a b")


def test_without_gcloud_it_says_so(tmp_path):
  for tool in ("bash", "env", "cat"):
    (tmp_path / tool).symlink_to(shutil.which(tool))
  done = run(*WHERE, "--", "ls", env={"PATH": str(tmp_path)})
  assert done.returncode == 127 and "gcloud is not installed" in done.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--zone", "z", "--", "ls"], "--name is missing"),
    (["--name", "n", "--", "ls"], "--zone is missing"),
    (["--name", "--zone", "z", "--", "ls"], "--name needs a value"),
    ([*WHERE, "--detach", "--", "ls"], "--detach needs a value"),
    ([*WHERE], "no command after --"),
    ([*WHERE, "ls"], "unknown argument 'ls'; the command to run comes after --"),
    ([*WHERE, "--worker", "0", "--", "ls"], "unknown argument '--worker'"),
  ],
)
def test_a_wrong_line_is_refused(arguments, message):
  done = run(*arguments)
  assert done.returncode == 2 and message in done.stderr and not done.stdout
