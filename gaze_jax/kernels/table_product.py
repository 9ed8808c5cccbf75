"""Products with each row of a large table, such as that of the embeddings."""

from typing import Any

from gaze_jax import types
from gaze_jax.kernels import products
from gaze_jax.kernels import target

NAME, supported = "xla", target.always


def table_product(
  x: types.Float[types.Array, "*dims E"],
  table: types.Float[types.Array, "V E"],
  dtype: Any,
) -> types.Float[types.Array, "*dims V"]:
  """x . table, accumulated in float32.

  Args:
    x: float [..., E].
    table: float [V, E].
    dtype: of what is returned, [..., V].
  """
  return products.contract(x, table.T, 1, dtype)
