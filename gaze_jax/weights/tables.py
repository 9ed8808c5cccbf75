"""How our leaves and the tensors of a checkpoint of transformers correspond.

A leaf is an array of our parameters, known by its path; a tensor is one of a
file, known by its name. A table is a list of `Rule`s, which read like this:

  Rule("layers/query/weight", "text.layers.{i}.self_attn.q_proj.weight",
       "(h d) e -> e h d")

The first is the leaf, the second its tensor; "{i}" makes the leaf a stack of
one tensor a layer. The tensor's first word is a token that a naming replaces by
a prefix: the same tensor is `model.layers.0...` in one file and
`language_model.model.layers.0...` in another. The pattern is einops', from the
tensor to the leaf. It is run backwards for the way out, and its axes give the
part of a tensor that a part of a leaf needs, so that a device reads its shard
and no more.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import einops
import numpy as np
from flax import traverse_util

from gaze_jax.weights import errors

Path = tuple[str, ...]
Index = tuple[slice, ...]
Shape = tuple[int, ...]
Naming = Mapping[str, str]  # token of a table -> prefix in the file
# (name, index) -> that part of a tensor.
Read = Callable[[str, Index], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
  """One line of a table.

  Attributes:
    leaf: its path below its part of the model, joined by "/".
    tensor: its name, with a naming's token and perhaps "{i}".
    pattern: einops pattern from a tensor to a layer of the leaf; "" copies.
    sizes: sizes of axes that the leaf's shape does not tell, by name.
  """

  leaf: str
  tensor: str
  pattern: str = ""
  sizes: tuple[tuple[str, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
  """A rule bound to a model: one leaf and the tensors that it is made of.

  Attributes:
    path: of the leaf.
    shape: of the leaf, with the layers in front where it is a stack.
    stacked: whether it is.
    tensors: one name, or one for each layer.
    pattern: as in `Rule`.
    sizes: the size of every named axis of the pattern.
  """

  path: Path
  shape: Shape
  stacked: bool
  tensors: tuple[str, ...]
  pattern: str
  sizes: Mapping[str, int]

  @property
  def layer_shape(self) -> Shape:
    """Shape of the leaf without the layers."""
    return self.shape[1:] if self.stacked else self.shape

  @property
  def tensor_shape(self) -> Shape:
    """Shape of each tensor."""
    if not self.pattern:
      return self.layer_shape
    left, _ = _axes(self.pattern)
    return tuple(math.prod(self.sizes[a] for a in group) for group in left)

  def read(self, index: Index, read: Read) -> np.ndarray:
    """A part of the leaf, made of no more than the parts that it needs.

    Args:
      index: a slice for each axis of the leaf, without steps.
      read: gives a part of a tensor.
    """
    if not self.stacked:
      return self._read_layer(self.tensors[0], index, read)
    layers = range(*index[0].indices(self.shape[0]))
    rows = [self._read_layer(self.tensors[i], index[1:], read) for i in layers]
    return np.stack(rows) if len(rows) > 1 else rows[0][None]

  def back(self) -> "Entry":
    """From one layer of the leaf to its tensor: an entry like any other."""
    left, _, right = self.pattern.partition(" -> ")
    return dataclasses.replace(
      self,
      shape=self.tensor_shape,
      stacked=False,
      tensors=("/".join(self.path),),
      pattern=right and f"{right} -> {left}",
    )

  def _read_layer(self, name: str, index: Index, read: Read) -> np.ndarray:
    if not self.pattern:
      return read(name, index)
    left, right = _axes(self.pattern)
    if any(len(group) != 1 for group in right):  # small tensors alone
      whole = read(name, tuple(slice(0, n) for n in self.tensor_shape))
      return self._to_leaf(whole, self.sizes)[index]
    wanted = {
      group[0]: slice(*s.indices(self.sizes[group[0]])[:2])
      for group, s in zip(right, index, strict=True)
    }
    part, sizes, rest = [], {}, dict(wanted)
    for group in left:
      span, got = _within(group, wanted, self.sizes)
      part.append(span)
      for axis, (size, kept) in got.items():
        sizes[axis], rest[axis] = size, kept
    block = self._to_leaf(read(name, tuple(part)), sizes)
    return block[tuple(rest[group[0]] for group in right)]

  def _to_leaf(self, block: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    left, _ = _axes(self.pattern)
    grouped = [a for group in left if len(group) > 1 for a in group]
    given = {a: sizes[a] for a in grouped}  # which einops can't see
    return einops.rearrange(block, self.pattern, **given)


def _within(
  group: Sequence[str],
  wanted: Mapping[str, slice],
  sizes: Mapping[str, int],
) -> tuple[slice, dict[str, tuple[int, slice]]]:
  """The part of a tensor's axis that covers what is wanted of its named axes.

  Only the outermost axis of a group is read in part, the inner ones whole.

  Returns:
    The slice to read, and for each axis its size in what is read and the part
    of that which is wanted.
  """
  if not group:
    return slice(0, 1), {}
  outer, *inner = group
  step = math.prod(sizes[a] for a in inner)
  start, stop = wanted[outer].start, wanted[outer].stop
  got = {outer: (stop - start, slice(0, stop - start))}
  got |= {a: (sizes[a], wanted[a]) for a in inner}
  return slice(start * step, stop * step), got


@functools.cache
def _axes(pattern: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
  """Axis groups of both sides; "1" is the empty group."""

  def side(text: str) -> tuple[tuple[str, ...], ...]:
    found = re.findall(r"\(([^)]*)\)|(\S+)", text)
    return tuple(
      () if one == "1" else tuple(inside.split() or [one])
      for inside, one in found
    )

  left, right = pattern.split("->")
  return side(left), side(right)


def bind(
  rules: Iterable[Rule], part: str, shapes: Any, naming: Naming
) -> list[Entry]:
  """Binds a table to the shapes of a part of the model.

  Args:
    rules: the table.
    part: key of the part in the parameters, such as "decoder".
    shapes: nested dict of what has a `shape`: the part's leaves.
    naming: of the tensors.

  Raises:
    ConversionError: a leaf has no rule, a rule no leaf, or two rules one leaf.
  """
  leaves = traverse_util.flatten_dict(shapes)
  entries, seen = [], set()
  for rule in rules:
    path = tuple(rule.leaf.split("/"))
    if path not in leaves or path in seen:
      why = "is filled twice" if path in seen else "is no parameter"
      raise errors.ConversionError(f"table of {part}: {rule.leaf} {why}")
    seen.add(path)
    entries.append(_bind(rule, (part, *path), leaves[path].shape, naming))
  if missing := leaves.keys() - seen:
    names = ", ".join(sorted("/".join(p) for p in missing))
    raise errors.ConversionError(f"table of {part}: no rule fills {names}")
  return entries


def _bind(rule: Rule, path: Path, shape: Shape, naming: Naming) -> Entry:
  shape, stacked = tuple(shape), "{i}" in rule.tensor
  name = in_naming(rule.tensor, naming)
  layers = range(shape[0] if stacked else 1)
  sizes = dict(rule.sizes)
  if rule.pattern:
    _, right = _axes(rule.pattern)
    inner = shape[1:] if stacked else shape
    for group, size in zip(right, inner, strict=True):
      if len(group) == 1:
        sizes[group[0]] = size
  tensors = tuple(name.replace("{i}", str(i)) for i in layers)
  return Entry(path, shape, stacked, tensors, rule.pattern, sizes)


def in_naming(name: str, naming: Naming) -> str:
  """A table's name in a file: its longest token is replaced by its prefix."""
  for token in sorted(naming, key=len, reverse=True):
    if name == token or name.startswith(token + "."):
      return f"{naming[token]}{name[len(token) :]}".removeprefix(".")
  raise errors.ConversionError(f"no prefix for {name} in {sorted(naming)}")


