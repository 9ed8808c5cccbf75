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
  np.testing.assert_array_equal(grid.region_map(3, 5, (2, 3)), expected)


@pytest.mark.parametrize(
  "length, size, parts", [(24, 6, 4), (32, 8, 4), (12, 3, 4)]
)
def test_published_grids_split_exactly(length, size, parts):
  edges = grid.balanced_edges(length, size)
  np.testing.assert_array_equal(edges, np.arange(parts + 1) * size)


def test_27_by_27_gives_regions_of_25_to_36_tokens():
  counts = np.bincount(grid.region_map(27, 27, (6, 6)).ravel())
  assert (len(counts), counts.min(), counts.max()) == (25, 25, 36)


@given(st.integers(1, 200), st.integers(1, 40))
def test_edges_are_balanced(length, size):
  edges = grid.balanced_edges(length, size)
  parts = np.diff(edges)
  assert edges[0] == 0 and edges[-1] == length
  assert parts.min() >= 1 and parts.max() <= size
  assert parts.max() - parts.min() <= 1
  assert len(parts) == -(-length // size)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3))
def test_counts_and_lengths_are_those_of_the_map(rows, columns, tail):
  region = (4, 7)
  tokens = np.bincount(grid.region_map(rows, columns, region).ravel())
  assert grid.region_count(rows, columns, region) == len(tokens)
  longest = grid.largest_region(rows, columns, tail, region)
  assert longest == tokens[-1] + tail == tokens.max() + tail
