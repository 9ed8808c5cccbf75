"""Reads whole rows into caches by `models/cached.py`, a batch together.

Runs of text and of units take turns, and a row that has none waits; all rows
end in text, together:

  row 0   t t | v v v c | t
  row 1         v v c   | t t t
  row 2                   t
"""

import functools

import jax
import numpy as np

from gaze_jax import types
from gaze_jax.models import cached
from gaze_jax.models import mllm

Spans = list[tuple[int, int]]

_embed = jax.jit(mllm.embed, static_argnames="config")
read_units = jax.jit(
  cached.read_units, static_argnames="config", donate_argnames="cache"
)
read_text = jax.jit(
  functools.partial(cached.extend, prompt=True),
  static_argnames=("config", "trace"),
  donate_argnames="cache",
)


def read(params, config, batch, budget, *, capacity, pieces=None, trace=False):
  """Reads prompts, one sample a row.

  Args:
    params: as in `mllm.apply`.
    config: the model.
    batch: `Batch`, in numpy.
    budget: int32 [B].
    capacity: Y, slots of text and context that there is room for.
    pieces: whether text, and each row's span of slots; whole runs by default.
    trace: as in `cached.extend`.

  Returns:
    The cache; logits float32 [B, V] after each row's last token; and the
    `Trace` of that token, [N, B, 1, Q, R].
  """
  regions, length = batch.region_slots.shape[1:]
  cache = cached.empty(
    config,
    len(budget),
    regions=regions,
    region_length=length,
    capacity=capacity,
  )
  pieces = pieces or runs(np.asarray(batch.layout.role))
  embedded = None
  for text, spans in pieces:
    size = room(pieces, text)
    if text:
      tokens = taken(batch.tokens, spans, size)
      count = np.array([stop - start for start, stop in spans], np.int32)
      cache, logits, traced = read_text(
        params, config, cache, tokens, budget, count=count, trace=trace
      )
      continue
    if embedded is None:
      embedded = np.asarray(_embed(params, config, batch))
    x = taken(embedded, spans, size)
    cache = read_units(params, config, cache, x, chunk_of(batch, spans, size))
  return cache, logits[:, 0], traced


def runs(role) -> list[tuple[bool, Spans]]:
  """The pieces of rows [B, S]: all of their runs, the last of them together."""
  of_rows = []
  for row in role:
    text = row[row != types.Role.PAD] == types.Role.TEXT
    cuts = [0, *(np.flatnonzero(text[1:] != text[:-1]) + 1).tolist(), len(text)]
    assert text[-1], "a row ends in text"
    of_rows.append(list(zip(cuts[:-1], cuts[1:], strict=True)))
  most = max(map(len, of_rows))
  filled = [[(0, 0)] * (most - len(some)) + some for some in of_rows]
  return [
    ((most - i) % 2 == 1, [row[i] for row in filled]) for i in range(most)
  ]


def room(pieces, text: bool) -> int:
  """Slots that a piece of text, or of units, is padded to: one at least."""
  spans = [span for kind, some in pieces if kind == text for span in some]
  return 1 + max(stop - start for start, stop in spans)


def taken(x, spans: Spans, size: int, fill=0) -> np.ndarray:
  """[B, size, ...]: of each row its span, and `fill` behind it."""
  x = np.asarray(x)
  out = np.full((len(spans), size, *x.shape[2:]), fill, x.dtype)
  for row, (start, stop) in enumerate(spans):
    out[row, : stop - start] = x[row, start:stop]
  return out


def chunk_of(batch, spans: Spans, size: int) -> types.Chunk:
  """`Chunk` of [B, size]."""
  fills = dict(role=0, unit=-1, region=-1, position=0, segment=-1, branch=0)
  layout = types.Layout(
    **{
      name: taken(getattr(batch.layout, name), spans, size, fill)
      for name, fill in fills.items()
    }
  )
  places = np.zeros(batch.tokens.shape, np.int32)
  for row, pages in enumerate(batch.region_slots):
    for page in pages:
      places[row, page[page >= 0]] = np.arange((page >= 0).sum())
  return types.Chunk(layout, taken(places, spans, size))
