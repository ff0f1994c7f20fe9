"""Where the processes of one run find one another."""

import socket


def free() -> int:
  """A port of this machine that nobody has just now."""
  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]
