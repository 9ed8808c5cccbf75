"""Sums that XLA:CPU makes one loop of, at the memory's speed.

What makes XLA emit loops of vectors that copy nothing; lose one, and they are
scalar or the copy is back:

* One reduce of several operands, a row of the group each: XLA leaves a reduce
  of one operand to a library that wants its input copied, and with several a
  page is read once for all rows.
* The sum is short and its operand a bare product, so that LLVM unrolls it
  whole; the innermost loop that is left runs over channels that are stored side
  by side.
"""

import math

import jax.numpy as jnp
from jax import lax

# Rows of a reduce: more leave room for fewer pages side by side; of one alone
# the library would take the reduce.
_ROWS = 2
# Products of one sum: what LLVM still unrolls.
_PRODUCTS = 16
_VECTOR = 8


def dots(rows, x):
  """Sums over D of a row times x [..., D], for `a` rows: [..., a]."""
  d = x.shape[-1]
  lanes = _lanes(d)
  split = lambda y: y.reshape(*y.shape[:-1], d // lanes, lanes)
  x = split(x.astype(jnp.float32))
  parts = sums([x * split(row) for row in rows], axis=x.ndim - 2)
  if lanes > _VECTOR:
    parts = [p.reshape(*p.shape[:-1], -1, _VECTOR) for p in parts]
    parts = sums(parts, axis=parts[0].ndim - 2)
  return jnp.stack(sums(parts, axis=parts[0].ndim - 1), axis=-1)


def in_blocks(x):
  """Rows [B, H, M, ...], padded, as [B, H, blocks, _ROWS, ...]."""
  spare = -x.shape[2] % _ROWS
  x = jnp.pad(x, ((0, 0), (0, 0), (0, spare), *((0, 0),) * (x.ndim - 3)))
  return x.reshape(*x.shape[:2], -1, _ROWS, *x.shape[3:])


def sums(terms, axis: int):
  """Each of several arrays summed over an axis, in one loop."""
  zeros = (jnp.zeros((), terms[0].dtype),) * len(terms)
  add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
  return lax.reduce(tuple(terms), zeros, add, (axis,))


def _lanes(d: int) -> int:
  """Channels of a vector, a multiple of 8 that leaves few products."""
  for lanes in range(_VECTOR, d, _VECTOR):
    if d % lanes == 0 and d // lanes <= _PRODUCTS:
      return lanes
  return math.gcd(d, _VECTOR)
