"""The text of a compiled program: its computations, and how often each runs.

A loop over the layers is one computation, which the compiler's own cost
analysis counts once. Here it counts `depth` times: the number of turns is that
of the compiler (`known_trip_count`), or the constant that a loop's condition
compares its counter with, or 1 where neither is there, as in a loop whose bound
is data. Branches of a condition count as if all of them were taken.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = dict(
  pred=8, s4=4, u4=4, s8=8, u8=8, bf16=16, f16=16, s16=16, u16=16, f32=32,
  s32=32, u32=32, f64=64, s64=64, u64=64, f8e4m3fn=8, f8e5m2=8,
)  # fmt: skip
_COMPUTATION = re.compile(r"^(?:ENTRY )?(%[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"^\s+(ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(, \w+=.*)?$"
)
_NAME = re.compile(r"%[\w.\-]+")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
_CALLED = re.compile(
  r"\b(calls|to_apply|body|condition|true_computation|false_computation)="
  r"(%[\w.\-]+)|branch_computations=\{([^}]*)\}"
)
# Names for memory that is already there, or what its callee is counted for.
_FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
  *("call", "conditional", "after-all", "partition-id", "replica-id"),
}
_SLICES = {"dynamic-slice", "slice", "gather"}
_UPDATE = "dynamic-update-slice"


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line.

  Attributes:
    name: with its %.
    root: whether it is what its computation returns.
    shape: of the result, as written.
    opcode: such as "all-gather-start".
    operands: names; of a constant its value, of a parameter its number.
    rest: all that follows.
  """

  name: str
  root: bool
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str

  def called(self) -> Iterator[tuple[str, str]]:
    """(what for, name) of the computations that it runs."""
    for role, one, several in _CALLED.findall(self.rest):
      for name in several.split(", ") if several else [one]:
        yield role, name


class Module:
  """A program.

  Attributes:
    computations: instructions by name of the computation.
    shapes: of every instruction's result.
    runs: how often each computation runs in one run of the program.
  """

  def __init__(self, text: str):
    self.computations: dict[str, list[Instruction]] = {}
    self.shapes: dict[str, str] = {}
    current, entry = [], ""
    for line in text.splitlines():
      if started := _COMPUTATION.match(line):
        current = self.computations[started[1]] = []
        entry = started[1] if line.startswith("ENTRY") else entry
      elif found := _INSTRUCTION.match(line):
        root, name, shape, opcode, operands, rest = found.groups()
        # Shapes may stand before names, and the place of each fifth.
        names = tuple(_NAME.findall(operands)) or (operands,)
        one = Instruction(name, bool(root), shape, opcode, names, rest or "")
        current.append(one)
        self.shapes[name] = shape
    self.runs = self._count(entry)

  def bytes_accessed(self, *, loops: bool = True) -> int:
    """Bytes that instructions read and write, as XLA's cost analysis counts.

    What a fusion only slices is read as far as the slices go.

    Args:
      loops: False counts the body of a loop once.
    """
    fused = {
      name
      for of in self.computations.values()
      for one in of
      for role, name in one.called()
      if role in ("calls", "to_apply") and one.opcode != "call"
    }
    return sum(
      (self.runs[name] if loops else 1) * sum(map(self._moved, of))
      for name, of in self.computations.items()
      if name not in fused and self.runs[name]
    )

  def _moved(self, one: Instruction) -> int:
    if one.opcode in _FREE or one.opcode.endswith("-done"):
      return 0
    if one.opcode in _SLICES:
      return 2 * size(one.shape)
    if one.opcode == _UPDATE:
      return 2 * size(self.shapes.get(one.operands[1], ""))
    inner = []
    if one.opcode == "fusion":
      inner = self.computations.get(dict(one.called())["calls"], [])
    read = 0
    for number, operand in enumerate(one.operands):
      part = self._used(inner, number)
      read += size(self.shapes.get(operand, "")) if part is None else part
    return read + self._written(one, inner)

  def _written(self, one: Instruction, inner: list[Instruction]) -> int:
    """Bytes of a result; of what is updated in place the update alone."""
    by_name = {x.name: x for x in inner}
    root = next((x for x in inner if x.root), one)
    parts = root.operands if root.opcode == "tuple" else (root.name,)
    total = 0
    for name in parts:
      part = by_name.get(name, root)
      updates = part.opcode == _UPDATE
      shape = self.shapes.get(part.operands[1], "") if updates else part.shape
      total += size(shape)
    return total

  def _used(self, of: list[Instruction], number: int) -> int | None:
    """Bytes of a fusion's operand that its slices read; None for all.

    0 for what is only updated in place.
    """
    name = next(
      (
        x.name
        for x in of
        if x.opcode == "parameter" and x.operands == (str(number),)
      ),
      None,
    )
    users = [x for x in of if name and name in x.operands]
    if not users:
      return None
    if all(x.opcode in _SLICES and x.operands[0] == name for x in users):
      return sum(size(x.shape) for x in users)
    if all(x.opcode == _UPDATE and x.operands[0] == name for x in users):
      return 0
    return None

  def _count(self, entry: str) -> dict[str, int]:
    runs = dict.fromkeys(self.computations, 0)
    runs[entry] = 1
    # Callees are written before their callers.
    for name in reversed(self.computations):
      for one in self.computations[name]:
        times = self._turns(one) if one.opcode == "while" else 1
        for _, callee in one.called():
          runs[callee] += runs[name] * times
    return runs

  def _turns(self, loop: Instruction) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
      return int(known[1])
    condition = dict(loop.called())["condition"]
    constants, turns = {}, 1
    for one in self.computations[condition]:
      if one.opcode == "constant":
        constants[one.name] = one.operands[0]
      elif one.opcode == "compare" and "direction=LT" in one.rest:
        turns = int(constants.get(one.operands[1], 1))
    return turns


def size(shape: str) -> int:
  """Bytes of an array or of a tuple of them."""
  return sum(
    math.prod(int(d) for d in dims.split(",") if d) * _BITS.get(dtype, 0) // 8
    for dtype, dims in _ARRAY.findall(shape)
  )


def arrays(shape: str) -> list[str]:
  """The arrays of a tuple."""
  return [found[0] for found in _ARRAY.finditer(shape)]
