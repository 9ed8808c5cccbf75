"""New tokens before the visual cache: which pages they read, and attention."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.ops import chunks
from gaze_jax.ops import regions
from gaze_jax.ops import routing
from gaze_jax.ops.decode import cache

# An eighth of the regions is few, if that is eight of them.
_FEW = 8


@dataclasses.dataclass(frozen=True)
class Lookup:
  """New tokens before the visual cache of their row; see `gaze.decode`.

  Attributes:
    query: [B, X, Q, D].
    visual: `VisualCache` of this layer, or stacked with `layer`.
    layer: int32 scalar or None.
    budget: int32 [B].
    config: static.
    override: float32 [B, Q, R] or None.
    choice: bool [B, Q, R] or None.
  """

  query: types.Array
  visual: types.VisualCache
  layer: types.Array | None
  budget: types.Array
  config: config_lib.GazeConfig
  override: types.Array | None = None
  choice: types.Array | None = None

  @property
  def regions(self) -> int:
    """R."""
    return self.visual.valid.shape[1]

  @property
  def kv_heads(self) -> int:
    """H."""
    return self.visual.descriptors.shape[-3]

  @property
  def open(self) -> types.Array:
    """bool [B, X, R], the regions in sight: all that there are."""
    open_ = self.visual.valid.any(-1)[:, None]
    return jnp.broadcast_to(
      open_, (len(open_), self.query.shape[1], open_.shape[-1])
    )

  def of_layer(self, x: types.Array) -> types.Array:
    """This layer's part of something stacked."""
    if self.layer is None:
      return x
    return jax.lax.dynamic_index_in_dim(x, self.layer, keepdims=False)


Looked = tuple[types.Attended, types.Array]


def look(
  lookup: Lookup,
  form: ModuleType | None,
  *,
  dense: bool | types.Array = False,
  tokens: int | None = None,
) -> Looked:
  """Attention to visual pages, and the regions read, bool [B, X, Q, R].

  Args:
    lookup: what is looked at, and from where.
    form: of `backends.ATTEND_PAGES`, for listed pages; None for all pages in
      place under a mask.
    dense: bool, or a bool scalar: reads every region.
    tokens: static; new tokens that look at a time, or None for all of them.
  """
  b, x, q, _ = lookup.query.shape
  if tokens is not None and tokens < x:
    few = lambda query: look(
      dataclasses.replace(lookup, query=query), form, dense=dense
    )
    looked = jax.lax.map(few, chunks.split(lookup.query, tokens))
    return chunks.join(looked, x)

  def everything() -> Looked:
    members = jnp.broadcast_to(
      lookup.open[:, :, None], (b, x, q, lookup.regions)
    )
    # What reads listed pages copies none of them; XLA's product would.
    if form:
      return _listed(lookup, form, _all_pages(lookup)), members
    return _in_place(lookup, members), members

  if isinstance(dense, bool):
    return everything() if dense else _chosen(lookup, form)
  return jax.lax.cond(dense, everything, lambda: _chosen(lookup, form))


def choose(lookup: Lookup) -> types.Array:
  """The regions that a lookup reads, bool [B, X, Q, R]."""
  score = _scores(lookup)
  members = routing.members(score, lookup.open, _allowed(lookup))
  return routing.per_head(members, lookup.query.shape[2])


def in_order(lookup: Lookup, pages: types.Array) -> types.Array:
  """This layer's pages one after the other, [B, R * L, H, D].

  Args:
    lookup: for the layer, L and D.
    pages: `lookup.visual.k` or `v`.
  """
  l, d = lookup.visual.valid.shape[-1], lookup.query.shape[-1]
  page = cache.plain(lookup.of_layer(pages), l, d)
  b, h, r, l, d = page.shape
  return page.reshape(b, h, r * l, d).transpose(0, 2, 1, 3)


def part(lookup: Lookup, start: types.Array, size: int) -> Lookup:
  """A lookup before `size` of this layer's pages alone, from `start` on.

  Its descriptors are left out. One slice takes layer and pages, so that no
  more is copied than the pages.
  """
  visual = lookup.visual

  def of(x: types.Array) -> types.Array:
    at, sizes = [0] * x.ndim, list(x.shape)
    if lookup.layer is not None:
      at[0], sizes[0] = lookup.layer, 1
    axis = 2 if lookup.layer is None else 3
    at[axis], sizes[axis] = start, size
    out = jax.lax.dynamic_slice(x, at, sizes)
    return out if lookup.layer is None else out[0]

  rows = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
  return dataclasses.replace(
    lookup,
    visual=types.VisualCache(
      k=of(visual.k),
      v=of(visual.v),
      descriptors=None,
      valid=rows(visual.valid),
      unit=rows(visual.unit),
    ),
    layer=None,
  )


