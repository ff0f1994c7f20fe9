"""Costs of small programs, against sums made by hand and against XLA itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.training import hlo, hlo_costs
from hyperjax.training.hlo_costs import Collective

ADD = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}
"""


def entry(*lines: str) -> str:
  """A program's text: computations, then an entry of these instructions."""
  body = "".join(f"  {line}\n" for line in lines)
  return f"{ADD}\nENTRY %main (x: f32[4,8]) -> f32[4,8] {{\n{body}}}\n"


def loop(body: str, limit: str = "%n = s32[]{:T(128)} constant(6)", step: int = 2) -> str:
  """A condition i < n, and a body that goes on in steps of 2."""
  return f"""
%condition (p: (s32[], f32[4,8])) -> pred[] {{
  %p = (s32[], f32[4,8]) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  {limit}
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {{
  %p = (s32[], f32[4,8]{{1,0:T(8,128)}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %by = s32[] constant({step})
  %next = s32[] add(%i, %by)
  %x = f32[4,8]{{1,0:T(8,128)}} get-tuple-element(%p), index=1
  %w = f32[8,8]{{1,0}} constant({{...}})
  {body}
  ROOT %state = (s32[], f32[4,8]) tuple(%next, %x)
}}
"""


START = (
  "%x = f32[4,8] parameter(0)", "%zero = s32[] constant(0)", "%copy = s32[] copy(%zero)",
  "%begin = (s32[], f32[4,8]) tuple(%copy, %x)",
)  # fmt: skip
WHILE = "%loop = (s32[], f32[4,8]) while(%begin), condition=%condition, body=%body"
PRODUCT = "%y = f32[4,8] dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}"


def test_a_loop_counts_as_often_as_it_goes_round():
  costs = hlo_costs.count(loop(PRODUCT) + entry(*START, WHILE))
  assert costs.matmul_flops == 3 * 2 * 4 * 8 * 8 and costs.unknown_loops == ()


def test_what_xla_says_of_a_loop_comes_first():
  known = WHILE + ', backend_config={"known_trip_count":{"n":"5"}}'
  assert hlo_costs.count(loop(PRODUCT) + entry(*START, known)).matmul_flops == 5 * 512


def test_the_test_of_a_loop_may_be_fused():
  fused = """
%compared (q: s32[], m: s32[]) -> pred[] {
  %q = s32[] parameter(1)
  %m = s32[] parameter(0)
  ROOT %less = pred[] compare(%q, %m), direction=LT
}
"""
  text = loop(PRODUCT).replace(
    "compare(%i, %n), direction=LT", "fusion(%n, %i), kind=kLoop, calls=%compared"
  )
  assert hlo_costs.count(fused + text + entry(*START, WHILE)).matmul_flops == 3 * 512


@pytest.mark.parametrize("text", [
  loop(PRODUCT, limit="%n = s32[] get-tuple-element(%p), index=1") + entry(*START, WHILE),
  loop(PRODUCT).replace("direction=LT", "direction=NE") + entry(*START, WHILE),
  loop(PRODUCT).replace("add(%i, %by)", "multiply(%i, %by)") + entry(*START, WHILE),
  loop(PRODUCT) + entry(*START, WHILE).replace("copy(%zero)", "negate(%zero)"),
], ids=["limit", "test", "step", "start"])  # fmt: skip
def test_a_loop_of_unknown_length_is_named(text):
  costs = hlo_costs.count(text)
  assert costs.unknown_loops == ("loop",) and costs.matmul_flops == 512


def test_loops_in_loops_multiply():
  inner = loop(PRODUCT).replace("%condition", "%inner").replace("%body", "%within")
  again = "%turn = (s32[], f32[4,8]) tuple(%by0, %x)"
  nested = (
    "%by0 = s32[] constant(2)\n  " + again + "\n  "
    "%y = (s32[], f32[4,8]) while(%turn), condition=%inner, body=%within"
  )
  # The inner one goes round from 2: twice.
  costs = hlo_costs.count(inner + loop(nested) + entry(*START, WHILE))
  assert costs.matmul_flops == 3 * 2 * 512 and not costs.unknown_loops


