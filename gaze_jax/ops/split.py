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
  choice = rows.choose(inputs, plan.order)
  query, key, value = (
    rows.permute(x, plan.order, plan.rank)
    for x in (inputs.query, inputs.key, inputs.value)
  )
  looked = _in_slabs(
    attend_regions,
    query,
    _pages(inputs.key, plan),
    _pages(inputs.value, plan),
    (plan.region_slots >= 0).sum(-1, dtype=jnp.int32),
    _read(inputs, choice, plan.order),
  )
  near = _among_themselves(query, key, value, plan, chunk)
  text = merge.merge(looked, near).out
  text = rows.permute(text, plan.rank, plan.order)
  visual = (plan.layout.role == types.Role.VISUAL)[..., None, None]
  return rows.Rows(
    out=jnp.where(visual, visual_rows(inputs), text),
    members=rows.take(choice.members, plan.rank),
    loss=rows.no_loss(inputs),
  )


@jax.custom_vjp
def _pages(x: types.Array, plan: types.Plan) -> types.Array:
  """`regions.pages`, whose gradient is a gather as well; see `permute`."""
  return regions.pages(x, plan.region_slots)


def _pages_forward(x, plan):
  return _pages(x, plan), plan


def _pages_backward(plan, gradient):
  b, h, r, l, d = gradient.shape
  region = plan.layout.region
  flat = gradient.transpose(0, 2, 3, 1, 4).reshape(b, r * l, h, d)
  own = rows.take(flat, jnp.maximum(region * l + plan.place, 0))
  return jnp.where((region >= 0)[..., None, None], own, 0), None


_pages.defvjp(_pages_forward, _pages_backward)


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

  slabs = cut(query, SLAB), cut(members, SLAB)
  return join(jax.lax.scan(one, None, slabs)[1], s)


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
  q: types.Array,
  k: types.Array,
  v: types.Array,
  plan: types.Plan,
  chunk: int,
) -> types.Attended:
  """Text and context rows, at their keys; chunks that have none are skipped.

  The gathered rows are as many as the sequence, and mostly nothing at the end.
  One loop over chunks, each of which looks at all keys: a program of chunks
  that look at earlier keys alone would be as many times as large.
  """
  slots = plan.order
  layout = jax.tree.map(lambda x: rows.take(x, slots), plan.layout)
  linear = (layout.role == types.Role.TEXT) | (
    layout.role == types.Role.CONTEXT
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
  parts = jax.tree.map(lambda x: cut(x, chunk), parts)
  _, looked = jax.lax.scan(one, None, parts)
  return join(looked, q.shape[1])


def cut(x: types.Array, size: int) -> types.Array:
  """[B, S, ...] to [S / size, B, size, ...], filled up with zeros."""
  b, s = x.shape[:2]
  x = jnp.pad(x, ((0, 0), (0, -s % size), *((0, 0),) * (x.ndim - 2)))
  return x.reshape(b, -1, size, *x.shape[2:]).swapaxes(0, 1)


def join(parts, count: int):
  """The way back from `cut`, of each array of a tree."""

  def join(x):
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :count]

  return jax.tree.map(join, parts)
