"""Reads prompts into caches, a chunk at a time.

A laid-out row is split where text begins and ends, and into chunks; a chunk is
padded to one of a few sizes, so that prompts of all kinds share programs:

  row     t t t | v v v v v v v v c c | t t t t t |
  chunks  text  | units     | units   | text      |

All rows of a chunk are read together, of which there are as many as the mesh
shards rows: one prompt is read by each shard alike, or a prompt by each.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import types
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import programs
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.ops.decode import prompt_units
from gaze_jax.parallel import shard

# Slots of a chunk of text, at most and at least: it scores each region for each
# of its tokens. Of units there are up to `prompt_units.most_slots`.
_TEXT, _LEAST_TEXT = 128, 8
_LEAST_UNITS = 32
_EMBEDDED = 256  # slots of a row that are embedded, at least
_TILES = 8  # squares of pixels that the tower reads at a time


class Piece(NamedTuple):
  """Slots `start` to `stop` of a row, all text or none of it."""

  start: int
  stop: int
  text: bool

  @property
  def size(self) -> int:
    """X, slots of the chunk that it is padded to."""
    least = _LEAST_TEXT if self.text else _LEAST_UNITS
    return programs.bucket(self.stop - self.start, least)


class Prompt(NamedTuple):
  """A row to be read.

  Attributes:
    context: what comes before it.
    batch: `Batch` of the row, the trunk of one sample, in numpy.
    budget: K.
    override: float32 [Q, R], scores of all regions that take the place of the
      model's, or None.
  """

  context: context_lib.Context
  batch: types.Batch
  budget: int
  override: np.ndarray | None = None

  def pieces(self) -> list[Piece]:
    return list(split(np.asarray(self.batch.layout.role)[0]))

  def slots(self) -> types.Chunk:
    """The row as one `Chunk` of [S], its numbers continued from before it."""
    batch, before = self.batch, self.context
    layout = jax.tree.map(lambda x: np.asarray(x)[0], batch.layout)
    shift = lambda x, by: np.where(x >= 0, x + by, -1)
    index = np.zeros(len(layout.role), np.int32)
    pages = np.asarray(batch.region_slots)[0]
    region, place = np.nonzero(pages >= 0)
    index[pages[region, place]] = place
    layout = dataclasses.replace(
      layout,
      unit=shift(layout.unit, before.unit_count),
      region=shift(layout.region, len(before.sizes)),
      position=layout.position + before.position + len(before.pending),
    )
    return types.Chunk(layout, index)


def read(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  context: context_lib.Context,
  batch: types.Batch,
  budget: int,
  override: np.ndarray | None = None,
  *,
  room: int = 1,
  limits: context_lib.Limits = context_lib.Limits(),  # noqa: B008
  trace: bool = False,
) -> context_lib.Context:
  """Reads one prompt.

  Args:
    params: as in `mllm.apply`.
    config: the model.
    context: what came before; it stays as it is. Its `views` and `talk` are
      those that the result is to have.
    batch: `Batch` of one row, the trunk of one sample, in numpy.
    budget: K.
    override: as in `Prompt`.
    room: tokens that will follow, which room is made for.
    limits: what a row may hold.
    trace: also scores and dense attention of the last token.

  Returns:
    The context with the row, and with the logits of its last token.

  Raises:
    context_lib.LimitError: the row is too long.
    errors.GazeError: the row is empty.
  """
  after = extended(context, batch, room=room, limits=limits)
  regions, slots = needs(after, room)
  cache, logits, traced = read_together(
    params,
    config,
    [Prompt(context, batch, budget, override)],
    regions=regions,
    slots=slots,
    trace=trace,
  )
  return dataclasses.replace(after, cache=cache, logits=logits, trace=traced)


def read_together(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  prompts: Sequence[Prompt],
  *,
  regions: int,
  slots: int,
  trace: bool = False,
) -> tuple[types.DecodeCache, jax.Array | None, types.Trace | None]:
  """Reads prompts together, each in a shard of the rows.

  Args:
    params: as in `mllm.apply`.
    config: the model.
    prompts: of one `shapes`; one, which every shard reads, or W that nothing
      comes before.
    regions: pages that each is to have at least.
    slots: of text and context, likewise.
    trace: as in `read`.

  Returns:
    Of W rows: the cache; logits of the last token, [W, V]; and its `Trace`.
  """
  decoder = {"decoder": params["decoder"]}
  cache = _begun(decoder, config, prompts[0], regions, slots)
  rows = [*prompts] * (len(cache.length) // len(prompts))
  budgets = np.array([row.budget for row in rows], np.int32)
  regions = cache.visual.valid.shape[1]
  override = stacked([row.override for row in rows], regions)
  pieces = list(zip(*(row.pieces() for row in rows), strict=True))
  if any(not piece.text for piece, *_ in pieces):
    whole = [row.slots() for row in rows]
    embedded = _embed(params, config, [row.batch for row in rows])
    if cache.visual is prompts[0].context.cache.visual:  # they are its pages
      visual = jax.tree.map(jnp.copy, cache.visual)
      cache = dataclasses.replace(cache, visual=visual)
  logits = traced = None
  for number, some in enumerate(pieces, 1):
    if some[0].text:
      last = number == len(pieces)
      cache, logits, traced = _add_text(
        *(text_program, decoder, config, cache),
        *(_padded_text(rows, some), budgets),
        count=np.array([piece.stop - piece.start for piece in some], np.int32),
        prompt=True,
        logits=last,
        override=override,
        trace=trace and last,
      )
      if last:
        logits = shard.constrain(logits[:, 0], "table_rows", "head_vocab")
    else:
      chunk = _padded_units(whole, some)
      start = np.array([piece.start for piece in some], np.int32)
      x = _slice(embedded, start, size=some[0].size)
      cache = units_program(decoder, config, cache, x, chunk)
      logits = traced = None
  return cache, logits, traced


def extended(
  context: context_lib.Context,
  batch: types.Batch,
  *,
  room: int,
  limits: context_lib.Limits,
) -> context_lib.Context:
  """`context_lib.extended` of a row that can be read.

  Raises:
    context_lib.LimitError: the row is too long.
    errors.GazeError: the row is empty.
  """
  if not (np.asarray(batch.layout.role) != types.Role.PAD).any():
    raise errors.GazeError("there is nothing to read: the prompt is empty")
  after = context_lib.extended(context, batch)
  limits.check(after.length + after.visual_tokens + room, after.unit_count)
  return after


def needs(after: context_lib.Context, room: int) -> tuple[int, int]:
  """Regions, and slots of text and context, that a prompt takes.

  Args:
    after: of `extended`.
    room: tokens that will follow.
  """
  # The last chunk of text is padded within the cache.
  return len(after.sizes), after.length + max(room, _TEXT)


def stacked(
  overrides: Sequence[np.ndarray | None], regions: int
) -> np.ndarray | None:
  """`Prompt.override` of rows, all or none, as float32 [B, Q, regions]."""
  if overrides[0] is None:
    return None
  room = lambda x: ((0, 0), (0, regions - x.shape[1]))
  return np.stack([np.pad(x, room(x)) for x in overrides])


def shapes(batch: types.Batch) -> tuple[Any, ...]:
  """What decides the programs that read a prompt; prompts of one share them."""
  pieces = split(np.asarray(batch.layout.role)[0])
  return (
    *((piece.text, piece.size) for piece in pieces),
    embedded_slots(batch),
    *(x.shape for x in jax.tree.leaves(batch.images)),
  )


def _begun(
  decoder: mllm.Params,
  config: config_lib.ModelConfig,
  prompt: Prompt,
  regions: int,
  slots: int,
) -> types.DecodeCache:
  """What comes before a prompt, with room for it."""
  cache = context_lib.reserve(
    context_lib.current_cache(prompt.context), regions=regions, slots=slots
  )
  for token in prompt.context.pending:  # routed as the answer's, not a prompt's
    token = np.full((len(cache.length), 1), token, np.int32)
    budgets = np.full(len(token), prompt.budget, np.int32)
    override = stacked(
      [prompt.override] * len(token), cache.visual.valid.shape[1]
    )
    cache, _, _ = _add_text(
      *(token_program, decoder, config, cache, token, budgets),
      override=override,
    )
  return cache


def split(role: np.ndarray) -> Iterator[Piece]:
  """The pieces of a row, int [S]; a unit's context tokens stay together."""
  end = int((role != types.Role.PAD).sum())
  text = role == types.Role.TEXT
  context = role == types.Role.CONTEXT
  most = prompt_units.most_slots()
  start = 0
  while start < end:
    same = text[start:end] == text[start]
    run = start + (end - start if same.all() else int(same.argmin()))
    stop = min(run, start + (_TEXT if text[start] else most))
    if stop < run and context[stop]:
      first = stop
      while first > start and context[first - 1]:
        first -= 1
      while stop < run and context[stop]:
        stop += 1
      stop = first if first > start else stop
    yield Piece(start, stop, bool(text[start]))
    start = stop


