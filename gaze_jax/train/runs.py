"""The model in a workdir of launch/train.py."""

import dataclasses
import pathlib

import jax
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import plugins
from gaze_jax.models import mllm
from gaze_jax.train import checkpoint
from gaze_jax.train import compatibility
from gaze_jax.train import pretrained
from gaze_jax.weights import hf
from gaze_jax.weights import store


def is_run(directory: pathlib.Path) -> bool:
  """Whether a directory is a workdir of launch/train.py."""
  return (directory / "checkpoints").is_dir()


def load(workdir: pathlib.Path) -> tuple[config_lib.Config, mllm.Params]:
  """The config of a run and the parameters of its newest checkpoint, whole.

  Raises:
    errors.GazeError: there is no checkpoint, it is broken, or the frozen parts
      are not there any more.
  """
  saved = checkpoint.Checkpoints(workdir)
  config = saved.config()
  saved.check_inputs(compatibility.model_inputs(config), config)
  params = saved.params()
  return config, jax.device_put(params | pretrained.load_frozen(config))


def stored(workdir: pathlib.Path, dtype: str | None = None) -> store.Stored:
  """The same as weights of ours, to be saved or exported.

  What the weights that it started from (train.init_from) brought along for
  the way back belongs to it, so that it can be exported, and so does its own
  tokenizer with the chat template beside it.

  Args:
    workdir: of the run.
    dtype: of the weights; float32 by default.

  Raises:
    errors.GazeError: as `load`.
  """
  config, params = load(workdir)
  kind = np.dtype(dtype or "float32")
  leaves = [
    dataclasses.replace(leaf, dtype=kind) for leaf in store.from_params(params)
  ]
  start = store.Stored(config, leaves)
  if config.train.init_from:
    start = store.open_stored(pathlib.Path(config.train.init_from))
  files = {**start.files, **_tokenizer(config.data.tokenizer)}
  return dataclasses.replace(start, config=config, leaves=leaves, files=files)


def _tokenizer(named: str) -> dict[str, pathlib.Path]:
  """The file of a tokenizer of the run's own, and what belongs to it."""
  if not named or plugins.has_weights(named):
    return {}
  file = pathlib.Path(named)
  own = {"tokenizer.json": file} if file.is_file() else {}
  return hf.files_of(file.parent, hf.TEXTS) | own
