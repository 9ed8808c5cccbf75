"""Answers about images of every kind of model."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.evals import answer
from gaze_jax.models import mllm

KINDS = {
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


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_and_its_picture(tiny_config, kind):
  config = tiny_config(model__vision__position_grid=5, **KINDS[kind])
  params = jax.jit(lambda key: mllm.init(config.model, key))(jax.random.key(0))
  model = answer.Model(
    config, nn.meta.unbox(params), tokenizer_lib.Tokenizer.load()
  )
  image = np.full((30, 60, 3), 200, np.uint8)
  reply = answer.Answer(model, image, "what is it?", max_tokens=1)
  assert list(reply) and len(reply.steps) == 1
  units = int(reply.batch.layout.unit.max()) + 1
  assert units == (2 if kind == "tiles" else 1)
  tile, grid = answer._first_tile(reply.batch, config.model.vision)
  assert grid == ((2, 4) if kind == "patches" else (5, 5))
  np.testing.assert_array_equal(tile, np.full_like(tile, 200))
  assert reply.picture().width > 336


def test_a_question_about_no_image(tiny_config):
  config = tiny_config(**KINDS["tiles"])
  params = jax.jit(lambda key: mllm.init(config.model, key))(jax.random.key(0))
  model = answer.Model(
    config, nn.meta.unbox(params), tokenizer_lib.Tokenizer.load()
  )
  reply = answer.Answer(model, None, "what is it?", max_tokens=1)
  assert list(reply) and reply.batch.images is None
  assert reply.picture().width > 336
