"""Tests of tpu_scripts/: what they would run, and that shellcheck has nothing to say.

What runs on a host has a file of its own, tpu_host_scripts_test.py.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tpu_scripts"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
RUN = FOLDER / "run_on_all_hosts.sh"
WHERE = ("--name", "pod", "--zone", "us-central2-b")
SSH = "gcloud compute tpus tpu-vm ssh pod --zone=us-central2-b --worker=all".split()


def dry_runs(script: str, *arguments) -> list[list[str]]:
  """Returns the words of each command that a script's dry run prints."""
  done = subprocess.run(
    [FOLDER / script, "--dry-run", *arguments], capture_output=True, text=True
  )
  assert done.returncode == 0 and not done.stderr, done.stderr
  return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


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
  done = subprocess.run(
    [shellcheck, "-x", "-P", "SCRIPTDIR", script], capture_output=True, text=True
  )
  assert not done.stdout and done.returncode == 0, done.stdout


@pytest.mark.parametrize(
  "script", [s for s in SCRIPTS if s.name != "common.sh"], ids=lambda script: script.name
)
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


@pytest.mark.parametrize("words", [
  ["run_on_all_hosts.sh", *WHERE, "--", "ls"], ["create.sh", *WHERE, "--type", "v5litepod-64"],
], ids=lambda words: words[0])  # fmt: skip
def test_without_gcloud_it_says_so(tmp_path, words):
  for tool in ("bash", "env", "cat", "dirname"):
    (tmp_path / tool).symlink_to(shutil.which(tool))
  done = subprocess.run(
    [FOLDER / words[0], *words[1:]], capture_output=True, text=True, env={"PATH": str(tmp_path)}
  )
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


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
  """A gcloud that writes down its arguments; `describe` prints the next line of `states`."""
  program = tmp_path / "gcloud"
  program.write_text(
    f"""#!/usr/bin/env bash
printf '%s ' "$@" >> {tmp_path}/calls; echo >> {tmp_path}/calls
if [[ $4 == describe ]]; then
  read -r state < {tmp_path}/states && sed -i 1d {tmp_path}/states && echo "$state"
  [[ $state != NONE ]]
fi
"""
  )
  program.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
  return tmp_path


def create(gcloud, *states):
  """Runs create.sh while the slice passes through states; returns it and the verbs of gcloud."""
  (gcloud / "states").write_text("".join(f"{state}\n" for state in states))
  done = subprocess.run(
    [FOLDER / "create.sh", *WHERE, "--type", "v4-8", "--poll", "0"], capture_output=True, text=True
  )
  return done, [line.split()[3] for line in (gcloud / "calls").read_text().splitlines()]


def test_create_requests_and_waits(gcloud):
  done, verbs = create(gcloud, "NONE", "CREATING", "PROVISIONING", "PROVISIONING", "ACTIVE")
  assert done.returncode == 0, done.stderr
  assert [line.split()[-1] for line in done.stdout.splitlines()] == [
    "CREATING", "PROVISIONING", "ACTIVE", "setup.sh"
  ]  # fmt: skip
  assert verbs == ["describe", "create", *["describe"] * 4]


def test_create_waits_on_where_it_was_stopped(gcloud):
  done, verbs = create(gcloud, "PROVISIONING", "ACTIVE", "ACTIVE")
  assert done.returncode == 0 and verbs == ["describe"] * 2


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_does_not_wait_for_what_will_not_come(gcloud, state):
  done, _ = create(gcloud, "NONE", "CREATING", state)
  assert done.returncode == 1
  assert "delete.sh --name pod --zone us-central2-b, then again" in done.stderr


def test_create_ends_when_gcloud_fails(gcloud):
  done, _ = create(gcloud, "NONE", "CREATING", "NONE")
  assert done.returncode == 1 and "next" not in done.stdout


@pytest.mark.parametrize(
  ("kind", "runtime"),
  [("v5litepod-64", "v2-alpha-tpuv5-lite"), ("v5p-128", "v2-alpha-tpuv5"),
   ("v6e-16", "v2-alpha-tpuv6e"), ("v4-8", "tpu-ubuntu2204-base")],
)  # fmt: skip
def test_create_knows_the_runtimes(kind, runtime):
  request, look = dry_runs("create.sh", *WHERE, "--type", kind, "--spot", "--valid-for=6h")
  assert request == [
    *("gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod"),
    *(f"--accelerator-type={kind}", f"--runtime-version={runtime}", "--zone=us-central2-b"),
    *("--spot", "--valid-until-duration=6h"),
  ]
  assert look[4:] == ["describe", "pod", "--zone=us-central2-b", "--format=value(state.state)"]


