"""From a config to samples."""

from gaze_jax import config as config_lib
from gaze_jax import plugins
from gaze_jax.data import samples


def make(config: config_lib.Config, split: str) -> samples.Source:
  """The samples of a split; which splits there are depends on `data.source`.

  Raises:
    config_lib.ConfigError: the source has no such split.
    samples.DataError: its files are missing or can't be used.
  """
  return plugins.source(config.data.source).make(config, split)
