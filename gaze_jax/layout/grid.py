"""Regions of a grid of visual tokens. See docs/method.md, section 3."""

import numpy as np


def balanced_edges(length: int, size: int) -> np.ndarray:
  """Edges that split `length` into parts of at most `size`.

  `floor(i * n / ceil(n / r))`: part sizes differ by at most one.

  Returns:
    int [parts + 1], from 0 to `length`.
  """
  parts = -(-length // size)
  return np.arange(parts + 1) * length // parts


def region_map(rows: int, columns: int, region: tuple[int, int]) -> np.ndarray:
  """Region number of each token of a grid, int32 `[rows, columns]`.

  Regions are numbered in raster order, as the tokens are.
  """
  down = balanced_edges(rows, region[0])
  across = balanced_edges(columns, region[1])
  i = np.searchsorted(down, np.arange(rows), side="right") - 1
  j = np.searchsorted(across, np.arange(columns), side="right") - 1
  return (i[:, None] * (len(across) - 1) + j[None, :]).astype(np.int32)


def region_count(rows: int, columns: int, region: tuple[int, int]) -> int:
  """How many regions a grid has."""
  return -(-rows // region[0]) * -(-columns // region[1])


def largest_region(
  rows: int, columns: int, tail: int, region: tuple[int, int]
) -> int:
  """Tokens of a unit's largest region: its last one, to which `tail` adds."""
  sides = zip((rows, columns), region, strict=True)
  height, width = (-(-n // -(-n // most)) for n, most in sides)
  return height * width + tail
