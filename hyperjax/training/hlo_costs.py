"""What a compiled program does each time that it runs, on one device, counted from its HLO.

XLA's own cost analysis counts the body of a loop once, and models scan over their layers. Here
everything in a loop counts as often as the loop goes round.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from hyperjax.training import hlo
from hyperjax.training.hlo import Computation, Instruction, Program

COLLECTIVES = (
  "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
  "ragged-all-to-all", "reduce-scatter",
)  # fmt: skip
# A TPU's way to spread a collective over the computations of several fusions: it is in all of them,
# and begins in the one that has this.
_ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
_KERNEL = 'custom_call_target="tpu_custom_call"'
# What hands a value on as it is.
_COPIES = ("bitcast", "convert", "copy", "copy-done", "copy-start", "optimization-barrier")


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind.

  Attributes:
    calls, bytes: how many, and the bytes of what each device has of their results (of a
      reduce-scatter: of what goes in). Not what goes over the links: that depends on the algorithm.
    synchronous_calls, synchronous_bytes: those that nothing else is computed beside.
  """

  calls: int = 0
  bytes: int = 0
  synchronous_calls: int = 0
  synchronous_bytes: int = 0

  def __add__(self, other: "Collective") -> "Collective":
    mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
    return Collective(*(a + b for a, b in zip(mine, theirs, strict=True)))


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one run of a program, on one device.

  Attributes:
    matmul_flops: operations of matrix products (2 for a multiplication and its addition), those
      inside of Pallas kernels left out.
    collectives: by kind; kinds that do not occur are left out.
    kernels: calls of Pallas kernels.
    unknown_loops: loops whose number of rounds the text does not show; counted as one round.
  """

  matmul_flops: int
  collectives: Mapping[str, Collective]
  kernels: int
  unknown_loops: tuple[str, ...] = ()

  @property
  def collective_bytes(self) -> int:
    """Of all kinds."""
    return sum(each.bytes for each in self.collectives.values())


def count(text: str) -> Costs:
  """Counts what a program does.

  Args:
    text: the HLO of a compiled (scheduled, partitioned) program.
  """
  program = hlo.parse(text)
  flops = kernels = 0
  collectives: dict[str, Collective] = {}
  unknown: list[str] = []
  begun = _begun(program)
  for place in _walk(program, program.entry, 1, False, unknown):
    computation, instruction = program.computations[place.computation], place.instruction
    if instruction.opcode in ("convolution", "dot"):
      flops += place.times * matmul_flops(instruction, computation)
    elif instruction.opcode == "custom-call" and _KERNEL in instruction.attributes:
      kernels += place.times
    elif kind := _kind(instruction):
      if place.fused and begun.get(_channel(instruction), place.computation) != place.computation:
        continue  # a part of one that began in another fusion
      overlapped = place.overlapped or instruction.opcode.endswith("-start")
      overlapped |= place.fused and _channel(instruction) in begun
      found = _collective(kind, instruction, computation, place.times, overlapped)
      collectives[kind] = collectives.get(kind, Collective()) + found
  return Costs(flops, dict(sorted(collectives.items())), kernels, tuple(unknown))


@dataclasses.dataclass(frozen=True)
class _Place:
  """An instruction, and how it is run: how many times, in a fusion, beside other work."""

  instruction: Instruction
  computation: str
  times: int
  fused: bool
  overlapped: bool


def _walk(
  program: Program, name: str, times: int, fused: bool, unknown: list[str],
  overlapped: bool = False,
) -> Iterator[_Place]:  # fmt: skip
  """Every instruction that runs, from one computation on; loops of unknown length are noted."""
  for instruction in program.computations[name].values():
    yield _Place(instruction, name, times, fused, overlapped)
    go = functools.partial(_walk, program, unknown=unknown)
    if instruction.opcode == "while":
      rounds = _rounds(program, program.computations[name], instruction)
      if rounds is None:
        unknown.append(instruction.name)
      for body in instruction.called("body"):
        yield from go(body, times * (1 if rounds is None else rounds), fused, overlapped=overlapped)
    elif instruction.opcode in ("fusion", "async-start"):
      beside = overlapped or instruction.opcode == "async-start"
      for called in instruction.called("calls"):
        yield from go(called, times, fused or instruction.opcode == "fusion", overlapped=beside)
    elif instruction.opcode in ("call", "conditional"):  # every branch counts
      names = ("to_apply", "branch_computations", "true_computation", "false_computation")
      for called in instruction.called(*names):
        yield from go(called, times, fused, overlapped=overlapped)


# ---- Loops ---------------------------------------------------------------------------------------


def _rounds(program: Program, around: Computation, loop: Instruction) -> int | None:
  """How often a counted loop goes round; None where its text does not show it."""
  known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
  if known is not None:
    return int(known)
  (condition,), (body,) = loop.called("condition"), loop.called("body")
  test = _test(program, program.computations[condition])
  if test is None:
    return None
  index, limit = test
  start = _constant(around, _element(around, loop.operands[0], index))
  step = _step(program.computations[body], index)
  if start is None or not step:
    return None
  return max(0, -(-(limit - start) // step))


def _test(program: Program, condition: Computation) -> tuple[int, int] | None:
  """Of a condition `element < constant`: the element's index in the loop's state, the constant."""
  root, within, given = _root(condition), condition, {}
  if root.opcode == "fusion":
    (called,) = root.called("calls")
    within = program.computations[called]
    given = {
      x.name: root.operands[int(x.argument)] for x in within.values() if x.opcode == "parameter"
    }
    root = _root(within)
  if root.opcode != "compare" or root.attribute(r"direction=(\w+)") != "LT":
    return None
  left, right = root.operands
  element = condition.get(given.get(left, left))
  limit = _constant(condition, given[right]) if right in given else _constant(within, right)
  if limit is None or element is None or element.opcode != "get-tuple-element":
    return None
  return int(element.attribute(r"index=(\d+)")), limit


def _step(body: Computation, index: int) -> int | None:
  """What a round adds to an element of the loop's state."""
  added = body.get(_element(body, _root(body).name, index) or "")
  while added is not None and added.opcode in _COPIES:
    added = body.get(added.operands[0])
  if added is None or added.opcode != "add":
    return None
  constants = (_constant(body, operand) for operand in added.operands)
  return next((value for value in constants if value is not None), None)


