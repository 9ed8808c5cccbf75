"""What a decoding step makes of every region, read or not: for pictures."""

import dataclasses

import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.ops import routing
from gaze_jax.ops.decode import pages


def scores(lookup: pages.Lookup) -> types.Array:
  """float32 [B, X, Q, R], each query head's own score of each region."""
  config = dataclasses.replace(lookup.config, granularity="query_head")
  descriptors = lookup.of_layer(lookup.visual.descriptors)
  return routing.scores(lookup.query, descriptors, config)


def dense_share(lookup: pages.Lookup, text: types.Attended) -> types.Array:
  """The share of its attention that each region would get of a dense query.

  Args:
    lookup: what is looked at, and from where.
    text: attention of the same query to text and context.

  Returns:
    float32 [B, X, Q, R], 0 where there is no region; what is left of 1 goes to
    text and context.
  """
  b, x, q, _ = lookup.query.shape
  keys = pages.in_order(lookup, lookup.visual.k)
  logits = attention.scaled_logits(lookup.query, keys)
  logits = logits.reshape(b, q, x, *lookup.visual.valid.shape[1:])
  valid = lookup.visual.valid[:, None, None]
  logits = jnp.where(valid, logits, -jnp.inf)
  other = text.lse.transpose(0, 2, 1)
  peak = jnp.maximum(logits.max(axis=(-2, -1)), other)
  peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
  mass = jnp.exp(logits - peak[..., None, None]).sum(-1)
  total = mass.sum(-1) + jnp.exp(other - peak)
  share = mass / jnp.where(total > 0, total, 1.0)[..., None]
  return share.transpose(0, 2, 1, 3)
