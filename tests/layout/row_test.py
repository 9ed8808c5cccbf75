"""Layouts against hand-written ones."""

import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax import data_config
from gaze_jax import types
from gaze_jax.layout import row as row_lib

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
    region=(2, 2, 1),
    context_tokens=1,
  )
  return row_lib.RowShape(**(values | changes))


def test_two_questions_on_one_image():
  row = row_lib.lay_out(
    [
      row_lib.Text([9]),
      row_lib.Unit(2, 3),
      row_lib.Text([5, 6], branch=1),
      row_lib.Text([7], branch=1, question=0),
      row_lib.Text([5], branch=2),
      row_lib.Text([8, 2], branch=2, question=1),
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
  row = row_lib.lay_out(
    [row_lib.Unit(1, 2), row_lib.Text([3]), row_lib.Unit(2, 2)], shape()
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


def _video(rows, columns, frames, **last):
  return [
    row_lib.Unit(
      rows, columns, frame=i, frames=frames, **(last if i + 1 == frames else {})
    )
    for i in range(frames)
  ]


def test_regions_of_two_frames_by_hand():
  """Three frames are parts of 1 and 2; the picture behind is alone."""
  row = row_lib.lay_out(
    [*_video(1, 3, 3, tail=1), row_lib.Text([3]), row_lib.Unit(1, 2)],
    shape(slots=18, units=4, regions=6, region_length=5, region=(1, 2, 2)),
  )
  used = dict(
    role=[V, V, V, C, V, V, V, C, V, V, V, V, C, T, V, V, C],
    unit=[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, -1, 3, 3, 3],
    region=[0, 1, 1, -1, 2, 3, 3, -1, 2, 3, 3, 3, -1, -1, 4, 4, -1],
  )
  for name, values in used.items():
    np.testing.assert_array_equal(row[name][:17], values, name)
  np.testing.assert_array_equal(
    row["region_slots"],
    [
      [0, -1, -1, -1, -1],
      [1, 2, -1, -1, -1],
      [4, 8, -1, -1, -1],
      [5, 6, 9, 10, 11],
      [14, 15, -1, -1, -1],
      [-1] * 5,
    ],
  )


def test_two_videos_share_no_region():
  """Each of 3 frames: one region of two frames and one of one, twice."""
  video = _video(1, 1, 3)
  row = row_lib.lay_out(
    [*video, *video],
    shape(units=6, regions=4, region=(1, 1, 2), context_tokens=0),
  )
  np.testing.assert_array_equal(row["region"][:6], [0, 1, 1, 2, 3, 3])


def test_what_a_unit_completes():
  region = (2, 2, 2)
  assert [u.completes(region) for u in _video(3, 3, 3)] == [4, 0, 4]
  assert row_lib.Unit(3, 3).completes(region) == 4


def test_frames_of_two_sizes_share_no_region():
  frames = _video(1, 2, 2)
  frames[1] = row_lib.Unit(2, 2, frame=1, frames=2)
  with pytest.raises(row_lib.LayoutError, match=r"1 x 2 and of 2 x 2.*region"):
    row_lib.lay_out(frames, shape(region=(2, 2, 2), region_length=8))
  row_lib.lay_out(frames, shape())


def test_text_only_row_has_no_region():
  row = row_lib.lay_out([row_lib.Text([4, 5])], shape())
  assert (row["region"] == -1).all() and (row["region_slots"] == -1).all()


def test_packed_samples_are_segments_with_their_own_positions():
  one = [
    row_lib.Text([9]),
    row_lib.Unit(1, 2),
    row_lib.Text([5]),
    row_lib.Text([7], question=0),
  ]
  row = row_lib.lay_out_together([one, one], shape())
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
    ([row_lib.Text([1] * 17)], "at least 17 slots, the limit is 16"),
    ([row_lib.Unit(1, 1)] * 3, "more than 2 units of images.*data.max_units"),
    ([row_lib.Unit(2, 4)], "8 visual tokens, the row takes 6"),
    ([row_lib.Text([1], 1), row_lib.Text([1])], "trunk part follows a branch"),
    ([row_lib.Text([1], 1), row_lib.Unit(1, 1)], "trunk part follows a branch"),
    ([row_lib.Text([1], 0, 0)], "needs a token of its branch before it"),
    (
      [row_lib.Text([1]), row_lib.Text([1], 1, 0)],
      "needs a token of its branch",
    ),
    (
      [row_lib.Text([1]), row_lib.Text([1] * 5, 0, 0)],
      "more than 4 answer",
    ),
  ],
)
def test_what_does_not_fit_says_so(parts, words):
  with pytest.raises(row_lib.LayoutError, match=words):
    row_lib.lay_out(parts, shape())


def test_too_many_regions_or_too_long_ones_say_so():
  with pytest.raises(row_lib.LayoutError, match="more than 1 regions"):
    row_lib.lay_out([row_lib.Unit(1, 3)], shape(regions=1))
  with pytest.raises(row_lib.LayoutError, match="a region of 4 tokens"):
    row_lib.lay_out([row_lib.Unit(2, 2)], shape(region_length=3))
  with pytest.raises(row_lib.LayoutError, match="more than 2 units of images"):
    row_lib.lay_out_together([[row_lib.Unit(2, 2)]] * 3, shape(region_length=4))


def test_row_shape_of_the_default_config():
  s = row_lib.row_shape(config_lib.Config())
  assert (s.unit_tokens, s.regions, s.region_length) == (144, 4, 36)


def test_batch_stacks_rows():
  row = row_lib.lay_out([row_lib.Text([4, 5])], shape())
  batch = row_lib.make_batch([row, row], np.zeros((2, 1, 4, 4, 3), np.float32))
  assert batch.tokens.shape == batch.layout.role.shape == (2, 16)
  assert batch.region_slots.shape == (2, 4, 4)


N = row_lib.NEWLINE


def test_a_newline_after_an_image_is_in_its_last_region():
  row = row_lib.lay_out(
    [row_lib.Text([3]), row_lib.Unit(2, 2, tail=1), row_lib.Unit(1, 1, tail=2)],
    shape(region=(1, 2, 1), unit_tokens=6),
  )
  used = dict(
    role=[T, V, V, V, V, V, C, V, V, V, C],
    unit=[-1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1],
    region=[-1, 0, 0, 1, 1, 1, -1, 2, 2, 2, -1],
    feed=[0, 0, 1, 2, 3, N, 0, 6, N, N, 0],
    position=list(range(11)),
  )
  for name, values in used.items():
    np.testing.assert_array_equal(row[name][:11], values, name)
  np.testing.assert_array_equal(
    row["region_slots"][:3], [[1, 2, -1, -1], [3, 4, 5, -1], [7, 8, 9, -1]]
  )
  assert "blend" not in row


def test_a_tiled_image_is_a_square_and_a_grid():
  # Two tiles of 1 x 2 tokens side by side, each row with a newline.
  grid = row_lib.Unit(1, 5, tiles=2, feed=np.array([0, 1, 2, 3, N]))
  row = row_lib.lay_out(
    [row_lib.Unit(1, 2), grid, row_lib.Text([3]), row_lib.Unit(1, 1)],
    shape(units=3, unit_tokens=2, tiles=4, largest_unit=5, regions=5),
  )
  used = dict(
    role=[V, V, C, V, V, V, V, V, C, T, V, C],
    unit=[0, 0, 0, 1, 1, 1, 1, 1, 1, -1, 2, 2],
    region=[0, 0, -1, 1, 2, 2, 3, 3, -1, -1, 4, -1],
    feed=[0, 1, 0, 2, 3, 4, 5, N, 0, 0, 6, 0],
  )
  for name, values in used.items():
    np.testing.assert_array_equal(row[name][: len(values)], values, name)


def test_blended_tokens_have_four_taps():
  feed = np.array([[0, 1, 2, 3], [N, 0, 0, 0]])
  blend = np.array([[0.25] * 4, [1, 0, 0, 0]], np.float32)
  row = row_lib.lay_out(
    [
      row_lib.Text([3]),
      row_lib.Unit(1, 1),
      row_lib.Unit(1, 1, tail=1, feed=feed, blend=blend),
    ],
    shape(unit_tokens=4, taps=4, context_tokens=2),
  )
  # text, token, two context, blended, newline, two context
  wanted = [0, 0, 0, 1, 4, N, 0, 1]
  np.testing.assert_array_equal(row["feed"][:8, 0], wanted)
  np.testing.assert_array_equal(row["feed"][4], [4, 5, 6, 7])
  np.testing.assert_array_equal(row["blend"][1], [1, 0, 0, 0])
  np.testing.assert_array_equal(row["blend"][4:6], blend)
  assert row["feed"].shape == row["blend"].shape == (16, 4)
  assert (row["feed"].dtype, row["blend"].dtype) == (np.int32, np.float32)
  batch = row_lib.make_batch([row], np.zeros((1, 2, 4, 4, 3), np.float32))
  assert batch.blend.shape == (1, 16, 4)


@pytest.mark.parametrize(
  "unit, changes, words",
  [
    (row_lib.Unit(1, 2, tail=1), dict(largest_unit=2), "3 visual tokens"),
    (row_lib.Unit(1, 2, tiles=3), {}, "3 squares of images, the row takes 2"),
    (
      row_lib.Unit(1, 1, feed=np.array([6])),
      {},
      "feeds on token 6 of 1 tiles of 6",
    ),
    (
      row_lib.Unit(1, 1, feed=np.zeros((1, 4), int), blend=np.eye(1, 4)),
      {},
      "a blended image",
    ),
    (row_lib.Unit(2, 2, tail=1), dict(region_length=4), "a region of 5 tokens"),
  ],
)
def test_what_does_not_fit_of_a_tiled_image(unit, changes, words):
  with pytest.raises(row_lib.LayoutError, match=words):
    row_lib.lay_out([unit], shape(**changes))


def test_packed_samples_keep_newlines_and_their_own_tiles():
  one = [row_lib.Unit(1, 1, tail=1), row_lib.Text([3])]
  row = row_lib.lay_out_together([one, one], shape())
  np.testing.assert_array_equal(row["feed"][:8], [0, N, 0, 0, 6, N, 0, 0])
  two = [row_lib.Unit(1, 1, tiles=2, feed=np.array([7])), row_lib.Text([3])]
  row = row_lib.lay_out_together([two, two], shape(tiles=4))
  np.testing.assert_array_equal(row["feed"][:6], [7, 0, 0, 19, 0, 0])
  with pytest.raises(row_lib.LayoutError, match="squares of images"):
    row_lib.lay_out_together([two, two], shape(tiles=3))


def test_row_shape_of_a_tiled_model_has_room_for_all_that_occurs():
  sides = range(384, 2305, 384)
  config = config_lib.Config(
    model=config_lib.ModelConfig(
      vision=config_lib.VisionConfig(image_size=384, position_grid=27),
      tiling=config_lib.TilingConfig(
        kind="anyres", pinpoints=tuple((h, w) for h in sides for w in sides)
      ),
    ),
    data=data_config.DataConfig(max_units=3, sequence_length=10_000),
  )
  s = row_lib.row_shape(config)
  assert (s.unit_tokens, s.largest_unit, s.taps) == (729, 8100, 4)
  assert (s.units, s.tiles) == (3, 37 + 1)
  # A square of 25 regions and a newline in a full one.
  assert s.region_length == 37
  # The most regions: 49 x 162 tokens, just not shrunk, and a newline a row.
  assert s.regions == 25 + 9 * 28 + 25


def test_row_shape_of_naflex_has_room_for_a_line():
  vision = config_lib.VisionConfig(max_patches=30)
  gaze = config_lib.GazeConfig(region=(3, 3, 1))
  config = config_lib.Config(
    model=config_lib.ModelConfig(vision=vision, gaze=gaze)
  )
  s = row_lib.row_shape(config)
  assert (s.unit_tokens, s.regions, s.region_length) == (30, 10, 9)
