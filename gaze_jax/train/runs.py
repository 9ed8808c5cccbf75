"""The model in a workdir of launch/train.py."""

import dataclasses
import pathlib

import jax
import numpy as np
from flax import traverse_util

from gaze_jax import config as config_lib
from gaze_jax import plugins
from gaze_jax import storage
from gaze_jax.models import decoder
from gaze_jax.models import mllm
from gaze_jax.train import checkpoint
from gaze_jax.train import compatibility
from gaze_jax.train import pretrained
from gaze_jax.weights import dtypes
from gaze_jax.weights import hf
from gaze_jax.weights import store


def is_run(directory: storage.Path) -> bool:
  """Whether a directory is a workdir of launch/train.py."""
  return (directory / "checkpoints").is_dir()


def load(
  workdir: storage.Path,
  mesh: jax.sharding.Mesh | None = None,
  *,
  dtype: str | None = None,
  apart: bool = False,
) -> tuple[config_lib.Config, mllm.Params]:
  """The model of a run's newest checkpoint, on a mesh.

  Args:
    workdir: of the run.
    mesh: each of its devices reads its part of every parameter; one device by
      default.
    dtype: as in `weights.dtypes.held`.
    apart: whether the decoder is as `decoder.split` makes it; on one device.

  Returns:
    The config, with the dtype that it computes in, and all parameters.

  Raises:
    errors.GazeError: there is no checkpoint, it is broken, the frozen parts
      are not there any more, or it does not fit the mesh.
  """
  saved = open_run(workdir, mesh)
  config = saved.config()
  saved.check_inputs(compatibility.model_inputs(config), config)
  config, params = read(saved, config, mesh, dtype=dtype)
  if apart:
    params |= dict(decoder=decoder.split(params["decoder"], donate=True))
  return config, params


def open_run(
  workdir: storage.Path, mesh: jax.sharding.Mesh | None = None
) -> checkpoint.Checkpoints:
  """The checkpoints of a run whose model can be laid on a mesh.

  Raises:
    errors.GazeError: there is none, or it can't be.
  """
  # Before a checkpoint is looked for, for which it is read to its end.
  started = compatibility.started_config(workdir / "config.json")
  if started is not None:
    mllm.places(started.model, mesh)
  return checkpoint.Checkpoints(workdir)


def read(
  saved: checkpoint.Checkpoints,
  config: config_lib.Config,
  mesh: jax.sharding.Mesh | None = None,
  *,
  pixels: bool = True,
  dtype: str | None = None,
) -> tuple[config_lib.Config, mllm.Params]:
  """The newest parameters and the frozen ones, on a mesh.

  Args:
    saved: of the run.
    config: of the run.
    mesh: as in `load`.
    pixels: as in `pretrained.load_frozen`.
    dtype: as in `load`.

  Raises:
    errors.GazeError: as `load`.
  """
  dtypes.check(dtype)
  places = mllm.places(config.model, mesh)

  def like(path, x):
    keys = tuple(k.key for k in path)
    kind = dtypes.held(keys, np.dtype(x.dtype), dtype)
    return jax.ShapeDtypeStruct(x.shape, kind, sharding=places(keys))

  shapes = jax.tree_util.tree_map_with_path(like, saved.shapes())
  frozen = pretrained.load_frozen(config, pixels=pixels, mesh=mesh, dtype=dtype)
  params = saved.params(shapes) | frozen
  found = {k: x.dtype for k, x in traverse_util.flatten_dict(params).items()}
  return dtypes.computed(config, found, dtype), params


def stored(workdir: storage.Path, dtype: str | None = None) -> store.Stored:
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
  saved = checkpoint.Checkpoints(workdir)
  config = saved.config()
  saved.check_inputs(compatibility.model_inputs(config), config)
  params = saved.params() | pretrained.load_frozen(config)
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
