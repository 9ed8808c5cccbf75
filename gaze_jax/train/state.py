"""The training state, and how it is born."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gaze_jax import config as config_lib
from gaze_jax.models import mllm
from gaze_jax.train import frozen
from gaze_jax.train import groups


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a run changes; orbax rebuilds the tree with other leaves.

  Attributes:
    step: int32, steps done.
    params: nested dict of float32.
    opt_state: of what trains (`train/groups.py`).
    ema: moving mean of what trains, a nested dict of float32; None without.
  """

  step: Any
  params: Any
  opt_state: Any
  ema: Any = None


def create(
  config: config_lib.Config, optimizer: optax.GradientTransformation
) -> TrainState:
  """A new state from `config.train.seed`.

  Frozen parts are not in it (`train/frozen.py`); a part that trains starts
  from its source where it has one.
  """
  given = frozen.first_values(config)

  @jax.jit
  def build(key: jax.Array, given: dict[str, Any]) -> TrainState:
    params = nn.meta.unbox(mllm.init(config.model, key))
    params |= {name: params[name] | part for name, part in given.items()}
    for name in frozen.names(config):
      del params[name]
    trains, _ = groups.split(config.train, params)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(trains),
      ema=jax.tree.map(jnp.copy, trains) if config.train.ema else None,
    )

  return build(jax.random.key(config.train.seed), given)
