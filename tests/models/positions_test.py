"""Position tables, resized: hand numbers, onnxruntime, torch."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import compare
from gaze_jax.models import positions


def test_cubic_matrix_of_an_equal_size_is_the_identity():
  for size in (1, 2, 12, 37):
    np.testing.assert_array_equal(
      positions.cubic_matrix(size, size), np.eye(size)
    )


def test_cubic_matrix_by_hand():
  # Centres at -.25 and .25 of two cells: t = .75 and .25, edges repeated.
  a = -0.75
  near = lambda t: (a + 2) * t**3 - (a + 3) * t**2 + 1
  far = lambda t: a * (t**3 - 5 * t**2 + 8 * t - 4)
  left = [far(1.75) + near(0.75) + near(0.25), far(1.25)]
  middle = [far(1.25) + near(0.25), near(0.75) + far(1.75)]
  want = [left, middle, middle[::-1], left[::-1]]
  np.testing.assert_allclose(positions.cubic_matrix(2, 4), want, atol=1e-6)


@pytest.mark.parametrize("sizes", [(37, 12), (5, 9), (3, 1), (7, 6)])
def test_cubic_matrix_matches_onnx_resize(sizes):
  size, new_size = sizes
  rows = positions.cubic_matrix(size, new_size)
  np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
  compare.close(rows, _onnx_resize(size, new_size))


def test_positions_follow_a_picture_that_is_not_square():
  table = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)
  got = positions.resize(jnp.asarray(table), 3, 5).reshape(3, 5, 4)
  rows = positions.cubic_matrix(5, 3)
  want = np.stack([rows @ table.reshape(5, 5, 4)[:, j] for j in range(5)], 1)
  compare.close(got, want)
  tall = positions.resize(jnp.asarray(table), 5, 3)
  assert tall.shape == (15, 4)
  same = positions.resize(jnp.asarray(table), 5, 5)
  np.testing.assert_array_equal(same, table)


@jax.jit
def _resize_each(table, grid):
  return positions.resize_each(table, grid, 24)


def test_linear_weights_by_hand():
  # Two cells from four: each is a triangle two cells wide about 1 and 3.
  two = positions.linear_weights(jnp.arange(2), jnp.full([2], 2), 4)
  side = np.array([3, 3, 1, 0]) / 7  # 1/4 lies past the edge
  np.testing.assert_allclose(two, [side, side[::-1]], atol=1e-6)
  # Four from two: centres at .25, .75, 1.25, 1.75.
  four = positions.linear_weights(jnp.arange(4), jnp.full([4], 4), 2)
  want = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
  np.testing.assert_allclose(four, want, atol=1e-6)


def _torch_resize(table, rows, columns):
  """[F, G, G] to [rows, columns, F], each axis on its own.

  At once, torch 2.13's CPU kernel gives wrong numbers for one column of several
  rows. It keeps to its own rules with the rows laid along the columns.
  """

  def along_columns(x, size):
    x = torch.nn.functional.interpolate(
      x[None], size=(x.shape[1], size), mode="bilinear", antialias=True
    )
    return x[0].transpose(1, 2).contiguous()

  resized = along_columns(along_columns(table, columns), rows)
  return resized.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("side", [1, 4, 7])
def test_every_unit_gets_its_own_grid(side):
  rng = np.random.default_rng(side)
  table = rng.normal(size=(side * side, 5)).astype(np.float32)
  grid = np.array([[4, 4], [1, 24], [24, 1], [2, 11], [3, 5], [1, 1]], np.int32)
  got = _resize_each(jnp.asarray(table), grid)
  assert got.shape == (6, 24, 5) and got.dtype == jnp.float32
  square = torch.from_numpy(table.reshape(side, side, 5)).permute(2, 0, 1)
  for unit, (rows, columns) in enumerate(grid.tolist()):
    want = _torch_resize(square, rows, columns).reshape(-1, 5)
    compare.close(got[unit, : len(want)], want)
  before = _resize_each._cache_size()
  _resize_each(jnp.asarray(table), grid[::-1].copy())
  assert _resize_each._cache_size() == before  # no program for each grid


def test_a_unit_that_is_not_there_gets_numbers():
  table = jnp.ones([16, 2])
  got = _resize_each(table, np.zeros([1, 2], np.int32))
  assert np.isfinite(got).all()


def _onnx_resize(size, new_size):
  """The resize of one axis as onnxruntime does it: [new_size, size]."""
  resize = onnx.helper.make_node(
    "Resize",
    ["x", "", "", "sizes"],
    ["y"],
    mode="cubic",
    cubic_coeff_a=-0.75,
    coordinate_transformation_mode="half_pixel",
  )
  sizes = onnx.helper.make_tensor("sizes", 7, [4], [1, size, new_size, 1])
  value = lambda n, shape: onnx.helper.make_tensor_value_info(n, 1, shape)
  graph = onnx.helper.make_graph(
    [resize],
    "resize",
    [value("x", [1, size, size, 1])],
    [value("y", None)],
    [sizes],
  )
  model = onnx.helper.make_model(
    graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=7
  )
  session = onnxruntime.InferenceSession(model.SerializeToString())
  eye = np.eye(size, dtype=np.float32)[None, :, :, None]  # a cell a row
  return session.run(None, {"x": eye})[0][0, :, :, 0].T
