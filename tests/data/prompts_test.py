"""Raw prompts with marks, to parts and rows."""

import numpy as np
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

import raw_prompts
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.data import prompts
from gaze_jax.layout import row as row_lib

WORDS = ["<bos>", "<image>", "<video>", "<|im_start|>", "see", "this", "and"]
BOS, IMAGE, VIDEO, START, SEE, THIS, AND = range(len(WORDS))
# Squares of 28 pixels and 2 x 2 tokens.
MODEL = config_lib.ModelConfig(
  vision=config_lib.VisionConfig(image_size=28, patch_size=14),
  tiling=config_lib.TilingConfig(kind="anyres", pinpoints=((28, 28), (28, 56))),
  gaze=config_lib.GazeConfig(region=(2, 2, 1), context_tokens=1),
)


def make_tokenizer() -> tokenizers.Tokenizer:
  vocabulary = {w: i for i, w in enumerate(WORDS)}
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, "this"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.add_special_tokens(["<bos>", "<|im_start|>", "<image>", "<video>"])
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<bos> $A", special_tokens=[("<bos>", BOS)]
  )
  return tokenizer


def picture(height=28, width=28):
  return np.zeros((height, width, 3), np.uint8)


def test_parts_and_pixels_are_in_reading_order():
  prompt = raw_prompts.make(
    "see <video> and <image>",
    make_tokenizer(),
    MODEL,
    images=[picture(28, 56) + np.uint8(255)],
    videos=[[picture(), picture()]],
  )
  assert prompt.parts == (
    row_lib.Text([BOS, SEE]),
    row_lib.Unit(1, 1, frame=0, frames=2),
    row_lib.Unit(1, 1, tail=1, frame=1, frames=2),
    row_lib.Text([AND]),
    row_lib.Unit(2, 2),
    row_lib.Unit(2, 5, tiles=2),
  )
  dark = [tile.mean() < 128 for tile in prompt.pixels]
  assert dark == [True, True, False, False, False]


def test_the_smallest_row_for_several_prompts():
  tokenizer = make_tokenizer()
  one = raw_prompts.make(
    "see <image>", tokenizer, MODEL, images=[picture(28, 56)]
  )
  two = raw_prompts.make("this", tokenizer, MODEL)
  shape = prompts.shape_of([one, two], MODEL)
  # 2 of text, 4 + 1 of the square, 10 + 1 of the grid, in steps of 64.
  assert (shape.slots, shape.units, shape.tiles, shape.taps) == (64, 2, 3, 1)
  assert (shape.regions, shape.region_length) == (8, 4)
  batch = prompts.batch([one, two], MODEL)
  filled = (batch.layout.role != types.Role.PAD).sum(1)
  np.testing.assert_array_equal(filled, [18, 2])
  assert batch.images.shape == (2, 3, 28, 28, 3)
  np.testing.assert_array_equal(batch.images[0], one.pixels)
  assert not batch.images[1].any()
  assert prompts.batch([two], MODEL).images is None


def test_a_row_of_a_given_shape():
  tokenizer = make_tokenizer()
  one = raw_prompts.make(
    "see <image>", tokenizer, MODEL, images=[picture(28, 56)]
  )
  shape = prompts.shape_of([one], MODEL)
  batch = prompts.batch(
    [raw_prompts.make("this", tokenizer, MODEL)], MODEL, shape
  )
  assert batch.images.shape == (1, 3, 28, 28, 3)


def test_naflex_pictures_bring_their_grids():
  vision = config_lib.VisionConfig(patch_size=2, max_patches=12)
  model = config_lib.ModelConfig(vision=vision)
  tokenizer = make_tokenizer()
  wide, square = picture(4, 12), picture(6, 6)
  two = raw_prompts.make(
    "<image> and <image>", tokenizer, model, images=[wide, square]
  )
  assert two.parts[1::2] == (row_lib.Unit(2, 6), row_lib.Unit(3, 3))
  none = raw_prompts.make("this", tokenizer, model)
  batch = prompts.batch([two, none], model)
  assert batch.images.pixels.shape == (2, 2, 12, 12)
  np.testing.assert_array_equal(
    batch.images.grid, [[[2, 6], [3, 3]], [[0, 0], [0, 0]]]
  )
  video = raw_prompts.make("<video>", tokenizer, model, videos=[[wide, wide]])
  assert video.parts[1:] == tuple(
    row_lib.Unit(2, 6, frame=i, frames=2) for i in range(2)
  )
