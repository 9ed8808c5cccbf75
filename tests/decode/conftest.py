"""A tiny model whose answers vary, prompts of every mix, and their oracle."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from gaze_jax.data import prompts
from gaze_jax.layout import row as row_lib
from gaze_jax.models import mllm


@pytest.fixture(scope="session")
def tiny(tiny_config):
  """The config's model: 5 x 5 tokens a unit, 9 regions of 1 to 4, K = 2."""
  return tiny_config(data__max_units=8, data__sequence_length=320).model


@pytest.fixture(scope="session")
def tiny_params(tiny):
  """Random, and large enough for answers and regions to vary."""
  init = jax.jit(mllm.init, static_argnums=0)
  plain = nn.meta.unbox(init(tiny, jax.random.key(1)))
  plain["decoder"]["embedding"] *= 20
  return plain


@pytest.fixture(scope="session")
def row(tiny):
  """Lays parts out as a batch of one row.

  Its units are drawn by `seed`, which `skip` of them were drawn from before.
  """

  def make(parts, seed=0, shape=None, skip=0):
    count = sum(isinstance(p, row_lib.Unit) for p in parts)
    pixels = np.random.default_rng(seed).normal(size=(8, 70, 70, 3))
    request = prompts.Prompt(
      tuple(parts), pixels[skip : skip + count].astype(np.float32)
    )
    return prompts.batch([request], tiny, shape)

  return make


@functools.partial(jax.jit, static_argnames="config")
def _apply(params, config, batch, budget):
  return mllm.apply(params, config, batch, budget)


# One shape for the oracle, whatever the row, so that it compiles once.
_SHAPE = row_lib.RowShape(
  slots=192,
  units=4,
  unit_tokens=25,
  regions=36,
  region_length=4,
  answer_slots=16,
  region=(2, 2, 1),
  context_tokens=2,
)


@pytest.fixture(scope="session")
def oracle(tiny_params, tiny, row):
  """Tokens and regions [N, Q, R], each from a whole pass in parallel form.

  Args are the parts of the row, K, how many tokens, and the answers that are
  in the row already: a part that is one has `question` set.
  """

  def say(parts, *, top_k, count, config=tiny, seed=0):
    number = max(
      (p.question for p in parts if isinstance(p, row_lib.Text)), default=-1
    )
    # Masked is what the other forms are held to, and compiles sooner.
    gaze = dataclasses.replace(config.gaze, implementation="masked")
    config = dataclasses.replace(config, gaze=gaze)
    tokens, chosen = [], []
    for i in range(count):
      # A dummy token asks for the logits after the last one.
      answer = row_lib.Text([*tokens, 0], question=number + 1)
      batch = row([*parts, answer], seed, _SHAPE)
      out = _apply(tiny_params, config, batch, np.full(1, top_k, np.int32))
      at = int((batch.answer_slots[0] >= 0).sum()) - 1
      tokens.append(int(out.logits[0, at].argmax()))
      chosen.append(np.asarray(out.chosen[:, 0, at]))
      assert i + 1 == len(tokens)
    return tokens, chosen

  return say
