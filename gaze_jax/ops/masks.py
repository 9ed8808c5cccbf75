"""Who sees whom, before routing (docs/method.md, section 4)."""

import jax.numpy as jnp

from gaze_jax import types


def visible(
  query: types.Layout,
  key: types.Layout,
  query_slots: types.Int[types.Array, "#B X"],
  key_slots: types.Int[types.Array, "#B Y"],
  *,
  own_unit: bool = False,
) -> types.Bool[types.Array, "B X Y"]:
  """Which keys each query may see, if its regions allow it too.

  The whole table is one sentence: a query sees what came before it in its
  segment, in the trunk or its own branch; but a CONTEXT query sees its own
  unit alone (and with `own_unit` a VISUAL query, of visual tokens). For one
  unit of two visual tokens and one context token between text (t), and a
  second branch:

      t0 v0 v1 c0 t1 t1 t2   <- keys
  t0   1  .  .  .  .  .  .
  v0   1  1  .  .  .  .  .
  v1   1  1  1  .  .  .  .
  c0   .  1  1  1  .  .  .
  t1   1  r  r  1  1  .  .   r: only if its region was picked
  t1   1  r  r  1  1  1  .
  t2   1  r  r  1  .  .  1   another branch

  Args:
    query: layout of the queries, [B, X].
    key: layout of the keys, [B, Y].
    query_slots: int32 [B, X] or [1, X], slot of each query.
    key_slots: int32 [B, Y] or [1, Y], slot of each key.
    own_unit: VISUAL queries see no visual token of another unit.

  Returns:
    bool [B, X, Y].
  """
  causal = _pair(query_slots, key_slots, jnp.greater_equal)
  segment = _pair(query.segment, key.segment, jnp.equal)
  filled = (query.role != types.Role.PAD)[:, :, None]
  branch = (key.branch == 0)[:, None, :] | _pair(
    query.branch, key.branch, jnp.equal
  )
  confined = (query.role == types.Role.CONTEXT)[:, :, None]
  if own_unit:
    visual = lambda layout: layout.role == types.Role.VISUAL
    confined |= _pair(visual(query), visual(key), jnp.logical_and)
  unit = ~confined | _pair(query.unit, key.unit, jnp.equal)
  return causal & segment & filled & branch & unit


def _pair(query: types.Array, key: types.Array, compare) -> types.Array:
  return compare(query[:, :, None], key[:, None, :])
