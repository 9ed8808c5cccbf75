"""The training state, initialised sharded over the mesh."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gaze_jax import config as config_lib
from gaze_jax.models import mllm
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.train import param_groups
from gaze_jax.train import pretrained


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a run changes; orbax rebuilds the tree with other leaves.

  Attributes:
    step: int32, steps done.
    params: nested dict of float32.
    opt_state: of what trains (`train/param_groups.py`).
    ema: moving mean of what trains, a nested dict of float32; None without.
  """

  step: Any
  params: Any
  opt_state: Any
  ema: Any = None


def create(
  config: config_lib.Config,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
  """A new state from `config.train.seed`; each device makes its own part.

  Frozen parts are not in it (`train/pretrained.py`); a part that trains starts
  from its source where it has one.

  Args:
    config: the run.
    optimizer: from `optimizer.make`.
    mesh: one device by default.
  """
  mesh = mesh or mesh_lib.one_device()
  given = pretrained.first_values(config, mesh)

  def build(given: dict[str, Any]) -> TrainState:
    return _new(config, optimizer, given)

  places = shardings(config, jax.eval_shape(build, given), mesh)
  return jax.jit(build, out_shardings=places)(given)


def abstract(
  config: config_lib.Config,
  optimizer: optax.GradientTransformation,
  mesh: mesh_lib.AnyMesh | None = None,
) -> TrainState:
  """Shapes, dtypes and shardings of a state, without the arrays.

  Arguments as in `create`.
  """
  mesh = mesh or mesh_lib.one_device()
  shapes = jax.eval_shape(lambda: _new(config, optimizer, {}))
  place = lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
  return jax.tree.map(place, shapes, shardings(config, shapes, mesh))


def shardings(
  config: config_lib.Config, shapes: TrainState, mesh: mesh_lib.AnyMesh
) -> TrainState:
  """The sharding of each array of a state.

  Raises:
    mesh.MeshError: a parameter without a rule, or that can't be sharded by it.
  """
  _, names = mllm.abstract(config.model)
  params = rules.shardings(shapes.params, names, mesh)
  return rules.of_state(params, shapes, mesh)


def _new(
  config: config_lib.Config,
  optimizer: optax.GradientTransformation,
  given: dict[str, Any],
) -> TrainState:
  key = jax.random.key(config.train.seed)
  params = nn.meta.unbox(mllm.init(config.model, key))
  params |= {name: params[name] | part for name, part in given.items()}
  for name in pretrained.frozen_parts(config):
    del params[name]
  trains, _ = param_groups.split(config.train, params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(trains),
    ema=jax.tree.map(jnp.copy, trains) if config.train.ema else None,
  )


def apart(state: TrainState) -> tuple[Any, TrainState]:
  """The parameters that others will read, and the rest of a state.

  With moving means these are what others read; what they are the means of
  stays with the rest.
  """
  if state.ema is None:
    return state.params, dataclasses.replace(state, params={})
  trains = param_groups.pick(state.params, state.ema)
  params = param_groups.merge(state.params, state.ema)
  return params, dataclasses.replace(state, params=trains, ema=None)


def joined(params: Any, rest: TrainState, *, averaged: bool) -> TrainState:
  """The way back from `apart`."""
  if not averaged:
    return dataclasses.replace(rest, params=params)
  return dataclasses.replace(
    rest,
    params=param_groups.merge(params, rest.params),
    ema=param_groups.pick(params, rest.params),
  )
