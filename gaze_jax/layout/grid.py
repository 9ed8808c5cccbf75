"""Regions of a grid of visual tokens. See docs/method.md, section 3."""

import functools
import math

import numpy as np

# Of a full region, in tokens: rows, columns, frames.
Region = tuple[int, int, int]


def balanced_edges(length: int, size: int) -> np.ndarray:
  """Edges that split `length` into parts of at most `size`.

  `floor(i * n / ceil(n / r))`: part sizes differ by at most one.

  Returns:
    int [parts + 1], from 0 to `length`.
  """
  parts = -(-length // size)
  return np.arange(parts + 1) * length // parts


@functools.lru_cache(maxsize=4096)
def frame_parts(frames: int, region: Region) -> tuple[range, ...]:
  """The runs of a video's frames that share regions.

  Args:
    frames: how many the video has.
    region: of a full region.
  """
  edges = balanced_edges(frames, region[2]).tolist()
  return tuple(map(range, edges[:-1], edges[1:]))


def frames_together(frame: int, frames: int, region: Region) -> range:
  """The one of `frame_parts` that has a frame."""
  return next(part for part in frame_parts(frames, region) if frame in part)


def region_map(rows: int, columns: int, region: Region) -> np.ndarray:
  """Region number of each token of a grid, int32 `[rows, columns]`.

  Regions are numbered in raster order, as the tokens are.
  """
  down = balanced_edges(rows, region[0])
  across = balanced_edges(columns, region[1])
  i = np.searchsorted(down, np.arange(rows), side="right") - 1
  j = np.searchsorted(across, np.arange(columns), side="right") - 1
  return (i[:, None] * (len(across) - 1) + j[None, :]).astype(np.int32)


@functools.lru_cache(maxsize=4096)
def region_tokens(
  rows: int, columns: int, tail: int, region: Region
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
  """`region_map` of a grid and a tail after it, both ways; not to be changed.

  Returns:
    int32 [tokens], the region of each token, and the tokens of each region.
  """
  of_token = region_map(rows, columns, region).ravel()
  of_token = np.append(of_token, np.repeat(of_token[-1], tail))
  count = region_count(rows, columns, region)
  return of_token, tuple(np.flatnonzero(of_token == r) for r in range(count))


def region_count(rows: int, columns: int, region: Region) -> int:
  """How many regions a grid has."""
  return -(-rows // region[0]) * -(-columns // region[1])


def largest_region(
  rows: int, columns: int, tail: int, region: Region, frames: int = 1
) -> int:
  """Tokens of the largest region of `frames` frames of one grid.

  It is the last one of them, to which the `tail` of the last frame adds.
  """
  sides = zip((rows, columns, frames), region, strict=True)
  return math.prod(-(-n // -(-n // most)) for n, most in sides) + tail
