"""The text of compiled programs, as XLA prints it."""

import pytest

from hyperjax.training import hlo

TEXT = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

FileNames
1 "step.py"

%region_0.7 (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[]{:T(128)} parameter(0)
  %b.1 = f32[]{:T(128)} parameter(1)
  ROOT %add.8 = f32[]{:T(128)} add(%a.1, %b.1)
}

ENTRY %main.3 (x: bf16[2,3], y: s4[5]) -> (bf16[2,3], (pred[3], token[])) {
  %x = bf16[2,3]{1,0:T(8,128)(2,1)S(1)} parameter(0), metadata={op_name="x"}
  %y = s4[<=5]{0} parameter(1)
  %minus = s32[]{:T(128)} constant(-7)
  %sent = (bf16[2,3]{1,0:T(8,128)}, /*index=1*/(bf16[4,3]{1,0}, u32[]{:S(2)})) all-gather-start(\
%x), channel_id=3, replica_groups=mesh['axis_0'=2] {'axis_0'}, dimensions={0}
  %fused = f32[4]{0} fusion(%x, /*index=1*/%y), kind=kLoop, calls=%fused_computation.1, \
metadata={op_name="jit(step)/x (y)/while"}
  %kernel = f32[4]{0} custom-call(%x), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"block_q": "384"
}}, metadata={op_name="jit(step)/kernel"}
  %pick = f32[4]{0} conditional(%y, %x, %x), branch_computations={%one, %two.2}
  ROOT %out = (bf16[2,3]{1,0}, (pred[3]{0}, token[])) tuple(%x, %x)
}
"""


@pytest.fixture(scope="module")
def program():
  return hlo.parse(TEXT)


def test_computations_have_their_instructions_in_order(program):
  assert program.entry == "main.3"
  assert [*program.computations] == ["region_0.7", "main.3"]
  names = [*program.computations["main.3"]]
  assert names == ["x", "y", "minus", "sent", "fused", "kernel", "pick", "out"]
  roots = [x.name for x in program.computations["main.3"].values() if x.root]
  assert roots == ["out"]
  kernel = program.computations["main.3"]["kernel"]
  assert kernel.attribute(r'"block_q": "(\d+)"') == "384"


def test_arrays_know_their_bytes(program):
  main = program.computations["main.3"]
  assert main["x"].bytes == 2 * 3 * 2 and main["minus"].bytes == 4
  assert main["y"].arrays == (hlo.Array("s4", (5,)),) and main["y"].bytes == 3  # 20 bits
  assert [array.bytes for array in main["sent"].arrays] == [12, 24, 4]
  assert [array.bytes for array in main["out"].arrays] == [12, 3, 0]
  assert hlo.Array("f8e4m3fn", (7,)).bytes == 7 and hlo.Array("c64", (2,)).bytes == 16


def test_an_instruction_is_taken_apart(program):
  main = program.computations["main.3"]
  assert main["fused"].opcode == "fusion" and main["fused"].operands == ("x", "y")
  assert main["sent"].opcode == "all-gather-start" and main["sent"].operands == ("x",)
  assert main["minus"].argument == "-7"
  assert main["sent"].attribute(r"channel_id=(\d+)") == "3"
  assert main["x"].attribute(r"channel_id=(\d+)") is None


def test_called_computations_are_named(program):
  main = program.computations["main.3"]
  assert main["fused"].called("calls") == ("fused_computation.1",)
  assert main["pick"].called("branch_computations", "to_apply") == ("one", "two.2")
  assert main["x"].called("calls") == ()


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no entry computation"):
    hlo.parse("HloModule nothing\n")
