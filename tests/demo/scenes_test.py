"""Scenes: purity, splits, places and masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaze_jax.demo import emoji
from gaze_jax.demo import scenes


def make(index, split="train", seed=0, size=168, curriculum=0.0):
  return scenes.scene(seed, split, index, size=size, curriculum=curriculum)


@given(st.integers(0, 10**6), st.sampled_from(scenes.SPLITS))
def test_a_scene_is_a_pure_function_of_its_key(index, split):
  before = scenes.paint(make(index, split))[0]
  np.random.seed(1)
  make(index + 1, split)
  after = scenes.paint(make(index, split))[0]
  np.testing.assert_array_equal(before, after)


def test_seed_split_and_index_each_change_the_scene():
  base = make(3)
  assert base != make(4)
  assert base != make(3, seed=1)
  assert base != make(3, "new")


def test_scenes_of_new_are_not_those_of_train():
  train = {make(i).placed for i in range(500)}
  assert len(train) == 500
  assert not train & {make(i, "new").placed for i in range(100)}


def test_held_out_pairs_are_one_place_of_each_thing():
  assert len(scenes.HELD_OUT) == len(emoji.NAMED) >= 24
  per_place = np.bincount(scenes.HELD_OUT, minlength=9)
  assert per_place.min() >= 2 and per_place.max() <= 3


@pytest.mark.parametrize("split", ["train", "new", "larger"])
def test_held_out_pairs_never_occur(split):
  things = [p for i in range(1500) for p in make(i, split).things]
  pairs = {(p.thing, p.cell) for p in things}
  assert not pairs & set(enumerate(scenes.HELD_OUT))
  assert len(pairs) == 8 * len(emoji.NAMED)  # and every other pair does


def test_every_thing_of_held_out_pairs_stands_in_its_held_out_place():
  for i in range(200):
    things = make(i, "held_out_pairs").things
    there = {p.thing for p in things if p.cell == scenes.HELD_OUT[p.thing]}
    assert there == {p.thing for p in things}


def test_numbers_and_sizes_are_as_promised():
  number = set()
  for i in range(300):
    scene = make(i)
    number.add(len(scene.things))
    assert len({p.cell for p in scene.placed}) == len(scene.placed)
    assert 1 <= len(scene.placed) - len(scene.things) <= 2
    assert len({p.thing for p in scene.things}) >= 2
    for p in scene.placed:
      assert 40 <= p.size <= 60
      assert 0 < p.x and p.x + p.size < 168
      middle = np.array([p.x, p.y]) + p.size / 2
      assert (middle // 56 == [p.cell % 3, p.cell // 3]).all()
  assert number == {2, 3, 4, 5}


@pytest.mark.parametrize(
  "share, low, high", [(0.0, 0, 0), (0.5, 80, 120), (1.0, 200, 200)]
)
def test_curriculum_is_the_share_of_single_things(share, low, high):
  single = sum(len(make(i, curriculum=share).things) == 1 for i in range(200))
  assert low <= single <= high


def test_things_keep_their_pixels_on_a_larger_canvas():
  large = [make(i, "larger", size=252) for i in range(200)]
  sizes = {p.size for scene in large for p in scene.things}
  assert min(sizes) == 40 and max(sizes) == 60


def touched(scene, one):
  """Pixels that any picture painted after `one` touches at all."""
  out = np.zeros((scene.size, scene.size), bool)
  for p in scene.placed[scene.placed.index(one) + 1 :]:
    alpha = emoji.sticker(p.code, p.size).alpha[..., 0]
    n, e = len(alpha), emoji.OUTLINE
    out[p.y - e : p.y - e + n, p.x - e : p.x - e + n] |= alpha > 0
  return out


@pytest.mark.parametrize("size", [84, 168, 252])
def test_masks_show_the_picture_of_the_thing(size):
  for i in range(20):
    scene = make(i, size=size)
    canvas, masks = scenes.paint(scene)
    assert canvas.shape == (size, size, 3) and canvas.dtype == np.uint8
    assert len(masks) == len(scene.things)
    assert not np.any(np.sum(masks, axis=0) > 1)
    for p, mask in zip(scene.things, masks, strict=True):
      sticker = emoji.sticker(p.code, p.size)
      n, edge = sticker.mask.shape[0], emoji.OUTLINE
      part = np.s_[p.y - edge : p.y - edge + n, p.x - edge : p.x - edge + n]
      inside = mask[part]
      assert mask.sum() == inside.sum() > 0.3 * sticker.mask.sum()
      assert not np.any(inside & ~sticker.mask)
      # The faint rim of a later outline may tint what the mask keeps.
      opaque = (
        inside & (sticker.alpha[..., 0] == 255) & ~touched(scene, p)[part]
      )
      assert opaque.sum() > 0.5 * inside.sum()
      np.testing.assert_array_equal(canvas[part][opaque], sticker.rgb[opaque])


def test_what_a_mask_lacks_is_covered_by_a_later_picture():
  for i in range(50):
    scene = make(i)
    _, masks = scenes.paint(scene)
    full = [np.zeros((168, 168), bool) for _ in scene.things]
    covers = [np.zeros((168, 168), bool) for _ in scene.things]
    for p, whole, cover in zip(scene.things, full, covers, strict=True):
      s, e = emoji.sticker(p.code, p.size), emoji.OUTLINE
      n = s.mask.shape[0]
      whole[p.y - e : p.y - e + n, p.x - e : p.x - e + n] = s.mask
      cover[p.y - e : p.y - e + n, p.x - e : p.x - e + n] = s.covers
    for k, mask in enumerate(masks):
      later = (
        np.any(covers[k + 1 :], axis=0)
        if k + 1 < len(masks)
        else np.zeros_like(mask)
      )
      np.testing.assert_array_equal(mask, full[k] & ~later)
