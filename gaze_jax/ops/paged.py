"""The decode form: which pages a step reads, and attention to them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.ops import attention
from gaze_jax.ops import routing
from gaze_jax.ops import split
from gaze_jax.parallel import shard

# An eighth of the regions is few, if that is eight of them.
_FEW = 8


@dataclasses.dataclass(frozen=True)
class Step:
  """New tokens before the visual cache of their row; see `gaze.decode`.

  Attributes:
    query: [B, X, Q, D].
    visual: `VisualCache` of this layer, or stacked with `layer`.
    layer: int32 scalar or None.
    budget: int32 [B].
    config: static.
    override: float32 [B, Q, R] or None.
    frozen: bool [B, Q, R] or None.
  """

  query: types.Array
  visual: types.VisualCache
  layer: types.Array | None
  budget: types.Array
  config: config_lib.GazeConfig
  override: types.Array | None = None
  frozen: types.Array | None = None

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
Pages = Callable[[Step, types.Visits], types.Attended]


def look(
  step: Step,
  attend_pages: Pages | None,
  *,
  dense: bool | types.Array = False,
  k_max: int | None = None,
  turn: int | None = None,
) -> Looked:
  """Attention to visual pages, and the regions read, bool [B, X, Q, R].

  Args:
    step: what is looked at, and from where.
    attend_pages: attention to listed pages; None for all under a mask.
    dense: bool, or a bool scalar: reads every region.
    k_max: static bound of the regions that a query reads, or None.
    turn: static; tokens that look at a time, or None for all of them.
  """
  b, x, q, _ = step.query.shape
  if turn is not None and turn < x:
    few = lambda query: look(
      dataclasses.replace(step, query=query),
      attend_pages,
      dense=dense,
      k_max=k_max,
    )
    looked, members = jax.lax.map(few, split.cut(step.query, turn))
    return split.join(looked, x), split.join(members, x)
  r = step.visual.valid.shape[1]

  def everything() -> Looked:
    members = jnp.broadcast_to(step.open[:, :, None], (b, x, q, r))
    # What reads listed pages copies none of them; XLA's product would.
    if attend_pages:
      return attend_pages(step, _all_pages(step)), members
    return _in_place(step, members), members

  def chosen() -> Looked:
    return _chosen(step, attend_pages, r if k_max is None else min(k_max, r))

  if isinstance(dense, bool):
    return everything() if dense else chosen()
  return jax.lax.cond(dense, everything, chosen)


def choose(step: Step) -> types.Array:
  """The regions that a step reads, bool [B, X, Q, R]."""
  score = _scores(step)
  members = routing.members(score, step.open, _allowed(step))
  return routing.per_head(members, step.query.shape[2])


def plain(step: Step, pages: types.Array, lead: int) -> types.Array:
  """Pages [.., R, L, D] from pages that may lie in tiles, [.., R, *tiles].

  Args:
    step: for L and D.
    pages: `step.visual.k` or `v`.
    lead: how many axes come before those of a page.
  """
  l, d = step.visual.valid.shape[-1], step.query.shape[-1]
  flat = pages.reshape(*pages.shape[:lead], -1, pages.shape[-1])
  return flat[..., :l, :d]


def in_order(step: Step, pages: types.Array) -> types.Array:
  """This layer's pages one after the other, [B, R * L, H, D].

  Args:
    step: for the layer, L and D.
    pages: `step.visual.k` or `v`.
  """
  page = plain(step, step.of_layer(pages), 3)
  b, h, r, l, d = page.shape
  return page.reshape(b, h, r * l, d).transpose(0, 2, 1, 3)


def cut(step: Step, start: types.Array, size: int) -> Step:
  """A step before `size` of this layer's pages alone, from `start` on.

  Its descriptors are left out. One slice takes layer and pages, so that no
  more is copied than the pages.
  """
  visual = step.visual

  def of(x: types.Array) -> types.Array:
    at, sizes = [0] * x.ndim, list(x.shape)
    if step.layer is not None:
      at[0], sizes[0] = step.layer, 1
    axis = 2 if step.layer is None else 3
    at[axis], sizes[axis] = start, size
    out = jax.lax.dynamic_slice(x, at, sizes)
    return out if step.layer is None else out[0]

  rows = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
  return dataclasses.replace(
    step,
    visual=types.VisualCache(
      k=of(visual.k),
      v=of(visual.v),
      descriptors=None,
      valid=rows(visual.valid),
      unit=rows(visual.unit),
    ),
    layer=None,
  )


def _chosen(step: Step, attend_pages: Pages | None, k_max: int) -> Looked:
  b, x, q, _ = step.query.shape
  r, h = step.visual.valid.shape[1], step.visual.descriptors.shape[-3]
  if step.frozen is not None:
    members = jnp.broadcast_to(step.frozen[:, None], (b, x, q, r))
  else:
    score = _scores(step)
    k = jnp.minimum(_allowed(step), k_max)
    # A choice shared by a KV head's rows is its list already.
    if attend_pages and x == 1 and score.shape[2] <= h:
      shared = lambda most: _shared(score, step.open, k, most, k_max, q, h)
      visits, members = _ranked(x, k, k_max, shared)
      return attend_pages(step, visits), members
    choose_ = lambda most: routing.members(score, step.open, k, most)
    members = routing.per_head(_ranked(x, k, k_max, choose_), q)
  if attend_pages is None:
    return _in_place(step, members), members
  size = max(min(r, x * q // h * k_max), 1)
  return attend_pages(step, routing.visits(members, h, size)), members


def _allowed(step: Step) -> types.Array:
  return routing.allowed(step.budget, step.open, step.visual.unit, step.config)


def _scores(step: Step) -> types.Array:
  descriptors = step.visual.descriptors
  if step.override is None:
    return routing.scores(step.query, step.of_layer(descriptors), step.config)
  score = routing.summed(
    step.override[:, None], descriptors.shape[-3], step.config
  )
  b, x = step.query.shape[:2]
  return jnp.broadcast_to(score, (b, x, *score.shape[2:]))


def _ranked(x: int, k: types.Array, k_max: int, choose_: Callable[[int], Any]):
  """`choose_` of a static bound of every k: a low one, if that is enough.

  All regions in order take a sort, five times as long as the best eighth: in
  a step of one token on CPU as long as half of the pages that it chooses.
  """
  few = k_max // _FEW
  if x > 1 or few < _FEW:
    return choose_(max(k_max, 1))
  return jax.lax.cond(
    k.max() <= few, lambda: choose_(few), lambda: choose_(k_max)
  )


def _shared(
  score, open_, k, most: int, size: int, q: int, h: int
) -> tuple[types.Visits, types.Array]:
  """Visits of one token whose groups share a choice: no union to take.

  Args:
    score: float32 [B, 1, n, R].
    open_: bool [B, 1, R].
    k: int32 [B, 1].
    most: static; no k is above it.
    size: static; the length of the lists, at least 1.
    q: query heads.
    h: KV heads.
  """
  chosen = routing.select(score, open_, k, most)
  # XLA sorts once for both.
  members = routing.members(score, open_, k, most)
  ids = jnp.repeat(chosen.ids[:, 0], h // score.shape[2], axis=1)
  ids = jnp.pad(ids, ((0, 0), (0, 0), (0, max(size - most, 0))))
  visits = types.Visits(
    ids=ids,
    rows=_every_row(ids, q // h),
    count=jnp.broadcast_to(k, ids.shape[:2]),
  )
  return visits, routing.per_head(members, q)


def _all_pages(step: Step) -> types.Visits:
  """Every page up to the last that holds something, for every row."""
  b, x, q, _ = step.query.shape
  h, r = step.visual.descriptors.shape[-3], step.visual.valid.shape[1]
  ids = jnp.broadcast_to(jnp.arange(r, dtype=jnp.int32), (b, h, r))
  last = (step.open[:, :1] * (ids[:, :1] + 1)).max(axis=-1)  # [B, 1]
  return types.Visits(
    ids=ids,
    rows=_every_row(ids, x * q // h),
    count=jnp.broadcast_to(last, (b, h)),
  )


def _every_row(ids: types.Array, rows: int) -> types.Array:
  """`Visits.rows` where all rows of a KV head read what is listed."""
  return jnp.full((*ids.shape[:2], -(-rows // 32), ids.shape[2]), -1)


def _in_place(step: Step, members: types.Array) -> types.Attended:
  """Attention over all pages under a mask, for when all may be read."""
  mask = members[..., None] & step.visual.valid[:, None, None]
  mask = mask.reshape(*members.shape[:3], -1).transpose(0, 2, 1, 3)
  k, v = (in_order(step, x) for x in (step.visual.k, step.visual.v))
  return attention.attend(step.query, k, v, mask)


def specs(page: shard.P) -> types.VisualCache:
  """How a cache lies on a mesh, given how its pages do; see `shard.local`."""
  return types.VisualCache(page, page, page, shard.ROWS, shard.ROWS)
