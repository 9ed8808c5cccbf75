"""Config and parameters out of any directory that holds them."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.demo import packages
from gaze_jax.models import mllm
from gaze_jax.train import checkpoint
from gaze_jax.train import compatibility
from gaze_jax.train import frozen
from gaze_jax.weights import exporting
from gaze_jax.weights import hf
from gaze_jax.weights import importing
from gaze_jax.weights import partial
from gaze_jax.weights import store
from gaze_jax.weights import writer


def is_run(directory: pathlib.Path) -> bool:
  """Whether a directory is a workdir of launch/train.py."""
  return (directory / "checkpoints").is_dir()


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
  if not directory.is_dir():
    raise errors.GazeError(
      f"{directory}: no such directory; make one with launch/train.py or"
      " launch/convert.py"
    )
  if store.is_stored(directory):
    stored = store.open_stored(directory)
    foreign = bool(stored.origin.layout)
    config = _with_tokenizer(stored.config, directory / store.SOURCE, foreign)
    return config, store.load(stored.leaves)
  if is_run(directory):
    saved = checkpoint.Checkpoints(directory)
    config = saved.config()
    saved.check_inputs(compatibility.model_inputs(config), config)
    params = saved.params()
    return config, jax.device_put(params | frozen.load(config))
  if not (directory / "config.json").is_file():
    partial.refuse_files(directory)
    raise errors.GazeError(
      f"{directory}: neither a workdir of launch/train.py, nor a directory of"
      " launch/convert.py, nor a checkpoint of transformers"
    )
  source = hf.open_checkpoint(directory)
  config = _with_tokenizer(hf.config_for(source.model), directory, True)
  return config, store.load(importing.leaves(source))


def _with_tokenizer(
  config: config_lib.Config, directory: pathlib.Path, foreign: bool
) -> config_lib.Config:
  """Takes the tokenizer that came with the weights.

  Weights of transformers never mean our own tokenizer, so where none came with
  them the file that should be there is named, and missed when it is needed.
  """
  file, named = directory / "tokenizer.json", config.data.tokenizer
  if named == packages.SMOLLM2 or not (file.is_file() or foreign):
    return config
  if named and not file.is_file():
    return config
  data = dataclasses.replace(config.data, tokenizer=str(file))
  return dataclasses.replace(config, data=data)


def take_in(
  source: pathlib.Path,
  to: pathlib.Path,
  *,
  dtype: str | None = None,
  dry: bool = False,
) -> None:
  """Writes a checkpoint of transformers, or of a run, in our format.

  Args:
    source: its directory, or a workdir of launch/train.py.
    to: a new directory.
    dtype: of the weights; as in the source by default.
    dry: check everything but the values, write nothing.

  Raises:
    errors.GazeError: it does not fit, or `to` is taken.
  """
  place = None if dry else to
  if is_run(source):
    run = _of_run(source, dtype)
    if place:
      _keep(run, place)
  elif store.is_stored(source):
    raise errors.GazeError(
      f"{source}: in our format already; --export=DIR writes that of"
      " transformers"
    )
  else:
    importing.to_ours(source, place, dtype=dtype)


def join(
  source: pathlib.Path,
  tower: pathlib.Path,
  model: config_lib.ModelConfig | None,
  to: pathlib.Path | None,
  *,
  dtype: str | None = None,
  dry: bool = False,
) -> None:
  """Writes one model of a decoder and a vision tower; see `importing.assemble`.

  Raises:
    errors.GazeError: model or destination is None, or the parts don't fit.
  """
  if model is None or to is None:
    raise errors.GazeError("--vision needs --config=FILE and --to=DIR")
  importing.assemble(source, tower, model, None if dry else to, dtype=dtype)


def compare(ours: pathlib.Path, reference: pathlib.Path) -> str:
  """What `verify.verify` finds, as lines.

  Raises:
    errors.GazeError: the numbers differ, or transformers is not installed.
  """
  try:
    from gaze_jax.evals import verify  # imports torch, for this alone
  except ImportError as error:
    raise errors.GazeError(
      f"--verify runs {error.name}, which is not installed here: pip install"
      f" {error.name}"
    ) from None
  return "\n".join(map(str, verify.verify(ours, reference)))


def give_out(
  source: pathlib.Path,
  to: pathlib.Path,
  *,
  dtype: str | None = None,
  dry: bool = False,
) -> None:
  """Writes a model of ours in transformers' format.

  Args:
    source: a directory of launch/convert.py, or a workdir of launch/train.py.
    to: a new directory.
    dtype: of the weights; as in the source by default.
    dry: check everything, write nothing.

  Raises:
    errors.GazeError: no family of transformers computes it, or `to` is taken.
  """
  place = None if dry else to
  if is_run(source):
    exporting.write(_of_run(source), place, dtype=dtype)
  else:
    exporting.to_hf(source, place, dtype=dtype)


def _of_run(run: pathlib.Path, dtype: str | None = None) -> store.Stored:
  """The newest checkpoint of a run, whole.

  What the weights that it started from (train.init_from) brought along for
  the way back belongs to it, so that it can be exported.
  """
  config, params = load(run)
  kind = np.dtype(dtype or "float32")
  leaves = tuple(
    dataclasses.replace(leaf, dtype=kind) for leaf in store.from_params(params)
  )
  if not config.train.init_from:
    return store.Stored(run, config, leaves, store.Origin())
  start = store.open_stored(pathlib.Path(config.train.init_from))
  return dataclasses.replace(start, config=config, leaves=leaves)


def _keep(stored: store.Stored, to: pathlib.Path) -> None:
  """Writes weights in our format, and what came with them."""
  source, unused = (
    stored.directory / name for name in (store.SOURCE, store.UNUSED)
  )
  with writer.destination(to) as directory:
    store.write(directory, stored.config, stored.leaves, stored.origin)
    if source.is_dir():
      shutil.copytree(source, directory / store.SOURCE)
    if unused.exists():
      shutil.copyfile(unused, directory / store.UNUSED)
    _keep_tokenizer(stored.config.data.tokenizer, directory / store.SOURCE)


def _keep_tokenizer(named: str, to: pathlib.Path) -> None:
  """Copies a run's own tokenizer, and the chat template beside it."""
  file = pathlib.Path(named)
  if not named or named == packages.SMOLLM2 or file.parent == to:
    return
  to.mkdir(exist_ok=True)
  hf.keep_files(file.parent, to, hf.TEXTS)
  shutil.copyfile(file, to / "tokenizer.json")
