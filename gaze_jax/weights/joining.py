"""Two checkpoints of transformers, joined to one model of ours."""

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
from gaze_jax.weights.families import image_processors

# How a tower is looked through, which its checkpoint does not decide, and what
# it is shown, which its image processor does.
_VIEW = ("hidden_state", "final_norm", "image_size")
_PIXELS = ("resize", "shorter_side", "resample", "mean", "std")


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
    dtype: as in `hf.open_checkpoint`; of new parameters float32 by default.

  Raises:
    ConversionError: a checkpoint is not of the model's architecture; names
      every field that differs.
    ConfigError: the model makes no sense.
  """
  config = config_lib.from_config_dict(config_lib.to_dict(hf.config_for(model)))
  shown = image_processors.find(vision_source)
  fields = _VIEW if shown else _VIEW + _PIXELS
  adapt = functools.partial(_with_view, wanted=model, fields=fields)
  decoder = hf.open_checkpoint(text_source, dtype=dtype)
  tower = hf.open_checkpoint(vision_source, dtype=dtype, adapt=adapt)
  leaves = []
  for directory, stored, part in (
    (text_source, decoder, "decoder"),
    (vision_source, tower, "vision"),
  ):
    if part not in stored.parts:
      raise errors.ConversionError(
        f"{directory}: a checkpoint of {', '.join(stored.parts)} has no {part}"
      )
    hf.refuse_other(directory, stored.config.model, model, part)
    leaves += [leaf for leaf in stored.leaves if leaf.path[0] == part]
  leaves += _new(model, dtype or "float32")
  files = _ends(text_source) | hf.files_of(text_source, hf.TEXTS)
  return store.Stored(config, leaves, files=files)


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


def _ends(directory: pathlib.Path) -> dict[str, str]:
  """The file of ids that end an answer, if config.json names them."""
  raw, _, _ = hf.read_configs(directory)
  ends = raw.get("eos_token_id")
  if ends is None:
    return {}
  return {hf.GENERATION: json.dumps({"eos_token_id": ends}) + "\n"}
