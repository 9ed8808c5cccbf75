"""What the collectives of a compiled program send, read out of its text.

Neither of the compiler's analyses has them. Of the text only this is read:
which computation runs which others, how often a loop turns, and the operands
and the groups of each collective. A line that would be needed and is not
understood is returned and not counted; see `read`.

What the TPU compiler spreads over several instructions, so that it runs beside
arithmetic, has one channel, and is counted once. A reduce-scatter is there a
fusion of an all-reduce and a slice. What crosses the network between slices is
handed to a runtime on the host, as a send and a receive.
"""

import collections
import dataclasses
import math
import re

BETWEEN = "between slices"
KINDS = (
  *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
  *("collective-permute", BETWEEN),
)
_MEGASCALE = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
# Opcodes that talk to other devices, whether or not they are known here.
_TALKS = re.compile(r"(^|-)all-|collective|reduce-scatter|^send|^recv")
_BITS = dict(
  pred=8, s4=4, u4=4, s8=8, u8=8, bf16=16, f16=16, s16=16, u16=16, f32=32,
  s32=32, u32=32, f64=64, s64=64, u64=64, f8e4m3fn=8, f8e5m2=8,
)  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?(%[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"^\s+(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+)"  # name, shape
  r" ([\w\-]+)\((.*?)\)(, [\w\-]+=.*)?$"  # opcode, operands, attributes
)
# An attribute of some kernels, the one thing that takes several lines.
_METADATA = re.compile(r"kernel_metadata=\{\n(.*)\n\}")
_NAME = re.compile(r"%[\w.\-]+")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|\w+_computation)=(%[\w.\-]+)"
  r"|branch_computations=\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Total:
  """All collectives of one kind, in one run of the program.

  Attributes:
    count: how often one runs.
    bytes: that a chip sends, at the least that a ring of its group can do with:
      of n chips and an array of b bytes (the larger one, before or after) b (n
      - 1) / n, of an all-reduce twice that, of a permute b. Between slices, it
      is what the host gets to send.
  """

  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """One line; `operands` and `attributes` are text as it stands there."""

  name: str
  shape: str
  opcode: str
  operands: str
  attributes: str
  line: str


class _NotUnderstood(Exception):
  """Something of an instruction that is needed can't be read."""


def read(text: str, devices: int) -> tuple[dict[str, Total], list[str]]:
  """Totals by kind, without kinds that do not occur; and what is not in them.

  Branches of a condition count as if all of them were taken, and a loop whose
  turns are not known as one turn; if there are collectives in it, it is among
  the lines that are returned.

  Args:
    text: of a compiled program, `executable.as_text()`.
    devices: that it runs on.

  Returns:
    The totals, and lines that are not understood.
  """
  computations, entry, unread = _parse(text)
  shapes = {one.name: one.shape for of in computations.values() for one in of}
  runs, endless = _count_runs(computations, entry)
  channels: dict[str, tuple[str, int, int]] = {}  # kind, runs, bytes of a run
  for computation, instructions in computations.items():
    for one in instructions if runs[computation] else ():
      kind = one.opcode.removesuffix("-start")
      if not _TALKS.search(kind) or one.opcode.endswith("-done"):
        continue
      if kind in ("send", "recv") and _MEGASCALE in one.attributes:
        if kind == "recv":  # of what others send
          continue
        kind = BETWEEN
      try:
        if kind not in KINDS:
          raise _NotUnderstood
        if computation.startswith("%all-reduce-scatter"):
          kind = "reduce-scatter"
        found = kind, runs[computation], _sent(kind, one, shapes, devices)
      except _NotUnderstood:
        unread.append(one.line)
        continue
      if loop := endless.get(computation):
        unread.append(loop)
      channel = re.search(r"channel_id=\d+", one.attributes)
      key = f"{kind} {channel[0] if channel else one.name}"
      channels[key] = max(channels.get(key, found), found)
  totals: dict[str, Total] = {}
  for kind, count, size in channels.values():
    old = totals.get(kind, Total(0, 0))
    totals[kind] = Total(old.count + count, old.bytes + count * size)
  return totals, list(dict.fromkeys(line.strip() for line in unread))


