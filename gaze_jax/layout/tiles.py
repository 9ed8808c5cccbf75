"""The grids of visual tokens that an image may become: plain arithmetic.

AnyRes (LLaVA-OneVision, arXiv 2408.03326): an image alone is fitted into the
best of some sizes, cut into squares that the encoder reads, and the squares'
tokens are laid together to one grid. What was padding is cut off again, a grid
of too many tokens is shrunk, and every row ends with a newline:

  480 x 640 pixels -> 768 x 1152 -> 2 x 3 squares of 27 x 27 tokens
  54 x 81 tokens -> 54 x 73 without padding -> 54 rows of 73 and a newline

Rows and columns of pixels and tokens follow transformers to the last rounding,
as a grid that is off by one is another sequence.
"""

import functools
import math
from collections.abc import Sequence

from gaze_jax import config as config_lib

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
    cut = (rows - int(round(height * (columns / width), 7))) // 2
    return slice(cut, rows - cut), slice(0, columns)
  cut = (columns - int(round(width * (rows / height), 7))) // 2
  return slice(0, rows), slice(cut, columns - cut)


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
    cut = [(rows - 2 * i, columns) for i in range(rows // 2 + 1)]
    cut += [(rows, columns - 2 * i) for i in range(columns // 2 + 1)]
    for grid in cut:
      rest = shrunk(grid, side, tiling.max_tiles)
      if rest[0]:
        found.add((rest[0], rest[1] + 1, 0))
  return frozenset(found)


def largest_unit(model: config_lib.ModelConfig) -> int:
  """Visual tokens of the largest unit that this model may have."""
  return max(r * c + tail for r, c, tail in unit_grids(model))


def most_tiles(model: config_lib.ModelConfig) -> int:
  """Squares of the largest tiled image, without the one of the whole."""
  size = model.vision.image_size
  tiles = [(h // size) * (w // size) for h, w in model.tiling.pinpoints]
  return max(tiles, default=0)


def pages(rows: int, columns: int, tail: int, region: Size) -> tuple[int, int]:
  """How many regions a unit has, and the tokens of its largest, the last."""
  grid = (rows, columns)
  parts = [-(-n // r) for n, r in zip(grid, region, strict=True)]
  longest = [-(-n // p) for n, p in zip(grid, parts, strict=True)]
  return parts[0] * parts[1], longest[0] * longest[1] + tail


def unit_regions(model: config_lib.ModelConfig, units: int) -> list[int]:
  """Regions of each unit of the largest row of so many units.

  A tiled image is two units, the whole as one square and the grid.
  """
  region = model.gaze.region
  most = max(pages(*grid, region)[0] for grid in unit_grids(model))
  if model.tiling.kind == "none":
    return [most] * units
  square, _ = pages(model.vision.grid, model.vision.grid, 0, region)
  pairs, rest = divmod(units, 2)
  return [square, most] * pairs + [square] * rest


def room(model: config_lib.ModelConfig, units: int) -> dict[str, int]:
  """What so many units of a row need at most: fields of `layout.RowShape`."""
  tiles = 0
  if model.tiling.kind == "anyres":
    pairs, rest = divmod(units, 2)
    tiles = max(pairs * (most_tiles(model) + 1) + rest, units)
  lengths = [pages(*grid, model.gaze.region)[1] for grid in unit_grids(model)]
  return dict(
    regions=sum(unit_regions(model, units)),
    region_length=max(lengths),
    tiles=tiles,
    largest_unit=largest_unit(model),
  )
