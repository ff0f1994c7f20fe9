"""Processes that end with a killed parent; those that tokenise are in `data/build_test`."""

import os
import subprocess
import sys
import textwrap


def test_a_benchmarks_process_ends_with_a_killed_parent(tmp_path):
  """In the midst of a turn: its standard output is the parent's, and is closed with the last."""
  turn = "print('begun', flush=True); import time; time.sleep(60)"
  script = f"""
    import functools
    from benchmarks import beside

    if __name__ == "__main__":
      side = {{"run": functools.partial(exec, {turn!r}), "rate": float, "facts": {{}}}}
      beside.Worker(beside.Contestant("slow", "benchmarks.beside:Side", side, 1.0))
  """
  file = tmp_path / "script.py"
  file.write_text(textwrap.dedent(script))
  parent = subprocess.Popen(
    [sys.executable, str(file)], stdout=subprocess.PIPE, text=True,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
  )  # fmt: skip
  assert parent.stdout.readline() == "begun\n"
  parent.kill()
  assert parent.communicate(timeout=20) == ("", None)
