"""Which regions a query reads (docs/method.md, section 5).

Everything here has an axis `n` of those that choose: Q query heads, H KV
groups or the one layer, by `GazeConfig.granularity`; `per_head` spreads their
choices over the query heads.
"""

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.kernels import backends
from gaze_jax.layout import budgets
from gaze_jax.ops import regions

# Up to here comparing all pairs of regions beats a sort on every backend.
_PAIRWISE_REGIONS = 64


def plan(
  layout: types.Layout,
  region_slots: types.Int[types.Array, "B R L"],
  config: config_lib.GazeConfig,
  answer_slots: types.Int[types.Array, "B A"] | None = None,
  answer_of: types.Int[types.Array, "B A"] | None = None,
) -> types.Plan:
  """What routing needs to know of a batch.

  Args:
    layout: `Layout` of [B, S].
    region_slots: int32 [B, R, L].
    config: for `refresh` and `route_prompt`.
    answer_slots: int32 [B, A], the slots whose next token is an answer's; -1
      where padded. None when the rows hold no answer.
    answer_of: int32 [B, A], which question each belongs to.
  """
  routed = layout.role == types.Role.TEXT
  source = None
  s = layout.role.shape[1]
  if config.refresh == "question":
    source = jnp.broadcast_to(jnp.arange(s, dtype=jnp.int32), routed.shape)
  if answer_slots is None:
    if not config.route_prompt:
      routed = jnp.zeros_like(routed)
  else:
    scored = jnp.greater_equal(answer_slots, 0)
    slots = jnp.where(scored, answer_slots, s)  # s: written nowhere
    if not config.route_prompt:
      put = jax.vmap(
        lambda at: jnp.zeros(s, bool).at[at].set(True, mode="drop")
      )
      routed &= put(slots + 1)
    if source is not None:
      same = answer_of[:, :, None] == answer_of[:, None, :]
      first = jnp.where(same & scored[:, None], slots[:, None], s).min(-1)
      put = jax.vmap(lambda x, at, y: x.at[at].set(y, mode="drop"))
      # An answer's token takes the choice of the prompt's last token.
      source = put(source, jnp.where(scored, slots + 1, s), first)
  # TEXT and CONTEXT first, in reading order.
  read = (layout.role == types.Role.TEXT) | (layout.role == types.Role.CONTEXT)
  order = jnp.argsort(~read, axis=1, stable=True)
  unit = regions.of_first_token(layout.unit, region_slots)
  last_unit = regions.of_last_token(layout.unit, region_slots)
  return types.Plan(
    layout=layout,
    region_slots=region_slots,
    segment=regions.of_first_token(layout.segment, region_slots),
    end=regions.ends(region_slots),
    unit=unit,
    opens=regions.opened(unit, last_unit),
    routed=routed,
    source=source,
    order=order,
    rank=jnp.argsort(order, axis=1),
    place=regions.places(layout.region, region_slots),
  )


def scores_of(
  query: types.Float[types.Array, "B X Q D"],
  descriptors: types.Float[types.Array, "B H PR D"] | None,
  override: types.Float[types.Array, "B Q R"] | None,
  kv_heads: int,
  config: config_lib.GazeConfig,
) -> types.Float[types.Array, "B X n R"]:
  """`scores`, or what overrides them, the same for all X queries."""
  if override is None:
    return scores(query, descriptors, config)
  score = summed(override[:, None], kv_heads, config)
  return jnp.broadcast_to(score, (*query.shape[:2], *score.shape[2:]))


