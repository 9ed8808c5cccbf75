"""The decode cache: built from a prefilled row, grown a few tokens a step.

row      t0 v0 v1 v2 v3 c0 t1 t2 PAD
visual   pages of regions: [v0 v1] [v2 v3], never touched again
linear   t0 c0 t1 t2 .  .  .         length = 4, new tokens go to slot 4
"""

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.ops import regions


def visual(
  key: types.Float[types.Array, "B S H D"],
  value: types.Float[types.Array, "B S H D"],
  plan: types.Plan,
  config: config_lib.GazeConfig = config_lib.GazeConfig(),  # noqa: B008
) -> types.VisualCache:
  """Region-major cache of one layer from its keys and values [B, S, H, D]."""
  return types.VisualCache(
    k=regions.pages(key, plan.region_slots),
    v=regions.pages(value, plan.region_slots),
    descriptors=regions.descriptors(
      key, plan.layout.region, plan.region_slots, config
    ),
    valid=plan.region_slots >= 0,
    unit=plan.unit,
  )


def linear_slots(
  layout: types.Layout, capacity: int
) -> types.Int[types.Array, "B Y"]:
  """Slots of TEXT and CONTEXT in reading order, then the rest.

  Returns:
    int32 [B, min(capacity, S)].
  """
  text = (layout.role == types.Role.TEXT) | (layout.role == types.Role.CONTEXT)
  return jnp.argsort(~text, axis=1, stable=True)[:, :capacity]


def linear(
  x: types.Float[types.Array, "B S H D"],
  slots: types.Int[types.Array, "B Y"],
  capacity: int,
) -> types.Float[types.Array, "B H capacity D"]:
  """Keys or values [B, S, H, D] at `slots`, padded to [B, H, capacity, D]."""
  taken = jnp.take_along_axis(x, slots[:, :, None, None], axis=1)
  room = capacity - slots.shape[1]
  taken = jnp.pad(taken, ((0, 0), (0, room), (0, 0), (0, 0)))
  return taken.transpose(0, 2, 1, 3)


def append(
  buffer: types.Float[types.Array, "B H Y D"],
  new: types.Float[types.Array, "B X H D"],
  length: types.Int[types.Array, " B"],
) -> types.Float[types.Array, "B H Y D"]:
  """Writes new keys or values behind each row's filled slots.

  Args:
    buffer: [B, H, Y, D].
    new: [B, X, H, D].
    length: int32 [B].
  """
  write = jax.vmap(
    lambda row, x, at: jax.lax.dynamic_update_slice(row, x, (0, at, 0))
  )
  return write(buffer, new.transpose(0, 2, 1, 3).astype(buffer.dtype), length)
