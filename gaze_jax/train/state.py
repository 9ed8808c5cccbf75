"""The training state, and how it is born."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gaze_jax import config as config_lib
from gaze_jax.models import mllm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Attributes: `step` int32 (steps done), `params`, `opt_state`."""

  step: Any  # an array; orbax rebuilds the tree with other leaves
  params: Any
  opt_state: Any


def create(
  config: config_lib.Config, optimizer: optax.GradientTransformation
) -> TrainState:
  """A new state from `config.train.seed`.

  A frozen tower is no part of it: it has no optimizer state, it is the same
  in every checkpoint, and `features` or `tower.load` bring it from its source.
  """

  @jax.jit
  def build(key: jax.Array) -> TrainState:
    params = nn.meta.unbox(mllm.init(config.model, key))
    if config.model.vision.frozen:
      del params["vision"]
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
    )

  return build(jax.random.key(config.train.seed))
