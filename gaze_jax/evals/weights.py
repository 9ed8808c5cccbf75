"""Config and parameters out of any directory that holds them."""

import pathlib

import jax

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.convert import convert
from gaze_jax.convert import hf
from gaze_jax.convert import store
from gaze_jax.models import mllm
from gaze_jax.train import checkpoint
from gaze_jax.train import frozen


def load(
  directory: pathlib.Path,
) -> tuple[config_lib.Config, mllm.Params]:
  """Reads a model, in float32, onto the device.

  Args:
    directory: a workdir of launch/train.py (its newest checkpoint), a
      directory of launch/convert.py, or a checkpoint of transformers.

  Returns:
    Its config, and a nested dict of the parts that are there.

  Raises:
    errors.GazeError: it is none of these, or it is broken.
  """
  if store.is_stored(directory):
    stored = store.open_stored(directory)
    return stored.config, store.load(stored.leaves())
  if (directory / "checkpoints").is_dir():
    saved = checkpoint.Checkpoints(directory, keep=1, create=False)
    config, params = saved.config(), saved.params()
    saved.close()
    return config, jax.device_put(params | frozen.load(config))
  if not (directory / "config.json").is_file():
    raise errors.GazeError(
      f"{directory}: neither a workdir of launch/train.py, nor a directory of"
      " launch/convert.py, nor a checkpoint of transformers"
    )
  source = hf.open_checkpoint(directory)
  return convert.config_for(source.model), store.load(convert.leaves(source))