def _padded(whole: types.Chunk, piece: Piece) -> types.Chunk:
  """A piece of a row as `Chunk` of [1, X]."""
  fills = types.Layout(
    **{f.name: 0 for f in dataclasses.fields(types.Layout)}
    | dict(role=types.Role.PAD, unit=-1, region=-1, segment=-1)
  )
  return jax.tree.map(
    lambda x, fill: _line(x[piece.start : piece.stop], piece.size, fill),
    whole,
    types.Chunk(fills, 0),
  )


def _padded_units(
  wholes: Sequence[types.Chunk], pieces: Sequence[Piece]
) -> types.Chunk:
  """A piece of each row, `Chunk` of [B, X]."""
  some = map(_padded, wholes, pieces)
  return jax.tree.map(lambda *x: np.concatenate(x), *some)


def _padded_text(rows: Sequence[Prompt], pieces: Sequence[Piece]) -> np.ndarray:
  """Ids of a piece of each row, int32 [B, X]."""
  return np.concatenate(
    [
      _line(np.asarray(row.batch.tokens)[0, p.start : p.stop], p.size, 0)
      for row, p in zip(rows, pieces, strict=True)
    ]
  )


def _line(x: np.ndarray, size: int, fill: int) -> np.ndarray:
  """int32 [1, size]."""
  out = np.full((1, size), fill, np.int32)
  out[0, : len(x)] = x
  return out


