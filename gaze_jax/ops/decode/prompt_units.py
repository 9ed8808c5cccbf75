"""The units of a prompt, some of its slots at a time, before a cache.

No slot of a chunk is routed: VISUAL and CONTEXT slots see all that
docs/method.md, section 4, lets them see. Three sets of keys, merged by
log-sum-exp:

             pages            linear          the chunk itself
  VISUAL     all, or its own  all             causal, or its own
             unit's                           unit's and text
  CONTEXT    its own unit's   none            its own unit's, causal
"""

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.ops import masks
from gaze_jax.ops import regions
from gaze_jax.ops.decode import cache as cache_ops
from gaze_jax.ops.decode import pages
from gaze_jax.parallel import shard

_PAGES = 32  # that a chunk attends to at a time


@shard.local(
  shard.HEADS,
  query=shard.HEADS,
  key=shard.HEADS,
  value=shard.HEADS,
  layout=shard.ROWS,
  cache=cache_ops.SHARDING,
  layer=shard.WHOLE,
)
def attend(
  query: types.Float[types.Array, "B X Q D"],
  key: types.Float[types.Array, "B X H D"],
  value: types.Float[types.Array, "B X H D"],
  layout: types.Layout,
  cache: types.DecodeCache,
  config: config_lib.GazeConfig,
  *,
  layer: types.Int[types.Array, ""],
) -> types.Float[types.Array, "B X Q D"]:
  """Attention of a chunk to what came before it, and to itself.

  Args:
    query: [B, X, Q, D], post-RoPE.
    key: [B, X, H, D], post-RoPE.
    value: [B, X, H, D].
    layout: `Layout` of [B, X], of a `types.Chunk`.
    cache: what came before, all layers.
    config: for `visual_attention`.
    layer: int32 scalar, which layer this is.
  """
  visual, length = cache.visual, cache.length
  nothing = jnp.zeros_like(length)  # no region is chosen here
  lookup = pages.Lookup(query, visual, layer, nothing, config)
  own_unit = config.visual_attention == "own_unit"
  is_visual = (layout.role == types.Role.VISUAL)[:, :, None]
  own_page = layout.unit[:, :, None] == visual.unit[:, None]  # [B, X, R]
  seen_page = own_page if own_unit else own_page | is_visual
  before = _before(lookup, seen_page & visual.valid.any(-1)[:, None])
  filled = jnp.arange(cache.k.shape[3]) < length[:, None, None]
  k, v = (lookup.of_layer(x).transpose(0, 2, 1, 3) for x in (cache.k, cache.v))
  text = attention.attend(query, k, v, (is_visual & filled)[:, None])
  slots = jnp.arange(query.shape[1])[None]
  inside = masks.visible(layout, layout, slots, slots, own_unit=own_unit)
  itself = attention.attend(query, key, value, inside[:, None])
  return attention.merge(before, text, itself).out.astype(value.dtype)


def _before(
  lookup: pages.Lookup, seen: types.Bool[types.Array, "B X R"]
) -> types.Attended:
  """Attention to pages, some at a time, up to the last that a slot sees.

  There is room for all pages of a prompt from its first chunk on, and half of
  them are empty in the mean. The result is float32, to be merged.
  """
  visual, query = lookup.visual, lookup.query
  r = visual.valid.shape[1]
  size = min(_PAGES, r)
  last = (seen * (1 + jnp.arange(r))).max()

  def block(i, state):
    start = jnp.minimum(i * size, r - size)
    fresh = start + jnp.arange(size) >= i * size  # not of the block before
    some = pages.part(lookup, start, size)
    mask = fresh[:, None] & some.visual.valid[:, None]
    mask &= jax.lax.dynamic_slice_in_dim(seen, start, size, 2)[..., None]
    mask = mask.reshape(*seen.shape[:2], -1)[:, None]
    k, v = (pages.in_order(some, x) for x in (some.visual.k, some.visual.v))
    new = attention.attend(query, k, v, mask)
    return attention.merge(state, new)

  nothing = types.Attended(
    out=jnp.zeros(query.shape, jnp.float32),
    lse=jnp.full(query.shape[:3], -jnp.inf),
  )
  return jax.lax.fori_loop(0, -(-last // size), block, nothing)


@shard.local(
  cache_ops.ALL_LAYERS,
  visual=cache_ops.ALL_LAYERS,
  key=shard.NEW_OF_LAYERS,
  value=shard.NEW_OF_LAYERS,
  chunk=shard.ROWS,
)
def grow(
  visual: types.VisualCache,
  key: types.Float[types.Array, "N B X H D"],
  value: types.Float[types.Array, "N B X H D"],
  chunk: types.Chunk,
  config: config_lib.GazeConfig,
) -> types.VisualCache:
  """Writes the visual slots of a chunk, and describes the regions anew.

  Args:
    visual: `VisualCache` of all layers, as `decode` reads it.
    key: [N, B, X, H, D], post-RoPE.
    value: [N, B, X, H, D].
    chunk: `Chunk` of [B, X].
    config: static.
  """
  (b, r, l), d = visual.valid.shape, key.shape[-1]
  is_visual = chunk.layout.role == types.Role.VISUAL
  region = jnp.where(is_visual, chunk.layout.region, r)  # r is dropped
  rows = jnp.arange(b)[:, None]
  valid = visual.valid.at[rows, region, chunk.index].set(True, mode="drop")
  unit = visual.unit.at[rows, region].set(chunk.layout.unit, mode="drop")
  k = cache_ops.put_pages(visual.k, key, chunk)
  describe = lambda page: regions.of_pages(
    cache_ops.plain(page, l, d), valid, config
  )
  return types.VisualCache(
    k=k,
    v=cache_ops.put_pages(visual.v, value, chunk),
    descriptors=jax.lax.map(describe, k),
    valid=valid,
    unit=unit,
  )
