"""One table: the mesh axes along which each logical axis is sharded."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import jax

from gaze_jax import config as config_lib
from gaze_jax.parallel import mesh as mesh_lib

P = jax.sharding.PartitionSpec

# Logical axis -> mesh axes; () is never sharded.
RULES: dict[str, tuple[str, ...]] = {
  # Of parameters, as the modules of models/ name them.
  "vocab": ("tensor",),
  "embed": ("fsdp",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "head_dim": (),
  "mlp": ("tensor",),
  "layers": (),
  "vision_embed": ("fsdp",),
  "vision_mlp": ("tensor",),
  "patch": (),
  "position": (),
  "context": (),
  # Of activations and batches.
  "batch": ("data", "fsdp"),
  # At the table of embeddings and the head, which would be larger on the way
  # than the rows: rows are together, and each device has its part of the table.
  "table_rows": ("data",),
  "head_vocab": ("tensor", "fsdp"),
  "slots": ("sequence",),
  "attention_heads": ("tensor", "sequence"),
}

# The keys of a model's parameters.
PARTS = ("vision", "projector", "decoder")
# Fields of their configs that are sizes, and the logical axes of those.
_CUT = dict(
  decoder=dict(
    vocab_size="head_vocab", width="embed", query_heads="heads", mlp_dim="mlp"
  ),
  vision=dict(width="vision_embed", heads="heads", mlp_dim="vision_mlp"),
)

# Elements up to which an array that belongs to no parameter may be copied.
_SMALL = 64


def axes(name: str) -> tuple[str, ...]:
  """The mesh axes of a logical axis.

  Raises:
    MeshError: the table has no such axis.
  """
  if name not in RULES:
    raise mesh_lib.MeshError(
      f"parallel/rules.py: no rule for the logical axis {name!r}; known:"
      f" {', '.join(RULES)}"
    )
  return RULES[name]


def ways(name: str, sizes: dict[str, int]) -> int:
  """How many shards a logical axis has on a mesh of these sizes."""
  return math.prod(sizes[axis] for axis in axes(name))


def spec(
  names: Sequence[str | None],
  shape: Sequence[int],
  mesh: Any,
  what: str = "an array",
) -> P:
  """The partition of an array.

  Args:
    names: a logical axis for each of its axes; None is never sharded.
    shape: of the array.
    mesh: a `Mesh` or an abstract one.
    what: names the array in errors.

  Raises:
    MeshError: another rank, no rule, or a size that can't be sharded so.
  """
  if len(names) != len(shape):
    raise mesh_lib.MeshError(
      f"{what} of shape {list(shape)} has {len(shape)} axes, and {len(names)}"
      f" are named: {list(names)}"
    )
  sizes = dict(mesh.shape)
  out = []
  for name, size in zip(names, shape, strict=True):
    parts = 1 if name is None else ways(name, sizes)
    if size % parts:
      raise mesh_lib.MeshError(
        f"{what} of shape {list(shape)}: its axis {name!r} of {size} can't be"
        f" sharded {_product(axes(name), sizes)} ways"
      )
    out.append(None if name is None else axes(name) or None)
  return P(*out)


def shardings(shapes: Any, names: Any, mesh: mesh_lib.AnyMesh) -> Any:
  """A `NamedSharding` for each leaf of a tree of parameters.

  Args:
    shapes: nested dict of anything with a shape.
    names: the same, of `PartitionSpec` of logical names; may hold more.
    mesh: the mesh.

  Raises:
    MeshError: a leaf without names, or as in `spec`; names the leaf.
  """
  where = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")

  def of(path, leaf):
    found = names
    for key in path:
      found = found.get(key.key) if isinstance(found, dict) else None
    if not isinstance(found, P):
      raise mesh_lib.MeshError(
        f"parameter {where(path)} has no logical axis names; make it with"
        " nn.with_logical_partitioning"
      )
    axes_ = spec(tuple(found), leaf.shape, mesh, f"parameter {where(path)}")
    return jax.sharding.NamedSharding(mesh, axes_)

  return jax.tree_util.tree_map_with_path(of, shapes)


def of_state(params: Any, shapes: Any, mesh: mesh_lib.AnyMesh) -> Any:
  """Shardings of a tree that holds copies of the parameters' tree.

  A leaf whose path ends with that of a parameter (a moment of the optimizer,
  an average) and that has its rank is sharded as it is; small ones that
  belong to none (counts, coefficients) are copied.

  Args:
    params: tree of `NamedSharding`, of the parameters.
    shapes: any tree with shapes.
    mesh: the mesh.

  Raises:
    MeshError: a leaf that is neither.
  """
  known = {
    _keys(path): sharding
    for path, sharding in jax.tree_util.tree_leaves_with_path(params)
  }

  def of(path, leaf):
    keys = _keys(path)
    for start in range(len(keys)):
      found = known.get(keys[start:])
      if found is not None and len(found.spec) == len(leaf.shape):
        return found
    if math.prod(leaf.shape) <= _SMALL:
      return jax.sharding.NamedSharding(mesh, P())
    raise mesh_lib.MeshError(
      f"{'.'.join(keys)} of shape {list(leaf.shape)} in the training state"
      " belongs to no parameter; parallel/rules.py can't place it"
    )

  return jax.tree_util.tree_map_with_path(of, shapes)


def check(config: config_lib.Config, sizes: dict[str, int]) -> None:
  """Sees to it that a model and its batches can be laid on a mesh.

  Args:
    config: of the run.
    sizes: of `mesh.axis_sizes`.

  Raises:
    MeshError: names each field that does not divide, and what would.
  """
  fields = [*_fields_of_model(config.model, PARTS), *_fields_of_run(config)]
  _refuse([*_undivided(fields, sizes), *_spread_choice(config.model, sizes)])


def check_model(
  model: config_lib.ModelConfig,
  sizes: dict[str, int],
  parts: Collection[str] = PARTS,
) -> None:
  """Sees to it that a model can be laid on a mesh, whatever it is asked.

  Args:
    model: its config.
    sizes: of `mesh.axis_sizes`.
    parts: those of `PARTS` that there are.

  Raises:
    MeshError: as `check`.
  """
  wrong = _undivided(_fields_of_model(model, parts), sizes)
  _refuse([*wrong, *_spread_choice(model, sizes)])


def _refuse(wrong: Sequence[str]) -> None:
  if wrong:
    raise mesh_lib.MeshError(f"parallel: {'; '.join(wrong)}")


def _undivided(
  fields: Iterable[tuple[str, int, str]], sizes: dict[str, int]
) -> Iterator[str]:
  """What is wrong with fields, their sizes, and the axes that they are."""
  for field, size, name in fields:
    parts = ways(name, sizes)
    if size % parts:
      yield (
        f"{field} = {size} can't be sharded {_product(axes(name), sizes)}"
        f" ways; the most that divides it is {math.gcd(size, parts)}"
      )


def _spread_choice(
  model: config_lib.ModelConfig, sizes: dict[str, int]
) -> Iterator[str]:
  spread = [axis for axis in axes("attention_heads") if sizes[axis] > 1]
  if model.gaze.granularity == "layer" and spread:
    yield (
      "model.gaze.granularity = 'layer' sums the scores of all heads, which"
      f" parallel.{spread[0]} = {sizes[spread[0]]} spreads over devices; set"
      f" parallel.{spread[0]} = 1 or granularity = 'kv_group'"
    )


def _fields_of_model(
  model: config_lib.ModelConfig, parts: Collection[str]
) -> Iterator[tuple[str, int, str]]:
  """Fields of a config, their sizes, and the logical axes that they are."""
  for part, fields in _CUT.items():
    for key, name in fields.items() if part in parts else ():
      yield f"model.{part}.{key}", getattr(getattr(model, part), key), name
  if "decoder" in parts:
    # Attention is sharded further than the weights are.
    yield "model.decoder.kv_heads", model.decoder.kv_heads, "attention_heads"
  if "projector" in parts and model.projector.hidden:
    yield "model.projector.hidden", model.projector.hidden, "mlp"


def _fields_of_run(
  config: config_lib.Config,
) -> Iterator[tuple[str, int, str]]:
  """Likewise, of what a run gives the model."""
  yield "data.sequence_length", config.data.sequence_length, "slots"
  train = config.train
  rows = train.batch_size // train.accumulation
  name = "train.batch_size"
  if train.accumulation > 1:
    name += f" / train.accumulation = {train.batch_size} / {train.accumulation}"
  if config.data.pool_rows > 1:
    rows //= config.data.pool_rows
    name += f" / data.pool_rows = {config.data.pool_rows}"
  yield name, rows, "batch"


def _product(names: Sequence[str], sizes: dict[str, int]) -> str:
  """Such as "data 2 x fsdp 4"."""
  return " x ".join(f"{name} {sizes[name]}" for name in names)


def _keys(path: Any) -> tuple[str, ...]:
  return tuple(
    str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
    for k in path
  )