def _embed(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  rows: Sequence[types.Batch],
) -> jax.Array:
  """float32 [B, S or more, E] of rows; chunks are slices of it."""
  size = embedded_slots(rows[0])

  def pad(x: np.ndarray) -> np.ndarray:
    room = size - x.shape[1]
    return np.pad(x, ((0, 0), (0, room), *((0, 0),) * (x.ndim - 2)))

  join = lambda *x: np.concatenate(x)
  of = lambda name: jax.tree.map(
    lambda *x: join(*map(pad, x)), *(getattr(row, name) for row in rows)
  )
  images = jax.tree.map(join, *(row.images for row in rows))
  return embed_program(
    embedders(params),
    config,
    types.Batch(
      tokens=of("tokens"),
      layout=of("layout"),
      feed=of("feed"),
      region_slots=None,
      images=_see(params, config, images),
      answer_slots=None,
      answer_of=None,
      blend=of("blend"),
    ),
  )


def embedders(params: mllm.Params) -> mllm.Params:
  """What of the parameters embeds a row, its images being features."""
  table = {"embedding": params["decoder"]["embedding"]}
  return {"projector": params["projector"], "decoder": table}


def embedded_slots(batch: types.Batch) -> int:
  """How many slots of a row are embedded: the last chunk may reach past S."""
  pieces = split(np.asarray(batch.layout.role)[0])
  ends = [piece.start + piece.size for piece in pieces]
  return programs.bucket(max(batch.tokens.shape[1], *ends), _EMBEDDED)


def _see(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  images: np.ndarray | types.Patches,
) -> jax.Array:
  """Features [B, M, T, F] of tiles, with zeros behind them to a few M."""
  count = jax.tree.leaves(images)[0].shape[1]
  parts = []
  for start in range(0, count, _TILES):
    n = min(_TILES, count - start)
    some = jax.tree.map(
      lambda x, start=start: x[:, start : start + _TILES], images
    )
    seen = features_program(
      {"vision": params["vision"]}, config, _filled(some, n)
    )
    parts.append(seen[:, :n])
  if (more := tile_bucket(count) - count) > 0:
    first = parts[0]
    shape = (len(first), more, *first.shape[2:])
    parts.append(jnp.zeros(shape, first.dtype))
  seen = jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
  return shard.constrain(seen, "batch", None, None, None)


def _filled(some: Any, count: int) -> Any:
  """Tiles [B, count, ...] with zeros behind them, to one of a few numbers."""
  more = tile_bucket(count) - count
  fill = lambda x: np.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)))
  return jax.tree.map(fill, some)


def tile_buckets(count: int) -> list[int]:
  """How many tiles the tower takes at a time, of so many."""
  starts = range(0, count, _TILES)
  return [tile_bucket(min(_TILES, count - start)) for start in starts]


def tile_bucket(count: int) -> int:
  """How many tiles the tower and the embedding take for so many."""
  return programs.bucket(count, 2) if count > 1 else 1


def _without_pages(cache: types.DecodeCache) -> types.DecodeCache:
  return dataclasses.replace(cache, visual=None)


def _extend(params, config, visual, linear, *args, **kwargs):
  """`cached.extend`, to which the pages are no donated argument."""
  cache = dataclasses.replace(linear, visual=visual)
  grown, *rest = cached.extend(params, config, cache, *args, **kwargs)
  return _without_pages(grown), *rest


def _add_text(program, params, config, cache, *args, **kwargs):
  """Calls `text_program` or `token_program`; as `cached.extend`."""
  linear, *rest = program(
    params, config, cache.visual, _without_pages(cache), *args, **kwargs
  )
  return dataclasses.replace(linear, visual=cache.visual), *rest


text_program = programs.Program(
  *(_extend, "prompt text"),
  static=("prompt", "logits", "trace"),
  donate=("linear",),
)
# A function of its own: JAX keeps the programs of one function together.
token_program = programs.Program(
  *(functools.partial(_extend, logits=False), "a token of an answer"),
  donate=("linear",),
)
units_program = programs.Program(
  cached.read_units, "units of a prompt", donate=("cache",)
)
features_program = programs.Program(mllm.features, "vision tower")
embed_program = programs.Program(mllm.embed, "embedding of a prompt")


@functools.partial(jax.jit, static_argnames="size")
def _slice(x: jax.Array, start: jax.Array, *, size: int) -> jax.Array:
  """[B, size, E] of [B, S, E], from each row's own start on."""
  one = lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, size)
  return shard.constrain(jax.vmap(one)(x, start), "batch", None, None)
