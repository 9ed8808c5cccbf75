"""Weights in any directory: runs, directories of ours, and of transformers."""

import pathlib

import jax

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import storage
from gaze_jax.models import mllm
from gaze_jax.train import runs
from gaze_jax.weights import exporting
from gaze_jax.weights import joining
from gaze_jax.weights import load as load_lib
from gaze_jax.weights import store


def load(
  directory: storage.Path,
  mesh: jax.sharding.Mesh | None = None,
  *,
  dtype: str | None = None,
  apart: bool = False,
) -> tuple[config_lib.Config, mllm.Params]:
  """Reads a model onto a mesh; each device its own part of it.

  Args:
    directory: a workdir of launch/train.py (its newest checkpoint), which may
      be in a bucket; a directory of launch/convert.py; or a checkpoint of
      transformers.
    mesh: one device by default.
    dtype: "float32" or "bfloat16", of all matrices; as on disk by default.
    apart: whether the decoder is as `decoder.split` makes it; on one device.

  Returns:
    Its config, with the dtype that it computes in, and a nested dict of the
    parts that are there.

  Raises:
    errors.GazeError: it is none of these, it is broken, or it can't be laid on
      the mesh, which is found before a tensor is read.
  """
  if runs.is_run(directory):
    return runs.load(directory, mesh, dtype=dtype, apart=apart)
  here = _here(directory)
  return load_lib.load(here, mesh, dtype=dtype, apart=apart)


def open_directory(
  directory: storage.Path, *, dtype: str | None = None
) -> store.Stored:
  """The weights in a directory, to be saved in our format or exported.

  Args:
    directory: as in `load`.
    dtype: "float32", "bfloat16" or "float16", of what is not in our format;
      as it is there by default.

  Raises:
    errors.GazeError: as in `load`.
  """
  if runs.is_run(directory):
    return runs.stored(directory, dtype)
  return load_lib.open_directory(_here(directory), dtype=dtype)


def _here(directory: storage.Path) -> pathlib.Path:
  """A directory whose files are mapped into memory."""
  if storage.is_remote(directory):
    raise errors.GazeError(
      f"{directory}: no checkpoints of launch/train.py here, and other weights"
      " are read from this machine alone: copy the directory (`gcloud storage"
      " cp -r`)"
    )
  return directory


def convert(
  source: pathlib.Path,
  *,
  tower: pathlib.Path | None = None,
  model: config_lib.ModelConfig | None = None,
  to: pathlib.Path | None = None,
  export: pathlib.Path | None = None,
  dtype: str | None = None,
  dry: bool = False,
) -> None:
  """Writes the weights in a directory in our format, in transformers', or both.

  Args:
    source: as in `load`.
    tower: a checkpoint of transformers with a vision tower to join with it.
    model: the whole, with a tower.
    to: a new directory for our format.
    export: one for transformers' format.
    dtype: of what is written; as it is there by default.
    dry: check everything but the values, write nothing.

  Raises:
    errors.GazeError: the weights don't fit, or a new directory is taken.
  """
  if tower:
    if not model or not to:
      raise errors.GazeError("--vision needs --config=FILE and --to=DIR")
    stored = joining.join(source, tower, model, dtype=dtype)
  elif to and store.is_stored(source):
    raise errors.GazeError(
      f"{source}: in our format already; --export=DIR writes that of"
      " transformers"
    )
  elif to or export:
    stored = open_directory(source, dtype=dtype)
  if to and not dry:
    store.save(stored, to)
  if export:
    exporting.write(stored, None if dry else export, dtype=dtype)


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
  config, params = load(ours, dtype="float32")
  return "\n".join(map(str, verify.verify(config, params, reference)))
