"""Dense attention under an explicit mask: the oracle of every other form."""

import jax
import jax.numpy as jnp

from gaze_jax import types


def attend(
  query: types.Float[types.Array, "B X Q D"],
  key: types.Float[types.Array, "B Y H D"],
  value: types.Float[types.Array, "B Y H D"],
  mask: types.Bool[types.Array, "#B #Q #X #Y"],
  bias: types.Float[types.Array, "#B #Q #X #Y"] | None = None,
) -> types.Attended:
  """Softmax attention with grouped heads, and its log-sum-exp.

  Logits and softmax are float32 whatever the inputs are. A query that sees
  nothing gets 0 and an lse of -inf, never NaN, in gradient too.

  Args:
    query: [B, X, Q, D]; query head q reads KV head q // G.
    key: [B, Y, H, D].
    value: [B, Y, H, D].
    mask: bool, broadcastable to [B, Q, X, Y].
    bias: float32, broadcastable likewise, added to the logits.

  Returns:
    `Attended` of [B, X, Q, D] in the dtype of `value`.
  """
  b, x, q, d = query.shape
  h, y = key.shape[2], key.shape[1]
  scaled = scaled_logits(query, key)
  if bias is not None:
    scaled += bias
  weights, lse = softmax(scaled, mask)
  out = jnp.einsum(
    "bhmy,bhyd->bhmd",
    weights.astype(value.dtype).reshape(b, h, -1, y),
    value.transpose(0, 2, 1, 3),
    preferred_element_type=jnp.float32,
  ).reshape(b, q, x, d)
  return types.Attended(
    out=out.transpose(0, 2, 1, 3).astype(value.dtype),
    lse=lse.transpose(0, 2, 1),
  )


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
    there.
  """
  # Added, not selected: a weight of 0 stops the gradient as well, and the mask
  # need not be kept for the backward pass.
  logits += jnp.where(mask, 0.0, -jnp.inf)
  peak = jax.lax.stop_gradient(logits.max(axis=-1, initial=-jnp.inf))
  peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
  weights = jnp.exp(logits - peak[..., None])
  total = weights.sum(axis=-1)
  seen = total > 0
  safe = jnp.where(seen, total, 1.0)
  lse = jnp.where(seen, peak + jnp.log(safe), -jnp.inf)
  return weights / safe[..., None], lse