def scores(
  query: types.Float[types.Array, "B X Q D"],
  descriptors: types.Float[types.Array, "B H PR D"],
  config: config_lib.GazeConfig,
) -> types.Float[types.Array, "B X n R"]:
  """Score of each region; under `mean` the mean logit of its keys.

  Args:
    query: [B, X, Q, D], post-RoPE.
    descriptors: float32 [B, H, P * R, D] from `regions.descriptors`.
    config: for `descriptor` and `granularity`.

  Returns:
    float32 [B, X, n, R].
  """
  b, x, q, d = query.shape
  h = descriptors.shape[1]
  query = query.astype(jnp.float32).reshape(b, x, h, q // h, d)
  parts = regions.parts(config)
  lost: types.Array | float = 0.0
  if config.gradient != "none":  # what is not finite has none
    query, of_query = attention.known(query)
    descriptors, of_region = attention.known(descriptors)
    of_region = of_region.reshape(b, h, parts, -1).sum(axis=2)
    lost = of_query[..., None] + of_region[:, None, :, None]
  dot = backends.best(backends.REGION_SCORES, tokens=x).region_scores
  if config.descriptor == "minmax":
    least, most = jnp.split(descriptors, 2, axis=2)
    up, down = jnp.maximum(query, 0.0), jnp.minimum(query, 0.0)
    out = dot(up, most) + dot(down, least)
  else:
    out = dot(query, descriptors)
    out = out.reshape(b, x, h, q // h, parts, -1).max(axis=4)
  out = out * d**-0.5 + lost
  return summed(out.reshape(b, x, q, -1), h, config)


def summed(
  score: types.Float[types.Array, "B X Q R"],
  kv_heads: int,
  config: config_lib.GazeConfig,
) -> types.Float[types.Array, "B X n R"]:
  """Scores of those that choose, summed over their query heads."""
  b, x, q, r = score.shape
  n = choosers(q, kv_heads, config)
  return score.reshape(b, x, n, q // n, r).sum(axis=3)


def choosers(
  query_heads: int, kv_heads: int, config: config_lib.GazeConfig
) -> int:
  """n, how many choose."""
  counts = dict(query_head=query_heads, kv_group=kv_heads, layer=1)
  return counts[config.granularity]


def per_head(
  choice: types.Bool[types.Array, "B X n R"], heads: int
) -> types.Bool[types.Array, "B X heads R"]:
  """Spreads the choices of n groups of heads over the heads."""
  return jnp.repeat(choice, heads // choice.shape[2], axis=2)


def available(
  segment: types.Int[types.Array, "B X"],
  slots: types.Int[types.Array, "#B X"],
  region_segment: types.Int[types.Array, "B R"],
  region_end: types.Int[types.Array, "B R"],
) -> types.Bool[types.Array, "B X R"]:
  """Regions that are complete before a query, in its own segment.

  Args:
    segment: int32 [B, X], of the queries; -1 on padding.
    slots: int32 [B, X] or [1, X], of the queries.
    region_segment: int32 [B, R], -1 where there is no region.
    region_end: int32 [B, R], the slot after the region's last token.

  Returns:
    bool [B, X, R].
  """
  same = segment[:, :, None] == region_segment[:, None, :]
  complete = region_end[:, None, :] <= slots[:, :, None]
  return same & complete & (region_segment >= 0)[:, None, :]


def choosing(plan_: types.Plan) -> types.Bool[types.Array, "B S"]:
  """The slots whose queries have a region to choose."""
  layout, slots = plan_.layout, plan_.source
  if slots is None:
    slots = jnp.arange(layout.role.shape[1], dtype=jnp.int32)[None]
  open_ = available(layout.segment, slots, plan_.segment, plan_.end)
  return plan_.routed & open_.any(axis=-1)


def allowed(
  budget: types.Int[types.Array, "B ..."],
  available_: types.Bool[types.Array, "B X R"],
  opens: types.Int[types.Array, "B R"],
  config: config_lib.GazeConfig,
  *,
  dense: bool | types.Bool[types.Array, ""] = False,
) -> types.Int[types.Array, "B X"]:
  """How many regions each query may read: K in regions.

  Args:
    budget: int32 [B, X] or [B, 1], traced; K for `budget = "fixed"`, K of each
      unit in sight for "per_unit", thousandths of the regions in sight for
      "ratio".
    available_: bool [B, X, R], the regions in sight.
    opens: int32 [B, R] of `regions.opened`, the units that begin with each
      region.
    config: for `budget`.
    dense: True where the layer reads every region.
  """
  count = available_.sum(axis=-1, dtype=jnp.int32)
  # What is more than all is all, lest a product overflow.
  parts = budgets.RATIO_PARTS
  most = parts if config.budget == "ratio" else available_.shape[-1]
  k = jnp.broadcast_to(jnp.minimum(budget, most), count.shape)
  if config.budget == "ratio":
    k = -(-count * k // parts)
  elif config.budget == "per_unit":
    k *= (available_ * opens[:, None]).sum(axis=-1, dtype=jnp.int32)
  return jnp.minimum(jnp.where(dense, count, k), count)


def members(
  score: types.Float[types.Array, "B X n R"],
  available_: types.Bool[types.Array, "B X R"],
  k: types.Int[types.Array, "B X"],
  most: int | None = None,
) -> types.Bool[types.Array, "B X n R"]:
  """The chosen regions as a mask.

  By rank with a stable tie rule (the lower id first), so that exactly
  min(k, available) regions are chosen, whatever the scores are; see `_ranks`.

  Args:
    score: float32 [B, X, n, R].
    available_: bool [B, X, R].
    k: int32 [B, X], traced.
    most: static; no k is above it. None for R.

  Returns:
    bool [B, X, n, R].
  """
  r = score.shape[-1]
  open_, k = available_[:, :, None, :], k[:, :, None, None]
  score = _ranks(score, open_)
  if r <= _PAIRWISE_REGIONS:
    ids = jnp.arange(r)
    mine, other = score[..., :, None], score[..., None, :]
    ahead = (other > mine) | ((other == mine) & (ids < ids[:, None]))
    return open_ & (ahead.sum(axis=-1, dtype=jnp.int32) < k)
  # Those above the k-th score; of those that equal it, ids up to the k-th.
  best, ids = _top_k(score, r if most is None else min(most, r))
  at = jnp.broadcast_to(
    jnp.clip(k - 1, 0, best.shape[-1] - 1), (*score.shape[:-1], 1)
  )
  last, last_id = (jnp.take_along_axis(x, at, axis=-1) for x in (best, ids))
  above = (score > last) | ((score == last) & (jnp.arange(r) <= last_id))
  return open_ & above & (k > 0)


def ranked(
  score: types.Float[types.Array, "B X n R"],
  available_: types.Bool[types.Array, "B X R"],
  most: int,
) -> types.Int[types.Array, "B X n K"]:
  """Region ids, best first: the first k of them are `members` of k.

  Args:
    score: float32 [B, X, n, R].
    available_: bool [B, X, R].
    most: static; how many ids.

  Returns:
    int32 [B, X, n, min(most, R)].
  """
  score = _ranks(score, available_[:, :, None, :])
  return _top_k(score, min(most, score.shape[-1]))[1]


def _ranks(score: types.Array, open_: types.Array) -> types.Array:
  """Scores that a comparison and a sort put in the same order.

  They differ over -0 and +0, over numbers so small that some machines take
  them for 0, and over NaN: the first become 0, and NaN comes last, with -inf.
  What is not available comes behind that.
  """
  score = jax.lax.stop_gradient(score)
  small = jnp.finfo(jnp.float32)
  score = jnp.where(jnp.abs(score) < small.tiny, 0.0, score)
  score = jnp.where(score >= small.min, score, small.min)
  return jnp.where(open_, score, -jnp.inf)


def _top_k(score: types.Array, k: int) -> tuple[types.Array, types.Array]:
  """The k best of the last axis and their ids; of equals the lower id first.

  In two dimensions: of more XLA's CPU backend makes a full sort, 18 times as
  long for 8 rows of 569.
  """
  best, ids = jax.lax.top_k(score.reshape(-1, score.shape[-1]), k)
  return tuple(x.reshape(*score.shape[:-1], k) for x in (best, ids))


def visits(
  members_: types.Bool[types.Array, "B X Q R"], kv_heads: int
) -> types.Visits:
  """The pages that each KV head reads: the union over its rows, once each.

  Args:
    members_: bool [B, X, Q, R].
    kv_heads: H.

  Returns:
    `Visits` of U = R.
  """
  b, x, q, r = members_.shape
  rows = members_.reshape(b, x, kv_heads, q // kv_heads, r)
  rows = rows.transpose(0, 2, 1, 3, 4).reshape(b, kv_heads, -1, r)
  ids = jnp.sort(jnp.where(rows.any(2), jnp.arange(r), r), axis=-1)
  rows = jnp.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % 32), (0, 0)))
  bit = jnp.left_shift(1, jnp.arange(32, dtype=jnp.int32))[:, None]
  words = rows.reshape(b, kv_heads, -1, 32, r) * bit
  words = words.sum(axis=3, dtype=jnp.int32)  # [B, H, W, R]
  real = ids < r
  ids = jnp.minimum(ids, r - 1).astype(jnp.int32)
  return types.Visits(
    ids=ids,
    rows=jnp.take_along_axis(words, ids[:, :, None], axis=-1),
    count=real.sum(axis=-1, dtype=jnp.int32),
  )
