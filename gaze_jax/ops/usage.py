"""What attention read: the first two figures of docs/method.md, section 8."""

import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.ops import masks
from gaze_jax.ops import routing


def count(
  members: types.Bool[types.Array, "B S Q R"], plan: types.Plan, kv_heads: int
) -> types.Usage:
  """Counts the visual KV entries that the routed queries of a row read.

  Args:
    members: bool [B, S, Q, R] from `gaze.parallel`.
    plan: `Plan` of the batch.
    kv_heads: H.
  """
  b, s, q, r = members.shape
  size = (plan.region_slots >= 0).sum(-1).astype(jnp.float32)  # [B, R]
  slots = jnp.arange(s)[None]
  open_ = routing.available(plan.layout.segment, slots, plan.segment, plan.end)
  routed = routing.choosing(plan)  # [B, S]
  context = (
    masks.visible(plan.layout, plan.layout, slots, slots)
    & (plan.layout.role == types.Role.CONTEXT)[:, None]
  )
  context = context.sum(-1).astype(jnp.float32)  # [B, S]
  read = lambda m: jnp.einsum("bxnr,br->bxn", m.astype(jnp.float32), size)
  chosen = read(members).mean(-1) + context
  group = members.reshape(b, s, kv_heads, q // kv_heads, r).any(axis=3)
  unique = read(group).mean(-1) + context
  visible = jnp.einsum("bxr,br->bx", open_.astype(jnp.float32), size)
  total = lambda n: jnp.where(routed, n, 0.0).sum()
  return types.Usage(
    chosen=total(chosen),
    unique=total(unique),
    visible=total(visible),
    context=total(context),
  )


def of_step(
  chosen: types.Bool[types.Array, "N B Q R"],
  size: types.Float[types.Array, "B R"],
  kv_heads: int,
) -> types.Float[types.Array, "B 2"]:
  """Visual entries that one token's queries read, a mean over the layers.

  Args:
    chosen: bool [N, B, Q, R], the regions read.
    size: float32 [B, R], visual tokens of each region.
    kv_heads: H.

  Returns:
    float32 [B, 2]: entries per query head, and unique entries per KV head;
    context tokens are not among them.
  """
  n, b, q, r = chosen.shape
  group = chosen.reshape(n, b, kv_heads, q // kv_heads, r).any(axis=3)
  read = lambda m: jnp.einsum("nbxr,br->nbx", m.astype(jnp.float32), size)
  each, unique = read(chosen), read(group)
  return jnp.stack([each.mean((0, 2)), unique.mean((0, 2))], axis=-1)
