"""Products of few rows with a large table on CPU: a batch of blocks.

XLA:CPU walks a table in an order that memory dislikes, with two rows or more;
blocks that a cache holds take less. By how much is in docs/benchmarks.md.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax.kernels import target

NAME = "cpu"

_FEW_ROWS = 32
_LEAST, _MOST = 512, 4096  # rows of a table in a block


def supported(*, rows: int, entries: int) -> str | None:
  """A few rows with a table that is so many blocks of one size, on CPU.

  Args:
    rows: of x.
    entries: V.
  """
  if not 1 < rows <= _FEW_ROWS or entries <= _MOST:
    return f"{rows} rows by {entries}: one matrix product does better"
  if _block(entries) < _LEAST:
    return f"{entries} entries are no blocks of one size"
  return target.other_than("cpu")


def table_product(x, table, dtype: Any) -> jax.Array:
  """As `table_product.table_product`."""
  size = _block(len(table))
  blocks = table.reshape(-1, size, table.shape[1]).astype(x.dtype)
  rows = x.reshape(-1, x.shape[-1])
  rows = jnp.broadcast_to(rows, (len(blocks), *rows.shape))
  product = jnp.einsum(
    "nbe,nme->nbm", blocks, rows, preferred_element_type=jnp.float32
  )
  product = product.reshape(len(table), -1).T
  return product.reshape(*x.shape[:-1], -1).astype(dtype)


def _block(entries: int) -> int:
  """The largest divisor that is no more than `_MOST`."""
  return next(n for n in range(_MOST, 0, -1) if entries % n == 0)
