"""Attention of new tokens to the text and context of their row, and to itself.

The linear cache of all layers stays where it is: new keys are merged in, not
written first, so that one write a step serves all layers.
"""

import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.kernels import backends
from gaze_jax.parallel import shard


@shard.local(
  shard.HEADS,
  query=shard.HEADS,
  old=shard.LAYERS,
  new=shard.HEADS,
  length=shard.ROWS,
  layer=shard.WHOLE,
)
def attend(
  query: types.Float[types.Array, "B X Q D"],
  old: tuple[types.Array, types.Array],
  new: tuple[types.Array, types.Array],
  length: types.Int[types.Array, " B"],
  layer: types.Int[types.Array, ""],
) -> types.Attended:
  """Attends to what is cached and, causally, to the new tokens.

  Args:
    query: [B, X, Q, D], post-RoPE.
    old: keys and values of all layers, [N, B, H, Y, D] each.
    new: keys and values of the X tokens, [B, X, H, D] each.
    length: int32 [B], filled slots of Y.
    layer: int32 scalar.
  """
  x, y = query.shape[1], old[0].shape[3]
  form = backends.best(backends.ATTEND_LINEAR, capacity=y)
  before = form.attend_linear(query, *old, length, layer=layer)
  causal = jnp.tril(jnp.ones((x, x), bool))
  itself = attention.attend(query, *new, causal[None, None])
  return attention.merge(before, itself)
