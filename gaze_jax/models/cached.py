"""The multimodal LLM over rows that grow: units, prompt text, new tokens.

A row is read in chunks, each before what is in its cache already:

  <bos> | v v v v c c | v v v v c c | what is it? | a fox
  text  | units       | units       | text        | extend, token by token

It equals `mllm.prefill` of the whole row, however it is split. Caches go in and
come out; donate them, and they are written in place.
"""

import dataclasses
import functools

import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.models import decoder
from gaze_jax.models import mllm
from gaze_jax.ops import gaze
from gaze_jax.ops.decode import cache as cache_ops
from gaze_jax.ops.decode import linear
from gaze_jax.ops.decode import pages
from gaze_jax.ops.decode import prompt_units


def empty(
  config: config_lib.ModelConfig,
  batch: int,
  *,
  regions: int,
  region_length: int,
  capacity: int,
) -> types.DecodeCache:
  """A cache of nothing.

  Args:
    config: static.
    batch: B.
    regions: R, pages that there is room for.
    region_length: L, tokens of a page.
    capacity: Y, slots of text and context that there is room for.
  """
  c = config.decoder
  shape = (c.depth, batch, c.kv_heads, capacity, c.head_dim)
  k = jnp.zeros(shape, jnp.dtype(c.dtype))
  choice = None
  if config.gaze.refresh == "question":
    choice = jnp.zeros((c.depth, batch, c.query_heads, regions), bool)
  return types.DecodeCache(
    visual=gaze.empty(batch, regions, region_length, config),
    k=k,
    v=jnp.zeros_like(k),
    length=jnp.zeros(batch, jnp.int32),
    position=jnp.zeros(batch, jnp.int32),
    choice=choice,
  )


def read_units(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  cache: types.DecodeCache,
  x: types.Float[types.Array, "B X E"],
  chunk: types.Chunk,
) -> types.DecodeCache:
  """Adds visual and context tokens to rows.

  Args:
    params: as in `mllm.apply`; only "decoder" is read.
    config: static.
    cache: what came before, with room for what comes.
    x: [B, X, E], embedded slots (`mllm.embed`).
    chunk: `Chunk` of [B, X].
  """
  layout = chunk.layout

  def attend(q, k, v, layer):
    out = prompt_units.attend(q, k, v, layout, cache, config.gaze, layer=layer)
    return out, (k, v)

  layers = jnp.arange(config.decoder.depth)
  _, (k, v) = decoder.call(
    *(params, config.decoder, "__call__"), x, layout.position, attend, layers
  )
  context = (layout.role == types.Role.CONTEXT).sum(axis=1)
  last = jnp.where(layout.role == types.Role.PAD, -1, layout.position).max(1)
  put = lambda buffer, new: cache_ops.put_context(
    buffer, new, layout, cache.length
  )
  return dataclasses.replace(
    cache,
    visual=prompt_units.grow(cache.visual, k, v, chunk, config.gaze),
    k=put(cache.k, k),
    v=put(cache.v, v),
    length=cache.length + context,
    position=jnp.maximum(cache.position, last + 1),
  )


def read_text(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  cache: types.DecodeCache,
  tokens: types.Int[types.Array, "B X"],
  count: types.Int[types.Array, " B"],
  budget: types.Int[types.Array, " B"],
  *,
  trace: bool = False,
) -> tuple[types.DecodeCache, types.Array, types.Trace]:
  """Adds prompt text to rows.

  Args:
    params: as in `mllm.apply`; only "decoder" is read.
    config: static.
    cache: what came before, with room for X more.
    tokens: int32 [B, X].
    count: int32 [B], how many of them are real, at least one.
    budget: int32 [B], K of each row.
    trace: static; see `gaze.decode`.

  Returns:
    The grown cache; logits float32 [B, V] after the last real token; and the
    `Trace` of that token's query, [N, B, 1, Q, R].
  """
  grown, logits, traced = _add_text(
    *(params, config, cache, tokens, count, budget), prompt=True, trace=trace
  )
  return grown, logits[:, 0], traced


def extend(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  cache: types.DecodeCache,
  tokens: types.Int[types.Array, "B X"],
  budget: types.Int[types.Array, " B"],
  *,
  count: types.Int[types.Array, " B"] | None = None,
  override: types.Float[types.Array, "B Q R"] | None = None,
  trace: bool = False,
) -> tuple[types.DecodeCache, types.Array, types.Trace]:
  """The decode form: X tokens of the answer for every row.

  Args:
    params: this and the next three as in `read_text`.
    config: static.
    cache: what came before.
    tokens: int32 [B, X].
    budget: int32 [B], K of each row.
    count: int32 [B], how many of them are real, all by default; a row with
      none stays as it is.
    override: as in `mllm.apply`.
    trace: static; see `gaze.decode`.

  Returns:
    The grown cache; logits float32 [B, X, V]; and the `Trace` of [N, B, X, Q,
    R].
  """
  if count is None:
    count = jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)
  return _add_text(
    *(params, config, cache, tokens, count, budget),
    override=override,
    trace=trace,
  )


def _add_text(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  cache: types.DecodeCache,
  tokens: types.Int[types.Array, "B X"],
  count: types.Int[types.Array, " B"],
  budget: types.Int[types.Array, " B"],
  *,
  prompt: bool = False,
  override: types.Float[types.Array, "B Q R"] | None = None,
  trace: bool = False,
) -> tuple[types.DecodeCache, types.Array, types.Trace]:
  """`extend`; of a prompt, logits and trace are those of its last token."""
  g = config.gaze
  last = jnp.maximum(count, 1) - 1

  def kept(x: types.Array | None) -> types.Array | None:
    """[B, X, ...], or of a prompt [B, 1, ...] at its last real token."""
    if x is None or not prompt:
      return x
    at = last.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.take_along_axis(x, at, axis=1)

  def attend(q, k, v, memory):
    layer, dense, choice = memory
    text = linear.attend(q, (cache.k, cache.v), (k, v), cache.length, layer)
    routed = gaze.decode(
      *(q, cache.visual, text, budget, g),
      layer=layer,
      dense=(prompt and not g.route_prompt) or mllm.flag(dense),
      override=override,
      choice=None if prompt else choice,
      trace=trace,
    )
    if prompt and g.refresh == "question":
      choice = pages.choose(
        pages.Step(kept(q), cache.visual, layer, budget, g, override)
      )[:, 0]
    seen = map(kept, (routed.members, routed.scores, routed.dense))
    return routed.out, (k, v, types.Trace(*seen), choice)

  run = functools.partial(decoder.call, params, config.decoder)
  layers = jnp.arange(config.decoder.depth)
  memory = (layers, mllm.dense_layers(config), cache.choice)
  position = cache.position[:, None] + jnp.arange(tokens.shape[1])
  x, (k, v, traced, choice) = run(
    "__call__", run("embed", tokens), position, attend, memory
  )
  grown = dataclasses.replace(
    cache,
    k=cache_ops.append(cache.k, k, cache.length),
    v=cache_ops.append(cache.v, v, cache.length),
    length=cache.length + count,
    position=cache.position + count,
    choice=choice,
  )
  return grown, run("logits", kept(x)), traced