def test_setup_brings_the_same_to_every_host(tmp_path):
  wheel = tmp_path / "hyperjax-0.1.0-py3-none-any.whl"
  wheel.touch()
  folder, copy, mount, install = dry_runs(
    "setup.sh", *WHERE, "--source", str(wheel), "--bucket", "gs://mine"
  )
  assert folder == [*SSH, "--command=mkdir -p hyperjax-host"]
  assert copy[:5] == "gcloud compute tpus tpu-vm scp".split()
  assert copy[-3:] == ["pod:hyperjax-host/", "--zone=us-central2-b", "--worker=all"]
  names = [pathlib.Path(file).name for file in copy[5:-3]]
  hosts = [script.name for script in SCRIPTS if script.name.startswith(("host_", "common"))]
  assert sorted(names) == sorted([*hosts, "requirements.txt", "requirements-gcs.txt", wheel.name])
  assert all(pathlib.Path(file).exists() for file in copy[5:-3])
  assert mount == [*SSH, "--command=bash hyperjax-host/host_mount.sh --bucket mine"]
  line = f"bash hyperjax-host/host_install.sh --source hyperjax-host/{wheel.name} --python 3.12"
  assert install == [*SSH, f"--command={line}"]


def test_setup_takes_a_git_url():
  url = "git+https://github.com/someone/hyperjax@v1"
  *_, install = dry_runs("setup.sh", *WHERE, "--source", url, "--python", "3.11")
  assert install[-1].endswith(f"host_install.sh --source {url} --python 3.11")


def test_launch_detaches_a_loop_on_every_host():
  words = ["hyperjax", "train", "--gin.X='a b'"]
  copies = ["--copy", "/gcs/a=/tmp/a", "--copy=/gcs/b c=/tmp/b"]
  (line,) = dry_runs("launch.sh", *WHERE, "--run", "mtf", *copies, "--", *words)
  assert line[:-1] == SSH
  assert shlex.split(line[-1].removeprefix("--command=")) == [
    *("nohup", "bash", "hyperjax-host/host_run.sh", "--copy", "/gcs/a=/tmp/a"),
    *("--copy", "/gcs/b c=/tmp/b", "--", *words),
    *(">>", "hyperjax-host/mtf.log", "2>&1", "<", "/dev/null", "&"),
  ]


@pytest.mark.parametrize(
  ("script", "arguments", "words"),
  [
    ("logs.sh", [*WHERE, "--run", "mtf"],
     [*SSH[:-1], "--worker=0", "--command=tail -n 20 hyperjax-host/mtf.log"]),
    ("logs.sh", [*WHERE, "--run=mtf", "--worker=all", "--lines=5", "--follow"],
     [*SSH, "--command=tail -n 5 -f hyperjax-host/mtf.log"]),
    ("stop.sh", WHERE, [*SSH, "--command=bash hyperjax-host/host_stop.sh"]),
    ("delete.sh", [*WHERE, "--project=mine", "--async"],
     [*"gcloud compute tpus queued-resources delete pod --zone=us-central2-b".split(),
      "--project=mine", "--force", "--quiet", "--async"]),
  ],
)  # fmt: skip
def test_one_command(script, arguments, words):
  assert dry_runs(script, *arguments) == [words]


def test_fetch_copies_from_the_bucket():
  arguments = ["--from", "gs://mine/runs/mtf", "--to", "runs/mtf"]
  sync = ["gcloud", "storage", "rsync"]
  rest = [
    ["mkdir", "-p", "runs/mtf"],
    [*sync, "gs://mine/runs/mtf", "runs/mtf", "--recursive", "--exclude=^checkpoints/"],
  ]
  checkpoints = [
    ["mkdir", "-p", "runs/mtf/checkpoints"],
    [*sync, "gs://mine/runs/mtf/checkpoints", "runs/mtf/checkpoints", "--recursive",
     "--delete-unmatched-destination-objects"],
  ]  # fmt: skip
  assert dry_runs("fetch.sh", *arguments) == [*rest, *checkpoints]
  assert dry_runs("fetch.sh", *arguments, "--no-checkpoints") == rest


