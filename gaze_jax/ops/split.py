"""The parallel form with its rows split, for kernels over the cache's pages.

Text and context rows are gathered. They look at each other here, and at the
visual pages through a kernel that visits the chosen regions alone; the two
are merged by log-sum-exp, as in decoding. Visual rows, which choose nothing,
come from a standard causal form.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.ops import attention
from gaze_jax.ops import cache
from gaze_jax.ops import masks
from gaze_jax.ops import merge
from gaze_jax.ops import regions
from gaze_jax.ops import routing
from gaze_jax.ops import rows

# Rows of a kernel call: bounds the memory that it takes.
SLAB = 2048

# (query [B, X, Q, D], k, v [B, H, R, L, D], length [B, R], members
# [B, X, Q, R]) -> Attended, differentiable in query, k and v.
Regions = Callable[..., types.Attended]


def attend(
  inputs: rows.Inputs,
  chunk: int,
  attend_regions: Regions,
  visual_rows: Callable[[rows.Inputs], types.Array],
) -> rows.Rows:
  """All rows.

  Args:
    inputs: of the layer.
    chunk: text and context rows that look at each other at a time.
    attend_regions: attention to the pages of chosen regions.
    visual_rows: [B, S, Q, D] of `inputs`, of use at VISUAL slots.
  """
  plan = inputs.plan
  s = plan.layout.role.shape[1]
  slots = cache.linear_slots(plan.layout, s)
  choice = rows.choose(inputs, slots)
  looked = _in_slabs(
    attend_regions,
    rows.take(inputs.query, slots),
    regions.pages(inputs.key, plan.region_slots),
    regions.pages(inputs.value, plan.region_slots),
    (plan.region_slots >= 0).sum(-1, dtype=jnp.int32),
    _read(inputs, choice, slots),
  )
  out = merge.merge(looked, _among_themselves(inputs, slots, chunk)).out
  back = jnp.argsort(slots, axis=1)
  visual = (plan.layout.role == types.Role.VISUAL)[..., None, None]
  return rows.Rows(
    out=jnp.where(visual, visual_rows(inputs), rows.take(out, back)),
    members=rows.take(choice.members, back),
    loss=rows.no_loss(inputs),
  )


def _in_slabs(
  attend_regions: Regions, query, k, v, length, members
) -> types.Attended:
  """`attend_regions` of SLAB rows at a time, where any of them reads.

  The gathered rows are as many as the sequence, and mostly nothing at the end.
  """
  b, s, q, d = query.shape
  if s <= SLAB:
    return attend_regions(query, k, v, length, members)

  nothing = types.Attended(
    out=jnp.zeros((b, SLAB, q, d), v.dtype),
    lse=jnp.full((b, SLAB, q), -jnp.inf),
  )

  def one(carry, slab):
    query, members = slab
    look = lambda: attend_regions(query, k, v, length, members)
    return carry, jax.lax.cond(members.any(), look, lambda: nothing)

  slabs = _cut(query, SLAB), _cut(members, SLAB)
  return _join(jax.lax.scan(one, None, slabs)[1], s)


def _read(
  inputs: rows.Inputs, choice: rows.Choice, slots: types.Array
) -> types.Array:
  """bool [B, X, Q, R], the regions read by rows of any kind.

  TEXT reads what it chose, or everything in sight if it is not routed;
  CONTEXT reads its own unit; VISUAL and PAD read nothing here.
  """
  plan = inputs.plan
  role, unit = rows.take(plan.layout.role, slots), plan.layout.unit
  sight = routing.available(
    rows.take(plan.layout.segment, slots), slots, plan.segment, plan.end
  )
  free = (role == types.Role.TEXT) & ~rows.take(plan.routed, slots)
  own = rows.take(unit, slots)[:, :, None] == plan.unit[:, None]
  context = (role == types.Role.CONTEXT)[..., None] & own
  whole = (sight & free[..., None]) | context
  chosen = routing.per_head(choice.members, inputs.query.shape[2])
  return chosen | whole[:, :, None]


def _among_themselves(
  inputs: rows.Inputs, slots: types.Array, chunk: int
) -> types.Attended:
  """Text and context rows, at their keys; chunks that have none are skipped.

  The gathered rows are as many as the sequence, and mostly nothing at the end.
  One loop over chunks, each of which looks at all keys: a program of chunks
  that look at earlier keys alone would be as many times as large.
  """
  layout = jax.tree.map(lambda x: rows.take(x, slots), inputs.plan.layout)
  linear = (layout.role == types.Role.TEXT) | (
    layout.role == types.Role.CONTEXT
  )
  q, k, v = (
    rows.take(x, slots) for x in (inputs.query, inputs.key, inputs.value)
  )

  @jax.checkpoint  # keeps no weights of rows x keys for the backward pass
  def look(q, k, v, of):
    layout_, slots_, linear_ = of
    mask = masks.visible(layout_, layout, slots_, slots)
    mask &= linear_[..., None] & linear[:, None]
    return attention.attend(q, k, v, mask[:, None])

  def none(q, k, v, of):
    del k, of
    lse = jnp.full(q.shape[:3], -jnp.inf)
    return types.Attended(out=jnp.zeros(q.shape, v.dtype), lse=lse)

  def one(carry, part):
    q, of = part
    return carry, jax.lax.cond(of[2].any(), look, none, q, k, v, of)

  parts = (q, (layout, slots, linear))
  parts = jax.tree.map(lambda x: _cut(x, chunk), parts)
  _, looked = jax.lax.scan(one, None, parts)
  return _join(looked, q.shape[1])


def _cut(x: types.Array, size: int) -> types.Array:
  """[B, S, ...] to [S / size, B, size, ...], filled up with zeros."""
  b, s = x.shape[:2]
  x = jnp.pad(x, ((0, 0), (0, -s % size), *((0, 0),) * (x.ndim - 2)))
  return x.reshape(b, -1, size, *x.shape[2:]).swapaxes(0, 1)


def _join(parts: types.Attended, count: int) -> types.Attended:
  """The way back from `_cut`."""

  def join(x):
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :count]

  return jax.tree.map(join, parts)
