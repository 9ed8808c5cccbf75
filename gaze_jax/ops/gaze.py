"""Gaze Attention: one function in two forms, and the one place they are chosen.

The parallel form (training, prefill) sees a whole row at once and applies the
region test as a mask. The decode form scores stored descriptors, gathers the
chosen regions and merges them with text and context by log-sum-exp. They
agree because a region is complete before any query that may see it, both use
the same scores and tie rule, and the merge is exact (METHOD.md section 6).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.ops import attention
from gaze_jax.ops import gather
from gaze_jax.ops import masks
from gaze_jax.ops import merge
from gaze_jax.ops import regions
from gaze_jax.ops import routing


@dataclasses.dataclass(frozen=True)
class Routed:
  """`out` [B, X, Q, D], and `members` bool [B, X, Q, R]: the regions read."""

  out: types.Leaf
  members: types.Leaf


def parallel(
  query: types.Float[types.Array, "B S Q D"],
  key: types.Float[types.Array, "B S H D"],
  value: types.Float[types.Array, "B S H D"],
  layout: types.Layout,
  region_slots: types.Int[types.Array, "B R L"],
  budget: types.Int[types.Array, " B"],
  *,
  override: types.Float[types.Array, "B Q R"] | None = None,
  implementation: Literal["masked", "chunked"] = "chunked",
  chunk: int = 128,
) -> Routed:
  """Attention of a whole row to itself.

  Args:
    query: [B, S, Q, D], post-RoPE.
    key: [B, S, H, D], post-RoPE.
    value: [B, S, H, D].
    layout: `Layout` of [B, S].
    region_slots: int32 [B, R, L].
    budget: int32 [B], K of each row.
    override: float32 [B, Q, R] or None; takes the place of the scores, for
      controls such as random or centre regions.
    implementation: "masked" is the oracle, one S x S mask; "chunked" goes
      through the queries `chunk` at a time and looks at no later key.
    chunk: queries of a chunk.
  """
  members = regions.one_hot(layout.region, region_slots.shape[1])
  table = _Regions(
    one_hot=members,
    descriptors=regions.mean_keys(key, members),
    segment=regions.segments(layout.segment, region_slots),
    end=regions.ends(region_slots),
    override=override,
  )
  s = query.shape[1]
  step = s if implementation == "masked" else chunk
  parts = []
  for start in range(0, s, step):
    stop = min(start + step, s)
    parts.append(_rows(query, key, value, layout, table, budget, start, stop))
  return Routed(
    out=jnp.concatenate([p.out for p in parts], axis=1),
    members=jnp.concatenate([p.members for p in parts], axis=1),
  )


@dataclasses.dataclass(frozen=True)
class _Regions:
  one_hot: types.Leaf  # float32 [B, R, S]
  descriptors: types.Leaf  # float32 [B, H, R, D]
  segment: types.Leaf  # int32 [B, R]
  end: types.Leaf  # int32 [B, R]
  override: types.Leaf  # float32 [B, Q, R]


def _rows(
  query, key, value, layout, table: _Regions, budget, start: int, stop: int
) -> Routed:
  """Queries start .. stop - 1 against keys 0 .. stop - 1."""
  cut = lambda begin: jax.tree.map(lambda x: x[:, begin:stop], layout)
  mine, keys = cut(start), cut(0)
  q = query[:, start:stop]
  slots = jnp.arange(start, stop)
  open_ = routing.available(mine.segment, slots, table.segment, table.end)
  score = _scores(q, table.descriptors, table.override)
  chosen = routing.members(score, open_, budget)
  chosen &= (mine.role == types.Role.TEXT)[:, :, None, None]
  # A slot outside every region has an all-zero column, so `hit` is 0 there.
  hit = jnp.einsum(
    "bxqr,bry->bqxy", chosen.astype(jnp.float32), table.one_hot[:, :, :stop]
  )
  routed = (mine.role == types.Role.TEXT)[:, :, None] & (
    keys.role == types.Role.VISUAL
  )[:, None, :]
  seen = masks.visible(mine, keys, slots)[:, None]
  mask = seen & (~routed[:, None] | (hit > 0.5))
  out = attention.attend(q, key[:, :stop], value[:, :stop], mask).out
  return Routed(out=out, members=chosen)


def _scores(query, descriptors, override) -> types.Array:
  if override is None:
    return routing.scores(query, descriptors)
  b, x, q, _ = query.shape
  return jnp.broadcast_to(override[:, None], (b, x, q, override.shape[-1]))


def decode(
  query: types.Float[types.Array, "B X Q D"],
  visual: types.VisualCache,
  key: types.Float[types.Array, "B H Y D"],
  value: types.Float[types.Array, "B H Y D"],
  length: types.Int[types.Array, " B"],
  budget: types.Int[types.Array, " B"],
  *,
  k_max: int,
  override: types.Float[types.Array, "B Q R"] | None = None,
) -> Routed:
  """Attention of new tokens to the cache of their row.

  Args:
    query: [B, X, Q, D], post-RoPE; the last X tokens of the linear cache.
    visual: `VisualCache` of this layer.
    key: [B, H, Y, D], text and context keys, the X new ones included.
    value: [B, H, Y, D].
    length: int32 [B], filled slots before the X new ones.
    budget: int32 [B], K of each row.
    k_max: static bound of K.
    override: as in `parallel`.
  """
  b, x, q, _ = query.shape
  r = visual.valid.shape[1]
  open_ = jnp.broadcast_to(visual.valid.any(-1)[:, None], (b, x, r))
  score = _scores(query, visual.descriptors, override)
  seen = jnp.arange(key.shape[2]) <= (
    length[:, None, None] + jnp.arange(x)[:, None]
  )
  linear = attention.attend(
    query, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3), seen[:, None]
  )
  if k_max == 0:
    return Routed(out=linear.out, members=jnp.zeros((b, x, q, r), bool))
  if k_max >= r:
    members = routing.members(score, open_, budget)
    looked = _in_place(query, visual, members)
  else:
    selection = routing.select(score, open_, budget, k_max)
    looked = gather.attend_selected(query, visual, selection)
    hits = jax.nn.one_hot(selection.ids, r, dtype=bool)
    members = (hits & selection.valid[..., None]).any(axis=-2)
  return Routed(out=merge.merge(looked, linear).out, members=members)


def _in_place(query, visual: types.VisualCache, members) -> types.Attended:
  """Attention over all pages under a mask, for when all may be read.

  Nothing is copied, which makes this the dense step that gaze is timed against.
  """
  b, h, r, l, d = visual.k.shape
  rows = lambda page: page.reshape(b, h, r * l, d).transpose(0, 2, 1, 3)
  mask = members[..., None] & visual.valid[:, None, None]
  mask = mask.reshape(*members.shape[:3], r * l).transpose(0, 2, 1, 3)
  return attention.attend(query, rows(visual.k), rows(visual.v), mask)


def usage(
  members: types.Bool[types.Array, "B X Q R"],
  layout: types.Layout,
  region_slots: types.Int[types.Array, "B R L"],
  kv_heads: int,
) -> types.Usage:
  """Counts the visual KV entries that the routed queries of a row read.

  Args:
    members: bool [B, X, Q, R] from `parallel`, X = S.
    layout: `Layout` of [B, S].
    region_slots: int32 [B, R, L].
    kv_heads: H.
  """
  b, x, q, r = members.shape
  size = (region_slots >= 0).sum(-1).astype(jnp.float32)  # [B, R]
  slots = jnp.arange(x)
  open_ = routing.available(
    layout.segment,
    slots,
    regions.segments(layout.segment, region_slots),
    regions.ends(region_slots),
  )
  routed = (layout.role == types.Role.TEXT) & open_.any(-1)  # [B, X]
  context = (
    masks.visible(layout, layout, slots)
    & (layout.role == types.Role.CONTEXT)[:, None]
  )
  context = context.sum(-1).astype(jnp.float32)  # [B, X]
  read = lambda m: jnp.einsum("bxnr,br->bxn", m.astype(jnp.float32), size)
  chosen = read(members).mean(-1) + context
  group = members.reshape(b, x, kv_heads, q // kv_heads, r).any(axis=3)
  unique = read(group).mean(-1) + context
  visible = jnp.einsum("bxr,br->bx", open_.astype(jnp.float32), size)
  total = lambda n: jnp.where(routed, n, 0.0).sum()
  return types.Usage(
    chosen=total(chosen), unique=total(unique), visible=total(visible)
  )
