"""Tiny random models of every kind that can be asked."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from gaze_jax import api
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.models import mllm

KINDS = {
  "plain": {},
  "crop": dict(model__vision__resize="crop"),
  "tiles": dict(
    model__tiling__kind="anyres",
    model__tiling__pinpoints=[[70, 70], [70, 140]],
    data__sequence_length=256,
    data__max_units=2,
    train__features="none",
  ),
  "patches": dict(
    model__vision__max_patches=12,
    model__vision__class_token=False,
    model__projector__positions="none",
    train__features="none",
  ),
}


@pytest.fixture(scope="session")
def model(tiny_config):
  """Makes a model of a kind, with embeddings large enough for answers to vary.

  Kinds are made once; keywords are fields of its `GazeConfig`.
  """
  made = {}

  def make(kind="plain", **gaze):
    if kind not in made:
      config = tiny_config(model__vision__position_grid=5, **KINDS[kind])
      init = jax.jit(mllm.init, static_argnums=0)
      params = nn.meta.unbox(init(config.model, jax.random.key(0)))
      params["decoder"]["embedding"] *= 20
      tokenizer = tokenizer_lib.Tokenizer.load()
      made[kind] = api.Model(config, params, tokenizer)
    base = made[kind]
    changed = dataclasses.replace(base.config.model.gaze, **gaze)
    inner = dataclasses.replace(base.config.model, gaze=changed)
    config = dataclasses.replace(base.config, model=inner)
    return dataclasses.replace(base, config=config)

  return make


@pytest.fixture(scope="session")
def picture():
  """uint8 [height, width, 3] by number."""

  def make(number=0, size=(30, 60)):
    rng = np.random.default_rng(number)
    return rng.integers(0, 255, (*size, 3), dtype=np.uint8)

  return make
