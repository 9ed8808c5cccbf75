"""NaFlex patches: the size search and the pixels of transformers."""

import dataclasses

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers.models.siglip2 import image_processing_pil_siglip2

import compare
from gaze_jax import config as config_lib
from gaze_jax.data import naflex
from gaze_jax.models import vision as tower

VISION = config_lib.VisionConfig(
  patch_size=4,
  class_token=False,
  max_patches=20,
  resample="bilinear",
  mean=(0.5, 0.4, 0.3),
  std=(0.5, 0.6, 0.7),
)


def test_grid_by_hand():
  assert naflex.grid(32, 32, 16, 4) == (2, 2)
  assert naflex.grid(100, 100, 16, 9) == (3, 3)
  # Twice as wide as high: 2 x 4 fits in 8, and 2 x 3 would waste two.
  assert naflex.grid(50, 100, 16, 8) == (2, 4)
  assert naflex.grid(1, 1000, 16, 5) == (1, 5)
  assert naflex.grid(1000, 1, 16, 5) == (5, 1)
  assert naflex.grid(7, 9, 16, 1) == (1, 1)


@pytest.mark.parametrize("max_patches", [1, 4, 20, 256, 729, 1024])
def test_grid_is_that_of_transformers(max_patches):
  search = image_processing_pil_siglip2.get_image_size_for_max_num_patches
  rng = np.random.default_rng(max_patches)
  sizes = np.exp(rng.uniform(0, np.log(5000), (60, 2))).astype(int)
  for height, width in [(1, 1), (1, 5000), (5000, 1), *sizes.tolist()]:
    for patch in (14, 16):
      want = search(height, width, patch, max_patches)
      got = naflex.grid(height, width, patch, max_patches)
      assert (got[0] * patch, got[1] * patch) == want
      assert got[0] * got[1] <= max_patches


@pytest.mark.parametrize(
  "size", [(16, 20), (30, 30), (11, 90), (200, 13), (3, 2), (64, 81)], ids=str
)
def test_patches_are_those_of_transformers(size):
  rng = np.random.default_rng(size[0])
  image = rng.integers(0, 256, (*size, 3), np.uint8)
  processor = transformers.Siglip2ImageProcessorPil(
    patch_size=4,
    max_num_patches=20,
    image_mean=list(VISION.mean),
    image_std=list(VISION.std),
  )
  want = processor(Image.fromarray(image))
  got = naflex.preprocess(image, VISION)
  assert got.pixels.shape == (20, 48) and got.pixels.dtype == np.uint8
  assert got.grid.dtype == np.int32
  assert got.grid.tolist() == list(want["spatial_shapes"][0])
  filled = np.arange(20) < got.grid.prod()
  pixels = np.asarray(tower.normalise(got.pixels, VISION))
  compare.close(pixels[filled], want["pixel_values"][0][filled])
  assert not got.pixels[~filled].any()
  np.testing.assert_array_equal(filled, want["pixel_attention_mask"][0])


def test_a_patch_is_rows_of_columns_of_channels():
  vision = dataclasses.replace(VISION, patch_size=2, max_patches=8)
  image = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
  out = naflex.preprocess(image, vision)
  assert out.grid.tolist() == [2, 4]
  for t, (row, column) in enumerate(np.ndindex(2, 4)):
    window = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    np.testing.assert_array_equal(out.pixels[t], window.reshape(-1))
