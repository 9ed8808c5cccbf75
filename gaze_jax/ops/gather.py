"""Decode attention over gathered regions: the static top-k form."""

import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.ops import attention


def attend_selected(
  query: types.Float[types.Array, "B X Q D"],
  cache: types.VisualCache,
  selection: types.Selection,
) -> types.Attended:
  """Attends to the regions of a selection, and to nothing else.

  Args:
    query: [B, X, Q, D], post-RoPE.
    cache: `VisualCache` of one layer.
    selection: `Selection` of [B, X, Q, K].

  Returns:
    `Attended` of [B, X, Q, D].
  """
  b, x, q, d = query.shape
  h, l = cache.k.shape[1], cache.k.shape[3]
  rows = jnp.arange(b)[:, None, None, None]
  heads = (jnp.arange(q) // (q // h))[:, None]
  k = cache.k[rows, heads, selection.ids]  # [B, X, Q, K, L, D]
  v = cache.v[rows, heads, selection.ids]
  logits = jnp.einsum(
    "bxqd,bxqkld->bxqkl", query, k, preferred_element_type=jnp.float32
  )
  mask = cache.valid[rows, selection.ids] & selection.valid[..., None]
  flat = (b, x, q, selection.ids.shape[-1] * l)
  weights, lse = attention.softmax(
    logits.reshape(flat) * d**-0.5, mask.reshape(flat)
  )
  out = jnp.einsum(
    "bxqy,bxqyd->bxqd",
    weights.astype(v.dtype),
    v.reshape(*flat, d),
    preferred_element_type=jnp.float32,
  )
  return types.Attended(out=out.astype(v.dtype), lse=lse)
