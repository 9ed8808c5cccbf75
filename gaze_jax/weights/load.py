"""Weights out of a directory: one of ours, or a checkpoint of transformers."""

import collections
import dataclasses
import pathlib

import jax

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import plugins
from gaze_jax.models import decoder
from gaze_jax.models import mllm
from gaze_jax.weights import diagnosis
from gaze_jax.weights import dtypes
from gaze_jax.weights import hf
from gaze_jax.weights import store
from gaze_jax.weights import tensors


def load(
  directory: pathlib.Path,
  mesh: jax.sharding.Mesh | None = None,
  *,
  dtype: str | None = None,
  apart: bool = False,
) -> tuple[config_lib.Config, mllm.Params]:
  """A model on a mesh.

  Args:
    directory: one of launch/convert.py, or a checkpoint of transformers.
    mesh: each of its devices reads its part of every parameter; one device by
      default.
    dtype: as in `dtypes.held`.
    apart: whether the decoder is as `decoder.split` makes it; on one device.

  Returns:
    Its config, with the tokenizer that came with the weights and the dtype that
    it computes in, and a nested dict of the parts that are there.

  Raises:
    errors.GazeError: it is neither, it is broken, or does not fit the mesh.
  """
  dtypes.check(dtype)
  fits = lambda model, parts: mllm.places(model, mesh, parts)
  stored = open_directory(directory, dtype=dtype, fits=fits)
  places = mllm.places(stored.config.model, mesh, stored.parts)
  dtypes.log_widened(directory, stored.leaves, dtype)
  leaves = dtypes.leaves(stored.leaves, dtype)
  ours, foreign = store.is_stored(directory), bool(stored.naming)
  folder = directory / store.SOURCE if ours else directory
  config = _with_tokenizer(stored.config, folder, foreign)
  config = dtypes.computed(config, {x.path: x.dtype for x in leaves}, dtype)
  apart = decoder.is_apart if apart else lambda path: False
  return config, store.load(leaves, sharding=places, apart=apart)


def open_directory(
  directory: pathlib.Path,
  *,
  dtype: str | None = None,
  fits: hf.Fits = lambda model, parts: None,
) -> store.Stored:
  """The weights in a directory, unread.

  Args:
    directory: as in `load`.
    dtype: of a checkpoint of transformers; its own by default.
    fits: as in `hf.open_checkpoint`.

  Raises:
    errors.GazeError: as in `load`.
  """
  if store.is_stored(directory):
    stored = store.open_stored(directory)
    fits(stored.config.model, stored.parts)
    return stored
  if not directory.is_dir():
    what = "no such directory; make one with launch/train.py or"
    raise errors.GazeError(
      f"{directory}: a file; give the directory that it is in"
      if directory.is_file()
      else f"{directory}: {what} launch/convert.py, or download a checkpoint of"
      " transformers and give its directory"
    )
  if not (directory / "config.json").is_file():
    diagnosis.refuse_files(directory)
    raise errors.GazeError(
      f"{directory}: neither a workdir of launch/train.py, nor a directory of"
      " launch/convert.py, nor a checkpoint of transformers, which has a"
      " config.json"
    )
  return hf.open_checkpoint(directory, dtype=dtype, fits=fits)


def _with_tokenizer(
  config: config_lib.Config, folder: pathlib.Path, foreign: bool
) -> config_lib.Config:
  """Takes the tokenizer that came with the weights.

  Weights of transformers never mean our own tokenizer, so where none came with
  them the file that should be there is named, and missed when it is needed.
  """
  file, named = folder / "tokenizer.json", config.data.tokenizer
  if plugins.has_weights(named):
    return config
  if not file.is_file() and (named or not foreign):
    return config
  data = dataclasses.replace(config.data, tokenizer=str(file))
  return dataclasses.replace(config, data=data)


def inspect(directory: pathlib.Path) -> str:
  """What a directory holds, for people; reads no tensor.

  Raises:
    errors.GazeError: as in `load`.
  """
  stored = open_directory(directory)
  what = "ours"
  if not store.is_stored(directory):
    raw, _, _ = hf.read_configs(directory)
    what = f"transformers, {raw['model_type']}, naming of {stored.naming}"
  unused = {leaf.name for leaf in stored.unused}
  listed = tensors.Tensors(directory).listed
  used = [tensor for name, tensor in listed.items() if name not in unused]
  kinds = collections.Counter(t.dtype.name for t in used)
  size = sum(t.bytes for t in used)
  return "\n".join(
    [
      f"{directory}: {what}",
      f"tensors: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}"
      f", {size / 1e9:.3f} GB",
      *([f"kept but not computed with: {len(unused)}"] if unused else []),
      *(f"{p}: {getattr(stored.config.model, p)}" for p in stored.parts),
    ]
  )
