"""Learned position tables, resized to the grid of a picture.

Dims: B' units, T patches, G side of the table, F width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import types

Array = types.Array

_CUBIC = -0.75  # the coefficient of torch's and ONNX's bicubic resize


def cubic_matrix(size: int, new_size: int) -> np.ndarray:
  """The bicubic resize of one axis, as a matrix.

  Half-pixel centres, edges repeated, no antialiasing: torch's
  `interpolate(mode="bicubic", align_corners=False)` and ONNX's `Resize` with
  `half_pixel` and `cubic_coeff_a=-0.75`. Keys 1981, with a = -0.75.

  Returns:
    float32 [new_size, size]; rows sum to 1; the identity for equal sizes.
  """
  centre = (np.arange(new_size) + 0.5) * size / new_size - 0.5
  taps = np.floor(centre)[:, None].astype(int) + np.arange(-1, 3)
  t = np.abs(centre[:, None] - taps)
  near = ((_CUBIC + 2) * t - (_CUBIC + 3)) * t * t + 1
  far = ((_CUBIC * t - 5 * _CUBIC) * t + 8 * _CUBIC) * t - 4 * _CUBIC
  matrix = np.zeros((new_size, size))
  rows = np.arange(new_size)[:, None]
  np.add.at(
    matrix,
    (rows, np.clip(taps, 0, size - 1)),  # taps past the edge add up on it
    np.where(t <= 1, near, far),
  )
  return matrix.astype(np.float32)


def resize(table: Array, rows: int, columns: int) -> Array:
  """Bicubic resize of a square position table to one grid.

  Args:
    table: float32 [G * G, F], row-major.
    rows: patches of a column of the picture.
    columns: patches of a row of the picture.

  Returns:
    float32 [rows * columns, F], row-major; the table itself on an equal grid.
  """
  side = round(table.shape[0] ** 0.5)
  if (rows, columns) == (side, side):
    return table
  resized = jnp.einsum(
    "yi,xj,ijf->yxf",
    cubic_matrix(side, rows),
    cubic_matrix(side, columns),
    table.reshape(side, side, -1),
    precision=jax.lax.Precision.HIGHEST,  # tiny; bf16 positions would drift
  )
  return resized.reshape(rows * columns, -1)


def linear_weights(index: Array, size: Array, side: int) -> Array:
  """What cells of a table make up a cell of the table resized.

  One axis of torch's `interpolate(mode="bilinear", antialias=True)`: a
  triangle around the cell's centre, as wide as the cell where the table
  shrinks, and its weights past the edge go to the others.

  Args:
    index: int32 [...], the cell.
    size: int32 [...], cells of the resized axis, at least 1.
    side: G.

  Returns:
    float32 [..., G], which sums to 1.
  """
  scale = side / size.astype(jnp.float32)
  centre = (index + 0.5) * scale
  cells = jnp.arange(side) + 0.5
  distance = jnp.abs(cells - centre[..., None])
  weights = jnp.maximum(0.0, 1 - distance / jnp.maximum(scale, 1.0)[..., None])
  return weights / weights.sum(-1, keepdims=True)


def resize_each(table: Array, grid: Array, patches: int) -> Array:
  """Bilinear, antialiased resize of a table to the grid of each unit.

  The grids are traced: one program serves them all.

  Args:
    table: float32 [G * G, F], row-major.
    grid: int32 [B', 2], rows and columns; at most `patches` cells.
    patches: T.

  Returns:
    float32 [B', T, F], row-major; past a unit's cells anything finite.
  """
  side = round(table.shape[0] ** 0.5)
  rows, columns = jnp.maximum(grid, 1).T[..., None]  # [B', 1] each
  cell = jnp.arange(patches)
  row = jnp.minimum(cell // columns, rows - 1)
  weights = (
    linear_weights(row, rows, side)[..., None]
    * linear_weights(cell % columns, columns, side)[..., None, :]
  )
  return jnp.matmul(
    weights.reshape(*row.shape, side * side),
    table,
    precision=jax.lax.Precision.HIGHEST,
  )
