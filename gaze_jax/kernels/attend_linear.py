"""Attention of new tokens to the filled slots of a linear cache."""

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.kernels import target

NAME, supported = "xla", target.always


def attend_linear(
  query: types.Float[types.Array, "B X Q D"],
  k: types.Float[types.Array, "N B H Y D"],
  v: types.Float[types.Array, "N B H Y D"],
  length: types.Int[types.Array, " B"],
  *,
  layer: types.Int[types.Array, ""],
) -> types.Attended:
  """Attends to what is cached; here to a copy of the layer.

  Args:
    query: [B, X, Q, D], post-RoPE.
    k: [N, B, H, Y, D], of all layers.
    v: likewise.
    length: int32 [B], filled slots of Y, which come first.
    layer: int32 scalar, the layer to read.
  """
  of_layer = lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False)
  k, v = (of_layer(a).transpose(0, 2, 1, 3) for a in (k, v))
  filled = jnp.arange(k.shape[1]) < length[:, None, None]
  filled = jnp.broadcast_to(filled, (*query.shape[:2], k.shape[1]))
  return attention.attend(query, k, v, filled[:, None])
