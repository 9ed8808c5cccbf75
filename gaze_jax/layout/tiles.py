"""The grids of visual tokens that an image may become: plain arithmetic.

AnyRes (LLaVA-OneVision, arXiv 2408.03326): an image alone in its turn is fitted
into the best of some sizes and split into tiles, squares that the encoder
reads. The tiles' tokens form one grid. Its padding is removed, a grid of too
many tokens is shrunk, and every row of it ends with a newline:

  480 x 640 pixels -> 768 x 1152 -> 2 x 3 tiles of 27 x 27 tokens
  54 x 81 tokens -> 54 x 73 without padding -> 54 rows of 73 and a newline

Rows and columns of pixels and tokens follow transformers to the last rounding,
as a grid that is off by one is another sequence.
"""

import functools
import math
from collections.abc import Sequence

from gaze_jax import config as config_lib
from gaze_jax.layout import grid as grid_lib

Size = tuple[int, int]  # rows, columns; height, width

# A grid is shrunk when its side is longer by more than this.
_SLACK = 1.1


def best_fit(size: Size, pinpoints: Sequence[Size]) -> Size:
  """The pinpoint that keeps most of an image; of these the smallest, first."""
  height, width = size

  def worth(pinpoint: Size) -> tuple[int, int]:
    rows, columns = pinpoint
    scale = min(columns / width, rows / height)
    kept = min(int(width * scale) * int(height * scale), width * height)
    return kept, kept - rows * columns

  return max(pinpoints, key=worth)


def fitted(size: Size, pinpoint: Size) -> Size:
  """Size of an image that fills a pinpoint as far as its aspect allows."""
  (height, width), (rows, columns) = size, pinpoint
  across, down = columns / width, rows / height
  if across < down:
    return min(math.ceil(height * across), rows), columns
  return rows, min(math.ceil(width * down), columns)


def unpadded(size: Size, grid: Size) -> tuple[slice, slice]:
  """The rows and columns of a padded grid that show the image."""
  (height, width), (rows, columns) = size, grid
  if width / height > columns / rows:
    margin = (rows - int(round(height * (columns / width), 7))) // 2
    return slice(margin, rows - margin), slice(0, columns)
  margin = (columns - int(round(width * (rows / height), 7))) // 2
  return slice(0, rows), slice(margin, columns - margin)


def shrunk(grid: Size, side: int, max_tiles: int) -> Size:
  """A grid's size after it was shrunk to about `max_tiles` squares of tokens.

  Args:
    grid: without padding.
    side: visual tokens a side of a square.
    max_tiles: a grid of up to 1.1^2 of so many squares stays as it is.
  """
  rows, columns = grid
  ratio = math.sqrt(rows * columns / (max_tiles * side**2))
  if ratio <= _SLACK:
    return grid
  return int(rows // ratio), int(columns // ratio)


@functools.lru_cache
def unit_grids(
  model: config_lib.ModelConfig,
) -> frozenset[tuple[int, int, int]]:
  """Every (rows, columns, tail) that a unit of this model may have."""
  side, tiling = model.vision.grid, model.tiling
  if most := model.vision.max_patches:
    return frozenset(
      (rows, columns, 0)
      for rows in range(1, most + 1)
      for columns in range(1, most // rows + 1)
    )
  if tiling.kind == "none":
    return frozenset([(side, side, 0)])
  # A square alone, the last of several frames, and what tiles give.
  half = -(-side // 2)
  found = {(side, side, 0), (side, side, 1), (half, half, 0), (half, half, 1)}
  for height, width in tiling.pinpoints:
    rows, columns = (
      n // model.vision.image_size * side for n in (height, width)
    )
    unpadded_grids = [
      *((rows - 2 * i, columns) for i in range(rows // 2 + 1)),
      *((rows, columns - 2 * i) for i in range(columns // 2 + 1)),
    ]
    for grid in unpadded_grids:
      height, width = shrunk(grid, side, tiling.max_tiles)
      if height:
        found.add((height, width + 1, 0))
  return frozenset(found)


def largest_unit(model: config_lib.ModelConfig) -> int:
  """Visual tokens of the largest unit that this model may have."""
  return max(r * c + tail for r, c, tail in unit_grids(model))


def largest_region(model: config_lib.ModelConfig) -> int:
  """Tokens of the largest region that this model may have."""
  region, side = model.gaze.region, model.vision.grid
  largest = lambda size, frames: grid_lib.largest_region(*size, region, frames)
  if model.tiling.kind == "none":  # an image is what a frame is
    return max(largest(size, region[2]) for size in unit_grids(model))
  half = -(-side // 2)  # a frame is pooled; see `anyres.frame_unit`
  return max(
    largest((half, half, 1), region[2]),
    *(largest(size, 1) for size in unit_grids(model)),
  )


def unit_regions(model: config_lib.ModelConfig, units: int) -> list[int]:
  """Regions of each unit of the largest row of so many units.

  A tiled image is two units, the whole as one square and the grid.
  """
  region, side = model.gaze.region, model.vision.grid
  most = max(
    grid_lib.region_count(r, c, region) for r, c, _ in unit_grids(model)
  )
  if model.tiling.kind == "none":
    return [most] * units
  square = grid_lib.region_count(side, side, region)
  pairs, rest = divmod(units, 2)
  return [square, most] * pairs + [square] * rest


def row_tiles(model: config_lib.ModelConfig, units: int) -> int:
  """Tiles of the largest row of so many units; 0 without AnyRes."""
  if model.tiling.kind != "anyres":
    return 0
  size = model.vision.image_size
  tiles = [(h // size) * (w // size) for h, w in model.tiling.pinpoints]
  pairs, rest = divmod(units, 2)
  return max(pairs * (1 + max(tiles, default=0)) + rest, units)
