"""Tests of what tpu_scripts/ brings to a host: a loop that starts a run again, copies, mounts."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tpu_scripts"
TIMEOUT = 60  # seconds, for a machine that is busy


@pytest.fixture
def host(tmp_path) -> pathlib.Path:
  """A home folder as setup.sh leaves it, less hyperjax itself."""
  folder = tmp_path / "hyperjax-host"
  folder.mkdir()
  for script in [*FOLDER.glob("host_*.sh"), FOLDER / "common.sh"]:
    shutil.copy(script, folder)
  return tmp_path


def command(host, *lines: str) -> list[str]:
  """A shell script as a command; it counts its starts in the file `starts`."""
  script = host / "command"
  script.write_text("\n".join(["#!/usr/bin/env bash", f"echo >> {host}/starts", *lines]) + "\n")
  script.chmod(0o755)
  return [str(script)]


def starts(host) -> int:
  return len((host / "starts").read_text().splitlines()) if (host / "starts").exists() else 0


def words(host, *arguments) -> list[str]:
  return ["bash", str(host / "hyperjax-host/host_run.sh"), "--pause", "0", *arguments]


def run(host, *arguments):
  return subprocess.run(words(host, *arguments), capture_output=True, text=True, timeout=TIMEOUT)


def wait_for(condition) -> None:
  end = time.monotonic() + TIMEOUT
  while not condition():
    assert time.monotonic() < end, "nothing happened"
    time.sleep(0.01)


def test_a_preempted_run_is_started_again_until_it_is_done(host):
  lines = f"(( $(wc -l < {host}/starts) < 3 )) && exit 75", "echo done", "exit 0"
  done = run(host, "--", *command(host, *lines))
  assert done.returncode == 0 and starts(host) == 3, done.stderr
  assert [line.split()[-1] for line in done.stdout.splitlines() if " ended " in line] == [
    "75", "75", "0"
  ]  # fmt: skip


@pytest.mark.parametrize("status", [1, 2, 130, 134, 137])
def test_any_other_status_ends_it(host, status):
  done = run(host, "--", *command(host, f"exit {status}"))
  assert done.returncode == status and starts(host) == 1


def test_under_kubernetes_something_else_starts_it_again(host):
  done = run(host, "--once", "--", *command(host, "exit 75"))
  assert done.returncode == 75 and starts(host) == 1


@pytest.mark.parametrize("how", ["SIGTERM", "host_stop.sh"])
def test_a_stop_is_passed_on_and_waited_for(host, how):
  saving = command(
    host, "trap 'sleep 0.3; echo saved; exit 75' TERM", f"touch {host}/ready",
    "for _ in {1..2400}; do sleep 0.05; done",
  )  # fmt: skip
  process = subprocess.Popen(words(host, "--", *saving), stdout=subprocess.PIPE, text=True)
  stop = ["bash", str(host / "hyperjax-host/host_stop.sh")]
  try:
    wait_for((host / "ready").exists)
    again = run(host, "--", *saving)
    assert again.returncode == 1 and "stop.sh ends it" in again.stderr
    if how == "SIGTERM":
      process.send_signal(signal.SIGTERM)
    else:
      subprocess.run(stop, check=True, timeout=TIMEOUT)
    out, _ = process.communicate(timeout=TIMEOUT)
  finally:
    process.kill()
  assert process.returncode == 75 and starts(host) == 1
  assert "saved\n" in out and out.endswith("ended with status 75\n")
  nothing = subprocess.run(stop, capture_output=True, text=True, timeout=TIMEOUT)
  assert nothing.returncode == 0 and nothing.stdout.endswith(": nothing runs here\n")


def test_folders_are_copied_first_whole_and_once(host):
  source, target = host / "store", host / "disk" / "store"
  (source / "part").mkdir(parents=True)
  (source / "part" / "tokens").write_text("1 2 3")
  # What an interrupted copy has left is no copy.
  (host / "disk" / "store.partial").mkdir(parents=True)
  (host / "disk" / "store.partial" / "rest").touch()
  pair = f"{source}={target}"
  done = run(host, "--copy", pair, "--", "cat", str(target / "part" / "tokens"))
  assert done.returncode == 0 and "1 2 3" in done.stdout
  assert sorted(path.name for path in (host / "disk").rglob("*")) == ["part", "store", "tokens"]
  (source / "part" / "tokens").write_text("changed")
  done = run(host, "--copy", pair, "--", "cat", str(target / "part" / "tokens"))
  assert f"{target} is there already" in done.stdout and "1 2 3" in done.stdout


def test_a_copy_from_a_bucket_is_made_by_hyperjax(host):
  python = host / "hyperjax-host" / "venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text('#!/usr/bin/env bash\necho "$@" > "$4"\n')
  python.chmod(0o755)
  pair = f"gs://mine/a={host}/copied"
  done = run(host, "--copy", pair, "--copy", pair, "--", "cat", f"{host}/copied")
  assert f"-m hyperjax.storage gs://mine/a {host}/copied\n" in done.stdout, done.stderr
  assert f"{host}/copied is there already" in done.stdout


def test_a_stop_during_a_copy_starts_nothing_and_leaves_no_lock(host):
  python = host / "hyperjax-host" / "venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(f"#!/usr/bin/env bash\ntouch {host}/copying\nexec sleep 20\n")
  python.chmod(0o755)
  process = subprocess.Popen(
    words(host, "--copy", f"gs://mine/a={host}/copied", "--", *command(host, "exit 0")),
    stdout=subprocess.DEVNULL,
  )  # fmt: skip
  try:
    wait_for((host / "copying").exists)
    stop = ["bash", str(host / "hyperjax-host/host_stop.sh")]
    subprocess.run(stop, check=True, timeout=TIMEOUT)
    assert process.wait(TIMEOUT) == 143 and starts(host) == 0
  finally:
    process.kill()
  assert run(host, "--", *command(host, "exit 0")).returncode == 0 and starts(host) == 1


def test_a_copy_that_fails_starts_nothing(host):
  done = run(host, "--copy", f"{host}/none={host}/disk", "--", *command(host, "exit 0"))
  assert done.returncode == 1 and starts(host) == 0 and not (host / "disk").exists()


def test_what_launch_sends_runs_on_a_host(host):
  program = host / "hyperjax-host" / "venv" / "bin" / "hyperjax"
  program.parent.mkdir(parents=True)
  program.write_text('#!/usr/bin/env bash\nprintf "%s|" "$PYTHONUNBUFFERED" "$@"\n')
  program.chmod(0o755)
  printed = subprocess.run(
    [FOLDER / "launch.sh", "--dry-run", "--name=pod", "--zone=z", "--run=mtf", "--", "hyperjax",
     "train", "--gin.X='a b'", "$HOME"],
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  line = shlex.split(printed.stdout)[-1].removeprefix("--command=")
  # The home folder is where ssh begins.
  subprocess.run(["bash", "-c", f"{line} wait"], cwd=host, check=True, timeout=TIMEOUT)
  log = (host / "hyperjax-host" / "mtf.log").read_text()
  assert "1|train|--gin.X='a b'|$HOME|" in log and log.endswith("ended with status 0\n")


def test_the_installation_has_the_pins_and_no_tensorflow(host):
  """The installer's own steps, with programs that only write down how they are called."""
  folder = host / "hyperjax-host"
  files = [FOLDER.parent / name for name in ("requirements.txt", "requirements-gcs.txt")]
  for file in files:
    shutil.copy(file, folder)
  python = host / "bin" / "python3"
  python.parent.mkdir()
  calls = f"{host}/calls"
  python.write_text(f'#!/usr/bin/env bash\nprintf "%s|" "$@" >> {calls}\necho >> {calls}\n')
  python.chmod(0o755)
  (folder / "venv" / "bin").mkdir(parents=True)
  shutil.copy(python, folder / "venv" / "bin" / "python")
  done = subprocess.run(
    ["bash", folder / "host_install.sh", "--source", "git+https://example.org/hyperjax@v1"],
    env={**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"},
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  pip, venv, install, show = (host / "calls").read_text().splitlines()
  assert pip == "-m|pip|install|--quiet|--user|uv|"
  assert "|--managed-python|--python|3.12|" in venv and venv.endswith(f"|{folder}/venv|")
  assert install.endswith("|jax[tpu]|hyperjax[gcs] @ git+https://example.org/hyperjax@v1|")
  assert show.startswith("-c|import platform, jax, hyperjax")
  compile(show.removeprefix("-c|").removesuffix("|"), "host_install.sh", "exec")
  pins = (folder / "constraints.txt").read_text().splitlines()
  wanted = [line for file in files for line in file.read_text().splitlines()]
  assert pins == [line for line in wanted if line and line[0] not in "#.-"]
  never = "seqio t5 tensorflow tensorflow-datasets".split()
  assert (folder / "overrides.txt").read_text().splitlines() == [
    f"{name} ; sys_platform == 'never'" for name in never
  ]


def test_a_bucket_is_mounted_where_it_is_not(host):
  script = host / "hyperjax-host" / "host_mount.sh"
  done = subprocess.run(
    ["bash", script, "--dry-run", "--bucket", "mine", "--at", "/data"], capture_output=True,
    text=True, check=True,
  )  # fmt: skip
  last = [shlex.split(line) for line in done.stdout.splitlines()][-3:]
  assert last == [
    ["sudo", "mkdir", "-p", "/data"],
    ["sudo", "chown", f"{os.getuid()}:{os.getgid()}", "/data"],
    ["gcsfuse", "--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0", "mine",
     "/data"],
  ]  # fmt: skip
