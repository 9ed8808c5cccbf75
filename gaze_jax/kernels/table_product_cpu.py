"""Products of few rows with a large table on CPU: block by block.

XLA:CPU walks a table in an order that memory dislikes, with two rows or more,
and takes up to 1.5 times as long as for blocks that a cache holds.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import products
from gaze_jax.kernels import table_product as oracle
from gaze_jax.kernels import target

NAME = "cpu"

_FEW_ROWS = 16
_BLOCK = 2048  # rows of a table


def supported(*, rows: int, entries: int) -> str | None:
  """A few rows with more than a block of a table, on CPU.

  Args:
    rows: of x.
    entries: V.
  """
  if not 1 < rows <= _FEW_ROWS or entries <= _BLOCK:
    return f"{rows} rows by {entries}: one matrix product does better"
  return target.other_than("cpu")


def table_product(x, table, dtype: Any) -> types.Array:
  """As `table_product.table_product`."""
  flat = x.reshape(-1, x.shape[-1])
  return _by_blocks(flat, table, dtype).reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_blocks(x, table, dtype):
  """[rows, V]."""
  n = len(table) // _BLOCK
  product = lambda part: products.contract(part, x.T, 1, dtype)
  block = lambda i: jax.lax.dynamic_slice_in_dim(table, i * _BLOCK, _BLOCK)
  out = jax.lax.map(lambda i: product(block(i).astype(x.dtype)), jnp.arange(n))
  out = out.reshape(n * _BLOCK, -1)
  rest = product(table[n * _BLOCK :].astype(x.dtype))
  return jnp.concatenate([out, rest]).T


def _by_blocks_forward(x, table, dtype):
  return _by_blocks(x, table, dtype), (x, table)


def _by_blocks_backward(dtype, saved, gradient):
  # JAX's own would add a whole table for each block.
  plain = functools.partial(oracle.table_product, dtype=dtype)
  return jax.vjp(plain, *saved)[1](gradient)


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward)
