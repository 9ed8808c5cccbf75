"""Units read a chunk at a time against the mask of the whole row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.layout import row as row_lib
from gaze_jax.ops import masks
from gaze_jax.ops import regions
from gaze_jax.ops.decode import cache as cache_ops
from gaze_jax.ops.decode import prompt_units

SHAPE = row_lib.RowShape(
  slots=36,
  units=3,
  unit_tokens=9,
  regions=8,
  region_length=4,
  answer_slots=1,
  region=(2, 2, 1),
  context_tokens=2,
)
# t t | v x 9, c c | t | v x 6, c c | v v, c c | t
PARTS = [
  row_lib.Text([1, 2]),
  row_lib.Unit(3, 3),
  row_lib.Text([3]),
  row_lib.Unit(2, 3),
  row_lib.Unit(1, 2),
  row_lib.Text([4]),
]
# Slots of each chunk, and whether they are text.
CUTS = [
  *((0, 2, True), (2, 7, False), (7, 13, False), (13, 14, True)),
  *((14, 22, False), (22, 26, False)),
]
TOGETHER = [*CUTS[:4], (14, 26, False)]
X, ROOM = 12, 24


def take(x, start, stop, fill):
  """int32 [2, X] of a row; the second row of a batch is padding."""
  out = np.full((2, X), fill, np.int32)
  out[0, : stop - start] = x[start:stop]
  return out


def chunk_of(batch, start, stop):
  fills = dict(role=0, unit=-1, region=-1, position=0, segment=-1, branch=0)
  layout = types.Layout(
    **{
      name: take(getattr(batch.layout, name)[0], start, stop, fill)
      for name, fill in fills.items()
    }
  )
  place = np.zeros(SHAPE.slots, np.int32)
  for page in batch.region_slots[0]:
    page = page[page >= 0]
    place[page] = np.arange(len(page))
  return types.Chunk(layout, take(place, start, stop, 0))


def empty_cache():
  pages = jnp.zeros((1, 2, 2, 8, 4, 8))
  linear = jnp.zeros((1, 2, 2, ROOM, 8))
  visual = types.VisualCache(
    k=pages,
    v=pages,
    descriptors=jnp.zeros((1, 2, 2, 8, 8)),
    valid=jnp.zeros((2, 8, 4), bool),
    unit=jnp.full((2, 8, 4), -1, jnp.int32),
  )
  nothing = jnp.zeros(2, jnp.int32)
  return types.DecodeCache(visual, linear, linear, nothing, nothing, None)


@jax.jit
def add_text(cache, k, v, count):
  append = lambda buffer, new: cache_ops.append(buffer, new[None], cache.length)
  return dataclasses.replace(
    cache,
    k=append(cache.k, k),
    v=append(cache.v, v),
    length=cache.length + count,
  )


@pytest.fixture
def row(heads):
  """A row, its heads with numbers, and a row of padding behind it."""
  batch = row_lib.make_batch([row_lib.lay_out(PARTS, SHAPE)], None)
  return batch, heads(2, SHAPE.slots)


@pytest.mark.few(2)
@pytest.mark.parametrize("cuts", [CUTS, TOGETHER], ids=["apart", "together"])
@pytest.mark.parametrize("visual_attention", ["causal", "own_unit"])
def test_chunks_see_what_the_mask_of_the_row_lets_them_see(
  row, visual_attention, cuts
):
  batch, h = row
  config = config_lib.GazeConfig(visual_attention=visual_attention)
  own_unit = visual_attention == "own_unit"
  slots = np.arange(SHAPE.slots)[None]
  mask = masks.visible(
    batch.layout, batch.layout, slots, slots, own_unit=own_unit
  )
  want = attention.attend(h.q[:1], h.k[:1], h.v[:1], mask[:, None]).out

  @jax.jit
  def add_units(cache, q, k, v, chunk):
    layer = jnp.int32(0)
    out = prompt_units.attend(q, k, v, chunk.layout, cache, config, layer=layer)
    put = lambda buffer, new: cache_ops.put_context(
      buffer, new[None], chunk.layout, cache.length
    )
    context = (chunk.layout.role == types.Role.CONTEXT).sum(1)
    visual = prompt_units.grow(cache.visual, k[None], v[None], chunk, config)
    return out, dataclasses.replace(
      cache,
      visual=visual,
      k=put(cache.k, k),
      v=put(cache.v, v),
      length=cache.length + context,
    )

  cache = empty_cache()
  for start, stop, text in cuts:
    cut = lambda x, start=start: x[:, start : start + X]
    q, k, v = cut(h.q), cut(h.k), cut(h.v)
    if text:
      cache = add_text(cache, k, v, np.array([stop - start, 0]))
      continue
    out, cache = add_units(cache, q, k, v, chunk_of(batch, start, stop))
    compare.close(out[0, : stop - start], want[0, start:stop])
    # Padding sees nothing, and it is no NaN.
    assert not out[0, stop - start :].any() and not out[1].any()
  check_grown(cache, batch, h, config)


def check_grown(cache, batch, h, config):
  """What was left behind is what a whole row leaves; nothing in row 1."""
  visual, slots = cache.visual, batch.region_slots
  there = slots[0] >= 0
  np.testing.assert_array_equal(visual.valid[0], there)
  unit = np.where(there, np.array([0, 0, 0, 0, 1, 1, 2, -1])[:, None], -1)
  np.testing.assert_array_equal(visual.unit[0], unit)
  for got, x in ((visual.k, h.k), (visual.v, h.v)):
    pages = regions.pages(jnp.asarray(x[:1]), slots)
    np.testing.assert_array_equal(got[0, :1], pages)
    assert not got[0, 1].any()
  want = regions.descriptors(h.k[:1], batch.layout.region, slots, config)
  compare.close(visual.descriptors[0, :1], want)
  assert not visual.valid[1].any() and (visual.unit[1] == -1).all()
  # Text and context in reading order: t t c c t c c c c.
  order = [0, 1, 11, 12, 13, 20, 21, 24, 25]
  assert cache.length.tolist() == [len(order), 0]
  linear = h.k[0, order].transpose(1, 0, 2)
  np.testing.assert_array_equal(cache.k[0, 0, :, : len(order)], linear)
