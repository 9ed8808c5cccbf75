"""What a model has read so far, as a value: ask it again, fork it, keep it.

A `Context` is never changed. Reading more, or answering, gives a new one that
shares the visual cache wherever no image was added: two questions about an
image are two forks of one context, and neither copies a page.

On a mesh whose rows are sharded W ways (`shard.row_shards`) the cache of a
context has W equal rows, so that each shard has it whole; otherwise W is 1.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import types
from gaze_jax.decode import programs
from gaze_jax.layout import tiles
from gaze_jax.models import cached
from gaze_jax.ops.decode import cache as cache_ops
from gaze_jax.parallel import shard

UNIT = -1  # in `Context.ids`
# The least room of a cache: regions, and slots of text and context.
_REGIONS, _SLOTS = 8, 64


class LimitError(errors.GazeError):
  """More than a row may hold; the message says what and how much."""


@dataclasses.dataclass(frozen=True)
class Context:
  """What was read.

  Attributes:
    cache: `DecodeCache` of W equal rows; its length and position are those
      below. None where nothing is to follow (`Model.generate_many`).
    length: slots of text and context in it.
    position: RoPE position of the next token.
    sizes: visual tokens of each region.
    units: regions that each unit completes: all of its own, but where regions
      span frames, 0 or those of several.
    pending: tokens that were generated and not read yet.
    ids: what was read, in order: ids of text, and UNIT for each unit.
    views: what each unit shows (`view/words.py`), kept here for who asks.
    talk: the conversation (`data/messages.py`), likewise.
    logits: float32 [W, V] after the last token of a prompt; None after a unit
      or an answer.
    trace: `Trace` of that token, [N, W, 1, Q, R]; None likewise.
  """

  cache: types.DecodeCache | None
  length: int = 0
  position: int = 0
  sizes: tuple[int, ...] = ()
  units: tuple[int, ...] = ()
  pending: tuple[int, ...] = ()
  ids: tuple[int, ...] = ()
  views: tuple[Any, ...] = ()
  talk: tuple[Any, ...] = ()
  logits: jax.Array | None = None
  trace: types.Trace | None = None

  @property
  def nbytes(self) -> int:
    """Of its keys, values and descriptors, of all devices together."""
    return sum(x.nbytes for x in jax.tree.leaves(self.cache))

  @property
  def unit_count(self) -> int:
    """Images, tiles and frames."""
    return len(self.units)

  @property
  def visual_tokens(self) -> int:
    """What dense attention reads at each step."""
    return sum(self.sizes)

  def context_tokens(self, config: config_lib.GazeConfig) -> int:
    """Context tokens of all units."""
    return self.unit_count * config.context_tokens


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a row may hold.

  Attributes:
    slots: of text, visual and context tokens together.
    units: images, tiles and frames.
  """

  slots: int = 32_768
  units: int = 256

  def check(self, slots: int, units: int) -> None:
    """Refuses a row that is too long.

    Raises:
      LimitError: saying by how much.
    """
    if units > self.units:
      raise LimitError(
        f"{units} images or frames in one conversation, the limit is"
        f" {self.units}; leave some out, or raise Limits.units"
      )
    if slots > self.slots:
      raise LimitError(
        f"the prompt and its answer need {slots} slots, the limit is"
        f" {self.slots}; shorten the text, show fewer images or frames, ask"
        " for fewer tokens, or raise Limits.slots"
      )


def row_bytes(config: config_lib.ModelConfig, regions: int, slots: int) -> int:
  """Bytes of keys, values and descriptors of a row, on a device that has it.

  Args:
    config: the model.
    regions: that `reserve` is asked for.
    slots: of text and context, likewise.
  """
  whole = _bytes(
    config,
    shard.row_shards(),
    regions_of(regions),
    programs.bucket(slots, _SLOTS),
  )
  return whole // (shard.row_shards() * shard.head_shards())


def regions_of(count: int) -> int:
  """Pages of a cache with room for so many regions."""
  return programs.bucket(count, _REGIONS)


@functools.lru_cache(maxsize=1024)
def _bytes(
  config: config_lib.ModelConfig, rows: int, regions: int, slots: int
) -> int:
  """Of a whole cache."""
  make = functools.partial(
    cached.empty,
    *(config, rows),
    regions=regions,
    region_length=tiles.largest_region(config),
    capacity=slots,
  )
  leaves = jax.tree.leaves(jax.eval_shape(make))
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def check_bytes(
  need: int, limit: int, regions: int, slots: int, name: str = "cache_bytes"
) -> None:
  """Refuses a row whose cache can never fit.

  Args:
    need: bytes on a device.
    limit: that there may be.
    regions: of the row, for the message.
    slots: likewise.
    name: of the limit.

  Raises:
    LimitError: saying by how much.
  """
  if need > limit:
    raise LimitError(
      f"the keys and values of one request, with room for {regions} regions"
      f" and {slots} slots of text, take {need:,} bytes on a device, and"
      f" {name} is {limit:,}; show fewer images, shorten the text, or raise"
      f" {name}"
    )


def default_cache_bytes() -> int:
  """The share of a device's memory that caches may take: half of what is free.

  On CPU, where programs and weights share it with other processes, a quarter of
  the machine's.
  """
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) // 2
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def empty(config: config_lib.ModelConfig) -> Context:
  """Nothing read yet."""
  return Context(
    cached.empty(
      config,
      shard.row_shards(),
      regions=_REGIONS,
      region_length=tiles.largest_region(config),
      capacity=_SLOTS,
    )
  )


