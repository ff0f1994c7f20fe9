"""Processes that end with the one that started them, also where that is killed."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
  """Has this process, one that multiprocessing has started, end as soon as its parent has, in the
  midst of its work; a parent that is killed cannot end it."""
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)
