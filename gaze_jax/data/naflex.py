"""NaFlex: an image of any aspect as the patches of a SigLIP2 tower."""

import math

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.data import images

_PRECISION = 1e-5  # of the scale; part of what SigLIP2 was trained with
_LARGEST_SCALE = 100.0


def grid(
  height: int, width: int, patch: int, max_patches: int
) -> tuple[int, int]:
  """The grid of patches that an image is fitted to.

  The largest scale of both sides, found by bisection, at which the patches
  that cover the image are not too many (Tschannen et al. 2025).

  Args:
    height: pixels.
    width: pixels.
    patch: side of a patch in pixels.
    max_patches: T.

  Returns:
    Rows and columns of patches, at least 1 each.
  """

  def at(scale: float) -> tuple[int, int]:
    cover = lambda size: max(1, math.ceil(size * scale / patch))
    return cover(height), cover(width)

  low, high = _PRECISION / 10, _LARGEST_SCALE
  while high - low >= _PRECISION:
    middle = (low + high) / 2
    if math.prod(at(middle)) <= max_patches:
      low = middle
    else:
      high = middle
  return at(low)


def preprocess(
  image: np.ndarray, vision: config_lib.VisionConfig
) -> types.Patches:
  """Resizes an image to whole patches and splits it.

  Args:
    image: uint8 [height, width, 3].
    vision: the tower; T is its `max_patches`.

  Returns:
    numpy `Patches`: uint8 [T, side * side * 3], 0 past the grid, and int32 [2].
  """
  side, limit = vision.patch_size, vision.max_patches
  rows, columns = grid(*image.shape[:2], side, limit)
  image = images.resize(image, rows * side, columns * side, vision.resample)
  pixels = image.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
  out = np.zeros((limit, side * side * 3), np.uint8)
  out[: rows * columns] = pixels.reshape(rows * columns, -1)
  return types.Patches(out, np.array([rows, columns], np.int32))