@pytest.mark.parametrize("finished, kept", [(["1"], {"1"}), ([], {"1", "2"})])
def test_fetch_leaves_checkpoints_that_were_being_written(tmp_path, finished, kept):
  """Where a bucket's own sign of a whole one is there at all: a mounted one has none."""
  bucket = tmp_path / "bucket"
  for step in ("1", "2"):
    (bucket / "checkpoints" / step).mkdir(parents=True)
    (bucket / "checkpoints" / step / "array").write_text("1")
  for step in finished:
    (bucket / "checkpoints" / step / "commit_success.txt").write_text("")
  (bucket / "config.gin").write_text("")
  gcloud = tmp_path / "gcloud"
  gcloud.write_text(f'#!/usr/bin/env bash\ncp -r "{bucket}/${{3#gs://mine/run}}/." "$4"\n')
  gcloud.chmod(0o755)
  subprocess.run(
    [FOLDER / "fetch.sh", "--from", "gs://mine/run/", "--to", tmp_path / "run"], check=True,
    env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
  )  # fmt: skip
  assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == kept
  assert (tmp_path / "run" / "config.gin").exists()


def test_xpk_starts_the_same_command():
  words = ["hyperjax", "train", "--gin.X='a b'"]
  (line,) = dry_runs(
    "xpk.sh", *WHERE, "--cluster=c", "--type=v5litepod-64", "--image=i", "--storage=gcs",
    "--copy=/gcs/a=/tmp/a", "--", *words,
  )  # fmt: skip
  assert line[:-1] == [
    *("xpk", "workload", "create", "--workload=pod", "--cluster=c", "--zone=us-central2-b"),
    *("--tpu-type=v5litepod-64", "--num-slices=1", "--docker-image=i", "--max-restarts=50"),
    *("--restart-on-exit-codes=75", "--termination-grace-period-seconds=60", "--storage=gcs"),
  ]
  assert shlex.split(line[-1].removeprefix("--command=")) == [
    *("exec", "bash", "/opt/hyperjax-host/host_run.sh", "--once", "--copy", "/gcs/a=/tmp/a"),
    *("--", *words),
  ]


@pytest.mark.parametrize(
  ("script", "arguments", "message"),
  [
    ("create.sh", WHERE, "--type is missing"),
    ("create.sh", [*WHERE, "--type", "v9-8"], "--type v9-8: no runtime is known for it"),
    ("create.sh", [*WHERE, "--type=v4-8", "--spot", "--reserved"], "exclude each other"),
    ("create.sh", [*WHERE, "--type=v4-8", "--poll=soon"], "--poll soon is not a number"),
    ("create.sh", [*WHERE, "--spot=yes"], "unknown argument '--spot=yes'"),
    ("setup.sh", WHERE, "--source is missing"),
    ("setup.sh", [*WHERE, "--source", "hyperjax"], "is neither a wheel (.whl) nor a git URL"),
    ("setup.sh", [*WHERE, "--source", "no.whl"], "--source no.whl: no such file"),
    ("launch.sh", [*WHERE, "--", "ls"], "--run is missing"),
    ("launch.sh", [*WHERE, "--run", "a/b", "--", "ls"], "--run a/b is not a plain name"),
    ("launch.sh", [*WHERE, "--run=r", "--copy=a", "--", "ls"], "--copy a is not of the form"),
    ("launch.sh", [*WHERE, "--run", "r"], "no command after --"),
    ("logs.sh", [*WHERE, "--run=r", "--worker=first"], "--worker first is not a number or all"),
    ("fetch.sh", ["--from", "runs/mtf", "--to", "x"], "--from runs/mtf is not an address"),
    ("delete.sh", [*WHERE, "--", "ls"], "unknown argument '--'"),
    ("xpk.sh", [*WHERE, "--cluster=c", "--type=t", "--", "ls"], "--image is missing"),
  ],
)  # fmt: skip
def test_wrong_arguments_are_refused(script, arguments, message):
  done = subprocess.run([FOLDER / script, *arguments], capture_output=True, text=True)
  assert done.returncode == 2 and message in done.stderr and not done.stdout
  assert done.stderr.startswith(f"{script}: ") and "(--help explains)" in done.stderr
