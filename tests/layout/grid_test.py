"""Regions of a grid: by hand, and the properties of their edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaze_jax.layout import grid


def test_region_map_splits_evenly_in_raster_order():
  expected = [
    [0, 0, 1, 1, 1],
    [2, 2, 3, 3, 3],
    [2, 2, 3, 3, 3],
  ]
  np.testing.assert_array_equal(grid.region_map(3, 5, (2, 3, 1)), expected)


@pytest.mark.parametrize(
  "length, size, parts", [(24, 6, 4), (32, 8, 4), (12, 3, 4)]
)
def test_published_grids_split_exactly(length, size, parts):
  edges = grid.balanced_edges(length, size)
  np.testing.assert_array_equal(edges, np.arange(parts + 1) * size)


def test_27_by_27_gives_regions_of_25_to_36_tokens():
  counts = np.bincount(grid.region_map(27, 27, (6, 6, 1)).ravel())
  assert (len(counts), counts.min(), counts.max()) == (25, 25, 36)


@given(st.integers(1, 200), st.integers(1, 40))
def test_edges_are_balanced(length, size):
  edges = grid.balanced_edges(length, size)
  parts = np.diff(edges)
  assert edges[0] == 0 and edges[-1] == length
  assert parts.min() >= 1 and parts.max() <= size
  assert parts.max() - parts.min() <= 1
  assert len(parts) == -(-length // size)


def test_frames_that_share_regions_by_hand():
  together = lambda frames, most: [
    list(grid.frames_together(i, frames, (9, 9, most))) for i in range(frames)
  ]
  assert together(3, 1) == [[0], [1], [2]]
  assert together(3, 2) == [[0], [1, 2], [1, 2]]
  assert together(4, 2) == [[0, 1], [0, 1], [2, 3], [2, 3]]
  assert together(5, 3) == [[0, 1], [0, 1], [2, 3, 4], [2, 3, 4], [2, 3, 4]]
  assert together(2, 8) == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
  "frames, want",
  # Of 4 x 5 tokens: parts of 4 rows, 3 columns and 1, 2 and 3 frames.
  [(1, 12 + 1), (3, 24 + 1), (5, 36 + 1), (6, 36 + 1)],
)
def test_the_largest_region_of_several_frames(frames, want):
  assert (
    grid.largest_region(4, 5, 1, (6, 3, 3 if frames > 3 else 2), frames) == want
  )


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3))
def test_counts_and_lengths_are_those_of_the_map(rows, columns, tail):
  region = (4, 7, 1)
  tokens = np.bincount(grid.region_map(rows, columns, region).ravel())
  assert grid.region_count(rows, columns, region) == len(tokens)
  longest = grid.largest_region(rows, columns, tail, region)
  assert longest == tokens[-1] + tail == tokens.max() + tail
