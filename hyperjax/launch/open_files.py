"""How many files a command may have open: each open token store keeps up to four, as maps."""

import contextlib
import resource

# Enough for the stores of 16,000 tasks; and what macOS lets every process have.
_WANTED = (2**16, 10_240)


def allow_many() -> None:
  """Raises this process's limit of open files, as far as the system lets it.

  Linux has 1,024 and macOS 256, for the sake of programs that call select(), which knows no more;
  others are to raise it themselves as they start.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  for most in _WANTED:
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft == resource.RLIM_INFINITY or wanted <= soft:
      return
    with contextlib.suppress(ValueError, OSError):  # macOS names no hard limit, and has one
      resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
      return
