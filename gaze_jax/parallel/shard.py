"""Arrays on a mesh: constraints within programs, batches from the host."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gaze_jax import types
from gaze_jax.parallel import rules

P = jax.sharding.PartitionSpec

# How attention is sharded: each device has its rows and heads, and needs no
# others.
WHOLE = P()
ROWS = P("batch")  # [B, ...]
HEADS = P("batch", None, "attention_heads")  # [B, X, Q or H, ...]
HEADS_FIRST = P("batch", "attention_heads")  # [B, Q or H, ...]
LAYERS = P(None, *HEADS_FIRST)  # [N, B, Q or H, ...]
NEW_OF_LAYERS = P(None, *HEADS)  # [N, B, X, H, ...]


def spread() -> bool:
  """Whether what is traced will run on more than one device."""
  return jax.sharding.get_abstract_mesh().size > 1


def row_shards() -> int:
  """How many shards the rows of a batch have; 1 without a mesh."""
  return _ways("batch")


def head_shards() -> int:
  """How many shards the heads of attention have; 1 without a mesh."""
  return _ways("attention_heads")


def _ways(name: str) -> int:
  mesh = jax.sharding.get_abstract_mesh()
  return rules.ways(name, dict(mesh.shape)) if mesh.size > 1 else 1


def to_host(tree: Any) -> Any:
  """A tree of device arrays as numpy, whole, in every process."""
  if spread():
    tree = _replicate(jax.sharding.get_mesh())(tree)
  return jax.device_get(tree)


@functools.cache
def _replicate(mesh: jax.sharding.Mesh) -> Callable[[Any], Any]:
  place = jax.sharding.NamedSharding(mesh, P())
  return jax.jit(lambda tree: tree, out_shardings=place)


def constrain(x: types.Array, *names: str | None) -> types.Array:
  """Fixes how an array is sharded over the mesh, if there is one.

  Args:
    x: any array, of a compiled function.
    *names: a logical axis for each of its axes; None is not sharded, nor is
      an axis of one, such as the one new token of a decoding step.

  Raises:
    mesh.MeshError: another rank, or a size that can't be sharded so.
  """
  if not spread():
    return x
  mesh = jax.sharding.get_abstract_mesh()
  axes = [None if n == 1 else a for a, n in zip(names, x.shape, strict=True)]
  return jax.lax.with_sharding_constraint(x, rules.spec(axes, x.shape, mesh))


def constrain_tree(tree: Any, names: Any) -> Any:
  """`constrain` of each array of a tree.

  Args:
    tree: of arrays.
    names: a tree prefix of `P`: logical names of the first axes, as for
      `local`; the others are not sharded.
  """
  return map_named(constrain, tree, names) if spread() else tree


def map_named(function: Callable[..., Any], tree: Any, names: Any) -> Any:
  """`function(x, *names)` of each array of a tree, a name for each axis.

  Args:
    function: of an array, or of what has a shape; None is for an axis that is
      not sharded.
    tree: of these.
    names: as in `constrain_tree`.
  """
  full = lambda x, of: function(x, *of, *[None] * (len(x.shape) - len(of)))
  return jax.tree.map(
    lambda of, part: jax.tree.map(lambda x: full(x, of), part),
    names,
    tree,
    is_leaf=lambda x: isinstance(x, P),
  )


def local(outputs: Any, **inputs: Any) -> Callable[..., Any]:
  """A decorator: runs a function on each device's own part of its arrays.

  There is no communication. What is not named in `inputs` is static, the same
  on all devices; so is what is None or a bool.

  Args:
    outputs: a tree prefix of `P` for what is returned: logical names of the
      first axes; the others are not sharded.
    **inputs: likewise, for each array by the name of its argument.
  """

  def decorate(function):
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
      if not spread():
        return function(*args, **kwargs)
      given = signature.bind(*args, **kwargs).arguments
      static = {
        name: x
        for name, x in given.items()
        if name not in inputs or x is None or isinstance(x, bool)
      }
      arrays = {name: x for name, x in given.items() if name not in static}
      run = jax.shard_map(
        lambda arrays: function(**arrays, **static),
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=(_on_mesh({name: inputs[name] for name in arrays}),),
        out_specs=_on_mesh(outputs),
        # Kernels do not tell along which axes they vary.
        check_vma=False,
      )
      return run(arrays)

    return call

  return decorate


def _on_mesh(names: Any) -> Any:
  """Specs of mesh axes for specs of logical names."""
  of = lambda spec: P(*(None if n is None else rules.axes(n) for n in spec))
  return jax.tree.map(of, names, is_leaf=lambda x: isinstance(x, P))


def local_rows(mesh: jax.sharding.Mesh, rows: int) -> np.ndarray:
  """Numbers of the rows of a global batch that this process's devices hold.

  Args:
    mesh: the mesh.
    rows: B, of all processes together.
  """
  places = batch_sharding(mesh).addressable_devices_indices_map((rows,))
  numbers = np.arange(rows)
  return np.unique(np.concatenate([numbers[i] for i in places.values()]))


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The sharding of every array of a batch: along its first axis."""
  return jax.sharding.NamedSharding(mesh, P(rules.axes("batch")))


def put_rows(
  batch: Any, held: np.ndarray, rows: int, mesh: jax.sharding.Mesh
) -> Any:
  """A global batch on the devices, from the rows that this process has.

  Args:
    batch: tree of arrays on the host, [len(held), ...], or of as many runs of
      rows as all have a part of, [len(held) / n, ...].
    held: from `local_rows`.
    rows: B, of all processes together.
    mesh: the mesh.
  """
  sharding = batch_sharding(mesh)

  def put_one(x: np.ndarray) -> jax.Array:
    n = len(held) // len(x)
    runs, own = np.arange(rows // n), held[::n] // n

    def part(index):
      return x[np.searchsorted(own, runs[index[0]])]

    return jax.make_array_from_callback(
      (len(runs), *x.shape[1:]), sharding, part
    )

  return jax.tree.map(put_one, batch)


def put(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  """A global array from one that every process has whole."""
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
