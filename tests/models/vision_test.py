"""The ViT: its math against hand numbers and peers, its invariances."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from gaze_jax import config as config_lib
from gaze_jax.models import vision

TINY = config_lib.VisionConfig(
  image_size=12,
  patch_size=4,
  width=16,
  depth=2,
  heads=2,
  mlp_dim=24,
  position_grid=5,
  final_norm=True,
)
NAMES = {
  "vision_embed",
  "heads",
  "head_dim",
  "vision_mlp",
  "patch",
  "position",
  "layers",
}


def _images(units=2, height=12, width=12, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(units, height, width, 3)).astype(np.float32)


def _params(config, seed=0):
  """Random everywhere, so that no bias or scale is idle."""
  shapes = vision.param_shapes(config)
  rng = np.random.default_rng(seed)
  draw = lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32)
  return jax.tree.map(draw, shapes)


@functools.partial(jax.jit, static_argnums=0)
def _apply(config, params, images):
  return vision.ViT(config).apply({"params": params}, images)


@functools.cache
def _init():
  return jax.jit(vision.ViT(TINY).init)(jax.random.key(0), _images())


def _layer(params, i):
  return jax.tree.map(lambda a: a[i], params["blocks"])


@functools.partial(jax.jit, static_argnums=0)
def _reference(config, params, images):
  """The encoder in loops and flax's own layers, for square pictures."""

  def norm(p, x):
    layer = nn.LayerNorm(epsilon=config.norm_eps, use_fast_variance=False)
    return layer.apply({"params": p}, x)

  def block(p, x):
    heads = nn.MultiHeadDotProductAttention(config.heads)
    y = heads.apply({"params": p["attention"]}, norm(p["norm1"], x))
    x = x + y * p.get("scale1", 1.0)
    y = norm(p["norm2"], x) @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]
    y = nn.gelu(y, approximate=config.activation == "gelu_tanh")
    y = y @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    return x + y * p.get("scale2", 1.0)

  conv = nn.Conv(config.width, [config.patch_size] * 2, config.patch_size)
  side = config.patch_size
  kernel = params["patch"]["kernel"].reshape(side, side, 3, -1)
  conv_params = {"kernel": kernel, "bias": params["patch"]["bias"]}
  x = conv.apply({"params": conv_params}, images)
  first = int(config.class_token)
  x = x.reshape(x.shape[0], -1, config.width) + vision.resize_positions(
    params["positions"][first:], *x.shape[1:3]
  )
  if config.class_token:
    token = params["class_token"] + params["positions"][0]
    x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
  for i in range(config.layers_used):
    x = block(_layer(params, i), x)
  if config.final_norm:
    x = norm(params["norm"], x)
  return x[:, first:]


@pytest.mark.parametrize(
  "change",
  [
    {},
    {"class_token": False},
    {"layer_scale": False},
    {"activation": "gelu_tanh"},
    {"hidden_state": 0},
    {"hidden_state": 1, "final_norm": False},
    {"position_grid": 3, "norm_eps": 0.1},
  ],
  ids=str,
)
def test_matches_flax_layers(change):
  config = dataclasses.replace(TINY, **change)
  params = _params(config)
  got = _apply(config, params, _images())
  want = _reference(config, params, _images())
  assert got.shape == (2, 9, 16) and got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_only_the_blocks_used_are_parameters():
  depths = {}
  for hidden_state in (-1, 2, 1):
    config = dataclasses.replace(TINY, hidden_state=hidden_state)
    blocks = vision.param_shapes(config)["blocks"]
    depths[hidden_state] = {a.shape[0] for a in jax.tree.leaves(blocks)}
  assert depths == {-1: {2}, 2: {2}, 1: {1}}
  config = dataclasses.replace(TINY, hidden_state=0)
  assert "blocks" not in vision.param_shapes(config)


def test_options_add_exactly_their_parameters():
  full = vision.param_shapes(TINY)
  assert full["positions"].shape == (26, 16)
  off = vision.param_shapes(
    dataclasses.replace(
      TINY, class_token=False, layer_scale=False, final_norm=False
    )
  )
  assert off["positions"].shape == (25, 16)
  assert set(full) - set(off) == {"class_token", "norm"}
  assert set(full["blocks"]) - set(off["blocks"]) == {"scale1", "scale2"}


def test_every_parameter_names_every_axis():
  boxed = _init()["params"]
  leaves = jax.tree.leaves(
    boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )
  seen = set()
  for leaf in leaves:
    assert isinstance(leaf, nn.LogicallyPartitioned)
    assert len(leaf.names) == leaf.value.ndim
    seen.update(leaf.names)
  assert seen == NAMES
  query = boxed["blocks"]["attention"]["query"]["kernel"]
  assert query.names == ("layers", "vision_embed", "heads", "head_dim")
  assert query.value.shape == (2, 16, 2, 8)


