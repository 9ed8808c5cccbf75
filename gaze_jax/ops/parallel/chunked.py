"""The parallel form in chunks, in plain XLA on any device.

Queries are taken in reading order, so a chunk looks at no later key. A chunk
that holds no routed query skips the region test: it is standard causal
attention.

When visual tokens see no other unit's (`visual_attention = "own_unit"`), time
is linear in units: a unit's queries look at the window of slots that their unit
can span, and at the text and context keys before it, which are few. Text
queries are gathered and look at everything, under the region test.
"""

import dataclasses
import functools
from types import ModuleType

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.ops import chunks
from gaze_jax.ops import masks
from gaze_jax.ops.parallel import inputs as inputs_lib
from gaze_jax.ops.parallel import masked


def attend(inputs: inputs_lib.Inputs, chunk: int) -> inputs_lib.Result:
  """All queries, `chunk` at a time."""
  s = inputs.query.shape[1]
  if chunk >= s:
    return masked.attend(inputs)
  inputs, parts = inputs_lib.finite(inputs), []
  for start in range(0, s, chunk):
    slots = range(start, min(start + chunk, s))
    tested = functools.partial(masked.attend_some, inputs, slots, slots.stop)
    plain = functools.partial(_unrouted, inputs, slots)
    if inputs.dense is True:
      members = inputs_lib.choose(inputs, slots).members
      parts.append(dataclasses.replace(plain(), members=members))
    else:
      any_ = inputs.plan.routed[:, start : slots.stop].any()
      parts.append(jax.lax.cond(any_, tested, plain))
  return inputs_lib.join(parts)


def _unrouted(inputs: inputs_lib.Inputs, slots: range) -> inputs_lib.Result:
  """Queries of which none is routed: standard causal attention."""
  stop = slots.stop
  out = attention.attend(
    inputs_lib.take(inputs.query, slots),
    inputs.key[:, :stop],
    inputs.value[:, :stop],
    inputs_lib.visible(inputs, slots, stop)[:, None],
    lost=inputs_lib.lost(inputs, slots, range(stop)),
  ).out
  return dataclasses.replace(inputs_lib.nothing(inputs, len(slots)), out=out)


def attend_own_unit(
  inputs: inputs_lib.Inputs, chunk: int, unit_span: int
) -> inputs_lib.Result:
  """All queries, `chunk` at a time, in time that is linear in units.

  Args:
    inputs: of the layer, with `visual_attention = "own_unit"`.
    chunk: queries, and keys, of a chunk.
    unit_span: visual and context tokens of the largest unit.
  """
  inputs = inputs_lib.finite(inputs)
  text = inputs.plan.layout.role == types.Role.TEXT
  return _gathered(inputs, chunk, text, own_unit(inputs, chunk, unit_span))


def attend_beside(
  inputs: inputs_lib.Inputs, chunk: int, form: ModuleType
) -> inputs_lib.Result:
  """All queries: those of plain causal attention by a form for them.

  That are VISUAL, and of a trunk's TEXT what chooses no regions: all of it, in
  a layer that is dense. The others are gathered, `chunk` at a time.

  Args:
    inputs: of the layer, with `visual_attention = "causal"`.
    chunk: queries of a chunk.
    form: such as `attend_visual_gpu`, of use at all slots of a trunk.
  """
  if not isinstance(inputs.dense, bool):
    layer = lambda dense: attend_beside(
      dataclasses.replace(inputs, dense=dense), chunk, form
    )
    return jax.lax.cond(inputs.dense, lambda: layer(True), lambda: layer(False))
  layout = inputs.plan.layout
  out = form.attend_visual(inputs.query, inputs.key, inputs.value, layout)
  apart = layout.branch != 0
  if not inputs.dense:
    apart |= inputs.plan.routed
  apart = (layout.role == types.Role.TEXT) & apart
  apart |= layout.role == types.Role.CONTEXT
  result = _gathered(inputs_lib.finite(inputs), chunk, apart, out)
  if not inputs.dense:
    return result
  members = inputs_lib.choose(inputs, range(out.shape[1])).members
  return dataclasses.replace(result, members=members)


