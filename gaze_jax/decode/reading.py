"""Reads a prompt into a context, a chunk at a time.

A laid-out row is split where text begins and ends, and into chunks; a chunk is
padded to one of a few sizes, so that prompts of all kinds share programs:

  row     t t t | v v v v v v v v c c | t t t t t |
  chunks  text  | units     | units   | text      |
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

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

# Slots of a chunk, at most and at least. A chunk of text scores each region
# for each of its tokens, and units look at everything before them.
_TEXT, _LEAST_TEXT = 128, 8
_UNITS, _LEAST_UNITS = 256, 32
_TILES = 8  # squares of pixels that the tower reads at a time


class Piece(NamedTuple):
  """Slots `start` to `stop` of a row, all text or none of it."""

  start: int
  stop: int
  text: bool


def read(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  context: context_lib.Context,
  batch: types.Batch,
  budget: int,
  *,
  room: int = 1,
  limits: context_lib.Limits = context_lib.Limits(),  # noqa: B008
  trace: bool = False,
) -> context_lib.Context:
  """Reads one row.

  Args:
    params: as in `mllm.apply`.
    config: the model.
    context: what came before; it stays as it is. Its `views` and `talk` are
      those that the result is to have.
    batch: `Batch` of one row, the trunk of one sample, in numpy.
    budget: K.
    room: tokens that will follow, which room is made for.
    limits: what a row may hold.
    trace: also scores and dense attention of the last token.

  Returns:
    The context with the row, and with the logits of its last token.

  Raises:
    context_lib.LimitError: the row is too long.
    errors.GazeError: the row is empty.
  """
  pieces = list(split(np.asarray(batch.layout.role)[0]))
  if not pieces:
    raise errors.GazeError("there is nothing to read: the prompt is empty")
  after = context_lib.extended(context, batch)
  limits.check(after.length + after.visual_tokens + room, after.unit_count)
  # The last chunk of text is padded within the cache.
  cache = context_lib.reserve(
    context_lib.current_cache(context),
    regions=len(after.sizes),
    slots=after.length + max(room, _TEXT),
  )
  cache, logits, traced = _read_pieces(
    params, config, context, cache, batch, pieces, budget, trace
  )
  return dataclasses.replace(after, cache=cache, logits=logits, trace=traced)


def _read_pieces(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  context: context_lib.Context,
  cache: types.DecodeCache,
  batch: types.Batch,
  pieces: list[Piece],
  budget: int,
  trace: bool,
) -> tuple[types.DecodeCache, jax.Array | None, types.Trace | None]:
  """The cache with all pieces in it, and what the last one gives."""
  decoder = {"decoder": params["decoder"]}
  budgets = jnp.full(1, budget, jnp.int32)
  for token in context.pending:  # routed as the answer's, not as a prompt
    token = np.full((1, 1), token, np.int32)
    cache, _, _ = _extend(decoder, config, cache, token, budgets)
  if any(not piece.text for piece in pieces):
    whole = _continued(batch, context)
    # The context tokens of a unit are in one chunk, whatever their number.
    room = _UNITS + 2 * config.gaze.context_tokens
    embedded = _embed(params, config, batch, room)
    if cache.visual is context.cache.visual:  # pages that the context shares
      visual = jax.tree.map(jnp.copy, cache.visual)
      cache = dataclasses.replace(cache, visual=visual)
  logits = traced = None
  for piece in pieces:
    if piece.text:
      tokens, count = _padded_text(np.asarray(batch.tokens)[0], piece)
      cache, logits, traced = _read_text(
        *(decoder, config, cache, tokens, budgets),
        count=count,
        prompt=True,
        trace=trace,
      )
      logits = logits[:, 0]
    else:
      chunk = _padded_piece(whole, piece)
      x = _slice(embedded, piece.start, size=chunk.index.shape[1])
      cache = _read_units(decoder, config, cache, x, chunk)
      logits = traced = None
  return cache, logits, traced


def split(role: np.ndarray) -> Iterator[Piece]:
  """The pieces of a row, int [S]; a unit's context tokens stay together."""
  end = int((role != types.Role.PAD).sum())
  text = role == types.Role.TEXT
  context = role == types.Role.CONTEXT
  start = 0
  while start < end:
    same = text[start:end] == text[start]
    run = start + (end - start if same.all() else int(same.argmin()))
    stop = min(run, start + (_TEXT if text[start] else _UNITS))
    if stop < run and context[stop]:
      first = stop
      while first > start and context[first - 1]:
        first -= 1
      while stop < run and context[stop]:
        stop += 1
      stop = first if first > start else stop
    yield Piece(start, stop, bool(text[start]))
    start = stop


