"""What a model has read so far, as a value: ask it again, fork it, keep it.

A `Context` is never changed. Reading more, or answering, gives a new one that
shares the visual cache wherever no image was added: two questions about an
image are two forks of one context, and neither copies a page.
"""

import dataclasses
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

UNIT = -1  # in `Context.ids`
# The least room of a cache: regions, and slots of text and context.
_REGIONS, _SLOTS = 8, 64


class LimitError(errors.GazeError):
  """More than a row may hold; the message says what and how much."""


@dataclasses.dataclass(frozen=True)
class Context:
  """What was read.

  Attributes:
    cache: `DecodeCache` of B = 1; its length and position are those below.
    length: slots of text and context in it.
    position: RoPE position of the next token.
    sizes: visual tokens of each region.
    units: the unit of each region.
    pending: tokens that were generated and not read yet.
    ids: what was read, in order: ids of text, and UNIT for each unit.
    views: what each unit shows (`view/words.py`), kept here for who asks.
    talk: the conversation (`data/messages.py`), likewise.
    logits: float32 [1, V] after the last token of a prompt; None after a unit
      or an answer.
    trace: `Trace` of that token, [N, 1, 1, Q, R]; None likewise.
  """

  cache: types.DecodeCache
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
  def unit_count(self) -> int:
    """Images, tiles and frames."""
    return self.units[-1] + 1 if self.units else 0

  @property
  def regions_per_unit(self) -> tuple[int, ...]:
    """How many regions each unit has."""
    return tuple(np.bincount(np.array(self.units, int)).tolist())

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


def empty(config: config_lib.ModelConfig) -> Context:
  """Nothing read yet."""
  return Context(
    cached.empty(
      config,
      1,
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
  regions = max(programs.bucket(regions, _REGIONS), have)
  slots = max(programs.bucket(slots, _SLOTS), cache.k.shape[3])
  visual, choice = cache.visual, cache.choice
  if regions > have:
    visual = _more_pages(visual, regions - have)
  if choice is not None:
    choice = _pad(choice, 3, regions - have)
  room = slots - cache.k.shape[3]
  k, v = (_pad(x, 3, room) for x in (cache.k, cache.v))
  return dataclasses.replace(cache, visual=visual, k=k, v=v, choice=choice)


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
    unit=jnp.pad(visual.unit, ((0, 0), (0, room)), constant_values=-1),
  )


def _pad(x: jax.Array, axis: int, room: int) -> jax.Array:
  """Zeros behind an axis; a copy even if there are none."""
  if not room:
    return jnp.copy(x)
  width = [(0, 0)] * x.ndim
  width[axis] = (0, room)
  return jnp.pad(x, width)


def current_cache(context: Context) -> types.DecodeCache:
  """The cache at the context's length: what was read past it is forgotten."""
  return dataclasses.replace(
    context.cache,
    length=jnp.full(1, context.length, jnp.int32),
    position=jnp.full(1, context.position, jnp.int32),
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
  new_units = unit[pages[:, 0]] + context.unit_count
  pending = len(context.pending)
  return dataclasses.replace(
    context,
    length=context.length + pending + int(linear.sum()),
    position=context.position + pending + int(filled.sum()),
    sizes=(*context.sizes, *map(int, (pages >= 0).sum(1))),
    units=(*context.units, *map(int, new_units)),
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
  """Caches of one row each as one of `rows` rows; the last ones are empty.

  One cache alone is taken as it is. Several are copied: pages lie side by side
  in a batch.
  """
  if len(caches) == rows == 1:
    return caches[0]
  regions = max(c.visual.valid.shape[1] for c in caches)
  slots = max(c.k.shape[3] for c in caches)
  caches = [reserve(c, regions=regions, slots=slots) for c in caches]
  nothing = jax.tree.map(jnp.zeros_like, caches[0])
  caches += [nothing] * (rows - len(caches))
  return jax.tree_util.tree_map_with_path(
    lambda path, *xs: jnp.concatenate(xs, axis=_row_axis(path)), *caches
  )


def row(cache: types.DecodeCache, number: int) -> types.DecodeCache:
  """One row of the text and context of a batch; its pages are left out."""
  one = slice(number, number + 1)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x[:, one] if _row_axis(path) else x[one],
    dataclasses.replace(cache, visual=None),
  )


def _row_axis(path: tuple[Any, ...]) -> int:
  """The axis of B: the first of what all layers share, else the second."""
  return int(path[-1].name not in ("valid", "unit", "length", "position"))


def as_numpy(sizes: tuple[int, ...], regions: int) -> np.ndarray:
  """float32 [R], tokens of each region; 0 past the last."""
  out = np.zeros(regions, np.float32)
  out[: len(sizes)] = sizes
  return out