def _gathered(
  inputs: inputs_lib.Inputs, chunk: int, apart: types.Array, out: types.Array
) -> inputs_lib.Result:
  """Queries that are gathered, and look at everything, `chunk` at a time.

  Args:
    inputs: of the layer, from `finite`.
    chunk: queries of a chunk.
    apart: bool [B, S], which queries.
    out: [B, S, Q, D], of the others, which choose nothing.
  """
  s = apart.shape[1]
  order = jnp.argsort(~apart, axis=1, stable=True)
  parts = []
  for start in range(0, s, chunk):
    slots = order[:, start : start + chunk]
    look = functools.partial(masked.attend_some, inputs, slots, s)
    none = inputs_lib.nothing(inputs, slots.shape[1])
    any_ = (apart.sum(axis=1) > start).any()
    parts.append(jax.lax.cond(any_, look, lambda none=none: none))
  sees, back = inputs_lib.join(parts), jnp.argsort(order, axis=1)
  mine = inputs_lib.take(sees.out, back)
  return dataclasses.replace(
    sees,
    out=jnp.where(apart[..., None, None], mine, out),
    members=inputs_lib.take(sees.members, back),
  )


def own_unit(
  inputs: inputs_lib.Inputs, chunk: int, unit_span: int
) -> types.Array:
  """[B, S, Q, D], of use at VISUAL and CONTEXT slots."""
  s = inputs.query.shape[1]
  inputs = inputs if inputs.lost else inputs_lib.finite(inputs)
  far = _linear_keys(inputs, chunk)
  runs = [range(i, min(i + chunk, s)) for i in range(0, s, chunk)]
  return jnp.concatenate(
    [_own_unit_some(inputs, far, run, unit_span) for run in runs], axis=1
  )


@dataclasses.dataclass(frozen=True)
class _Linear:
  """TEXT and CONTEXT keys in chunks: [chunks, B, chunk, ...] each."""

  key: types.Array
  value: types.Array
  lost: types.Array
  slots: types.Array
  layout: types.Layout


def _linear_keys(inputs: inputs_lib.Inputs, chunk: int) -> _Linear:
  layout, order = inputs.plan.layout, inputs.plan.order
  own = jnp.broadcast_to(
    jnp.arange(order.shape[1], dtype=jnp.int32), order.shape
  )
  cut = lambda x: chunks.split(inputs_lib.take(x, order), chunk)
  return _Linear(  # padding has role PAD
    *map(cut, (inputs.key, inputs.value, inputs.lost[1], own)),
    jax.tree.map(cut, layout),
  )


def _own_unit_some(
  inputs: inputs_lib.Inputs, far: _Linear, slots: range, span: int
) -> types.Array:
  """VISUAL and CONTEXT queries, [B, X, Q, D]; others come out as anything."""
  layout = inputs.plan.layout
  mine = jax.tree.map(lambda x: inputs_lib.take(x, slots), layout)
  at = inputs_lib.as_array(slots)
  query = inputs_lib.take(inputs.query, slots)
  see = functools.partial(masks.visible, mine, query_slots=at, own_unit=True)
  inside = lambda keys: mine.unit[:, :, None] == keys.unit[:, None, :]

  def near() -> types.Attended:
    window = range(max(0, slots.start - span), slots.stop)
    keys = jax.tree.map(lambda x: inputs_lib.take(x, window), layout)
    seen = see(keys, key_slots=inputs_lib.as_array(window)) & inside(keys)
    k, v = (inputs_lib.take(x, window) for x in (inputs.key, inputs.value))
    lost = inputs_lib.lost(inputs, slots, window)
    return attention.attend(query, k, v, seen[:, None], lost=lost)

  def further(so_far: types.Attended, chunk) -> tuple[types.Attended, None]:
    key, value, of_key, key_slots, keys = chunk
    text = (keys.role == types.Role.TEXT) | (keys.role == types.Role.CONTEXT)
    seen = see(keys, key_slots=key_slots) & text[:, None]
    seen &= ~inside(keys) & unit[..., None]
    lost = inputs_lib.take(inputs.lost[0], slots), of_key
    look = lambda: attention.merge(
      so_far, attention.attend(query, key, value, seen[:, None], lost=lost)
    )
    return jax.lax.cond(seen.any(), look, lambda: so_far), None

  unit = (mine.role == types.Role.VISUAL) | (mine.role == types.Role.CONTEXT)

  def look() -> types.Array:
    keys = (far.key, far.value, far.lost, far.slots, far.layout)
    return jax.lax.scan(further, near(), keys)[0].out

  b, x, q, d = query.shape
  nothing = lambda: jnp.zeros((b, x, q, d), inputs.value.dtype)
  return jax.lax.cond(unit.any(), look, nothing)
