"""Layers of the decoder: parameters in thin modules, math in functions."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gaze_jax import types
from gaze_jax.parallel import shard

# Up to so many rows a product with a large table goes in blocks of the table.
_FEW_ROWS = 16
_BLOCK = 2048


def rms_norm(
  x: types.Float[types.Array, "*dims E"],
  scale: types.Float[types.Array, " E"],
  eps: float,
) -> types.Float[types.Array, "*dims E"]:
  """RMSNorm over the last axis; float32 inside, the dtype is kept."""
  wide = x.astype(jnp.float32)
  wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
  return (wide * scale).astype(x.dtype)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("weights", "number"),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class OneOf:
  """One weight of several, each an array of its own; for XLA:CPU.

  A slice of stacked weights is a copy there: its matrix product goes to a
  library that wants an operand in a buffer of its own. In a decoding step,
  which reads each weight once, that costs a third of the time. So each layer
  brings its product, on its own weight, and `lax.switch` takes the layer's.

  Attributes:
    weights: tuple of arrays of one shape.
    number: int32 scalar, which of them.
  """

  weights: types.Leaf
  number: types.Leaf


def contract(
  x: types.Array, weight: types.Array | OneOf, inputs: int, dtype: Any
) -> types.Array:
  """Contracts the trailing `inputs` axes of x with the leading of a weight.

  The operands have the dtype of x and the sums are float32, in the backward
  pass as well: JAX's own would multiply a float32 gradient with a bfloat16
  weight, which costs as much as float32 throughout.

  Args:
    x: float [..., *inputs].
    weight: float [*inputs, *outputs], or one of several.
    inputs: how many axes are contracted.
    dtype: of what is returned, [..., *outputs].
  """
  if isinstance(weight, OneOf):
    product = lambda w: lambda x: contract(x, w, inputs, dtype)
    return jax.lax.switch(weight.number, list(map(product, weight.weights)), x)
  if x.dtype == jnp.float32:
    dims = (_trailing(x, inputs), tuple(range(inputs)))
    return _dot(x, weight.astype(x.dtype), *dims).astype(dtype)
  return _narrow(x, weight, inputs, jnp.dtype(dtype))


def contract_table(
  x: types.Array, table: types.Array, dtype: Any
) -> types.Array:
  """Products of x with each row of a table, such as that of the embeddings.

  Args:
    x: float [..., E].
    table: float [V, E].
    dtype: of what is returned, [..., V].
  """
  rows = x.size // x.shape[-1]
  if 1 < rows <= _FEW_ROWS and len(table) > _BLOCK:
    flat = x.reshape(rows, -1)
    return _in_blocks(flat, table, dtype).reshape(*x.shape[:-1], -1)
  return contract(x, table.T, 1, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _in_blocks(x, table, dtype):
  """[rows, V]. XLA:CPU walks a table in an order that memory dislikes.

  It does so with two rows or more, and takes up to 1.5 times as long as for
  blocks that a cache holds.
  """
  return jax.lax.platform_dependent(
    x,
    table,
    cpu=functools.partial(_by_blocks, dtype),
    default=lambda x, table: contract(x, table.T, 1, dtype),
  )


def _by_blocks(dtype, x, table):
  n = len(table) // _BLOCK
  product = lambda part: contract(part, x.T, 1, dtype)
  block = lambda i: jax.lax.dynamic_slice_in_dim(table, i * _BLOCK, _BLOCK)
  out = jax.lax.map(lambda i: product(block(i).astype(x.dtype)), jnp.arange(n))
  out = out.reshape(n * _BLOCK, -1)
  rest = product(table[n * _BLOCK :].astype(x.dtype))
  return jnp.concatenate([out, rest]).T


def _in_blocks_forward(x, table, dtype):
  return _in_blocks(x, table, dtype), (x, table)


def _in_blocks_backward(dtype, saved, gradient):
  # JAX's own would add a whole table for each block.
  plain = lambda x, table: contract(x, table.T, 1, dtype)
  return jax.vjp(plain, *saved)[1](gradient)


_in_blocks.defvjp(_in_blocks_forward, _in_blocks_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _narrow(x, weight, inputs, dtype):
  dims = (_trailing(x, inputs), tuple(range(inputs)))
  return _dot(x, weight.astype(x.dtype), *dims).astype(dtype)


def _narrow_forward(x, weight, inputs, dtype):
  return _narrow(x, weight, inputs, dtype), (x, weight)


def _narrow_backward(inputs, dtype, saved, gradient):
  del dtype
  x, weight = saved
  gradient = gradient.astype(x.dtype)
  outputs = weight.ndim - inputs
  of_x = _dot(
    gradient,
    weight.astype(x.dtype),
    _trailing(gradient, outputs),
    tuple(range(inputs, weight.ndim)),
  )
  rows = tuple(range(x.ndim - inputs))
  of_weight = _dot(x, gradient, rows, rows)  # not computed where it is frozen
  return of_x.astype(x.dtype), of_weight.astype(weight.dtype)


_narrow.defvjp(_narrow_forward, _narrow_backward)


def _dot(a, b, of_a: tuple[int, ...], of_b: tuple[int, ...]) -> types.Array:
  return jax.lax.dot_general(
    a, b, ((of_a, of_b), ((), ())), preferred_element_type=jnp.float32
  )


def _trailing(x: types.Array, n: int) -> tuple[int, ...]:
  return tuple(range(x.ndim - n, x.ndim))


class RMSNorm(nn.Module):
  """Plain weight, as in Qwen (no +1 as in Gemma)."""

  axis: str  # logical name of the normalised axis
  eps: float

  @nn.compact
  def __call__(self, x: types.Array) -> types.Array:
    init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
    scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
    return rms_norm(x, scale, self.eps)


class Project(nn.Module):
  """A linear map of the trailing axes.

  Attributes:
    shape: shape of the weight, inputs first.
    axes: logical name of each of its axes.
    inputs: how many leading axes are contracted.
    bias: whether a bias is added.
    used: how the weight lies on a mesh for its product, if it is moved for it.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  inputs: int = 1
  bias: bool = False
  used: tuple[str | None, ...] = ()

  @nn.compact
  def __call__(self, x: types.Array) -> types.Array:
    n = self.inputs
    init = nn.initializers.variance_scaling(
      1.0,
      "fan_in",
      "truncated_normal",
      in_axis=tuple(range(n)),
      out_axis=tuple(range(n, len(self.shape))),
    )
    init = nn.with_logical_partitioning(init, self.axes)
    weight: Any = self.param("weight", init, self.shape, jnp.float32)
    if self.used:
      weight = shard.constrain(weight, *self.used)
    out = contract(x, weight, n, x.dtype)
    if self.bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[n:])
      bias = self.param("bias", zeros, self.shape[n:], jnp.float32)
      out += bias.astype(out.dtype)
    return checkpoint_name(out, self.name)  # see `decoder._KEPT`


class SwiGLU(nn.Module):
  """Gated MLP: down(silu(gate(x)) * up(x))."""

  hidden: int

  @nn.compact
  def __call__(self, x: types.Array) -> types.Array:
    width = x.shape[-1]
    into, out_of = (width, self.hidden), (self.hidden, width)
    gate = Project(into, ("embed", "mlp"), name="gate")(x)
    up = Project(into, ("embed", "mlp"), name="up")(x)
    return Project(out_of, ("mlp", "embed"), name="down")(nn.silu(gate) * up)
