"""Weights out of a directory: one of ours, or a checkpoint of transformers."""

import collections
import dataclasses
import pathlib

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import plugins
from gaze_jax.models import mllm
from gaze_jax.weights import diagnosis
from gaze_jax.weights import hf
from gaze_jax.weights import store
from gaze_jax.weights import tensors


def load(directory: pathlib.Path) -> tuple[config_lib.Config, mllm.Params]:
  """A model in float32, on the device.

  Args:
    directory: one of launch/convert.py, or a checkpoint of transformers.

  Returns:
    Its config, with the tokenizer that came with the weights, and a nested dict
    of the parts that are there.

  Raises:
    errors.GazeError: it is neither, or it is broken.
  """
  stored = open_directory(directory)
  ours, foreign = store.is_stored(directory), bool(stored.naming)
  folder = directory / store.SOURCE if ours else directory
  config = _with_tokenizer(stored.config, folder, foreign)
  return config, store.load(stored.leaves)


def open_directory(
  directory: pathlib.Path, *, dtype: str | None = None
) -> store.Stored:
  """The weights in a directory, unread.

  Args:
    directory: as in `load`.
    dtype: of a checkpoint of transformers; its own by default.

  Raises:
    errors.GazeError: as in `load`.
  """
  if store.is_stored(directory):
    return store.open_stored(directory)
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
  return hf.open_checkpoint(directory, dtype=dtype)


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
