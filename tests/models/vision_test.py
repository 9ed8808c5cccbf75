"""The ViT: its math against hand numbers and peers, its invariances."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.models import layers
from gaze_jax.models import positions
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
    y = {
      "gelu": functools.partial(nn.gelu, approximate=False),
      "gelu_tanh": nn.gelu,
      "quick_gelu": lambda y: y * nn.sigmoid(1.702 * y),
    }[config.activation](y)
    y = y @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    return x + y * p.get("scale2", 1.0)

  conv = nn.Conv(config.width, [config.patch_size] * 2, config.patch_size)
  side = config.patch_size
  kernel = params["patch"]["kernel"].reshape(side, side, 3, -1)
  bias = params["patch"].get("bias", jnp.zeros([config.width]))
  conv_params = {"kernel": kernel, "bias": bias}
  x = conv.apply({"params": conv_params}, images)
  first = int(config.class_token)
  x = x.reshape(x.shape[0], -1, config.width) + positions.resize(
    params["positions"][first:], *x.shape[1:3]
  )
  if config.class_token:
    token = params["class_token"] + params["positions"][0]
    x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
  if config.pre_norm:
    x = norm(params["pre_norm"], x)
  for i in range(config.layers_used):
    x = block(_layer(params, i), x)
  if config.final_norm:
    x = norm(params["norm"], x)
  return x[:, first:]


@pytest.mark.few(3)
@pytest.mark.parametrize(
  "change",
  [
    {},
    {"class_token": False},
    {"layer_scale": False},
    {"activation": "gelu_tanh"},
    {"activation": "quick_gelu"},
    {"patch_bias": False},
    {"pre_norm": True},
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
  compare.close(got, want)


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
  assert vision.param_shapes(NAFLEX)["positions"].shape == (25, 16)
  clip = dataclasses.replace(TINY, pre_norm=True, patch_bias=False)
  assert set(vision.param_shapes(clip)) - set(full) == {"pre_norm"}
  assert set(vision.param_shapes(clip)["patch"]) == {"kernel"}
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
  compare.close(together[1:2], alone)


def test_patches_are_row_major():
  images = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
  patches = vision.to_patches(jnp.asarray(images), 2)
  assert patches.shape == (2, 6, 12)
  for t, (row, column) in enumerate(np.ndindex(2, 3)):
    window = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    np.testing.assert_array_equal(patches[:, t], window.reshape(2, -1))


def test_a_picture_that_is_not_square():
  wide = _apply(TINY, _params(TINY), _images(height=8, width=20))
  assert wide.shape == (2, 10, 16)


def test_refuses_a_part_of_a_patch():
  with pytest.raises(ValueError, match="12 x 14 pixels.*4 x 4"):
    _apply(TINY, _params(TINY), _images(width=14))


def test_drops_a_part_of_a_patch_at_the_size_of_the_tower():
  config = dataclasses.replace(TINY, image_size=14)
  images = _images(height=14, width=14)
  got = _apply(config, _params(config), images)
  want = _apply(config, _params(config), images[:, :12, :12])
  np.testing.assert_array_equal(got, want)


def _patches(grids, seed=0):
  """`Patches` of units of 4 x 4 pixels a patch, 12 of them at most."""
  pixels = np.zeros([len(grids), 12, 48], np.float32)
  for i, (rows, columns) in enumerate(grids):
    image = _images(1, 4 * rows, 4 * columns, seed + i)
    pixels[i, : rows * columns] = vision.to_patches(image, 4)[0]
  return types.Patches(pixels, np.array(grids, np.int32))


NAFLEX = dataclasses.replace(TINY, class_token=False, max_patches=12)


def test_patches_are_what_pictures_are():
  # At the table's own grid both kinds of positions are the table itself.
  config = dataclasses.replace(NAFLEX, position_grid=3)
  params = _params(config)
  got = _apply(config, params, _patches([(3, 3)]))
  square = dataclasses.replace(config, max_patches=0)
  want = _apply(square, params, _images(1))
  assert got.shape == (1, 12, 16)
  compare.close(got[:, :9], want)


def test_what_lies_past_the_grid_is_not_seen():
  params, patches = _params(NAFLEX), _patches([(3, 4), (2, 3), (1, 1)])
  got = _apply(NAFLEX, params, patches)
  noisy = patches.pixels.copy()
  noisy[1, 6:], noisy[2, 1:] = 100, -100
  again = _apply(NAFLEX, params, types.Patches(noisy, patches.grid))
  for unit, count in enumerate((12, 6, 1)):
    compare.close(got[unit, :count], again[unit, :count])
    alone = jax.tree.map(lambda a, u=unit: a[u : u + 1], patches)
    compare.close(got[unit, :count], _apply(NAFLEX, params, alone)[0, :count])
  noisy[1, 5] = 100
  seen = _apply(NAFLEX, params, types.Patches(noisy, patches.grid))
  assert not np.allclose(got[1, 0], seen[1, 0])


def test_a_unit_that_is_not_there_is_finite_with_its_gradient():
  patches = types.Patches(
    np.zeros([2, 12, 48], np.float32), np.array([[0, 0], [2, 2]], np.int32)
  )
  loss = lambda p: _apply(NAFLEX, p, patches).sum()
  value, gradient = jax.value_and_grad(loss)(_params(NAFLEX))
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_one_program_serves_every_grid():
  params = _params(NAFLEX)
  _apply(NAFLEX, params, _patches([(3, 4), (2, 3)]))
  before = _apply._cache_size()
  _apply(NAFLEX, params, _patches([(12, 1), (1, 12)]))
  assert _apply._cache_size() == before


def test_pixels_and_patches_are_told_apart():
  with pytest.raises(ValueError, match="max_patches = 12 reads Patches"):
    _apply(NAFLEX, _params(NAFLEX), _images())
  with pytest.raises(ValueError, match="max_patches = 0 reads pixels"):
    _apply(TINY, _params(TINY), _patches([(1, 1)]))


@pytest.mark.parametrize("config", [TINY, NAFLEX])
def test_a_blank_is_what_the_tower_reads(config):
  blank = vision.blank(config, 2)
  out = _apply(config, _params(config), blank)
  assert out.shape == (2, config.tokens, 16)
  deep = vision.blank(config, 2, 3)
  for leaf, flat in zip(
    jax.tree.leaves(deep), jax.tree.leaves(blank), strict=True
  ):
    assert leaf.shape == (2, 3, *flat.shape[1:])


def test_heads_of_72():
  config = dataclasses.replace(TINY, width=144, class_token=False)
  params = jax.tree.map(lambda a: a / 4, _params(config))
  got = _apply(config, params, _images())
  assert params["blocks"]["attention"]["query"]["kernel"].shape[-1] == 72
  compare.close(got, _reference(config, params, _images()))


def test_quick_gelu_by_hand():
  got = vision.activate(jnp.array([0.0, 1.0, -1.0]), "quick_gelu")
  sigmoid = 1 / (1 + np.exp(-1.702))
  np.testing.assert_allclose(got, [0, sigmoid, sigmoid - 1], atol=1e-6)


def test_norm_by_hand():
  got = layers.layer_norm(
    jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0]), jnp.array([0.0, 5.0]), 3.0
  )
  np.testing.assert_allclose(got, [-1.0, 5.5], atol=1e-6)  # sqrt(1 + 3) = 2


def test_sums_are_float32_whatever_the_operands():
  ones = jnp.ones([257, 1])
  linear = vision._linear((257, 1), ("patch", "vision_embed"), "bfloat16")
  params = dict(kernel=ones, bias=jnp.zeros([1]))
  got = linear.apply({"params": params}, ones.T)
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
