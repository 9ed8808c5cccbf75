"""The units of a prompt, some of its slots at a time, before a cache.

No slot of a chunk is routed: VISUAL and CONTEXT slots see all that
docs/method.md, section 4, lets them see. Three sets of keys, merged by
log-sum-exp:

             pages            linear          the chunk itself
  VISUAL     all, or its own  all             causal, or its own
             unit's                           unit's and text
  CONTEXT    its own unit's   none            its own unit's, causal
"""

import functools
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.kernels import backends
from gaze_jax.ops import masks
from gaze_jax.ops import regions
from gaze_jax.ops.decode import cache as cache_ops
from gaze_jax.ops.decode import pages
from gaze_jax.parallel import shard

# Slots of a chunk at most, and pages that it attends to at a time.
#
# Under a mask there are float32 logits of slots and keys: of 32 heads, 256
# slots and 32 pages of 36 tokens 38 MB, three times over. With segments there
# are none, and activations bound a chunk: with 9,728 hidden units 2,048 slots
# take 40 MB in the widest bfloat16 arrays, and 34 MB in each float32 part that
# is merged. Long chunks pay where weights come from far: at 197 TFLOP/s and 819
# GB/s (TPU v5e) 240 rows take as long to multiply as a bfloat16 matrix takes to
# read. So do large blocks: to merge one moves 100 MB, as long as 700 of its
# keys take to multiply.
_MASKED, _SEGMENTED = (256, 32), (2_048, 128)
_NO_QUERY, _NO_KEY = -2, -1  # segments of slots that see, or are seen by, none

# Of this layer's text and context: keys and values [B, Y, H, D], and which of
# the Y slots are filled, bool [B, Y].
_Text = tuple[types.Array, types.Array, types.Array]


def most_slots() -> int:
  """Slots of a chunk, at most."""
  return (_SEGMENTED if _form() else _MASKED)[0]


def _form() -> ModuleType | None:
  return backends.first(backends.ATTEND_SEGMENTS)


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
  nothing = jnp.zeros_like(cache.length)  # no region is chosen here
  lookup = pages.Lookup(query, cache.visual, layer, nothing, config)
  filled = jnp.arange(cache.k.shape[3]) < cache.length[:, None]
  text = (
    *(lookup.of_layer(x).transpose(0, 2, 1, 3) for x in (cache.k, cache.v)),
    filled,
  )
  if form := _form():
    parts = _by_segments(lookup, key, value, layout, text, form)
  else:
    parts = _under_a_mask(lookup, key, value, layout, text)
  return attention.merge(*parts).out.astype(value.dtype)


def _under_a_mask(
  lookup: pages.Lookup,
  key: types.Array,
  value: types.Array,
  layout: types.Layout,
  text: _Text,
) -> tuple[types.Attended, ...]:
  """Attention to pages, to text and context, and to the chunk itself."""
  visual, query = lookup.visual, lookup.query
  own_unit = lookup.config.visual_attention == "own_unit"
  far = (layout.role == types.Role.VISUAL) & (not own_unit)  # sees all units
  seen = far.any(1, keepdims=True) & visual.valid.any(-1)
  seen |= _of_units(layout.unit, visual)

  def look(some: pages.Lookup, fresh: types.Array):
    mask = layout.unit[..., None, None] == some.visual.unit[:, None]
    mask |= far[..., None, None]
    mask &= fresh & some.visual.valid[:, None]
    mask = mask.reshape(*layout.unit.shape, -1)[:, None]
    k, v = (pages.in_order(some, x) for x in (some.visual.k, some.visual.v))
    return attention.attend(query, k, v, mask)

  slots = jnp.arange(query.shape[1])[None]
  inside = masks.visible(layout, layout, slots, slots, own_unit=own_unit)
  itself = attention.attend(query, key, value, inside[:, None])
  *text, filled = text
  is_visual = (layout.role == types.Role.VISUAL)[:, :, None]
  line = attention.attend(query, *text, (filled[:, None] & is_visual)[:, None])
  return _before(lookup, seen, look, _MASKED[1]), line, itself


