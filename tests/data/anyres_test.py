"""Tiles, grids and blended tokens, against transformers and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import image_processing_utils
from transformers.models.llava_onevision import (
  image_processing_pil_llava_onevision as image_processing,
)
from transformers.models.llava_onevision import (
  modeling_llava_onevision as modeling,
)

import compare
from gaze_jax import config as config_lib
from gaze_jax.data import anyres
from gaze_jax.data import images as images_lib
from gaze_jax.data import units
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles
from gaze_jax.models import vision

SIDES = range(384, 2305, 384)
REAL = config_lib.ModelConfig(
  vision=config_lib.VisionConfig(image_size=384, patch_size=14),
  tiling=config_lib.TilingConfig(
    kind="anyres", pinpoints=tuple((h, w) for h in SIDES for w in SIDES)
  ),
)
# Squares of 28 pixels and 2 x 2 tokens.
SMALL = config_lib.ModelConfig(
  vision=config_lib.VisionConfig(
    image_size=28,
    patch_size=14,
    mean=(0.48, 0.45, 0.40),
    std=(0.26, 0.26, 0.27),
  ),
  tiling=config_lib.TilingConfig(
    kind="anyres",
    pinpoints=tuple((28 * h, 28 * w) for h in (1, 2, 4) for w in (1, 3, 4)),
    max_tiles=3,
  ),
)
SIZES = [
  *[(28, 28), (1, 1), (1, 300), (300, 1), (5, 7), (29, 28), (57, 31)],
  *[(33, 90), (111, 112), (37, 200), (64, 64), (113, 84), (2, 3), (250, 241)],
]


def picture(size, seed=0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (*size, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def theirs():
  v = SMALL.vision
  return image_processing.LlavaOnevisionImageProcessorPil(
    size=dict(height=28, width=28),
    image_grid_pinpoints=[list(p) for p in SMALL.tiling.pinpoints],
    image_mean=v.mean,
    image_std=v.std,
  )


def pixels_of(processed) -> np.ndarray:
  return processed["pixel_values"][0].transpose(0, 2, 3, 1)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_theirs_pixel_for_pixel(theirs, size):
  image = picture(size)
  want = pixels_of(theirs([[Image.fromarray(image)]], return_tensors="np"))
  compare.close(
    vision.normalise(anyres.squares(image, SMALL), SMALL.vision), want
  )


@pytest.mark.parametrize("size", SIZES)
def test_one_of_several_images_is_theirs_pixel_for_pixel(theirs, size):
  image = picture(size)
  two = [[Image.fromarray(image)] * 2]
  want = pixels_of(theirs(two, return_tensors="np"))
  got = anyres.padded_square(image, SMALL)
  compare.close(vision.normalise(got, SMALL.vision), want)


@pytest.mark.parametrize("size", [(37, 200), (113, 84), (300, 1), (8, 90)])
def test_a_picture_scaled_before_it_is_padded_is_much_the_same(
  monkeypatch, size
):
  """Where its square would be too large: seen from afar, parts of a pixel."""
  image = picture(size)
  image[:] = image.mean((0, 1)).astype(np.uint8)  # where it lies is what counts
  want = anyres.padded_square(image, SMALL)
  monkeypatch.setattr(images_lib, "MOST_PIXELS", max(size) ** 2 - 1)
  got = anyres.padded_square(image, SMALL)
  assert got.shape == want.shape
  covered = lambda pixels: (pixels.sum((1, 2)) / 28).ravel()
  np.testing.assert_allclose(covered(got), covered(want), atol=28.0)
  monkeypatch.setattr(images_lib, "MOST_PIXELS", max(size) ** 2)
  np.testing.assert_array_equal(anyres.padded_square(image, SMALL), want)


@pytest.mark.parametrize(
  "size, tokens",
  [
    ((384, 384), 1485),
    ((480, 640), 2929),
    ((1080, 1920), 7269),
    ((2304, 2304), 7371),
  ],
)
def test_token_counts_of_real_images(size, tokens):
  grid = anyres.grid_unit(size, REAL)
  assert 27 * 27 + grid.tokens == tokens


def test_other_counts_of_a_model():
  side = REAL.vision.grid
  assert row_lib.Unit(side, side, tail=1).tokens == 730
  frames = [anyres.frame_unit(side, last=i == 7) for i in range(8)]
  assert sum(frame.tokens for frame in frames) == 8 * 196 + 1
  # 1.1^2 of nine squares are not shrunk yet: more than 2304 x 2304 gives.
  assert tiles.largest_unit(REAL) == 8100
  assert anyres.grid_unit((1378, 1134), REAL).tokens == 8036


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_every_size_follows_them_to_the_last_rounding(height, width):
  size, pinpoints = (height, width), [list(p) for p in REAL.tiling.pinpoints]
  best = image_processing_utils.select_best_resolution(size, pinpoints)
  assert tiles.best_fit(size, REAL.tiling.pinpoints) == best
  fitted = image_processing_utils.get_patch_output_size(
    np.zeros((3, *size), np.bool_), best, input_data_format="channels_first"
  )
  assert tiles.fitted(size, best) == fitted
  grid = tuple(n // 384 * 27 for n in best)
  plain = torch.arange(math.prod(grid)).reshape(1, *grid)
  cut = modeling.unpad_image(plain, size)[0].numpy()
  np.testing.assert_array_equal(
    plain[0].numpy()[tiles.unpadded(size, grid)], cut
  )
  unit = anyres.grid_unit(size, REAL)
  assert (unit.rows, unit.columns, 0) in tiles.unit_grids(REAL)


def features(model: config_lib.ModelConfig, tiles: int) -> np.ndarray:
  """Random projected tokens [tiles * T, 3]."""
  rng = np.random.default_rng(1)
  tokens = tiles * model.vision.tokens
  return rng.normal(size=(tokens, 3)).astype(np.float32)


def fed(unit: row_lib.Unit, tokens: np.ndarray, newline) -> np.ndarray:
  """What a unit's slots hold, [tokens, 3]."""
  take = lambda feed: np.where(
    (feed == row_lib.NEWLINE)[..., None], newline, tokens[feed]
  )
  if unit.blend is None:
    return take(unit.feed)
  return (take(unit.feed) * unit.blend[..., None]).sum(1)