def _listed(
  lookup: Lookup, form: ModuleType, visits: types.Visits
) -> types.Attended:
  """Attention to listed pages, read where they are stored."""
  visual = lookup.visual
  length = visual.valid.sum(axis=-1, dtype=jnp.int32)
  return form.attend_pages(
    lookup.query, visual.k, visual.v, length, visits, layer=lookup.layer
  )


def _chosen(lookup: Lookup, form: ModuleType | None) -> Looked:
  b, x, q, _ = lookup.query.shape
  r, h = lookup.regions, lookup.kv_heads
  if lookup.choice is not None:
    members = jnp.broadcast_to(lookup.choice[:, None], (b, x, q, r))
  else:
    score, k = _scores(lookup), _allowed(lookup)
    # A choice shared by a KV head's queries is its list already.
    if form and x == 1 and score.shape[2] <= h:
      shared = lambda most: _shared(score, lookup.open, k, most, q, h)
      visits, members = _ranked(x, r, k, shared)
      return _listed(lookup, form, visits), members
    choose_ = lambda most: routing.members(score, lookup.open, k, most)
    members = routing.per_head(_ranked(x, r, k, choose_), q)
  if form is None:
    return _in_place(lookup, members), members
  return _listed(lookup, form, routing.visits(members, h)), members


def _allowed(lookup: Lookup) -> types.Array:
  unit = lookup.visual.unit
  opens = regions.opened(unit[..., 0], unit.max(axis=-1))
  return routing.allowed(
    lookup.budget[:, None], lookup.open, opens, lookup.config
  )


def _scores(lookup: Lookup) -> types.Array:
  descriptors = lookup.of_layer(lookup.visual.descriptors)
  return routing.scores_of(
    lookup.query, descriptors, lookup.override, lookup.kv_heads, lookup.config
  )


def _ranked(x: int, r: int, k: types.Array, choose_: Callable[[int], Any]):
  """`choose_` of a static bound of every k: a low one, if that is enough.

  All regions in order take a sort, five times as long as the best eighth: in
  a step of one token on CPU as long as half of the pages that it chooses.
  """
  few = r // _FEW
  if x > 1 or few < _FEW:
    return choose_(max(r, 1))
  return jax.lax.cond(k.max() <= few, lambda: choose_(few), lambda: choose_(r))


def _shared(
  score, open_, k, most: int, q: int, h: int
) -> tuple[types.Visits, types.Array]:
  """Visits of one token whose groups share a choice: no union to take.

  Args:
    score: float32 [B, 1, n, R].
    open_: bool [B, 1, R].
    k: int32 [B, 1].
    most: static; no k is above it.
    q: query heads.
    h: KV heads.
  """
  ids = routing.ranked(score, open_, most)
  # XLA sorts once for both.
  members = routing.members(score, open_, k, most)
  ids = jnp.repeat(ids[:, 0], h // score.shape[2], axis=1)
  room = max(score.shape[3] - most, 0)  # the lists are of one length
  ids = jnp.pad(ids, ((0, 0), (0, 0), (0, room)))
  visits = types.Visits(
    ids=ids,
    rows=_every_row(ids, q // h),
    count=jnp.broadcast_to(k, ids.shape[:2]),
  )
  return visits, routing.per_head(members, q)


def _all_pages(lookup: Lookup) -> types.Visits:
  """Every page up to the last that holds something, for every row."""
  b, x, q, _ = lookup.query.shape
  h, r = lookup.kv_heads, lookup.regions
  ids = jnp.broadcast_to(jnp.arange(r, dtype=jnp.int32), (b, h, r))
  last = (lookup.open[:, :1] * (ids[:, :1] + 1)).max(axis=-1)  # [B, 1]
  return types.Visits(
    ids=ids,
    rows=_every_row(ids, x * q // h),
    count=jnp.broadcast_to(last, (b, h)),
  )


def _every_row(ids: types.Array, rows: int) -> types.Array:
  """`Visits.rows` where all rows of a KV head read what is listed."""
  return jnp.full((*ids.shape[:2], -(-rows // 32), ids.shape[2]), -1)


def _in_place(lookup: Lookup, members: types.Array) -> types.Attended:
  """Attention over all pages under a mask, for when all may be read."""
  mask = members[..., None] & lookup.visual.valid[:, None, None]
  mask = mask.reshape(*members.shape[:3], -1).transpose(0, 2, 1, 3)
  k, v = (in_order(lookup, x) for x in (lookup.visual.k, lookup.visual.v))
  return attention.attend(lookup.query, k, v, mask)
