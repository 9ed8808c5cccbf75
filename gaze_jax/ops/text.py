"""Attention of new tokens to the text and context of their row, and to itself.

The linear cache of all layers stays where it is: new keys are merged in, not
written first, so that one write a step serves all layers.
"""

import functools

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.ops import attention
from gaze_jax.ops import gather
from gaze_jax.ops import merge
from gaze_jax.parallel import shard

_PAGE = 16  # slots that XLA:CPU reads as a page


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
  inputs = shard.HEADS, shard.LAYERS, shard.HEADS, shard.ROWS, shard.WHOLE
  run = shard.local(_attend, inputs, shard.HEADS)
  return run(query, old, new, length, layer)


def _attend(query, old, new, length, layer) -> types.Attended:
  """`attend` of the rows and heads that a device has."""
  x, y = query.shape[1], old[0].shape[3]
  copied = functools.partial(_copied, query, old, length, layer)
  before = copied
  if y % _PAGE == 0:
    listed = functools.partial(_listed, query, old, length, layer)
    before = lambda: jax.lax.platform_dependent(cpu=listed, default=copied)
  causal = jnp.tril(jnp.ones((x, x), bool))
  itself = attention.attend(query, *new, causal[None, None])
  return merge.merge(before(), itself)


def _copied(query, old, length, layer) -> types.Attended:
  """A layer cut out, which copies it."""
  of_layer = lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False)
  k, v = (of_layer(a).transpose(0, 2, 1, 3) for a in old)
  filled = jnp.arange(k.shape[1]) < length[:, None, None]
  filled = jnp.broadcast_to(filled, (*query.shape[:2], k.shape[1]))
  return attention.attend(query, k, v, filled[:, None])


def _listed(query, old, length, layer) -> types.Attended:
  """The filled part, read in place as pages."""
  n, b, h, y, d = old[0].shape
  x, q = query.shape[1:3]
  r = y // _PAGE
  k, v = (a.reshape(n, b, h, r, _PAGE, d) for a in old)
  slot = jnp.arange(y).reshape(1, r, _PAGE)
  pages = types.VisualCache(
    k=k,
    v=v,
    descriptors=None,
    valid=slot < length[:, None, None],
    unit=None,
  )
  ids = jnp.broadcast_to(jnp.arange(r, dtype=jnp.int32), (b, h, r))
  words = -(-x * q // h // 32)
  count = jnp.broadcast_to(-(-length // _PAGE)[:, None], (b, h))
  return gather.attend_pages(
    query, pages, ids, jnp.full((b, h, words, r), -1), count, layer
  )
