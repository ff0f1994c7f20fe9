"""Reads the text of a compiled program: XLA's HLO, as `Compiled.as_text()` prints it."""

import dataclasses
import math
import re
from collections.abc import Mapping

_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{\s*$")
_END = re.compile(r"\}(, execution_thread=.*)?\s*")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
  """An array's type: 'bf16' and its sizes, as they are on one device."""

  dtype: str
  shape: tuple[int, ...]

  @property
  def bytes(self) -> int:
    """How much room its elements take, without padding; 0 for tokens and the like."""
    return -(-math.prod(self.shape) * _bits(self.dtype) // 8)


def _bits(dtype: str) -> int:
  if dtype == "pred":
    return 8
  found = re.search(r"\d+", dtype)
  return int(found[0]) if found else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name, opcode: `%name = type opcode(operands), attributes`.
    arrays: the result, a tuple's elements flattened.
    operands: names of instructions of the same computation.
    argument: the text between the parentheses; of a constant, its value.
    attributes: the text behind them.
    root: whether it is the computation's result.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  argument: str
  attributes: str
  root: bool

  @property
  def bytes(self) -> int:
    """Of the result."""
    return sum(array.bytes for array in self.arrays)

  def called(self, *names: str) -> tuple[str, ...]:
    """The computations that attributes of these names (`calls=%x`, `branch_computations={%x, %y}`)
    refer to."""
    out: list[str] = []
    for name in names:
      for found in re.finditer(rf"\b{name}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes):
        out += _NAME.findall(found[1])
    return tuple(out)

  def attribute(self, pattern: str) -> str | None:
    """The first group of a pattern that the attributes have; None where they do not."""
    found = re.search(pattern, self.attributes)
    return found[1] if found else None


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
  """A module: its computations by name, instructions in the order in which they run."""

  entry: str
  computations: Mapping[str, Computation]


def parse(text: str) -> Program:
  """Reads a module.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current, lines = None, None, []
  for line in text.splitlines():
    if current is None:
      if found := _COMPUTATION.match(line):
        current, lines = computations.setdefault(found[2], {}), []
        entry = found[2] if found[1] else entry
    elif _END.fullmatch(line):
      found = (_instruction(each) for each in lines)
      current.update((each.name, each) for each in found if each)
      current = None
    elif line.startswith(" ") or not lines:
      lines.append(line)
    else:  # a kernel's own description is written over several lines
      lines[-1] += line
  if entry is None:
    raise ValueError("the text of a compiled program has no entry computation")
  return Program(entry, computations)


def _instruction(line: str) -> Instruction | None:
  found = _INSTRUCTION.match(line)
  if not found:
    return None
  rest = line[found.end() :]
  # A tuple's type stands in parentheses; another's ends at the first space.
  end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
  opcode = _OPCODE.match(rest, end)
  if not opcode:
    return None
  close = _closing(rest, opcode.end() - 1)
  argument = rest[opcode.end() : close - 1]
  return Instruction(
    name=found[2],
    opcode=opcode[1],
    arrays=tuple(
      Array(dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))
      for dtype, sizes in _ARRAY.findall(rest[:end])
    ),
    operands=tuple(_NAME.findall(argument)),
    argument=argument,
    attributes=rest[close:],
    root=bool(found[1]),
  )


def _closing(text: str, start: int) -> int:
  """The index behind the parenthesis that closes the one at `start`."""
  depth = 0
  for match in re.finditer(r"[()]", text[start:]):
    depth += 1 if match[0] == "(" else -1
    if depth == 0:
      return start + match.end()
  return len(text)
