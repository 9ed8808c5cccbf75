"""The registry of sources: from a config to samples."""

from gaze_jax import config as config_lib
from gaze_jax.data import llava
from gaze_jax.data import samples
from gaze_jax.demo import emoji_scenes


def make(config: config_lib.Config, split: str) -> samples.Source:
  """The source of a split.

  emoji_scenes has train, new, held_out_pairs and larger; the canvas is
  `config.model.vision.image_size` pixels a side in every split, so that the
  caller asks for `larger` with a larger size. llava_json has train (data.path)
  and new (data.eval_path).

  Raises:
    config_lib.ConfigError: the source has no such split.
    samples.DataError: its files are missing or can't be used.
  """
  return _SOURCES[config.data.source](config, split)


def _emoji_scenes(config: config_lib.Config, split: str) -> samples.Source:
  data = config.data
  lengths = dict(train=data.samples, new=config.eval.canvases)
  return emoji_scenes.EmojiScenes(
    split,
    size=config.model.vision.image_size,
    length=lengths.get(split, config.eval.other_canvases),
    seed=data.seed,
    questions=data.questions,
    curriculum=data.curriculum if split == "train" else 0.0,
    captions=data.captions,
  )


_SOURCES = dict(emoji_scenes=_emoji_scenes, llava_json=llava.from_config)
