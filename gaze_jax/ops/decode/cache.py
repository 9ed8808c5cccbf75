"""The cache of a row: pages of visual tokens, and a line of text and context.

row      t0 v0 v1 v2 v3 c0 t1 t2 PAD
visual   pages of regions: [v0 v1] [v2 v3], never touched again
linear   t0 c0 t1 t2 .  .  .         length = 4, new tokens go to slot 4
"""

import dataclasses

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.parallel import shard

# How a visual cache is sharded; see `shard.local`.
ALL_LAYERS = types.VisualCache(
  k=shard.LAYERS,
  v=shard.LAYERS,
  descriptors=shard.LAYERS,
  valid=shard.ROWS,
  unit=shard.ROWS,
)
# And that of a whole row.
SHARDING = types.DecodeCache(
  visual=ALL_LAYERS,
  k=shard.LAYERS,
  v=shard.LAYERS,
  length=shard.ROWS,
  position=shard.ROWS,
  choice=shard.LAYERS,
)


def constrain(cache: types.DecodeCache) -> types.DecodeCache:
  """Fixes how a cache is sharded over the mesh, if there is one."""
  names = SHARDING
  if cache.visual is None:
    names = dataclasses.replace(names, visual=None)
  return shard.constrain_tree(cache, names)


def plain(pages: types.Array, length: int, dim: int) -> types.Array:
  """Pages [B, H, R, L, D], however they are stored.

  Args:
    pages: [B, H, R, *page], of one layer.
    length: L.
    dim: D.
  """
  flat = pages.reshape(*pages.shape[:3], -1, pages.shape[-1])
  return flat[..., :length, :dim]


def append(
  buffer: types.Float[types.Array, "N B H Y D"],
  new: types.Float[types.Array, "N B X H D"],
  length: types.Int[types.Array, " B"],
) -> types.Float[types.Array, "N B H Y D"]:
  """Writes new keys or values of all layers behind each row's filled slots.

  In place where `buffer` is donated.

  Args:
    buffer: [N, B, H, Y, D].
    new: [N, B, X, H, D].
    length: int32 [B].
  """
  write = jax.vmap(
    lambda row, x, at: jax.lax.dynamic_update_slice(row, x, (0, at, 0))
  )
  # Layers outside, as they are stored: with rows outside, XLA would turn the
  # buffer over.
  of_layers = jax.vmap(write, in_axes=(0, 0, None))
  return of_layers(buffer, new.swapaxes(2, 3).astype(buffer.dtype), length)


def put_context(
  buffer: types.Float[types.Array, "N B H Y D"],
  new: types.Float[types.Array, "N B X H D"],
  layout: types.Layout,
  length: types.Int[types.Array, " B"],
) -> types.Float[types.Array, "N B H Y D"]:
  """Writes the CONTEXT slots of a chunk behind each row's filled slots."""
  context = layout.role == types.Role.CONTEXT
  place = length[:, None] + jnp.cumsum(context, axis=1) - 1
  place = jnp.where(context, place, buffer.shape[3])  # dropped
  rows = jnp.arange(buffer.shape[1])[:, None]
  # The indexed axes come first: [B, X, N, H, D].
  return buffer.at[:, rows, :, place].set(
    new.transpose(1, 2, 0, 3, 4).astype(buffer.dtype), mode="drop"
  )


def put_pages(
  pages: types.Array,
  new: types.Float[types.Array, "N B X H D"],
  chunk: types.Chunk,
) -> types.Array:
  """Writes the VISUAL slots of a chunk to their places in their pages.

  Args:
    pages: [N, B, H, R, *page].
    new: [N, B, X, H, D], keys or values of the chunk.
    chunk: `Chunk` of [B, X].
  """
  visual = chunk.layout.role == types.Role.VISUAL
  region = jnp.where(visual, chunk.layout.region, pages.shape[3])  # dropped
  rows = jnp.arange(pages.shape[1])[:, None]
  at = (slice(None), rows, slice(None), region, chunk.index)
  if pages.ndim == 7:
    tile = pages.shape[5]
    at = (*at[:-1], chunk.index // tile, chunk.index % tile)
    room = pages.shape[6] - new.shape[4]
    new = jnp.pad(new, ((0, 0),) * 4 + ((0, room),))
  return pages.at[at].set(
    new.transpose(1, 2, 0, 3, 4).astype(pages.dtype), mode="drop"
  )
