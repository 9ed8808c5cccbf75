"""Literal programs, counted by hand."""

import re
import textwrap

import pytest

from gaze_jax.aot import collectives

# 36 layers of 3 micro-batches, each with two gathers: one in three pieces that
# share a channel (as the TPU compiler spreads it over fusions), one whole.
PROGRAM = textwrap.dedent("""\
  HloModule jit_step

  %add (a: f32[], b: f32[]) -> f32[] {
    %a = f32[] parameter(0)
    %b = f32[] parameter(1)
    ROOT %sum = f32[] add(%a, %b)
  }

  %piece.1 (p: bf16[10,4]) -> bf16[80,4] {
    %p = bf16[10,4]{1,0} parameter(0)
    ROOT %ag.1 = bf16[80,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={0}
  }

  %piece.2 (p.2: bf16[10,4]) -> bf16[80,4] {
    %p.2 = bf16[10,4]{1,0} parameter(0)
    ROOT %ag.2 = bf16[80,4]{1,0} all-gather(%p.2), channel_id=7, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={0}
  }

  %all-reduce-scatter (input: f32[64,4]) -> f32[8,4] {
    %input = f32[64,4]{1,0} parameter(0)
    %ar = f32[64,4]{1,0} all-reduce(%input), channel_id=9, \
replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
    %zero = s32[] constant(0)
    ROOT %cut = f32[8,4]{1,0} dynamic-slice(%ar, %zero, %zero), \
dynamic_slice_sizes={8,4}
  }

  %layer (state: (s32[], bf16[36,10,4], bf16[10,4])) -> \
(s32[], bf16[36,10,4], bf16[10,4]) {
    %state = (s32[], bf16[36,10,4]{2,1,0}, bf16[10,4]{1,0}) parameter(0)
    %i = s32[] get-tuple-element(%state), index=0
    %stack = bf16[36,10,4]{2,1,0} get-tuple-element(%state), index=1
    %x = bf16[10,4]{1,0} get-tuple-element(%state), index=2
    %weight = bf16[10,4]{1,0} fusion(%stack, %i), kind=kLoop, calls=%slice_one
    %start = bf16[80,4]{1,0} fusion(%weight), kind=kCustom, calls=%piece.1
    %more = bf16[80,4]{1,0} fusion(%weight), kind=kCustom, calls=%piece.2
    %whole = (bf16[10,4]{1,0}, bf16[20,4]{1,0}) all-gather-start(%x), \
channel_id=8, replica_groups=[8,2]<=[16], dimensions={0}, \
metadata={op_name="jit(step)/layers/gate"}
    %done = bf16[20,4]{1,0} all-gather-done(%whole)
    ROOT %next = (s32[], bf16[36,10,4], bf16[10,4]) tuple(%i, %stack, %x)
  }

  %slice_one (s: bf16[36,10,4], n: s32[]) -> bf16[10,4] {
    %s = bf16[36,10,4]{2,1,0} parameter(0)
    %n = s32[] parameter(1)
    %one = bf16[1,10,4]{2,1,0} dynamic-slice(%s, %n), \
dynamic_slice_sizes={1,10,4}
    ROOT %flat = bf16[10,4]{1,0} bitcast(%one)
  }

  %fewer (c: (s32[], bf16[36,10,4], bf16[10,4])) -> pred[] {
    %depth = s32[]{:T(128)} constant(36), metadata={op_name="while"}
    %c = (s32[], bf16[36,10,4], bf16[10,4]) parameter(0)
    %count = s32[] get-tuple-element(%c), index=0
    ROOT %lt = pred[] compare(%count, %depth), direction=LT
  }

  %data (d: (s32[], bf16[36,10,4], bf16[10,4])) -> pred[] {
    %d = (s32[], bf16[36,10,4], bf16[10,4]) parameter(0)
    %at = s32[] get-tuple-element(%d), index=0
    ROOT %lt.2 = pred[] compare(%at, %at), direction=LT
  }

  %micro (m: (s32[], bf16[36,10,4], bf16[10,4])) -> \
(s32[], bf16[36,10,4], bf16[10,4]) {
    %m = (s32[], bf16[36,10,4], bf16[10,4]) parameter(0)
    ROOT %layers = (s32[], bf16[36,10,4], bf16[10,4]) while(%m), \
condition=%fewer, body=%layer
  }

  %unknown (u: (s32[], bf16[36,10,4], bf16[10,4])) -> \
(s32[], bf16[36,10,4], bf16[10,4]) {
    %u = (s32[], bf16[36,10,4], bf16[10,4]) parameter(0)
    %v = bf16[10,4]{1,0} get-tuple-element(%u), index=2
    %swap = bf16[10,4]{1,0} collective-permute(%v), channel_id=11, \
source_target_pairs={{0,1},{1,0}}
    ROOT %same = (s32[], bf16[36,10,4], bf16[10,4]) tuple(%u)
  }

  ENTRY %main (arg: (s32[], bf16[36,10,4], bf16[10,4]), g: f32[64,4]) -> \
f32[8,4] {
    %arg = (s32[], bf16[36,10,4], bf16[10,4]) parameter(0)
    %g = f32[64,4]{1,0} parameter(1)
    %parts = (s32[], bf16[36,10,4], bf16[10,4]) while(%arg), \
condition=%data, body=%micro, \
backend_config={"known_trip_count":{"n":"3"}}
    %loop = (s32[], bf16[36,10,4], bf16[10,4]) while(%parts), \
condition=%data, body=%unknown
    %norm = (f32[2]{0}, f32[4,4]{1,0}) all-reduce(%g, %g), channel_id=10, \
to_apply=%add
    ROOT %scattered = f32[8,4]{1,0} fusion(%g), kind=kCustom, \
calls=%all-reduce-scatter
  }
  """)


