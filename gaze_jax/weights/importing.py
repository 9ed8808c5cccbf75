"""The way in: a checkpoint of transformers, or two of them, as weights of ours.

Nothing is read of a tensor until a leaf is.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from flax import linen as nn

from gaze_jax import config as config_lib
from gaze_jax.models import mllm
from gaze_jax.weights import errors
from gaze_jax.weights import hf
from gaze_jax.weights import store
from gaze_jax.weights import tables
from gaze_jax.weights import tensors
from gaze_jax.weights.families import image_processors

# How a tower is looked through, which its checkpoint does not decide, and what
# it is shown, which its image processor does.
_VIEW = ("hidden_state", "final_norm", "image_size")
_PIXELS = ("resize", "shorter_side", "resample", "mean", "std")


def convert(c: hf.Checkpoint, dtype: str | None = None) -> store.Stored:
  """A checkpoint of transformers as weights of ours.

  Args:
    c: the checkpoint.
    dtype: "float32", "bfloat16" or "float16"; as in the checkpoint by default.

  Raises:
    ConversionError: the tensors of one leaf have several dtypes and none was
      asked for.
  """
  unused = set(c.unused)
  return store.Stored(
    hf.config_for(c.model),
    _leaves(c, dtype),
    store.Origin(c.naming, c.alias),
    unused=[x for x in store.leaves_of(c.source) if x.name in unused],
    files=hf.files_of(c.directory, hf.FILES),
  )


def join(
  text_source: pathlib.Path,
  vision_source: pathlib.Path,
  model: config_lib.ModelConfig,
  *,
  dtype: str | None = None,
) -> store.Stored:
  """One multimodal model of a decoder and a vision tower.

  The projector and the context tokens are new, from seed 0.

  Args:
    text_source: a checkpoint of transformers with a decoder.
    vision_source: one with a vision tower.
    model: the whole; its decoder and tower must be those two.
    dtype: as in `convert`; new parameters are float32 by default.

  Raises:
    ConversionError: a checkpoint is not of the model's architecture; names
      every field that differs.
    ConfigError: the model makes no sense.
  """
  config = config_lib.from_config_dict(config_lib.to_dict(hf.config_for(model)))
  shown = image_processors.find(vision_source)
  fields = _VIEW if shown else _VIEW + _PIXELS
  view = functools.partial(_with_view, wanted=model, fields=fields)
  decoder = hf.open_checkpoint(text_source)
  tower = hf.open_checkpoint(vision_source, view)
  leaves = []
  for checkpoint, part in ((decoder, "decoder"), (tower, "vision")):
    if part not in checkpoint.parts:
      raise errors.ConversionError(
        f"{checkpoint.directory}: a {checkpoint.raw['model_type']} checkpoint"
        f" has no {part}"
      )
    hf.refuse_other(checkpoint.directory, checkpoint.model, model, part)
    leaves += [x for x in _leaves(checkpoint, dtype) if x.path[0] == part]
  leaves += _new(model, dtype or "float32")
  files = _ends(decoder) | hf.files_of(text_source, hf.TEXTS)
  return store.Stored(config, leaves, files=files)


def _leaves(c: hf.Checkpoint, dtype: str | None) -> list[store.Leaf]:
  """Every leaf of a checkpoint, unread."""
  out = []
  for entry in c.entries:
    found = {c.source.listed[name].dtype for name in entry.tensors}
    if len(found) > 1 and not dtype:
      names = ", ".join(sorted(d.name for d in found))
      raise errors.ConversionError(
        f"{c.directory}: the layers of {'/'.join(entry.path)} are {names};"
        " choose one with --dtype"
      )
    kind = np.dtype(dtype) if dtype else found.pop()
    read = functools.partial(entry.read, read=c.source.read)
    out.append(store.Leaf(entry.path, entry.shape, kind, read))
  return out + (_context(c) if "projector" in c.parts else [])


def _context(c: hf.Checkpoint) -> list[store.Leaf]:
  """Context tokens, which `exporting.write` put beside; there may be none."""
  beside, count = c.directory / hf.GAZE_FILE, c.model.gaze.context_tokens
  if not beside.exists() and not count:
    return []
  if not beside.exists():
    raise errors.ConversionError(
      f"{beside}: no such file, and config.json has {hf.GAZE_KEY} ="
      f" {{context_tokens: {count}, ...}}; copy it from where the checkpoint"
      " was written"
    )
  found = store.leaves_of(tensors.Tensors(beside))
  want = {"projector/context": (count, c.model.decoder.width)} if count else {}
  got = {leaf.name: leaf.shape for leaf in found}
  if problems := tables.differences(want, got):
    raise errors.ConversionError(
      f"{beside}: not the context tokens of this model: {'; '.join(problems)}"
    )
  return found


def _new(model: config_lib.ModelConfig, dtype: str) -> list[store.Leaf]:
  """New leaves of the projector, from seed 0."""

  @jax.jit  # what is not returned is not computed
  def init():
    return nn.meta.unbox(mllm.init(model, jax.random.key(0)))["projector"]

  cast = jax.tree.map(lambda x: np.asarray(x).astype(dtype), init())
  return store.from_params({"projector": cast})


def _with_view(
  model: config_lib.ModelConfig,
  wanted: config_lib.ModelConfig,
  fields: Sequence[str],
) -> config_lib.ModelConfig:
  """A tower, looked through as another config wants it."""
  view = {name: getattr(wanted.vision, name) for name in fields}
  tower = dataclasses.replace(model.vision, **view)
  return dataclasses.replace(model, vision=tower)


def _ends(decoder: hf.Checkpoint) -> dict[str, str]:
  """The file of ids that end an answer, if config.json names them."""
  ends = decoder.raw.get("eos_token_id")
  if ends is None:
    return {}
  return {hf.GENERATION: json.dumps({"eos_token_id": ends}) + "\n"}
