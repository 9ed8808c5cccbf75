"""Samples with videos: rows of training, and what is skipped."""

import json
import pickle

import av
import numpy as np
import pytest
from PIL import Image

from gaze_jax import api
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.api import conversation
from gaze_jax.data import llava
from gaze_jax.data import messages
from gaze_jax.data import packing
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units
from gaze_jax.data import video
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

SIZE = (40, 56)
QUESTIONS = ("<video>\nWhat moves?", "Like <image>, or like <video>?")
TILES = dict(kind="anyres", pinpoints=[[28, 56], [56, 28]])


def clip(path, count, rate=10):
  rng = np.random.default_rng(count)
  with av.open(str(path), "w") as out:
    stream = out.add_stream("ffv1", rate=rate)
    stream.height, stream.width = SIZE
    stream.pix_fmt = "bgr0"
    for _ in range(count):
      pixels = rng.integers(0, 256, (*SIZE, 3), np.uint8)
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
      out.mux(stream.encode(frame))
    out.mux(stream.encode())


@pytest.fixture
def folder(tmp_path):
  clip(tmp_path / "long.mkv", 20)
  clip(tmp_path / "short.mkv", 2)
  whole = (tmp_path / "long.mkv").read_bytes()
  (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
  Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
  return tmp_path


def row(*videos, questions=QUESTIONS[:1], **keys):
  turns = []
  for question in questions:
    turns.append({"from": "human", "value": question})
    turns.append({"from": "gpt", "value": "A fox."})
  return dict(video=list(videos), conversations=turns) | keys


def config(folder, *rows, model=None, **data):
  (folder / "data.json").write_text(json.dumps(rows))
  data = dict(path=str(folder / "data.json"), frames=3, max_units=8) | data
  vision = dict(image_size=28, patch_size=7)
  model = dict(vision=vision) | (model or {})
  return config_lib.from_config_dict(
    dict(model=model, data=dict(sequence_length=420) | data)
  )


MODELS = {
  "plain": {},
  "anyres": dict(tiling=TILES),
  "naflex": dict(
    vision=dict(
      image_size=28,
      patch_size=7,
      max_patches=16,
      class_token=False,
      position_grid=4,
    )
  ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_row_is_that_of_its_request(folder, kind):
  shown = row("long.mkv", "short.mkv", questions=QUESTIONS, image="a.png")
  c = config(folder, shown, model=MODELS[kind])
  batcher = pipeline.Batcher(c, llava.SOURCE.make(c, "train"))
  made = batcher.batch([(0, 0)], rows=1)
  (sample,) = made.samples
  assert [len(frames) for frames in sample.videos] == [3, 2]
  request = api.Request(
    QUESTIONS[0], videos=[str(folder / "long.mkv")], frames=3
  )
  _, asked = conversation.next_turn(request, c, batcher.tokenizer)
  visual = lambda batch: batch.layout.role[0] == types.Role.VISUAL
  sizes = lambda batch: np.bincount(batch.layout.unit[0][visual(batch)])
  trained = sizes(made.batch).tolist()
  assert trained[:3] == sizes(asked).tolist()[:3]
  # Three frames, a picture, two frames; with tiles a picture alone is two.
  assert len(trained) == 3 + (2 if kind == "anyres" else 1) + 2
  frames = list(sample.videos[0])
  seen = units.of_video(frames, c.model).pixels
  for one, other in zip(
    jax_leaves(made.batch.images), jax_leaves(seen), strict=True
  ):
    np.testing.assert_array_equal(one[0][:3], other)
  # The first answer stands between what the first and the second turn show.
  unit, batch = made.batch.layout.unit[0], made.batch
  first = batch.answer_slots[0][batch.answer_of[0] == 0]
  assert np.flatnonzero(unit == 2).max() < first.min()
  assert first.max() < np.flatnonzero(unit == 3).min()


@pytest.mark.parametrize("kind", MODELS)
def test_regions_of_several_frames_are_those_of_the_request(folder, kind):
  """Of 3 frames parts of 1 and 2; and there is room for any number of them."""
  model = dict(MODELS[kind], gaze=dict(region=(2, 2, 2)))
  c = config(folder, row("long.mkv"), model=model)
  batcher = pipeline.Batcher(c, llava.SOURCE.make(c, "train"))
  layout = batcher.batch([(0, 0)], rows=1).batch.layout
  request = api.Request(
    QUESTIONS[0], videos=[str(folder / "long.mkv")], frames=3
  )
  _, asked = conversation.next_turn(request, c, batcher.tokenizer)
  visual = lambda layout, x: x[0][layout.role[0] == types.Role.VISUAL]
  unit, region = (visual(layout, x) for x in (layout.unit, layout.region))
  np.testing.assert_array_equal(
    region, visual(asked.layout, asked.layout.region)
  )
  one, two, three = (set(region[unit == i].tolist()) for i in range(3))
  assert two == three and not one & two
  largest = [
    max(
      u.largest_region((2, 2, 2)) for u in units.of_frames([SIZE] * n, c.model)
    )
    for n in range(1, 6)
  ]
  assert max(largest) <= tiles.largest_region(c.model)
  assert kind == "anyres" or max(largest) == tiles.largest_region(c.model) == 8


def jax_leaves(pixels):
  if isinstance(pixels, types.Patches):
    return [pixels.pixels, pixels.grid]
  return [pixels]


def test_frames_are_those_of_the_sampler(folder):
  c = config(folder, row("long.mkv"), row("short.mkv"))
  source = llava.SOURCE.make(c, "train")
  want = video.read(folder / "long.mkv", 3, c.data.max_pixels)
  np.testing.assert_array_equal(source.sample(0).videos[0], want)
  np.testing.assert_array_equal(source.canvas(0), want)
  assert [len(source.text(i).videos[0]) for i in (0, 1)] == [3, 2]
  assert not source.text(0).videos[0][0].size
  # 2 s at 1 frame a second are 2 frames.
  slow = config(folder, row("long.mkv"), fps=1.0)
  (frames,) = llava.SOURCE.make(slow, "train").sample(0).videos
  want = video.read(folder / "long.mkv", 2, slow.data.max_pixels)
  np.testing.assert_array_equal(frames, want)
  again = pickle.loads(pickle.dumps(source))
  assert len(again.sample(1).videos[0]) == 2


def test_what_can_not_be_used_is_counted(folder):
  rows = [row("long.mkv"), row("cut.mkv"), row("none.mkv"), row("a.png")]
  c = config(folder, *rows, max_skipped=0.8)
  source = llava.SOURCE.make(c, "train")
  assert len(source) == 3 and source.skipped == {"missing video": 1}
  assert len(source.sample(1).videos[0]) == 3  # the first one again
  assert source.skipped == {"missing video": 1, "corrupt video": 2}


def test_more_frames_than_a_row_holds_are_too_long(folder):
  with pytest.raises(samples.DataError, match="units of images in one row"):
    llava.SOURCE.make(config(folder, row("long.mkv"), max_units=2), "train")


def test_questions_are_asked_after_images_and_videos():
  question = samples.Question("What moves?", "a fox", "what")
  none = np.zeros((0, 0, 3), np.uint8)
  sample = samples.Sample((), (question,), videos=((none, none),))
  tokenizer = tokenizer_lib.Tokenizer.load()
  model = config_lib.ModelConfig()
  media = packing.units_of(sample, [], [[(1, 1)] * 2], model)
  parts = packing.parts(sample, tokenizer, media)
  assert sum(isinstance(part, row_lib.Unit) for part in parts) == 2
  shown = (messages.VIDEO,)
  lesson = tokenizer.chat.lesson(shown, question.text, question.answer)
  ids = [i for p in parts if isinstance(p, row_lib.Text) for i in p.ids]
  assert ids == [x for x in lesson.flat if isinstance(x, int)] + [
    span.end for span in lesson.spans if span.end >= 0
  ]
