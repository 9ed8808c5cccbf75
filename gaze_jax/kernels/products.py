"""Matrix products, whose sums are float32 both ways."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import target


@dataclasses.dataclass(frozen=True)
class OneOf:
  """One weight of several, each an array of its own; for XLA:CPU.

  A slice of stacked weights is a copy there: its matrix product goes to a
  library that wants an operand in a buffer of its own. In a decoding step,
  which reads each weight once, that costs a third of the time. So each layer
  brings its product, on its own weight, and `lax.switch` takes the layer's.

  The weights are transposed, so that the sums of a product run along memory;
  what that gains is in docs/benchmarks.md.

  Attributes:
    weights: tuple of transposes of one shape, [*outputs, *inputs], both in
      reverse.
    number: int32 scalar, which of them.
  """

  weights: tuple[types.Array, ...]
  number: types.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the weight; flax asks for it."""
    return self.weights[0].shape[::-1]


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
    product = lambda w: lambda x: _few_rows(x, w, inputs, dtype)
    return jax.lax.switch(weight.number, list(map(product, weight.weights)), x)
  if x.dtype == jnp.float32:
    if target.target().platform == "cpu":
      return _wide(x, weight.astype(x.dtype), inputs).astype(dtype)
    dims = (_trailing(x, inputs), tuple(range(inputs)))
    return _dot(x, weight.astype(x.dtype), *dims).astype(dtype)
  return _narrow(x, weight, inputs, jnp.dtype(dtype))


def _few_rows(x, turned, inputs, dtype):
  """`contract` with the transpose of a weight, which comes first."""
  rows = x.reshape(-1, *x.shape[x.ndim - inputs :])
  count = len(rows)
  if count == 1 and x.dtype != jnp.float32:
    # XLA:CPU has no product of a narrow matrix with a vector, but a loop that
    # takes much longer than the product with two.
    rows = jnp.concatenate([rows, jnp.zeros_like(rows)])
  axes = (_trailing(turned, inputs), tuple(range(inputs)))
  out = _dot(turned.astype(x.dtype), rows.T, *axes)
  # Else XLA would rather transpose the weight, and multiply by one row again.
  out = jax.lax.optimization_barrier(out).T[:count].astype(dtype)
  return out.reshape(*x.shape[: x.ndim - inputs], *out.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _wide(x, weight, inputs):
  """float32 on CPU, where the weight's gradient needs care."""
  return _dot(x, weight, _trailing(x, inputs), tuple(range(inputs)))


def _wide_forward(x, weight, inputs):
  return _wide(x, weight, inputs), (x, weight)


def _wide_backward(inputs, saved, gradient):
  # XLA:CPU transposes the first operand of the weight's gradient. Whatever made
  # it becomes part of that copy, which walks memory in strides: the backward
  # pass of SwiGLU took 257 ms so, not 9. Hence the barrier; and the first is
  # the narrower of the two.
  x, weight, gradient = jax.lax.optimization_barrier((*saved, gradient))
  outputs = weight.ndim - inputs
  of_x = _dot(
    gradient,
    weight,
    _trailing(gradient, outputs),
    tuple(range(inputs, weight.ndim)),
  )
  rows = tuple(range(x.ndim - inputs))
  if x.size <= gradient.size:
    return of_x, _dot(x, gradient, rows, rows)
  axes = range(weight.ndim)
  of_weight = _dot(gradient, x, rows, rows)
  return of_x, of_weight.transpose(*axes[outputs:], *axes[:outputs])


_wide.defvjp(_wide_forward, _wide_backward)


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


def dot(a: types.Array, b: types.Array, axes: tuple[int, int]) -> types.Array:
  """float32 product of matrices within a kernel, over an axis of each.

  The precision is stated for both dtypes, as a process may set another default,
  which Mosaic refuses for bfloat16; float32 is not rounded to bfloat16.
  """
  exact = a.dtype == jnp.float32
  return jax.lax.dot_general(
    a,
    b,
    (((axes[0],), (axes[1],)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )
