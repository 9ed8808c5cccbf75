"""Weights in any directory: runs, directories of ours, and of transformers."""

import pathlib

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.models import mllm
from gaze_jax.train import runs
from gaze_jax.weights import exporting
from gaze_jax.weights import importing
from gaze_jax.weights import load as load_lib
from gaze_jax.weights import store


def load(directory: pathlib.Path) -> tuple[config_lib.Config, mllm.Params]:
  """Reads a model, in float32, onto the device.

  Args:
    directory: a workdir of launch/train.py (its newest checkpoint), a
      directory of launch/convert.py, or a checkpoint of transformers.

  Returns:
    Its config, and a nested dict of the parts that are there.

  Raises:
    errors.GazeError: it is none of these, or it is broken.
  """
  if runs.is_run(directory):
    return runs.load(directory)
  return load_lib.load(directory)


def to_ours(
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
  if runs.is_run(source):
    stored = runs.stored(source, dtype)
  elif store.is_stored(source):
    raise errors.GazeError(
      f"{source}: in our format already; --export=DIR writes that of"
      " transformers"
    )
  else:
    stored = load_lib.open_directory(source, dtype=dtype)
  if not dry:
    store.save(stored, to)


def join(
  source: pathlib.Path,
  tower: pathlib.Path,
  model: config_lib.ModelConfig | None,
  to: pathlib.Path | None,
  *,
  dtype: str | None = None,
  dry: bool = False,
) -> None:
  """Writes one model of a decoder and a vision tower; see `importing.join`.

  Raises:
    errors.GazeError: model or destination is None, or the parts don't fit.
  """
  if model is None or to is None:
    raise errors.GazeError("--vision needs --config=FILE and --to=DIR")
  stored = importing.join(source, tower, model, dtype=dtype)
  if not dry:
    store.save(stored, to)


def to_transformers(
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
  if runs.is_run(source):
    stored = runs.stored(source)
  elif store.is_stored(source):
    stored = store.open_stored(source)
  else:
    raise errors.GazeError(
      f"{source}: not a directory of ours nor a workdir of launch/train.py;"
      " make one with --to, from a checkpoint of transformers"
    )
  exporting.write(stored, None if dry else to, dtype=dtype)


def compare(ours: pathlib.Path, reference: pathlib.Path) -> str:
  """What `verify.verify` finds, as lines.

  Args:
    ours: what is checked, as in `load`.
    reference: a checkpoint that transformers loads.

  Raises:
    errors.GazeError: the numbers differ, or transformers is not installed.
  """
  try:
    from gaze_jax.weights import verify  # imports torch, for this alone
  except ImportError as error:
    raise errors.GazeError(
      f"--verify runs {error.name}, which is not installed here: pip install"
      f" {error.name}"
    ) from None
  config, params = load(ours)
  return "\n".join(map(str, verify.verify(config, params, reference)))