def wanted(entries: Iterable[Entry]) -> dict[str, Shape]:
  """Shape of every tensor that the leaves are made of, by name."""
  return {name: e.tensor_shape for e in entries for name in e.tensors}


def differences(
  want: Mapping[str, Shape],
  found: Mapping[str, Shape],
  ignored: Callable[[str], Any] = lambda name: False,
) -> list[str]:
  """One line for each tensor that is missing, unexpected or misshapen.

  Args:
    want: shapes by name.
    found: likewise.
    ignored: whether a name that is not wanted may be there all the same.
  """
  missing = [n for n in want if n not in found]
  more = [n for n in found if n not in want and not ignored(n)]
  other = [n for n in want if n in found and tuple(found[n]) != want[n]]
  return [
    *(f"missing: {n} {list(want[n])}" for n in missing),
    *(f"unexpected: {n} {list(found[n])}" for n in more),
    *(f"shape of {n}: {list(found[n])} is not {list(want[n])}" for n in other),
  ]


def fill(
  entries: Iterable[Entry], weights: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Nested dict of whole leaves, out of tensors in memory."""
  return traverse_util.unflatten_dict(
    {
      e.path: e.read((slice(None),) * len(e.shape), lambda n, i: weights[n][i])
      for e in entries
    }
  )
