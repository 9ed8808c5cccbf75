"""Which regions a query reads (METHOD.md section 5)."""

import jax
import jax.numpy as jnp

from gaze_jax import types

# Up to here comparing all pairs of regions beats a sort on every backend.
_PAIRWISE_REGIONS = 64


def scores(
  query: types.Float[types.Array, "B X Q D"],
  descriptors: types.Float[types.Array, "B H R D"],
) -> types.Float[types.Array, "B X Q R"]:
  """Score of each region: the mean logit of its keys.

  Args:
    query: [B, X, Q, D], post-RoPE.
    descriptors: float32 [B, H, R, D].

  Returns:
    float32 [B, X, Q, R], query . descriptor / sqrt(D).
  """
  b, x, q, d = query.shape
  h = descriptors.shape[1]
  out = jnp.einsum(
    "bxhgd,bhrd->bxhgr",
    query.astype(jnp.float32).reshape(b, x, h, q // h, d),
    descriptors,
    precision=jax.lax.Precision.HIGHEST,
  )
  return out.reshape(b, x, q, -1) * d**-0.5


def available(
  segment: types.Int[types.Array, "B X"],
  slots: types.Int[types.Array, " X"],
  region_segment: types.Int[types.Array, "B R"],
  region_end: types.Int[types.Array, "B R"],
) -> types.Bool[types.Array, "B X R"]:
  """Regions that are complete before a query, in its own segment.

  Args:
    segment: int32 [B, X], of the queries; -1 on padding.
    slots: int32 [X], of the queries.
    region_segment: int32 [B, R], -1 where there is no region.
    region_end: int32 [B, R], the slot after the region's last token.

  Returns:
    bool [B, X, R].
  """
  same = segment[:, :, None] == region_segment[:, None, :]
  complete = region_end[:, None, :] <= slots[:, None]
  return same & complete & (region_segment >= 0)[:, None, :]


def members(
  score: types.Float[types.Array, "B X Q R"],
  available_: types.Bool[types.Array, "B X R"],
  budget: types.Int[types.Array, " B"],
) -> types.Bool[types.Array, "B X Q R"]:
  """The chosen regions as a mask, for the parallel form.

  By rank with a stable tie rule (the lower id first), never by threshold, so
  that exactly min(K, available) regions are chosen.

  Args:
    score: float32 [B, X, Q, R].
    available_: bool [B, X, R].
    budget: int32 [B], K of each row, traced.

  Returns:
    bool [B, X, Q, R].
  """
  r = score.shape[-1]
  open_ = available_[:, :, None, :]
  score = jax.lax.stop_gradient(jnp.where(open_, score, -jnp.inf))
  if r <= _PAIRWISE_REGIONS:
    ids = jnp.arange(r)
    mine, other = score[..., :, None], score[..., None, :]
    ahead = (other > mine) | ((other == mine) & (ids < ids[:, None]))
    rank = ahead.sum(axis=-1, dtype=jnp.int32)
  else:
    order = jnp.argsort(-score, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
  return open_ & (rank < budget[:, None, None, None])


def select(
  score: types.Float[types.Array, "B X Q R"],
  available_: types.Bool[types.Array, "B X R"],
  budget: types.Int[types.Array, " B"],
  k_max: int,
) -> types.Selection:
  """The chosen regions as ranked ids, for decoding: the same choice.

  Args:
    score: float32 [B, X, Q, R].
    available_: bool [B, X, R].
    budget: int32 [B], K of each row, traced; at most `k_max` is honoured.
    k_max: static length of the result.

  Returns:
    `Selection` of [B, X, Q, min(k_max, R)].
  """
  open_ = available_[:, :, None, :]
  score = jax.lax.stop_gradient(jnp.where(open_, score, -jnp.inf))
  k_max = min(k_max, score.shape[-1])
  _, ids = jax.lax.top_k(score, k_max)  # equal scores: the lower id first
  count = jnp.minimum(available_.sum(axis=-1), budget[:, None])
  valid = jnp.arange(k_max) < count[:, :, None, None]
  return types.Selection(ids=ids, valid=jnp.broadcast_to(valid, ids.shape))