def _continued(batch: types.Batch, context: context_lib.Context) -> types.Chunk:
  """A row as one `Chunk` of [S], its numbers continued from the context's."""
  layout = jax.tree.map(lambda x: np.asarray(x)[0], batch.layout)
  shift = lambda x, by: np.where(x >= 0, x + by, -1)
  index = np.zeros(len(layout.role), np.int32)
  pages = np.asarray(batch.region_slots)[0]
  region, place = np.nonzero(pages >= 0)
  index[pages[region, place]] = place
  layout = dataclasses.replace(
    layout,
    unit=shift(layout.unit, context.unit_count),
    region=shift(layout.region, len(context.sizes)),
    position=layout.position + context.position + len(context.pending),
  )
  return types.Chunk(layout, index)


def _padded_piece(whole: types.Chunk, piece: Piece) -> types.Chunk:
  """A piece as `Chunk` of [1, X], X one of a few sizes."""
  size = programs.bucket(piece.stop - piece.start, _LEAST_UNITS)
  fills = types.Layout(
    **{f.name: 0 for f in dataclasses.fields(types.Layout)}
    | dict(role=types.Role.PAD, unit=-1, region=-1, segment=-1)
  )
  return jax.tree.map(
    lambda x, fill: _padded(x[piece.start : piece.stop], size, fill),
    whole,
    types.Chunk(fills, 0),
  )


def _padded_text(
  tokens: np.ndarray, piece: Piece
) -> tuple[np.ndarray, np.ndarray]:
  """Ids of a piece, int32 [1, X], and how many there are, [1]."""
  ids = tokens[piece.start : piece.stop]
  size = programs.bucket(len(ids), _LEAST_TEXT)
  return _padded(ids, size, 0), np.full(1, len(ids), np.int32)


def _padded(x: np.ndarray, size: int, fill: int) -> np.ndarray:
  """int32 [1, size]."""
  out = np.full((1, size), fill, np.int32)
  out[0, : len(x)] = x
  return out


def _embed(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  batch: types.Batch,
  room: int,
) -> jax.Array:
  """float32 [1, S + room or more, E] of a batch; chunks are slices of it."""
  count = jax.tree.leaves(batch.images)[0].shape[1]
  parts = []
  for start in range(0, count, _TILES):
    some = slice(start, min(start + _TILES, count))
    tiles = jax.tree.map(lambda x, some=some: x[:, some], batch.images)
    n = some.stop - some.start
    parts.append(_features(params, config, _filled(tiles, n))[:, :n])
  features = np.concatenate([np.asarray(p) for p in parts], axis=1)
  slots = np.asarray(batch.tokens).shape[1]
  # The last chunk reaches past the end of the row.
  room = programs.bucket(slots + room, _UNITS) - slots
  pad = lambda x: np.pad(
    np.asarray(x), ((0, 0), (0, room), *((0, 0),) * (np.ndim(x) - 2))
  )
  return _embed_row(
    {k: v for k, v in params.items() if k != "vision"},
    config,
    types.Batch(
      tokens=pad(batch.tokens),
      layout=jax.tree.map(pad, batch.layout),
      feed=pad(batch.feed),
      region_slots=None,
      images=_filled(features, count),
      answer_slots=None,
      answer_of=None,
      blend=None if batch.blend is None else pad(batch.blend),
    ),
  )


def _filled(images, count: int):
  """Tiles [1, count, ...] with zeros behind them, to one of a few numbers."""
  size = programs.bucket(count, 2) if count > 1 else 1

  def fill(x):
    out = np.zeros((1, size, *x.shape[2:]), x.dtype)
    out[:, :count] = x
    return out

  return jax.tree.map(fill, images)


def _apart(function, name: str, **kwargs) -> Callable:
  """One of `models/cached.py`, to which the pages are no donated argument."""
  without = lambda cache: dataclasses.replace(cache, visual=None)

  def apart(params, config, visual, linear, *args, **kwargs):
    cache = dataclasses.replace(linear, visual=visual)
    grown, *rest = function(params, config, cache, *args, **kwargs)
    return without(grown), *rest

  program = programs.Program(apart, name, donate=("linear",), **kwargs)

  def call(params, config, cache, *args, **kwargs):
    visual = cache.visual
    linear, *rest = program(
      params, config, visual, without(cache), *args, **kwargs
    )
    return dataclasses.replace(linear, visual=visual), *rest

  return call


_read_text = _apart(cached.extend, "prompt text", static=("prompt", "trace"))
_extend = _apart(cached.extend, "a token of an answer")
_read_units = programs.Program(
  cached.read_units, "units of a prompt", donate=("cache",)
)
_features = programs.Program(mllm.features, "vision tower")
_embed_row = programs.Program(mllm.embed, "embedding of a prompt")
_slice = jax.jit(
  lambda x, start, size: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1),
  static_argnames="size",
)
