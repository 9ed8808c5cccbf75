"""Attention within segments: plain, under a mask."""

import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import attention


def attend_segments(
  query: types.Float[types.Array, "B X Q D"],
  key: types.Float[types.Array, "B Y H D"],
  value: types.Float[types.Array, "B Y H D"],
  query_segment: types.Int[types.Array, "B X"],
  key_segment: types.Int[types.Array, "B Y"],
  *,
  causal: bool,
) -> types.Attended:
  """Attention of each query to the keys of its segment.

  Args:
    query: [B, X, Q, D].
    key: [B, Y, H, D].
    value: [B, Y, H, D].
    query_segment: int32 [B, X], not negative.
    key_segment: int32 [B, Y], negative for a key that nobody sees.
    causal: static; a query sees no key of a higher index than its own.

  Returns:
    `Attended` of [B, X, Q, D] in the dtype of `value`, lse float32 [B, X, Q].
  """
  mask = query_segment[:, :, None] == key_segment[:, None]
  if causal:
    mask &= jnp.tril(jnp.ones(mask.shape[1:], bool))
  return attention.attend(query, key, value, mask[:, None])
