"""The units of a prompt, some of its slots at a time, before a cache.

No slot of a chunk is routed: VISUAL and CONTEXT slots see all that METHOD.md
section 4 lets them see. Three sets of keys, merged by log-sum-exp:

             pages            linear          the chunk itself
  VISUAL     all, or its own  all             causal, or its own
             unit's                           unit's and text
  CONTEXT    its own unit's   none            its own unit's, causal
"""

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.ops import attention
from gaze_jax.ops import cache as cache_ops
from gaze_jax.ops import masks
from gaze_jax.ops import merge
from gaze_jax.ops import paged
from gaze_jax.ops import regions


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
  nothing = jnp.zeros_like(cache.length)  # no region is chosen here
  step = paged.Step(query, cache.visual, layer, nothing, config)
  own_unit = config.visual_attention == "own_unit"
  is_visual = (layout.role == types.Role.VISUAL)[:, :, None]
  own_page = layout.unit[:, :, None] == cache.visual.unit[:, None]  # [B, X, R]
  seen_page = own_page if own_unit else own_page | is_visual
  seen_page = seen_page[..., None] & cache.visual.valid[:, None]
  seen_page = seen_page.reshape(*seen_page.shape[:2], -1)
  pages = (paged.in_order(step, x) for x in (cache.visual.k, cache.visual.v))
  before = attention.attend(query, *pages, seen_page[:, None])
  filled = jnp.arange(cache.k.shape[3]) < cache.length[:, None, None]
  linear = (step.of_layer(x).transpose(0, 2, 1, 3) for x in (cache.k, cache.v))
  text = attention.attend(query, *linear, (is_visual & filled)[:, None])
  slots = jnp.arange(query.shape[1])[None]
  inside = masks.visible(layout, layout, slots, slots, own_unit=own_unit)
  itself = attention.attend(query, key, value, inside[:, None])
  return merge.merge(before, text, itself).out


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
    page.reshape(*page.shape[:3], -1, page.shape[-1])[..., :l, :d],
    valid,
    config,
  )
  return types.VisualCache(
    k=k,
    v=cache_ops.put_pages(visual.v, value, chunk),
    descriptors=jax.lax.map(describe, k),
    valid=valid,
    unit=unit,
  )
