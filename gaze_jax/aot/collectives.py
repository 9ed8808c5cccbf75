"""Collectives of a compiled program: how many, and how many bytes they move.

What the TPU compiler spreads over several instructions, so that it runs beside
arithmetic, has one channel, and is counted once. A reduce-scatter is there a
fusion of an all-reduce and a slice.
"""

import collections
import dataclasses
import math
import re

from gaze_jax.aot import hlo

KINDS = (
  *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
  "collective-permute",
)
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{(.*?)\}")


@dataclasses.dataclass(frozen=True)
class Total:
  """All collectives of one kind, in one run of the program.

  Attributes:
    count: how often one runs.
    bytes: that a chip sends, at the least that a ring of its group can do with:
      of n chips and an array of b bytes (the larger one, before or after) b (n
      - 1) / n, of an all-reduce twice that, of a permute b.
  """

  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective.

  Attributes:
    kind: of KINDS.
    shape: of the larger side.
    group: devices that take part together.
    runs: how often.
    bytes: as in `Total`, of one run.
    of: the operation of the model that it serves.
  """

  kind: str
  shape: str
  group: int
  runs: int
  bytes: int
  of: str


def totals(found: list[Collective]) -> dict[str, Total]:
  """By kind; kinds that do not occur are left out."""
  by_kind: dict[str, list[Collective]] = collections.defaultdict(list)
  for one in found:
    by_kind[one.kind].append(one)
  return {
    kind: Total(sum(c.runs for c in of), sum(c.runs * c.bytes for c in of))
    for kind, of in by_kind.items()
  }


def read(module: hlo.Module, devices: int) -> list[Collective]:
  """The collectives of a program, those that move most first.

  Args:
    module: the program.
    devices: that it runs on.
  """
  channels: dict[str, Collective] = {}
  for computation, instructions in module.computations.items():
    runs = module.runs[computation]
    for one in instructions if runs else ():
      kind = one.opcode.removesuffix("-start")
      if kind not in KINDS:
        continue
      if computation.startswith("%all-reduce-scatter"):
        kind = "reduce-scatter"
      new = _collective(kind, one, devices, runs, module)
      channel = re.search(r"channel_id=(\d+)", one.rest)
      key = f"{kind} {channel[1]}" if channel else one.name
      if key not in channels or channels[key].runs < new.runs:
        channels[key] = new
  return sorted(channels.values(), key=lambda c: -c.runs * c.bytes)


def _collective(
  kind: str, one: hlo.Instruction, devices: int, runs: int, module: hlo.Module
) -> Collective:
  before = ", ".join(module.shapes.get(name, name) for name in one.operands)
  after = one.shape
  if one.opcode.endswith("-start"):  # which returns what it was given, too
    after = max(hlo.arrays(after), key=hlo.size)
  larger = max(before, after, key=hlo.size)
  group = _group(one.rest, devices)
  share = 1.0 if kind == "collective-permute" else (group - 1) / group
  moved = hlo.size(larger) * share * (2 if kind == "all-reduce" else 1)
  of = re.search(r'op_name="([^"]*)"', one.rest)
  shape = ", ".join(hlo.arrays(larger))
  return Collective(kind, shape, group, runs, round(moved), of[1] if of else "")


def _group(attributes: str, devices: int) -> int:
  """How many devices talk to each other.

  Groups are written out, {{0,1},{2,3}}, or as [groups,size]<=[...], or as
  axes of a mesh, mesh['a'=2,'b'=4] {'b'}.
  """
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
    return int(found[1])
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return len(found[1].split(","))
  if found := _MESH.search(attributes):
    sizes = dict(re.findall(r"('\w+')=(\d+)", found[1]))
    axes = re.findall(r"'\w+'", found[2])
    return math.prod(int(sizes[axis]) for axis in axes)
  return devices