@pytest.mark.parametrize("size", SIZES)
def test_grids_hold_what_they_pack(size):
  config = modeling.LlavaOnevisionConfig(
    image_grid_pinpoints=[list(p) for p in SMALL.tiling.pinpoints],
    vision_config=dict(
      model_type="siglip_vision_model", image_size=28, patch_size=14
    ),
  )
  pack = modeling.LlavaOnevisionModel.pack_image_features
  holder = type("Holder", (), dict(config=config))()
  best = tiles.best_fit(size, SMALL.tiling.pinpoints)
  count = (best[0] // 28) * (best[1] // 28)
  tokens, newline = features(SMALL, count + 1), np.array([9, 8, 7], np.float32)
  want, _ = pack(
    holder,
    [torch.tensor(tokens.reshape(count + 1, 4, 3))],
    [size],
    torch.tensor(newline),
    f"anyres_max_{SMALL.tiling.max_tiles}",
  )
  unit = anyres.grid_unit(size, SMALL)
  got = tokens[:4]
  if unit is not None:
    got = np.concatenate([got, fed(unit, tokens[4:], newline)])
    assert unit.tokens == unit.rows * unit.columns == len(unit.feed)
  compare.close(got, want[0].numpy())


def test_these_sizes_show_every_case():
  found = [anyres.grid_unit(size, SMALL) for size in SIZES]
  assert any(u is None for u in found)
  assert any(u is not None and u.blend is None for u in found)
  assert any(u is not None and u.blend is not None for u in found)


@pytest.mark.parametrize(
  "old, new", [(27, 14), (61, 55), (150, 121), (2, 1), (5, 5), (3, 7)]
)
def test_shrinking_is_torchs_bilinear(old, new):
  rng = np.random.default_rng(0)
  values = rng.normal(size=(old, old + 1)).astype(np.float32)
  want = torch.nn.functional.interpolate(
    torch.tensor(values)[None, None], size=(new, new + 1), mode="bilinear"
  )[0, 0].numpy()
  numbers = np.arange(values.size).reshape(values.shape)
  feed, blend = anyres.shrink(numbers, (new, new + 1))
  got = (values.ravel()[feed] * blend).sum(-1)
  compare.close(got, want)


def test_a_shrunk_line_by_hand():
  # Five cells to two: centres 0.75 and 3.25.
  feed, blend = anyres.shrink(np.arange(5)[:, None], (2, 1))
  got = (np.array([0, 10, 20, 30, 40])[feed] * blend).sum(-1)
  np.testing.assert_array_equal(got, [[7.5], [32.5]])


def test_a_grid_in_raster_order_by_hand():
  model = config_lib.ModelConfig(
    vision=SMALL.vision,
    tiling=config_lib.TilingConfig(kind="anyres", pinpoints=((28, 56),)),
  )
  n = row_lib.NEWLINE
  unit = anyres.grid_unit((28, 56), model)
  assert unit == row_lib.Unit(2, 5, tiles=2)
  np.testing.assert_array_equal(unit.feed, [0, 1, 4, 5, n, 2, 3, 6, 7, n])
  # 28 x 14 pixels fit as 28 x 14: half of each tile's columns are padding.
  unit = anyres.grid_unit((28, 14), model)
  assert unit == row_lib.Unit(2, 3, tiles=2)
  np.testing.assert_array_equal(unit.feed, [1, 4, n, 3, 6, n])


def test_images_become_units():
  one, square = picture((30, 60)), row_lib.Unit(2, 2)
  (seen,) = units.of_images([one], SMALL)
  assert seen.units == (square, row_lib.Unit(2, 5, tiles=6))
  assert seen.pixels.shape == (7, 28, 28, 3)
  for seen in units.of_images([one, picture((28, 28))], SMALL):
    assert seen.units == (row_lib.Unit(2, 2, tail=1),)
  seen = units.of_video([one] * 3, SMALL)
  assert seen.units == tuple(
    row_lib.Unit(1, 1, tail=int(i == 2), frame=i, frames=3) for i in range(3)
  )
  plain = config_lib.ModelConfig(vision=SMALL.vision)
  assert [s.units for s in units.of_images([one] * 2, plain)] == [(square,)] * 2
  assert units.of_video([one] * 2, plain).units == tuple(
    row_lib.Unit(2, 2, frame=i, frames=2) for i in range(2)
  )
  # What is one thin line has no grid.
  (seen,) = units.of_images([picture((1, 300))], SMALL)
  assert seen.pixels.shape[0] == sum(u.tiles for u in seen.units)


def test_images_of_a_turn_are_together():
  one, two = picture((30, 60)), picture((60, 30), 1)
  alone = [units.of_images([x], SMALL)[0] for x in (one, two)]
  pair = units.of_images([one, two], SMALL)
  got = units.of_images([one, one, two, two], SMALL, (1, 2, 0, 1))
  for seen, want in zip(got, [alone[0], *pair, alone[1]], strict=True):
    assert seen.units == want.units
    np.testing.assert_array_equal(seen.pixels, want.pixels)
  assert alone[0].units != pair[0].units


@pytest.mark.parametrize(
  "image",
  [
    np.zeros((4, 4), np.uint8),
    np.zeros((4, 4, 4), np.uint8),
    np.zeros((4, 4, 3), np.float32),
    np.zeros((0, 4, 3), np.uint8),
  ],
  ids=["grey", "alpha", "float", "empty"],
)
def test_what_is_no_image_says_so(image):
  with pytest.raises(images_lib.ImageError):
    units.of_images([image], SMALL)
  with pytest.raises(images_lib.ImageError):
    units.of_video([image], SMALL)


def test_images_of_PIL_are_what_their_pixels_are():
  image = Image.new("LA", (9, 5), (90, 0))
  white = np.full((5, 9, 3), 255, np.uint8)
  for see in (units.of_images, lambda *a: [units.of_video(*a)]):
    (want,), (got,) = see([white], SMALL), see([image], SMALL)
    np.testing.assert_array_equal(got.pixels, want.pixels)
    assert got.units == want.units


def test_a_video_needs_a_frame():
  with pytest.raises(images_lib.ImageError, match="without frames"):
    units.of_video([], SMALL)
