"""Metrics read back from both files; event files are parsed record by record."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

from hyperjax.training import metrics_writer
from hyperjax.training.metrics_writer import MetricsWriter


def masked(data):
  crc = crc32c(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder):
  """Returns the events of a folder's event files, checking both checksums of every record."""
  found = []
  for path in sorted(folder.glob("events.out.tfevents.*")):
    data = path.read_bytes()
    while data:
      header, (length,) = data[:8], struct.unpack("<Q", data[:8])
      assert struct.unpack("<I", data[8:12])[0] == masked(header)
      body = data[12 : 12 + length]
      assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked(body)
      found.append(event_pb2.Event.FromString(body))
      data = data[16 + length :]
  return found


def scalars(folder):
  return [
    (event.step, value.tag, value.simple_value)
    for event in events(folder)
    for value in event.summary.value
  ]


def steps(writer):
  return [line["step"] for line in metrics_writer.read(writer.path)]


def test_of_several_processes_the_first_one_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics_writer.jax, "process_index", lambda: 1)
  with MetricsWriter(tmp_path / "run", resume_step=3) as writer:
    writer.write(4, {"loss": 2.5})
  assert writer.last == {} and not (tmp_path / "run").exists()


def test_both_files_hold_what_was_written(tmp_path):
  with MetricsWriter(tmp_path / "new" / "run") as writer:
    writer.write(1, {"loss": 2.5, "eval/exact_match": 0.25})
    writer.write(2, {"loss": 1.25})
  lines = metrics_writer.read(writer.path)
  assert [{k: v for k, v in line.items() if k != "time"} for line in lines] == [
    {"step": 1, "loss": 2.5, "eval/exact_match": 0.25},
    {"step": 2, "loss": 1.25},
  ]
  assert lines[0]["time"] <= lines[1]["time"]
  assert scalars(tmp_path / "new" / "run") == [
    (1, "loss", 2.5),
    (1, "eval/exact_match", 0.25),
    (2, "loss", 1.25),
  ]


def test_a_line_is_on_disk_at_once(tmp_path):
  writer = MetricsWriter(tmp_path)
  writer.write(1, {"loss": 1.0})
  assert steps(writer) == [1]
  writer.close()


def test_numbers_of_arrays(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    writer.write(np.int64(3), {"loss": np.float32(0.5)})
  assert metrics_writer.read(writer.path)[0]["loss"] == 0.5


def test_what_json_cannot_hold_is_null(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    writer.write(1, {"loss": float("nan"), "grad": float("inf")})
  assert json.loads(writer.path.read_text())["loss"] is None
  assert json.loads(writer.path.read_text())["grad"] is None
  assert [str(value) for _, _, value in scalars(tmp_path)] == ["nan", "inf"]


def test_resuming_writes_no_step_twice(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for step in range(1, 6):
      writer.write(step, {"loss": float(step)})
  with MetricsWriter(tmp_path, resume_step=3) as writer:
    assert steps(writer) == [1, 2, 3]
    writer.write(4, {"loss": 40.0})
  assert steps(writer) == [1, 2, 3, 4]
  assert [step for step, _, _ in scalars(tmp_path)] == [1, 2, 3, 4, 5, 4]
  # TensorBoard drops what a file before it says about steps from a START record's step on.
  starts = [e.step for e in events(tmp_path) if e.session_log.status == event_pb2.SessionLog.START]
  assert starts[-1] == 4


def test_the_line_that_a_resumed_run_goes_on_from(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    assert writer.last == {}
    for step in (1, 2, 3):
      writer.write(step, {"minutes": step / 2})
  with MetricsWriter(tmp_path, resume_step=2) as writer:
    assert (writer.last["step"], writer.last["minutes"]) == (2, 1.0)


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    writer.write(1, {"loss": 1.0})
  with open(writer.path, "a") as file:
    file.write('{"step": 2, "lo')
  assert steps(writer) == [1]
  with MetricsWriter(tmp_path, resume_step=2) as writer:
    writer.write(3, {"loss": 3.0})
  assert steps(writer) == [1, 3]


def test_a_new_run_starts_an_empty_file(tmp_path):
  for _ in range(2):
    with MetricsWriter(tmp_path) as writer:
      writer.write(0, {"loss": 2.0})
      writer.write(1, {"loss": 1.0})
  assert steps(writer) == [0, 1]


def test_tensorflow_is_not_imported():
  script = (
    "import sys, tempfile; from hyperjax.training.metrics_writer import MetricsWriter;"
    "w = MetricsWriter(tempfile.mkdtemp()); w.write(1, {'a': 1.0}); w.close();"
    "sys.exit(any(m.split('.')[0] in ('tensorflow', 'tensorboard') for m in sys.modules))"
  )
  path = os.pathsep.join(sys.path)
  assert subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}
                        ).returncode == 0