def reserve(
  cache: types.DecodeCache, *, regions: int, slots: int
) -> types.DecodeCache:
  """A copy of a cache with room for so many regions and slots in all.

  Pages are copied where there are too few of them alone; text and context
  always, so that the copy can be donated.
  """
  have = cache.visual.valid.shape[1]
  regions = max(regions_of(regions), have)
  slots = max(programs.bucket(slots, _SLOTS), cache.k.shape[3])
  visual, choice = cache.visual, cache.choice
  if regions > have:
    visual = _more_pages(visual, regions - have)
  if choice is not None:
    choice = _pad(choice, 3, regions - have)
  room = slots - cache.k.shape[3]
  k, v = (_pad(x, 3, room) for x in (cache.k, cache.v))
  return cache_ops.constrain(
    dataclasses.replace(cache, visual=visual, k=k, v=v, choice=choice)
  )


def _more_pages(visual: types.VisualCache, room: int) -> types.VisualCache:
  old = visual.valid.shape[1]
  parts = visual.descriptors.shape[3] // old
  d = visual.descriptors
  # [.., P * R, D] with the first of every region first.
  d = d.reshape(*d.shape[:3], parts, old, d.shape[-1])
  d = _pad(d, 4, room).reshape(*d.shape[:3], -1, d.shape[-1])
  return types.VisualCache(
    k=_pad(visual.k, 3, room),
    v=_pad(visual.v, 3, room),
    descriptors=d,
    valid=_pad(visual.valid, 1, room),
    unit=_pad(visual.unit, 1, room, fill=-1),
  )


def _pad(x: jax.Array, axis: int, room: int, fill: int = 0) -> jax.Array:
  """`fill` behind an axis; a copy even if there is no room."""
  if not room:
    return jnp.copy(x)
  width = [(0, 0)] * x.ndim
  width[axis] = (0, room)
  return jnp.pad(x, width, constant_values=fill)


def current_cache(context: Context) -> types.DecodeCache:
  """The cache at the context's length: what was read past it is forgotten."""
  rows = context.cache.length.shape
  of_rows = lambda n: shard.constrain(jnp.full(rows, n, jnp.int32), "batch")
  return dataclasses.replace(
    context.cache,
    length=of_rows(context.length),
    position=of_rows(context.position),
  )


def extended(context: Context, batch: types.Batch) -> Context:
  """The context once a row is read, but for its cache and logits.

  Args:
    context: what came before.
    batch: `Batch` of one row, the trunk of one sample, in numpy.
  """
  role, unit, tokens, pages = (
    np.asarray(x)[0]
    for x in (
      *(batch.layout.role, batch.layout.unit, batch.tokens),
      batch.region_slots,
    )
  )
  filled, text = role != types.Role.PAD, role == types.Role.TEXT
  pages = pages[(pages >= 0).any(1)]
  begins = (unit >= 0) & (unit != np.append(-1, unit[:-1]))
  items = np.where(text, tokens, UNIT)[text | begins]
  linear = filled & (role != types.Role.VISUAL)
  completed = np.bincount(unit[pages.max(1)], minlength=unit.max() + 1)
  pending = len(context.pending)
  return dataclasses.replace(
    context,
    length=context.length + pending + int(linear.sum()),
    position=context.position + pending + int(filled.sum()),
    sizes=(*context.sizes, *map(int, (pages >= 0).sum(1))),
    units=(*context.units, *map(int, completed)),
    pending=(),
    ids=(*context.ids, *context.pending, *items.tolist()),
  )


def truncated(context: Context, items: int) -> Context:
  """The context up to the first `items` of its `ids`; the rest is text."""
  gone = len(context.ids) - items
  return dataclasses.replace(
    context,
    length=context.length - gone,
    position=context.position - gone,
    ids=context.ids[:items],
    pending=(),
  )


def stack(caches: list[types.DecodeCache], rows: int) -> types.DecodeCache:
  """The caches of several contexts as one of `rows` rows; the last are empty.

  They are copied: pages lie side by side in a batch.
  """
  regions = max(c.visual.valid.shape[1] for c in caches)
  slots = max(c.k.shape[3] for c in caches)
  caches = [reserve(c, regions=regions, slots=slots) for c in caches]
  whole = jax.tree_util.tree_map_with_path(
    lambda path, *xs: first_rows(xs, rows, row_axis(path)), *caches
  )
  return cache_ops.constrain(whole)


def first_rows(xs: Sequence[jax.Array], rows: int, axis: int) -> jax.Array:
  """The first row of each array, and zeros behind them, `rows` in all."""
  ones = [jax.lax.slice_in_dim(x, 0, 1, axis=axis) for x in xs]
  nothing = [jnp.zeros_like(ones[0])] * (rows - len(ones))
  return jnp.concatenate([*ones, *nothing], axis=axis)


def one_row(cache: types.DecodeCache, number: int) -> types.DecodeCache:
  """One row of a cache, a batch of one."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jax.lax.slice_in_dim(
      x, number, number + 1, axis=row_axis(path)
    ),
    cache,
  )


def of_one_row(cache: types.DecodeCache) -> types.DecodeCache:
  """A cache of one row as a context has it: of W equal rows."""
  if not shard.spread():
    return cache
  rows = shard.row_shards()
  whole = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.concatenate([x] * rows, axis=row_axis(path)), cache
  )
  return cache_ops.constrain(whole)


# What is of [N, B, ...]; all else is of [B, ...].
_OF_LAYERS = ("k", "v", "descriptors", "choice")


def row_axis(path: tuple[Any, ...]) -> int:
  """The axis of B in a leaf of a cache, or of what holds one."""
  return int(path[-1].name in _OF_LAYERS)


def as_numpy(sizes: tuple[int, ...], regions: int) -> np.ndarray:
  """float32 [R], tokens of each region; 0 past the last."""
  out = np.zeros(regions, np.float32)
  out[: len(sizes)] = sizes
  return out
