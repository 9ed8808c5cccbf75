"""Dense attention under a mask, and the exact merge of attention over parts.

`attend` is the oracle of every other form. What a query does not see can't
reach it, whatever it is: a product with a weight of 0 is NaN where the other
factor is, so products take finite numbers alone, and a key or value that was
not finite makes NaN of the logits of its own.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gaze_jax import types

# float32 [B, X, Q] of queries and [B, Y, H] of keys: NaN for a vector that was
# not finite (of a key or its value), else 0.
Lost = tuple[types.Array, types.Array]


def attend(
  query: types.Float[types.Array, "B X Q D"],
  key: types.Float[types.Array, "B Y H D"],
  value: types.Float[types.Array, "B Y H D"],
  mask: types.Bool[types.Array, "#B #Q #X #Y"],
  bias: types.Float[types.Array, "#B #Q #X #Y"] | None = None,
  lost: Lost | None = None,
) -> types.Attended:
  """Softmax attention with grouped heads, and its log-sum-exp.

  Logits and softmax are float32 whatever the inputs are. A query that sees
  nothing gets 0 and an lse of -inf, never NaN, in gradient too; one that sees
  a key or value that is not finite, or is not itself, gets NaN and no gradient.

  Args:
    query: [B, X, Q, D]; query head q reads KV head q // G.
    key: [B, Y, H, D].
    value: [B, Y, H, D].
    mask: bool, broadcastable to [B, Q, X, Y].
    bias: float32, broadcastable likewise, added to the logits.
    lost: from `finite`, if these are its vectors already.

  Returns:
    `Attended` of [B, X, Q, D] in the dtype of `value`.
  """
  b, x, q, d = query.shape
  h, y = key.shape[2], key.shape[1]
  if lost is None:
    (query, key, value), lost = finite(query, key, value)
  of_query, of_key = (x.swapaxes(1, 2) for x in lost)
  scaled = scaled_logits(query, key) + of_query[..., None]
  scaled += jnp.repeat(of_key, q // h, axis=1)[:, :, None]
  if bias is not None:
    scaled += bias
  weights, lse = _softmax((b, h, q // h * x, y), scaled, mask)
  out = jnp.einsum(
    "bhmy,bhyd->bhmd",
    weights.astype(value.dtype),
    value.transpose(0, 2, 1, 3),
    preferred_element_type=jnp.float32,
  ).reshape(b, q, x, d)
  out = jnp.where(jnp.isnan(lse)[..., None], jnp.nan, out)
  return types.Attended(
    out=out.transpose(0, 2, 1, 3).astype(value.dtype),
    lse=lse.transpose(0, 2, 1),
  )


def finite(
  query: types.Float[types.Array, "*before X Q D"],
  key: types.Float[types.Array, "*before Y H D"],
  value: types.Float[types.Array, "*before Y H D"],
) -> tuple[tuple[types.Array, types.Array, types.Array], Lost]:
  """Queries, keys and values with 0 for what is not finite, and who had it."""
  query, of_query = known(query)
  (key, of_key), (value, of_value) = known(key), known(value)
  return (query, key, value), (of_query, of_key + of_value)


def known(
  x: types.Float[types.Array, "*vectors D"],
) -> tuple[
  types.Float[types.Array, "*vectors D"], types.Float[types.Array, "*vectors"]
]:
  """Vectors [..., D] with 0 for what is not finite, and which had such.

  Returns:
    The vectors; and float32 [...], NaN for each that is not what it was, else
    0: to be added to its logits.
  """
  is_finite = jnp.isfinite(x)
  lost = jnp.where(is_finite.all(axis=-1), 0.0, jnp.nan)
  return jnp.where(is_finite, x, 0), lost


def scaled_logits(
  query: types.Float[types.Array, "B X Q D"],
  key: types.Float[types.Array, "B Y H D"],
) -> types.Float[types.Array, "B Q X Y"]:
  """float32 [B, Q, X, Y], query . key / sqrt(D)."""
  b, x, q, d = query.shape
  h, y = key.shape[2], key.shape[1]
  # Heads first, the group's queries as rows of one matrix: plain batched
  # matmuls, which XLA runs three times faster on CPU than the grouped einsum.
  rows = query.reshape(b, x, h, q // h, d).transpose(0, 2, 3, 1, 4)
  out = jnp.einsum(
    "bhmd,bhyd->bhmy",
    rows.reshape(b, h, -1, d),
    key.transpose(0, 2, 1, 3),
    preferred_element_type=jnp.float32,
  )
  return out.reshape(b, q, x, y) * d**-0.5


def softmax(
  logits: types.Float[types.Array, "*rows Y"],
  mask: types.Bool[types.Array, "*#rows #Y"],
) -> tuple[
  types.Float[types.Array, "*rows Y"], types.Float[types.Array, "*rows"]
]:
  """Softmax over the last axis under a mask, and its log-sum-exp.

  Args:
    logits: float32 [..., Y].
    mask: bool, broadcastable to [..., Y].

  Returns:
    Weights [..., Y], all 0 where nothing is visible, and lse [...], -inf
    there. Of rows that see a logit of NaN 0 and NaN.
  """
  return _softmax(logits.shape, logits, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(shape, logits, mask):
  """`softmax`, its weights in the shape that their product takes them in.

  So what is kept of rows x keys for the backward pass of both is one array; nor
  is the mask, as a weight of 0 stops the gradient too.
  """
  return _softmax_forward(shape, logits, mask)[0]


def _softmax_forward(shape, logits, mask):
  logits = jnp.where(mask, logits, -jnp.inf)
  peak = logits.max(axis=-1, initial=-jnp.inf)
  peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
  weights = jnp.exp(logits - peak[..., None])
  total = weights.sum(axis=-1)  # NaN if a weight is; a maximum need not be
  seen = total > 0
  safe = jnp.where(seen, total, 1.0)
  weights = jnp.where(jnp.isnan(total)[..., None], 0.0, weights)
  nothing = jnp.where(jnp.isnan(total), jnp.nan, -jnp.inf)
  lse = jnp.where(seen, peak + jnp.log(safe), nothing)
  weights = (weights / safe[..., None]).reshape(shape)
  weights = checkpoint_name(weights, "weights")
  lse = checkpoint_name(lse, "weights")
  return (weights, lse), (weights, lse)


def _softmax_backward(shape, saved, cotangents):
  weights, lse = saved
  of_weights, of_lse = cotangents
  of_lse = jnp.where(jnp.isfinite(lse), of_lse, 0.0).reshape(shape[:-1])
  mean = (weights * of_weights).sum(axis=-1)
  # In this order XLA makes one loop of it, and keeps nothing of rows x keys.
  change = weights * (of_weights - mean[..., None] + of_lse[..., None])
  return change.reshape(*lse.shape, -1), None


_softmax.defvjp(_softmax_forward, _softmax_backward)


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
