"""Layouts against hand-written ones, and the properties of region edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaze_jax import config as config_lib
from gaze_jax import layout
from gaze_jax import types

P, T = types.Role.PAD, types.Role.TEXT
V, C = types.Role.VISUAL, types.Role.CONTEXT


def shape(**changes):
  values = dict(
    slots=16,
    units=2,
    unit_tokens=6,
    regions=4,
    region_length=4,
    answer_slots=4,
    region=(2, 2),
    context_tokens=1,
  )
  return layout.RowShape(**(values | changes))


def test_region_map_splits_evenly_in_raster_order():
  expected = [
    [0, 0, 1, 1, 1],
    [2, 2, 3, 3, 3],
    [2, 2, 3, 3, 3],
  ]
  np.testing.assert_array_equal(layout.region_map(3, 5, (2, 3)), expected)


@pytest.mark.parametrize(
  "length, size, parts", [(24, 6, 4), (32, 8, 4), (12, 3, 4)]
)
def test_published_grids_split_exactly(length, size, parts):
  edges = layout.balanced_edges(length, size)
  np.testing.assert_array_equal(edges, np.arange(parts + 1) * size)


def test_27_by_27_gives_regions_of_25_to_36_tokens():
  counts = np.bincount(layout.region_map(27, 27, (6, 6)).ravel())
  assert (len(counts), counts.min(), counts.max()) == (25, 25, 36)


@given(st.integers(1, 200), st.integers(1, 40))
def test_edges_are_balanced(length, size):
  edges = layout.balanced_edges(length, size)
  parts = np.diff(edges)
  assert edges[0] == 0 and edges[-1] == length
  assert parts.min() >= 1 and parts.max() <= size
  assert parts.max() - parts.min() <= 1
  assert len(parts) == -(-length // size)


def test_two_questions_on_one_image():
  row = layout.lay_out(
    [
      layout.Text([9]),
      layout.Unit(2, 3),
      layout.Text([5, 6], branch=1),
      layout.Text([7], branch=1, question=0),
      layout.Text([5], branch=2),
      layout.Text([8, 2], branch=2, question=1),
    ],
    shape(),
  )
  expected = dict(
    #        bos  image             ctx q0 . a  q1 a .  pad
    tokens=[9, 0, 0, 0, 0, 0, 0, 0, 5, 6, 7, 5, 8, 2, 0, 0],
    role=[T, V, V, V, V, V, V, C, T, T, T, T, T, T, P, P],
    unit=[-1, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1],
    region=[-1, 0, 1, 1, 0, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1, -1],
    position=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 8, 9, 10, 0, 0],
    segment=[0] * 14 + [-1] * 2,
    branch=[0] * 8 + [1] * 3 + [2] * 3 + [0] * 2,
    feed=[0, 0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    region_slots=[[1, 4, -1, -1], [2, 3, 5, 6], [-1] * 4, [-1] * 4],
    answer_slots=[9, 11, 12, -1],
    answer_of=[0, 1, 1, -1],
  )
  assert row.keys() == expected.keys()
  for name, values in expected.items():
    assert row[name].dtype == np.int32
    np.testing.assert_array_equal(row[name], values, name)


def test_a_second_image_continues_units_regions_and_feed():
  row = layout.lay_out(
    [layout.Unit(1, 2), layout.Text([3]), layout.Unit(2, 2)], shape()
  )
  used = dict(
    role=[V, V, C, T, V, V, V, V, C],
    unit=[0, 0, 0, -1, 1, 1, 1, 1, 1],
    region=[0, 0, -1, -1, 1, 1, 1, 1, -1],
    feed=[0, 1, 0, 0, 6, 7, 8, 9, 0],
    position=list(range(9)),
  )
  for name, values in used.items():
    np.testing.assert_array_equal(row[name][:9], values, name)
  np.testing.assert_array_equal(
    row["region_slots"][:2], [[0, 1, -1, -1], [4, 5, 6, 7]]
  )


def test_text_only_row_has_no_region():
  row = layout.lay_out([layout.Text([4, 5])], shape())
  assert (row["region"] == -1).all() and (row["region_slots"] == -1).all()


def test_packed_samples_are_segments_with_their_own_positions():
  one = [
    layout.Text([9]),
    layout.Unit(1, 2),
    layout.Text([5]),
    layout.Text([7], question=0),
  ]
  laid = layout.lay_out(one, shape())
  row = layout.concatenate([laid, laid], shape())
  used = dict(
    tokens=[9, 0, 0, 0, 5, 7] * 2,
    segment=[0] * 6 + [1] * 6,
    position=[0, 1, 2, 3, 4, 5] * 2,
    unit=[-1, 0, 0, 0, -1, -1, -1, 1, 1, 1, -1, -1],
    region=[-1, 0, 0, -1, -1, -1, -1, 1, 1, -1, -1, -1],
    feed=[0, 0, 1, 0, 0, 0, 0, 6, 7, 0, 0, 0],
  )
  for name, values in used.items():
    np.testing.assert_array_equal(row[name][:12], values, name)
  np.testing.assert_array_equal(row["answer_slots"], [4, 10, -1, -1])
  np.testing.assert_array_equal(row["answer_of"], [0, 1, -1, -1])
  np.testing.assert_array_equal(
    row["region_slots"][:2], [[1, 2, -1, -1], [7, 8, -1, -1]]
  )


@pytest.mark.parametrize(
  "parts, words",
  [
    ([layout.Text([1] * 17)], "at least 17 slots, the limit is 16"),
    ([layout.Unit(1, 1)] * 3, "more than 2 images"),
    ([layout.Unit(2, 4)], "8 visual tokens, the row takes 6"),
    ([layout.Text([1], 1), layout.Text([1])], "trunk part follows a branch"),
    ([layout.Text([1], 1), layout.Unit(1, 1)], "trunk part follows a branch"),
    ([layout.Text([1], 0, 0)], "needs a token of its branch before it"),
    ([layout.Text([1]), layout.Text([1], 1, 0)], "needs a token of its branch"),
    (
      [layout.Text([1]), layout.Text([1] * 5, 0, 0)],
      "more than 4 answer",
    ),
  ],
)
def test_what_does_not_fit_says_so(parts, words):
  with pytest.raises(layout.LayoutError, match=words):
    layout.lay_out(parts, shape())


def test_too_many_regions_or_too_long_ones_say_so():
  with pytest.raises(layout.LayoutError, match="more than 1 regions"):
    layout.lay_out([layout.Unit(1, 3)], shape(regions=1))
  with pytest.raises(layout.LayoutError, match="a region of 4 tokens"):
    layout.lay_out([layout.Unit(2, 2)], shape(region_length=3))
  one = layout.lay_out([layout.Unit(2, 2)], shape())
  with pytest.raises(layout.LayoutError, match="more than 2 images"):
    layout.concatenate([one] * 3, shape())


def test_row_shape_of_the_default_config():
  s = layout.row_shape(config_lib.Config())
  assert (s.unit_tokens, s.regions, s.region_length) == (144, 4, 36)


def test_batch_stacks_rows():
  row = layout.lay_out([layout.Text([4, 5])], shape())
  batch = layout.make_batch([row, row], np.zeros((2, 1, 4, 4, 3), np.float32))
  assert batch.tokens.shape == batch.layout.role.shape == (2, 16)
  assert batch.region_slots.shape == (2, 4, 4)
