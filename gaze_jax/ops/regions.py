"""Between a row's slots and its regions."""

import jax
import jax.numpy as jnp

from gaze_jax import types


def one_hot(
  region: types.Int[types.Array, "B Y"], regions: int
) -> types.Float[types.Array, "B R Y"]:
  """float32 [B, R, Y], 1 where slot y holds a token of region r.

  Args:
    region: int32 [B, Y], -1 on slots outside every region.
    regions: R.
  """
  ids = jnp.arange(regions, dtype=jnp.int32)
  return (region[:, None, :] == ids[:, None]).astype(jnp.float32)


def mean_keys(
  key: types.Float[types.Array, "B Y H D"],
  members: types.Float[types.Array, "B R Y"],
) -> types.Float[types.Array, "B H R D"]:
  """Descriptor of each region: the mean of its keys (METHOD.md section 1).

  Args:
    key: [B, Y, H, D], post-RoPE.
    members: float32 [B, R, Y] from `one_hot`.

  Returns:
    float32 [B, H, R, D]; 0 for a region without tokens.
  """
  total = jnp.einsum(
    "bry,byhd->bhrd",
    members,
    key.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  count = members.sum(axis=-1)
  return total / jnp.maximum(count, 1.0)[:, None, :, None]


def ends(
  region_slots: types.Int[types.Array, "B R L"],
) -> types.Int[types.Array, "B R"]:
  """int32 [B, R], the slot after each region's last token; 0 if it has none.

  Args:
    region_slots: int32 [B, R, L], -1 where padded.
  """
  return region_slots.max(axis=-1) + 1


def segments(
  segment: types.Int[types.Array, "B S"],
  region_slots: types.Int[types.Array, "B R L"],
) -> types.Int[types.Array, "B R"]:
  """int32 [B, R], the segment that each region lies in; -1 if it is empty."""
  first = region_slots[..., 0]
  found = jnp.take_along_axis(segment, jnp.maximum(first, 0), axis=1)
  return jnp.where(first >= 0, found, -1)


def pages(
  x: types.Float[types.Array, "B S H D"],
  region_slots: types.Int[types.Array, "B R L"],
) -> types.Float[types.Array, "B H R L D"]:
  """Copies keys or values into region-major pages.

  Args:
    x: [B, S, H, D].
    region_slots: int32 [B, R, L], -1 where padded.

  Returns:
    [B, H, R, L, D], 0 where padded.
  """
  b, r, l = region_slots.shape
  slots = jnp.maximum(region_slots, 0).reshape(b, r * l, 1, 1)
  page = jnp.take_along_axis(x, slots, axis=1).reshape(b, r, l, *x.shape[2:])
  page = jnp.where((region_slots >= 0)[..., None, None], page, 0)
  return page.transpose(0, 3, 1, 2, 4)