def test_layers_are_initialised_apart():
  up = nn.unbox(_init())["params"]["blocks"]["mlp"]["up"]["kernel"]
  assert not np.allclose(up[0], up[1])
  # xavier_uniform: variance 2 / (16 + 24), within a layer, not across them.
  np.testing.assert_allclose(np.var(up, axis=(1, 2)), 2 / 40, rtol=0.2)


def test_units_do_not_see_each_other():
  params, images = _params(TINY), _images(units=3)
  together = _apply(TINY, params, images)
  other = images.copy()
  other[1] = 0
  changed = _apply(TINY, params, other)
  np.testing.assert_array_equal(together[0], changed[0])
  np.testing.assert_array_equal(together[2], changed[2])
  assert not np.allclose(together[1], changed[1])
  alone = _apply(TINY, params, images[1:2])
  np.testing.assert_allclose(together[1:2], alone, atol=1e-5)


def test_patches_are_row_major():
  images = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
  patches = vision.to_patches(jnp.asarray(images), 2)
  assert patches.shape == (2, 6, 12)
  for t, (row, column) in enumerate(np.ndindex(2, 3)):
    window = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    np.testing.assert_array_equal(patches[:, t], window.reshape(2, -1))


def test_refuses_a_part_of_a_patch():
  with pytest.raises(ValueError, match="12 x 14 pixels.*4 x 4"):
    _apply(TINY, _params(TINY), _images(width=14))


def test_norm_by_hand():
  got = vision.layer_norm(
    jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0]), jnp.array([0.0, 5.0]), 3.0
  )
  np.testing.assert_allclose(got, [-1.0, 5.5], atol=1e-6)  # sqrt(1 + 3) = 2


def test_cubic_matrix_of_an_equal_size_is_the_identity():
  for size in (1, 2, 12, 37):
    np.testing.assert_array_equal(vision.cubic_matrix(size, size), np.eye(size))


def test_cubic_matrix_by_hand():
  # Centres at -.25 and .25 of two cells: t = .75 and .25, edges repeated.
  a = -0.75
  near = lambda t: (a + 2) * t**3 - (a + 3) * t**2 + 1
  far = lambda t: a * (t**3 - 5 * t**2 + 8 * t - 4)
  left = [far(1.75) + near(0.75) + near(0.25), far(1.25)]
  middle = [far(1.25) + near(0.25), near(0.75) + far(1.75)]
  want = [left, middle, middle[::-1], left[::-1]]
  np.testing.assert_allclose(vision.cubic_matrix(2, 4), want, atol=1e-6)


@pytest.mark.parametrize("sizes", [(37, 12), (5, 9), (3, 1), (7, 6)])
def test_cubic_matrix_matches_onnx_resize(sizes):
  size, new_size = sizes
  rows = vision.cubic_matrix(size, new_size)
  np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(rows, _onnx_resize(size, new_size), atol=1e-5)


def test_positions_follow_a_picture_that_is_not_square():
  table = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)
  got = vision.resize_positions(jnp.asarray(table), 3, 5).reshape(3, 5, 4)
  rows = vision.cubic_matrix(5, 3)
  want = np.stack([rows @ table.reshape(5, 5, 4)[:, j] for j in range(5)], 1)
  np.testing.assert_allclose(got, want, atol=1e-6)
  tall = vision.resize_positions(jnp.asarray(table), 5, 3)
  assert tall.shape == (15, 4)
  same = vision.resize_positions(jnp.asarray(table), 5, 5)
  np.testing.assert_array_equal(same, table)
  wide = _apply(TINY, _params(TINY), _images(height=8, width=20))
  assert wide.shape == (2, 10, 16)


def test_sums_are_float32_whatever_the_operands():
  ones = jnp.ones([257, 1])
  got = vision.linear(ones.T, ones, jnp.zeros([1]), "bfloat16")
  assert got.dtype == jnp.float32
  assert got == 257  # bfloat16 has no 257
  values = jnp.full([1, 3, 2, 4], 1.0)
  got = vision.attend(values, values, values, "bfloat16")
  assert got.dtype == jnp.float32 and got.shape == (1, 3, 2, 4)


def test_bfloat16_operands_stay_near_and_come_back_as_float32():
  params, images = _params(TINY), _images()
  exact = _apply(TINY, params, images)
  rounded = _apply(dataclasses.replace(TINY, dtype="bfloat16"), params, images)
  assert rounded.dtype == jnp.float32
  error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
  assert 1e-4 < error < 2e-2  # bf16 keeps 8 bits: 4e-3 an operand


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
