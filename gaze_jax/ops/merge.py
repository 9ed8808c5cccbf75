"""Exact merge of attention over disjoint sets of keys."""

import functools

import jax
import jax.numpy as jnp

from gaze_jax import types


def merge(*parts: types.Attended) -> types.Attended:
  """Attention over the union of the keys of `parts`.

  Softmax over one multiset does not depend on how it was split: each part
  weighs exp(lse - max lse), as in flash decoding. Parts that saw nothing
  (lse = -inf) weigh nothing; where no part saw anything the result is 0. Where
  a part is NaN (its lse is) so is the result, and no part gets a gradient.
  """
  lost = functools.reduce(jnp.logical_or, [jnp.isnan(p.lse) for p in parts])
  lse = [jnp.where(lost, -jnp.inf, p.lse) for p in parts]
  top = functools.reduce(jnp.maximum, lse)
  # Any constant serves: the result does not depend on it.
  top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
  weights = [jnp.exp(x - top) for x in lse]
  total = sum(weights)
  seen = total > 0
  safe = jnp.where(seen, total, 1.0)
  out = sum(
    p.out.astype(jnp.float32) * (w / safe)[..., None]
    for p, w in zip(parts, weights, strict=True)
  )
  nothing = jnp.where(lost, jnp.nan, -jnp.inf)
  return types.Attended(
    out=jnp.where(lost[..., None], jnp.nan, out).astype(parts[0].out.dtype),
    lse=jnp.where(seen, top + jnp.log(safe), nothing),
  )