def test_xlas_own_text_of_a_scan():
  """On this machine's backend: 7 rounds of [4, 8] x [8, 8]."""

  def scan(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 8), (7, 8, 8))]
  costs = hlo_costs.count(jax.jit(scan).lower(*shapes).compile().as_text())
  assert costs.matmul_flops == 7 * 2 * 4 * 8 * 8 and not costs.collectives


# left, right, window (stride, padding, dilation of left, of right), labels of both and the result
CONVOLUTIONS = [
  ((2, 5, 3), (3, 3, 4), [(1, (1, 1), 1, 1)], "b0f_0io->b0f"),
  ((2, 9, 3), (2, 3, 4), [(2, (0, 0), 1, 3)], "b0f_0io->b0f"),
  ((3, 4, 6), (3, 6, 5), [(2, (0, 0), 3, 1)], "0bf_0io->0bf"),  # a batch of 3 matrix products
  ((2, 4, 5, 3), (3, 2, 3, 4), [(1, (1, 1), 2, 1), (2, (1, 0), 1, 1)], "b01f_01io->b01f"),
]


@pytest.mark.parametrize("left, right, window, labels", CONVOLUTIONS)
def test_convolutions_count_the_products_that_there_are(left, right, window, labels):
  """Of ones every product adds 1 to the result's sum; what padding would add is none."""
  spatial = "012"[: len(window)]
  parts = labels.replace("->", "_").split("_")
  numbers = jax.lax.conv_dimension_numbers(
    left, right, tuple(p.translate(str.maketrans("bfio", "NCIO")) for p in parts)
  )
  strides, pads, dilations, right_dilations = zip(*window, strict=True)
  made = jax.lax.conv_general_dilated(
    np.ones(left, np.float32), np.ones(right, np.float32), strides, pads, dilations,
    right_dilations, numbers,
  )  # fmt: skip
  join = lambda values: "x".join(map(str, values))
  size = join(right[parts[1].index(axis)] for axis in spatial)
  given = (
    f"size={size} stride={join(strides)} pad={join(f'{a}_{b}' for a, b in pads)} "
    f"lhs_dilate={join(dilations)} rhs_dilate={join(right_dilations)}"
  )
  flops = convolution(left, right, made.shape, f"window={{{given}}}, dim_labels={labels}")
  assert flops == 2 * int(made.sum())


def convolution(left, right, result, attributes: str) -> int:
  """The operations of a convolution of these shapes."""
  text = lambda shape: ",".join(map(str, shape))
  program = hlo.parse(
    f"ENTRY %main (x: f32[]) -> f32[] {{\n  %l = f32[{text(left)}] parameter(0)\n"
    f"  %r = f32[{text(right)}] parameter(1)\n"
    f"  ROOT %c = f32[{text(result)}] convolution(%l, %r), {attributes}\n}}\n"
  )
  main = program.computations["main"]
  return hlo_costs.matmul_flops(main["c"], main)


def test_a_matrix_product_is_a_convolution_without_axes():
  assert convolution((5, 7), (7, 3), (5, 3), "dim_labels=bf_io->bf") == 2 * 5 * 7 * 3
  assert convolution((7, 5), (3, 7), (3, 5), "dim_labels=fb_oi->fb") == 2 * 5 * 7 * 3


def test_a_dot_has_batch_and_contracted_axes():
  lines = [
    "%x = f32[3,4,5,6] parameter(0)", "%y = f32[3,5,6,7] parameter(1)",
    "%z = f32[3,4,7] dot(%x, %y), lhs_batch_dims={0}, lhs_contracting_dims={2,3}, "
    "rhs_batch_dims={0}, rhs_contracting_dims={1,2}",
  ]  # fmt: skip
  assert hlo_costs.count(entry(*lines)).matmul_flops == 2 * 3 * 4 * 7 * 5 * 6


