"""Rows of visual tokens: plain, under a mask."""

import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.kernels import target

NAME, supported = "xla", target.always


def attend_visual(
  query: types.Float[types.Array, "B S Q D"],
  key: types.Float[types.Array, "B S H D"],
  value: types.Float[types.Array, "B S H D"],
  layout: types.Layout,
) -> types.Float[types.Array, "B S Q D"]:
  """Causal attention within the trunk of each segment, differentiable.

  That is what VISUAL slots see; of use at no others, where the forms differ.

  Args:
    query: float32 or bfloat16 [B, S, Q, D], post-RoPE.
    key: [B, S, H, D].
    value: [B, S, H, D].
    layout: `Layout` of [B, S].
  """
  trunk = (layout.role != types.Role.PAD) & (layout.branch == 0)
  segment = jnp.where(trunk, layout.segment, -1)
  slots = jnp.arange(segment.shape[1])
  mask = (segment[:, :, None] == segment[:, None]) & trunk[:, None]
  mask &= slots[:, None] >= slots
  return attention.attend(query, key, value, mask[:, None]).out
