"""The `hyperjax` command: one subcommand for each module that has a `main(argv)`."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from hyperjax import __version__

# {command: (module, what it does)}. Modules are named, not imported: the help needs no jax.
COMMANDS = {
  "data": ("hyperjax.data.__main__", "build the token stores of a run's tasks"),
  "train": ("hyperjax.train", "train a hypermodel (or gisting) on episodes or text"),
  "evaluate": ("hyperjax.evaluate", "compare methods on held-out tasks; write a report"),
  "report": ("hyperjax.report", "put finished evaluations side by side, in one HTML page"),
  "tune": ("hyperjax.tune", "tune phi on single tasks, from generated and other starts"),
  "adapt": ("hyperjax.adapt", "turn a few examples into an adapter, in one forward pass"),
  "predict": ("hyperjax.predict", "answer inputs with the base model and an adapter"),
  "compile": ("hyperjax.compile", "compile a training step for a slice of TPUs, without one"),
  "convert": ("hyperjax.convert", "write a loaded model as a Hugging Face folder"),
  "tasks": ("hyperjax.tasks.__main__", "list the registered tasks and show their examples"),
  "doctor": ("hyperjax.doctor", "check this installation; print what repairs it"),
}

EXAMPLE = """\
Example, from ten examples to an answer:
  hyperjax adapt --examples ten.jsonl --out my_adapter
  hyperjax predict --adapter my_adapter --input "three hundred and five"

Each command explains itself: hyperjax COMMAND --help
"""


def usage() -> str:
  """Returns the help text: one line per command, and an example."""
  width = max(map(len, COMMANDS))
  lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
  return "\n".join(["usage: hyperjax COMMAND [ARGUMENTS]", "", *lines, "", EXAMPLE])


def unknown(command: str) -> str:
  """Returns the error for a command that does not exist, naming the nearest that does."""
  near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
  hint = f" Did you mean '{near[0]}'?" if near else ""
  return f"hyperjax: unknown command '{command}'.{hint} Commands: {', '.join(COMMANDS)}."


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit status: 130 after Ctrl-C, which is no error of ours."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ("-h", "--help", "help"):
    print(usage(), end="")
    return 0 if argv else 2
  command, *rest = argv
  if command == "--version":
    print(__version__)
    return 0
  if command not in COMMANDS:
    print(unknown(command), file=sys.stderr)
    return 2
  # As `python -m` has it: what a command line names may lie in the folder that it is given in.
  if not sys.flags.safe_path and (here := os.getcwd()) not in sys.path:
    sys.path.insert(0, here)
  module, _ = COMMANDS[command]
  try:
    return importlib.import_module(module).main(rest) or 0
  except KeyboardInterrupt:
    if "--debug" in rest:
      raise
    print("interrupted", file=sys.stderr)
    return 130


if __name__ == "__main__":
  sys.exit(main())