def _of_units(
  unit: types.Int[types.Array, "B X"], visual: types.VisualCache
) -> types.Bool[types.Array, "B R"]:
  """The pages that hold a token of any of these units, which are 0 or more."""
  first, last = visual.unit[..., 0], visual.unit.max(axis=-1)
  unit = unit[:, :, None]
  inside = (first[:, None] <= unit) & (unit <= last[:, None]) & (unit >= 0)
  return inside.any(axis=1) & visual.valid.any(axis=-1)


def _by_segments(
  lookup: pages.Lookup,
  key: types.Array,
  value: types.Array,
  layout: types.Layout,
  text: _Text,
  form: ModuleType,
) -> tuple[types.Attended, ...]:
  """The same by a kernel that knows segments and causal order alone.

  Of a chunk's slots some see their own unit, and others all units: a pass for
  each kind, whose results are zeros and -inf for the other.
  """
  visual, query = lookup.visual, lookup.query
  own_unit = lookup.config.visual_attention == "own_unit"
  is_visual = layout.role == types.Role.VISUAL
  is_context = layout.role == types.Role.CONTEXT
  own = is_context | is_visual if own_unit else is_context
  all_, units = is_visual & ~own, jnp.where(own, layout.unit, _NO_QUERY)
  filled = layout.role != types.Role.PAD
  attend_ = functools.partial(form.attend_segments, query)
  one = lambda mask, other: jnp.where(mask, 0, other)  # the segment of all
  wide = one(all_, _NO_QUERY)

  def before(seen, queries, segment):
    def look(some: pages.Lookup, fresh: types.Array):
      size, l = some.visual.unit.shape[1:]
      there = fresh & some.visual.valid
      ids = jnp.where(there, segment(some.visual.unit), _NO_KEY)
      ids = ids.reshape(-1, size * l)
      k, v = (pages.in_order(some, x) for x in (some.visual.k, some.visual.v))
      return attend_(k, v, queries, ids, causal=False)

    return _before(lookup, seen, look, _SEGMENTED[1])

  any_ = visual.valid.any(-1) & all_.any(1, keepdims=True)
  inside = lambda queries, keys: attend_(key, value, queries, keys, causal=True)
  *text, there = text
  looking = one(is_visual, _NO_QUERY)
  parts = [
    before(any_, wide, jnp.zeros_like),
    before(_of_units(units, visual), units, lambda unit: unit),
    attend_(*text, looking, one(there, _NO_KEY), causal=False),
    inside(wide, one(filled, _NO_KEY)),
    inside(units, jnp.where(filled, layout.unit, _NO_KEY)),
  ]
  if own_unit:  # and the context tokens of the units before its own
    parts.append(inside(looking, one(is_context, _NO_KEY)))
  return tuple(parts)


def _before(
  lookup: pages.Lookup,
  seen: types.Bool[types.Array, "B R"],
  look: Callable[..., types.Attended],
  most: int,
) -> types.Attended:
  """Attention to pages, some at a time, up to the last that a slot sees.

  There is room for all pages of a prompt from its first chunk on, and half of
  them are empty in the mean. The result is float32, to be merged.

  Args:
    lookup: of all pages.
    seen: the pages that any slot sees.
    look: attention to some pages; given their `Lookup`, and which of them are
      not of the block before, bool [size, 1].
    most: pages at a time.
  """
  query, r = lookup.query, seen.shape[1]
  size = min(most, r)
  last = (seen * (1 + jnp.arange(r))).max()

  def block(i, state):
    start = jnp.minimum(i * size, r - size)
    fresh = start + jnp.arange(size) >= i * size
    some = pages.part(lookup, start, size)
    return attention.merge(state, look(some, fresh[:, None]))

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
  (b, r, l), d = visual.unit.shape, key.shape[-1]
  is_visual = chunk.layout.role == types.Role.VISUAL
  region = jnp.where(is_visual, chunk.layout.region, r)  # r is dropped
  rows = jnp.arange(b)[:, None]
  valid = visual.valid.at[rows, region, chunk.index].set(True, mode="drop")
  unit = visual.unit.at[rows, region, chunk.index].set(
    chunk.layout.unit, mode="drop"
  )
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
