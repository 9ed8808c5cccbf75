"""AnyRes: the tiles of an image, and the unit that their tokens become.

`layout/tiles.py` has the sizes of the grids; here are the pixels, and which
projected tokens each token of a grid is made of. Bilinear shrinking without
antialiasing, as torch's `interpolate` does it, mixes exactly four tokens.
"""

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.data import images
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles


def squares(image: np.ndarray, model: config_lib.ModelConfig) -> np.ndarray:
  """The tiles that the encoder reads of an image.

  Args:
    image: uint8 [h, w, 3].
    model: with AnyRes tiling.

  Returns:
    uint8 [1 + n, image_size, image_size, 3]: the whole image as one square,
    then the n squares of the grid in raster order, padded with black.
  """
  size = model.vision.image_size
  pinpoint = tiles.best_fit(image.shape[:2], model.tiling.pinpoints)
  height, width = tiles.fitted(image.shape[:2], pinpoint)
  canvas = np.zeros((*pinpoint, 3), np.uint8)
  top, left = (pinpoint[0] - height) // 2, (pinpoint[1] - width) // 2
  canvas[top : top + height, left : left + width] = images.resize(
    image, height, width, "bicubic"
  )
  rows, columns = pinpoint[0] // size, pinpoint[1] // size
  split = canvas.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
  whole = images.resize(image, size, size, "bicubic")
  all_tiles = [whole, *split.reshape(-1, size, size, 3)]
  return np.stack([images.preprocess(tile, model.vision) for tile in all_tiles])


def padded_square(
  image: np.ndarray, model: config_lib.ModelConfig
) -> np.ndarray:
  """An image with margins of the mean colour, as one square.

  Args:
    image: uint8 [h, w, 3].
    model: the model.

  Returns:
    uint8 [1, image_size, image_size, 3].
  """
  vision, (height, width) = model.vision, image.shape[:2]
  side = max(height, width)
  if side**2 > images.MOST_PIXELS:
    # The square of a long screenshot would have gigabytes: it is scaled before
    # it is padded, which is the same but for parts of a pixel.
    fitted = vision.shorter_side if vision.resize == "crop" else 0
    size = fitted or vision.image_size
    height, width = (max(1, round(n * size / side)) for n in (height, width))
    image, side = images.resize(image, height, width, vision.resample), size
  canvas = np.empty((side, side, 3), np.uint8)
  canvas[:] = [int(255 * channel) for channel in vision.mean]
  top, left = (side - height) // 2, (side - width) // 2
  canvas[top : top + height, left : left + width] = image
  return images.preprocess(canvas, vision)[None]


def grid_unit(
  size: tiles.Size, model: config_lib.ModelConfig
) -> row_lib.Unit | None:
  """The unit that the tiles of an image make: its grid, each row a newline.

  Args:
    size: height and width of the image.
    model: with AnyRes tiling.

  Returns:
    The unit; None for an image so thin that its grid has no row. (A grid that
    has no column still has its newlines.)
  """
  side, square = model.vision.grid, model.vision.image_size
  pinpoint = tiles.best_fit(size, model.tiling.pinpoints)
  rows, columns = (n // square for n in pinpoint)
  down, across = tiles.unpadded(size, (rows * side, columns * side))
  grid = _tile_tokens(rows, columns, side)[down, across]
  height, width = new = tiles.shrunk(grid.shape, side, model.tiling.max_tiles)
  if not height:
    return None
  unit = dict(rows=height, columns=width + 1, tiles=rows * columns)
  if new == grid.shape:
    feed = np.pad(grid, ((0, 0), (0, 1)), constant_values=row_lib.NEWLINE)
    return row_lib.Unit(**unit, feed=feed.ravel())
  feed, blend = shrink(grid, new)
  end = np.zeros((height, 1, 4), int)
  feed = np.concatenate([feed, end + [row_lib.NEWLINE, 0, 0, 0]], axis=1)
  blend = np.concatenate([blend, end + [1.0, 0, 0, 0]], axis=1)
  return row_lib.Unit(
    **unit,
    feed=feed.reshape(-1, 4),
    blend=blend.reshape(-1, 4).astype(np.float32),
  )


def frame_unit(side: int, *, last: bool) -> row_lib.Unit:
  """The unit of a video's frame: half the tokens a side, rounded up.

  Args:
    side: visual tokens a side of a square.
    last: whether the video ends here, with a newline.
  """
  half = -(-side // 2)
  feed, blend = shrink(_tile_tokens(1, 1, side), (half, half))
  feed, blend = feed.reshape(-1, 4), blend.reshape(-1, 4)
  if last:
    feed = np.concatenate([feed, [[row_lib.NEWLINE, 0, 0, 0]]])
    blend = np.concatenate([blend, np.eye(1, 4, dtype=np.float32)])
  return row_lib.Unit(half, half, tail=int(last), feed=feed, blend=blend)


def shrink(grid: np.ndarray, size: tiles.Size) -> tuple[np.ndarray, np.ndarray]:
  """Bilinear resize of a grid, between cell centres, without antialiasing.

  Args:
    grid: int [rows, columns], the number of each token.
    size: rows and columns of the new grid.

  Returns:
    Numbers int [*size, 4] and weights float32 [*size, 4] of the tokens that
    each new one is made of.
  """
  y, y_weight = _taps(grid.shape[0], size[0])
  x, x_weight = _taps(grid.shape[1], size[1])
  feed = grid[y[:, None, :, None], x[None, :, None, :]]
  blend = y_weight[:, None, :, None] * x_weight[None, :, None, :]
  return feed.reshape(*size, 4), blend.reshape(*size, 4)


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
  """Two neighbours int [new, 2] of each new cell, and their weights."""
  # Rounded where torch rounds, the scale and then a fused multiply-add:
  # otherwise the weights of a long side differ in the fifth digit.
  scale = np.float64(np.float32(old) / np.float32(new))
  centre = (scale * (np.arange(new) + 0.5) - 0.5).astype(np.float32)
  centre = np.maximum(centre, np.float32(0))
  first = np.minimum(centre.astype(int), old - 1)
  share = (centre - first).astype(np.float32)
  taps = np.stack([first, np.minimum(first + 1, old - 1)], axis=-1)
  return taps, np.stack([1 - share, share], axis=-1)


def _tile_tokens(rows: int, columns: int, side: int) -> np.ndarray:
  """Number of each token of a grid of tiles, [rows * side, columns * side]."""
  tokens = np.arange(rows * columns * side * side)
  tokens = tokens.reshape(rows, columns, side, side).swapaxes(1, 2)
  return tokens.reshape(rows * side, columns * side)
