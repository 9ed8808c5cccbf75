"""The parallel form when visual tokens see no other unit's: linear in units.

A unit's rows look at the window of slots that their unit can span, and at the
text and context keys before it, which are few. Text rows are gathered and
look at everything, under the region test.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.ops import attention
from gaze_jax.ops import masks
from gaze_jax.ops import merge
from gaze_jax.ops import rows


def attend(inputs: rows.Inputs, chunk: int, unit_span: int) -> rows.Rows:
  """All rows, `chunk` at a time.

  Args:
    inputs: of the layer, with `visual_attention = "own_unit"`.
    chunk: rows, and keys, of a chunk.
    unit_span: visual and context tokens of the largest unit.
  """
  layout, inputs = inputs.plan.layout, rows.finite(inputs)
  s = layout.role.shape[1]
  text = layout.role == types.Role.TEXT
  order = jnp.argsort(~text, axis=1, stable=True)
  sees = rows.join(
    [
      _if_any(
        text.sum(axis=1) > start,
        functools.partial(
          rows.routed_rows, inputs, order[:, start : start + chunk], s
        ),
        rows.no_rows(inputs, min(chunk, s - start)),
      )
      for start in range(0, s, chunk)
    ]
  )
  back = jnp.argsort(order, axis=1)
  out = jnp.where(
    text[..., None, None],
    rows.take(sees.out, back),
    unit_rows(inputs, chunk, unit_span),
  )
  return dataclasses.replace(
    sees, out=out, members=rows.take(sees.members, back)
  )


def unit_rows(inputs: rows.Inputs, chunk: int, unit_span: int) -> types.Array:
  """[B, S, Q, D], of use at VISUAL and CONTEXT slots; see `attend`."""
  s = inputs.query.shape[1]
  inputs = inputs if inputs.lost else rows.finite(inputs)
  far = _linear_keys(inputs, chunk)
  runs = [range(i, min(i + chunk, s)) for i in range(0, s, chunk)]
  return jnp.concatenate(
    [_unit_rows(inputs, far, run, unit_span) for run in runs], axis=1
  )


def _if_any(flags: types.Array, run, otherwise: rows.Rows) -> rows.Rows:
  return jax.lax.cond(flags.any(), run, lambda: otherwise)


@dataclasses.dataclass(frozen=True)
class _Linear:
  """TEXT and CONTEXT keys in chunks: [chunks, B, chunk, ...] each."""

  key: types.Array
  value: types.Array
  lost: types.Array
  slots: types.Array
  layout: types.Layout


def _linear_keys(inputs: rows.Inputs, chunk: int) -> _Linear:
  layout = inputs.plan.layout
  b, s = layout.role.shape
  slots = inputs.plan.order
  room = -s % chunk

  def cut(x):
    x = rows.take(x, slots)
    x = jnp.pad(x, ((0, 0), (0, room), *((0, 0),) * (x.ndim - 2)))
    return x.reshape(b, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

  own = jnp.broadcast_to(jnp.arange(s, dtype=jnp.int32), (b, s))
  return _Linear(  # padding has role PAD
    *map(cut, (inputs.key, inputs.value, inputs.lost[1], own)),
    jax.tree.map(cut, layout),
  )


def _unit_rows(
  inputs: rows.Inputs, far: _Linear, slots: range, span: int
) -> types.Array:
  """VISUAL and CONTEXT rows, [B, X, Q, D]; others come out as anything."""
  layout = inputs.plan.layout
  mine = jax.tree.map(lambda x: rows.take(x, slots), layout)
  at = rows.as_array(slots)
  query = rows.take(inputs.query, slots)
  see = functools.partial(masks.visible, mine, query_slots=at, own_unit=True)
  inside = lambda keys: mine.unit[:, :, None] == keys.unit[:, None, :]

  def near() -> types.Attended:
    window = range(max(0, slots.start - span), slots.stop)
    keys = jax.tree.map(lambda x: rows.take(x, window), layout)
    seen = see(keys, key_slots=rows.as_array(window)) & inside(keys)
    k, v = (rows.take(x, window) for x in (inputs.key, inputs.value))
    lost = rows.lost(inputs, slots, window)
    return attention.attend(query, k, v, seen[:, None], lost=lost)

  def further(so_far: types.Attended, chunk) -> tuple[types.Attended, None]:
    key, value, of_key, key_slots, keys = chunk
    text = (keys.role == types.Role.TEXT) | (keys.role == types.Role.CONTEXT)
    seen = see(keys, key_slots=key_slots) & text[:, None]
    seen &= ~inside(keys) & unit[..., None]
    lost = rows.take(inputs.lost[0], slots), of_key
    look = lambda: merge.merge(
      so_far, attention.attend(query, key, value, seen[:, None], lost=lost)
    )
    return jax.lax.cond(seen.any(), look, lambda: so_far), None

  unit = (mine.role == types.Role.VISUAL) | (mine.role == types.Role.CONTEXT)

  def look() -> types.Array:
    chunks = (far.key, far.value, far.lost, far.slots, far.layout)
    return jax.lax.scan(further, near(), chunks)[0].out

  b, x, q, d = query.shape
  nothing = lambda: jnp.zeros((b, x, q, d), inputs.value.dtype)
  return jax.lax.cond(unit.any(), look, nothing)