def _parse(
  text: str,
) -> tuple[dict[str, list[_Instruction]], str, list[str]]:
  """Instructions by computation, callees before callers; the entry's name."""
  computations: dict[str, list[_Instruction]] = {}
  current, entry, unread = None, "", []
  for line in _METADATA.sub(r"kernel_metadata={\1}", text).splitlines():
    if started := _COMPUTATION.match(line):
      current = computations[started[2]] = []
      entry = started[2] if started[1] else entry
    elif line.startswith("}"):
      current = None
    elif found := _INSTRUCTION.match(line):
      if current is not None:
        groups = (group or "" for group in found.groups())
        current.append(_Instruction(*groups, line))
    elif current is not None and line.strip():
      unread.append(line)
  if not entry:
    unread.append("no line begins with ENTRY")
  return computations, entry, unread


def _count_runs(
  computations: dict[str, list[_Instruction]], entry: str
) -> tuple[collections.Counter, dict[str, str]]:
  """How often each computation runs, and lines of loops of unknown turns.

  The latter by the computations that run in such a loop.
  """
  runs, endless = collections.Counter({entry: 1}), {}
  for name in reversed(computations):  # callees are written before callers
    for one in computations[name]:
      turns = _turns(one, computations) if one.opcode == "while" else 1
      for single, several in _CALLED.findall(one.attributes):
        for callee in _NAME.findall(single or several):
          runs[callee] += runs[name] * (turns or 1)
          if turns is None or name in endless:
            endless[callee] = endless.get(name, one.line)
  return runs, endless


def _turns(
  loop: _Instruction, computations: dict[str, list[_Instruction]]
) -> int | None:
  """How often a loop turns: by the compiler, or by its condition.

  That compares a counter with a constant. None where neither has it, as of a
  loop whose bound is data.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  condition = re.search(r"condition=(%[\w.\-]+)", loop.attributes)
  constants = {}
  for one in computations.get(condition[1], []) if condition else ():
    if one.opcode == "constant":
      constants[one.name] = one.operands
    elif one.opcode == "compare" and "direction=LT" in one.attributes:
      bound = constants.get(_NAME.findall(one.operands)[1], "")
      return int(bound) if bound.isdecimal() else None
  return None


def _sent(
  kind: str, one: _Instruction, shapes: dict[str, str], devices: int
) -> int:
  """Bytes that a chip sends in one run of a collective; see `Total`."""
  names = _NAME.findall(one.operands)
  if kind == BETWEEN:
    names = names[:1]  # the other is a token
  try:
    before = sum(_size(shapes[name]) for name in names)
  except KeyError as error:  # an operand, or a dtype
    raise _NotUnderstood from error
  if not before:
    raise _NotUnderstood
  if kind in ("collective-permute", BETWEEN):
    return before
  group = _group(one.attributes, devices)
  larger = before * (group if kind == "all-gather" else 1)
  share = (group - 1) / group
  return round(larger * share * (2 if kind == "all-reduce" else 1))


def _size(shape: str) -> int:
  """Bytes of an array, or of a tuple of them."""
  return sum(
    math.prod(int(d) for d in dims.split(",") if d) * _BITS[dtype] // 8
    for dtype, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
  )


def _group(attributes: str, devices: int) -> int:
  """How many devices talk to each other.

  Groups are written out, {{0,1},{2,3}}, or as [groups,size]<=[...], or as
  axes of a mesh, mesh['a'=2,'b'=4] {'b'}; all devices are one if there are
  none.
  """
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
    return int(found[1])
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return len(found[1].split(","))
  mesh = r"replica_groups=mesh\[([^\]]*)\][^{]*\{(.*?)\}"
  if found := re.search(mesh, attributes):
    sizes = dict(re.findall(r"('\w+')=(\d+)", found[1]))
    axes = re.findall(r"'\w+'", found[2])
    if axes and sizes.keys() >= set(axes):
      return math.prod(int(sizes[axis]) for axis in axes)
  elif "replica_groups={}" in attributes or "replica_groups" not in attributes:
    return devices
  raise _NotUnderstood