def test_collectives_by_kind():
  lines = [
    "%x = f32[4,8] parameter(0)", "%h = bf16[6] parameter(1)",
    "%a = f32[8,8] all-gather(%x), channel_id=1, dimensions={0}",
    "%b = (f32[4,8], f32[8,8]) all-gather-start(%x), channel_id=2, dimensions={0}",
    "%b2 = f32[8,8] all-gather-done(%b)",
    "%c = (f32[4,8], bf16[6]) all-reduce(%x, %h), channel_id=3, to_apply=%sum",
    "%d = f32[4,8] all-reduce-start(%x), channel_id=4, to_apply=%sum",
    "%d2 = f32[4,8] all-reduce-done(%d)",
    "%e = f32[2,8] reduce-scatter(%x), channel_id=5, dimensions={0}, to_apply=%sum",
    "%f = (bf16[6], bf16[6], u32[], u32[]) collective-permute-start(%h), channel_id=6",
    "%f2 = bf16[6] collective-permute-done(%f)",
  ]  # fmt: skip
  costs = hlo_costs.count(entry(*lines))
  assert costs.collectives == {
    "all-gather": Collective(2, 512, 1, 256),
    "all-reduce": Collective(2, 128 + 12 + 128, 1, 140),
    "collective-permute": Collective(1, 12, 0, 0),
    "reduce-scatter": Collective(1, 128, 1, 128),
  }
  assert costs.collective_bytes == 512 + 268 + 12 + 128


def test_collectives_in_loops_and_in_wrapped_computations():
  wrapped = """
%wrapped (v: f32[4,8]) -> f32[2,8] {
  %v = f32[4,8] parameter(0)
  ROOT %w = f32[2,8] reduce-scatter(%v), channel_id=8, dimensions={0}, to_apply=%sum
}
"""
  body = "%y = ((f32[4,8]), f32[2,8], u32[]) async-start(%x), calls=%wrapped"
  costs = hlo_costs.count(wrapped + loop(body) + entry(*START, WHILE))
  assert costs.collectives == {"reduce-scatter": Collective(3, 3 * 128, 0, 0)}


def test_a_collective_that_is_spread_over_fusions_counts_once():
  def fusion(name: str, line: str, mark: str = "") -> str:
    head = f"\n%{name} (v: f32[4,8]) -> f32[8,8] {{\n  %v = f32[4,8] parameter(0)\n"
    custom = f'  %m = s32[] custom-call(), custom_call_target="{mark}"\n' if mark else ""
    return f"{head}{custom}  {line}\n}}\n"

  gather = "ROOT %g = f32[8,8] all-gather(%v), channel_id=7, dimensions={0}"
  alone = "ROOT %r = f32[4,8] all-reduce(%v), channel_id=9, to_apply=%sum"
  text = fusion("first", gather, "AsyncCollectiveStart") + fusion("middle", gather)
  text += fusion("last", gather, "AsyncCollectiveDone") + fusion("other", alone)
  calls = "\n  ".join(
    f"%{name}_ = f32[8,8] fusion(%x), kind=kOutput, calls=%{name}"
    for name in ("first", "middle", "last", "other")
  )
  costs = hlo_costs.count(text + loop(calls) + entry(*START, WHILE))
  assert costs.collectives == {
    "all-gather": Collective(3, 3 * 256, 0, 0), "all-reduce": Collective(3, 3 * 128, 3, 3 * 128)
  }


def test_kernels_are_counted():
  body = '%k = f32[4,8] custom-call(%x), custom_call_target="tpu_custom_call"'
  other = '%o = f32[4,8] custom-call(%x), custom_call_target="ConcatBitcast"'
  assert hlo_costs.count(loop(body) + entry(*START, WHILE, other)).kernels == 3


def test_every_branch_counts():
  branches = "".join(
    f"\n%{name} (v: f32[4,8]) -> f32[4,8] {{\n  %x = f32[4,8] parameter(0)\n"
    f"  %w = f32[8,8] constant({{...}})\n  ROOT {PRODUCT}\n}}\n"
    for name in ("one", "two")
  )
  lines = [
    "%x = f32[4,8] parameter(0)", "%i = s32[] constant(1)",
    "%y = f32[4,8] conditional(%i, %x, %x), branch_computations={%one, %two}",
    "%z = f32[4,8] call(%x), to_apply=%one",
  ]  # fmt: skip
  assert hlo_costs.count(branches + entry(*lines)).matmul_flops == 3 * 512