def _element(computation: Computation, name: str, index: int) -> str | None:
  """The instruction that an element of a tuple comes from."""
  made = computation.get(name)
  return made.operands[index] if made is not None and made.opcode == "tuple" else None


def _constant(computation: Computation, name: str | None) -> int | None:
  """The value of a whole-numbered constant, also of a copy of it."""
  found = computation.get(name or "")
  while found is not None and found.opcode in _COPIES:
    found = computation.get(found.operands[0])
  if found is None or found.opcode != "constant" or not re.fullmatch(r"-?\d+", found.argument):
    return None
  return int(found.argument)


def _root(computation: Computation) -> Instruction:
  return next(instruction for instruction in computation.values() if instruction.root)


# ---- Matrix products -----------------------------------------------------------------------------


def matmul_flops(instruction: Instruction, computation: Computation) -> int:
  """Operations of a `dot`, or of a `convolution`, which is what TPUs make of it."""
  (result,) = instruction.arrays
  left, right = (computation[name].arrays[0].shape for name in instruction.operands[:2])
  if instruction.opcode == "dot":
    axes = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    contracted = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
    return 2 * math.prod(result.shape) * contracted
  lhs, rhs, out = re.search(
    r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes
  ).groups()
  pairs = 1
  for axis, window in enumerate(_windows(instruction, sum(c.isdigit() for c in lhs))):
    places = (x.index(str(axis)) for x in (lhs, rhs, out))
    sizes = (x[at] for x, at in zip((left, right, result.shape), places, strict=True))
    pairs *= _pairs(*sizes, *window)
  features = result.shape[out.index("f")] * right[rhs.index("i")]
  return 2 * pairs * result.shape[out.index("b")] * features


def _windows(instruction: Instruction, axes: int) -> list[tuple[int, int, int, int]]:
  """Of each spatial axis of a convolution: stride, padding in front, both dilations."""
  window = instruction.attribute(r"window=\{([^}]*)\}") or ""
  given = dict(part.split("=", 1) for part in window.split())
  of = lambda name, default: given[name].split("x") if name in given else [default] * axes
  columns = (of("stride", "1"), of("pad", "0_0"), of("lhs_dilate", "1"), of("rhs_dilate", "1"))
  return [
    (int(stride), int(pad.split("_")[0]), int(left), int(right))
    for stride, pad, left, right in zip(*columns, strict=True)
  ]


@functools.cache
def _pairs(
  size: int, kernel: int, out: int, stride: int, pad: int, left: int, right: int
) -> int:
  """How many products of an element with a weight there are along one axis: padding and the gaps
  of a dilated input have none."""
  total = 0
  for weight in range(kernel):
    at = np.arange(out) * stride + weight * right - pad
    total += int(((at >= 0) & (at <= (size - 1) * left) & (at % left == 0)).sum())
  return total


# ---- Collectives ---------------------------------------------------------------------------------


def _kind(instruction: Instruction) -> str | None:
  name = instruction.opcode.removesuffix("-start")
  return name if name in COLLECTIVES else None


def _channel(instruction: Instruction) -> str | None:
  return instruction.attribute(r"channel_id=(\d+)")


def _begun(program: Program) -> dict[str, str]:
  """{channel: the computation of the fusion in which its collective begins}."""
  return {
    channel: name
    for name, computation in program.computations.items()
    if any(_ASYNC_START in x.attributes for x in computation.values())
    for x in computation.values()
    if _kind(x) and (channel := _channel(x))
  }


def _collective(
  kind: str, instruction: Instruction, computation: Computation, times: int, overlapped: bool
) -> Collective:
  given = sum(computation[name].bytes for name in instruction.operands if name in computation)
  size = instruction.bytes
  if kind == "reduce-scatter":
    size = given
  elif instruction.opcode.endswith("-start") and kind != "all-reduce":
    # The result has what goes in too, and numbers for the hardware.
    size -= given + sum(array.bytes for array in instruction.arrays if not array.shape)
  calls, size = times, times * size
  return Collective(calls, size, 0 if overlapped else calls, 0 if overlapped else size)