def test_collectives_of_loops_by_hand():
  totals, unread = collectives.read(PROGRAM, devices=16)
  # Of 80 x 4 bf16 by 8 chips, and of 20 x 4 by 2: 7/8 and 1/2 are sent.
  gathered = 108 * (640 * 7 // 8 + 160 // 2)
  assert totals == {
    "all-gather": collectives.Total(2 * 108, gathered),
    "reduce-scatter": collectives.Total(1, 1024 * 7 // 8),
    # Two operands of 1,024 bytes, all 16 chips, there and back.
    "all-reduce": collectives.Total(1, 2 * 2048 * 15 // 16),
    "collective-permute": collectives.Total(1, 80),
  }
  # The permute is in a loop whose turns nobody knows.
  (line,) = unread
  assert line.startswith("%loop = ") and "body=%unknown" in line


BETWEEN = textwrap.dedent("""\
  ENTRY %main (g: f32[4,8,128]) -> f32[4,8,128] {
    %g = f32[4,8,128]{2,1,0:T(8,128)} parameter(0)
    %token = token[] after-all()
    %send = (f32[4,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%g, %token), \
channel_id=6, is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_transfer_type="ALL_REDUCE"}
    %sent = token[] send-done(%send), channel_id=6, is_host_transfer=true
    %recv = (f32[4,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%token), \
channel_id=5, is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime"}
    %other = (f32[4,8,128]{2,1,0}, u32[], token[]) send(%g, %token), \
channel_id=7, is_host_transfer=true
    ROOT %got = f32[4,8,128]{2,1,0} get-tuple-element(%recv), index=0
  }
  """)


def test_what_crosses_from_slice_to_slice_is_what_hosts_send():
  totals, unread = collectives.read(BETWEEN, devices=8)
  assert totals == {"between slices": collectives.Total(1, 4 * 8 * 128 * 4)}
  (line,) = unread
  assert line.startswith("%other = ")


def with_shapes(program):
  """As XLA writes it with operands' shapes and the place of each fifth."""
  shape = re.compile(r"^ +(?:ROOT )?(%\S+) = (\(.*?\)|\S+) ", re.MULTILINE)
  shapes = dict(shape.findall(program))
  operands = re.compile(r"(?<= )([a-z][a-z\-]*)\((%[^)]*)\)")

  def write(found):
    names = [f"{shapes[n]} {n}" for n in found[2].split(", ")]
    names[5::5] = [f"/*index={n + 5}*/{x}" for n, x in enumerate(names[5::5])]
    return f"{found[1]}({', '.join(names)})"

  return "\n".join(
    operands.sub(write, x) if x.startswith(" ") else x
    for x in program.splitlines()
  )


def test_operands_with_their_shapes():
  typed = with_shapes(PROGRAM)
  assert "fusion(bf16[36,10,4]{2,1,0} %stack, s32[] %i), kind" in typed
  got, _ = collectives.read(typed, devices=16)
  assert got == collectives.read(PROGRAM, devices=16)[0]


def test_every_operand_of_many():
  """As TPU compilers of JAX 0.10 and 0.12 print: a comment before the sixth."""
  program = """\
ENTRY %main.5_spmd (p.0: f32[2], p.1: f32[8]) -> f32[8] {
  %p.0 = f32[2]{0:T(128)} parameter(0), sharding={replicated}
  %p.1 = f32[8]{0:T(128)} parameter(1), control-predecessors={%p.0}
  ROOT %six = (f32[2]{0}, f32[2]{0}, f32[2]{0}, f32[2]{0}, f32[2]{0}, \
/*index=5*/f32[8]{0}) all-reduce(%p.0, %p.0, %p.0, %p.0, %p.0, \
/*index=5*/%p.1), channel_id=1, metadata={op_name="f(x), y=z"}, to_apply=%add
}
"""
  totals, unread = collectives.read(program, devices=2)
  assert not unread
  assert totals == {"all-reduce": collectives.Total(1, 5 * 8 + 32)}


def test_a_kernel_of_several_lines():
  """As the TPU compiler prints splash attention: what follows is read."""
  program = """\
ENTRY %main.5_spmd (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %k = f32[4]{0} custom-call(%p), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 512}"
}}, metadata={op_name="jit(f)/pallas_call"}
  ROOT %x = f32[4]{0} all-reduce(%k), channel_id=1, to_apply=%add
}
"""
  totals, unread = collectives.read(program, devices=4)
  assert not unread and totals == {"all-reduce": collectives.Total(1, 24)}


ONE = """\
ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %x = f32[4]{0} all-reduce(%p), channel_id=1, to_apply=%add
}
"""


@pytest.mark.parametrize(
  "old, new, line",
  [
    ("f32[4]{0} all-reduce(", "f32[4]{0} ragged-all-to-all(", "ROOT %x"),
    ("channel_id=1", "replica_groups=what<4>", "ROOT %x"),
    ("f32[4]{0} parameter", "f3[4]{0} parameter", "ROOT %x"),
    ("all-reduce(%p)", "all-reduce(%q)", "ROOT %x"),
    ("  ROOT %x = ", "  ROOT x := ", "ROOT x :="),
    ("ENTRY ", "", "no line begins with ENTRY"),
  ],
  ids=["opcode", "groups", "dtype", "operand", "line", "entry"],
)
def test_what_is_not_understood_is_reported_and_not_counted(old, new, line):
  totals, unread = collectives.read(ONE, devices=4)
  assert totals == {"all-reduce": collectives.Total(1, 24)} and not unread
  assert old in ONE
  totals, unread = collectives.read(ONE.replace(old, new), devices=4)
  assert totals == {} and [x.startswith(line) for x in unread] == [True]


@pytest.mark.parametrize(
  "attributes, group",
  [
    ("replica_groups=mesh['axis_0'=4] {'axis_0'}, use_global", 4),
    ("replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, use_", 4),
    ("replica_groups=[2,128]<=[256], dimensions={0}", 128),
    ("replica_groups=[2,128]<=[128,2]T(1,0)", 128),
    ("replica_groups={{0,2},{1,3}}, to_apply=%add", 2),
    ("replica_groups=mesh['x'=4,'y'=64] {'x','y'}, to_apply=%a", 256),
    (
      "replica_groups=mesh['axis_0'=1,'axis_1'=128,'axis_2'=2], "
      "device_ids=([2,128]T(1,0)) {'axis_1'}, dimensions={0}",
      128,
    ),
    ("channel_id=3, to_apply=%add", 16),
    ("channel_id=3, replica_groups={}, to_apply=%add", 16),
  ],
)
def test_groups(attributes, group):
  assert collectives._group(attributes, 16) == group


def test_sizes():
  size = collectives._size
  assert size("(f32[2,3]{1,0:T(8,128)}, /*index=1*/bf16[4], pred[])") == 33
  assert size("u32[]{:S(2)}") == 4
