"""The parallel form over the cache's pages, for a kernel that visits few.

Text and context queries are gathered. They look at each other here, and at the
visual pages through a kernel that visits the chosen regions alone; the two are
merged by log-sum-exp, as in decoding. Visual queries, which choose nothing,
come from a standard causal form.
"""

import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.kernels import backends
from gaze_jax.ops import chunks
from gaze_jax.ops import masks
from gaze_jax.ops import regions
from gaze_jax.ops import routing
from gaze_jax.ops.parallel import chunked
from gaze_jax.ops.parallel import inputs as inputs_lib

# Queries of a kernel call: bounds the memory that it takes.
SLAB = 2048


def attend(
  inputs: inputs_lib.Inputs, form: ModuleType, chunk: int, unit_span: int
) -> inputs_lib.Result:
  """All queries.

  Args:
    inputs: of the layer.
    form: of `backends.ATTEND_REGIONS`.
    chunk: text and context queries that look at each other at a time.
    unit_span: visual and context tokens of the largest unit.
  """
  spans = inputs.config.region[2] > 1  # a page may be of several units
  slots = inputs.plan.region_slots
  # The kernel would copy pages of another length.
  room = form.page_length(slots.shape[2]) - slots.shape[2]
  slots = jnp.pad(slots, ((0, 0), (0, 0), (0, room)), constant_values=-1)
  plan = dataclasses.replace(inputs.plan, region_slots=slots)
  inputs = dataclasses.replace(inputs, plan=plan)
  choice = inputs_lib.choose(inputs, plan.order)
  query, key, value = (
    inputs_lib.permute(x, plan.order, plan.rank)
    for x in (inputs.query, inputs.key, inputs.value)
  )
  looked = _in_slabs(
    form,
    query,
    _pages(inputs.key, plan),
    _pages(inputs.value, plan),
    (plan.region_slots >= 0).sum(-1, dtype=jnp.int32),
    _read(inputs, choice, plan.order, by_pages=not spans),
  )
  near = _among_themselves(query, key, value, plan, chunk)
  text = attention.merge(looked, near).out
  text = inputs_lib.permute(text, plan.rank, plan.order)
  is_ = lambda role: (plan.layout.role == role)[..., None, None]
  visual = _visual(inputs, chunk, unit_span)
  out = jnp.where(is_(types.Role.VISUAL), visual, text)
  if spans:
    own = chunked.own_unit(inputs, chunk, unit_span)
    out = jnp.where(is_(types.Role.CONTEXT), own, out)
  return inputs_lib.Result(
    out=out,
    members=inputs_lib.take(choice.members, plan.rank),
    loss=inputs_lib.no_loss(inputs),
  )


def _visual(
  inputs: inputs_lib.Inputs, chunk: int, unit_span: int
) -> types.Array:
  """[B, S, Q, D], of use at VISUAL slots."""
  if inputs.config.visual_attention == "own_unit":
    return chunked.own_unit(inputs, chunk, unit_span)
  form = backends.best(backends.ATTEND_VISUAL)
  return form.attend_visual(
    inputs.query, inputs.key, inputs.value, inputs.plan.layout
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
  own = inputs_lib.take(flat, jnp.maximum(region * l + plan.place, 0))
  return jnp.where((region >= 0)[..., None, None], own, 0), None


_pages.defvjp(_pages_forward, _pages_backward)


def _in_slabs(form: ModuleType, query, k, v, length, members) -> types.Attended:
  """`attend_regions` of SLAB queries at a time, where any of them reads.

  The gathered ones are as many as the sequence, and mostly none at the end.
  """
  attend_regions = form.attend_regions
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

  slabs = chunks.split(query, SLAB), chunks.split(members, SLAB)
  return chunks.join(jax.lax.scan(one, None, slabs)[1], s)


def _read(
  inputs: inputs_lib.Inputs,
  choice: inputs_lib.Choice,
  slots: types.Array,
  *,
  by_pages: bool,
) -> types.Array:
  """bool [B, X, Q, R], the regions read by queries of any kind.

  TEXT reads what it chose, or everything in sight if it is not routed;
  CONTEXT reads its own unit where the pages are of one unit (`by_pages`), else
  nothing here; VISUAL and PAD read nothing here.
  """
  plan = inputs.plan
  role, unit = inputs_lib.take(plan.layout.role, slots), plan.layout.unit
  sight = routing.available(
    inputs_lib.take(plan.layout.segment, slots), slots, plan.segment, plan.end
  )
  free = (role == types.Role.TEXT) & ~inputs_lib.take(plan.routed, slots)
  whole = sight & free[..., None]
  if by_pages:
    own = inputs_lib.take(unit, slots)[:, :, None] == plan.unit[:, None]
    whole |= (role == types.Role.CONTEXT)[..., None] & own
  chosen = routing.per_head(choice.members, inputs.query.shape[2])
  return chosen | whole[:, :, None]


def _among_themselves(
  q: types.Array,
  k: types.Array,
  v: types.Array,
  plan: types.Plan,
  chunk: int,
) -> types.Attended:
  """Text and context queries, at their keys; chunks without any are skipped.

  The gathered ones are as many as the sequence, and mostly none at the end.
  One loop over chunks, each of which looks at all keys: a program of chunks
  that look at earlier keys alone would be as many times as large.
  """
  slots = plan.order
  layout = jax.tree.map(lambda x: inputs_lib.take(x, slots), plan.layout)
  linear = (layout.role == types.Role.TEXT) | (
    layout.role == types.Role.CONTEXT
  )

  @jax.checkpoint  # keeps no weights of queries x keys for the backward pass
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
  parts = jax.tree.map(lambda x: chunks.split(x, chunk), parts)
  _, looked = jax.lax.scan(one, None, parts)
  return chunks.join(looked, q.shape[1])
