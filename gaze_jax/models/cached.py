"""The multimodal LLM over rows that grow: units, prompt text, new tokens.

A row is read in chunks, each before what is in its cache already:

  <bos> | v v v v c c | v v v v c c | what is it? | a fox
  text  | units       | units       | text        | token by token

It equals `mllm.apply` of the whole row, however it is split. Nothing else fills
a cache. Caches go in and come out; donate them, and they are written in place.
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
from gaze_jax.parallel import shard


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
  cache = types.DecodeCache(
    visual=gaze.empty(batch, regions, region_length, config),
    k=k,
    v=jnp.zeros_like(k),
    length=jnp.zeros(batch, jnp.int32),
    position=jnp.zeros(batch, jnp.int32),
    choice=choice,
  )
  return cache_ops.constrain(cache)


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
  grown = dataclasses.replace(
    cache,
    visual=prompt_units.grow(cache.visual, k, v, chunk, config.gaze),
    k=put(cache.k, k),
    v=put(cache.v, v),
    length=cache.length + context,
    position=jnp.maximum(cache.position, last + 1),
  )
  return cache_ops.constrain(grown)


def extend(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  cache: types.DecodeCache,
  tokens: types.Int[types.Array, "B X"],
  budget: types.Int[types.Array, " B"],
  *,
  count: types.Int[types.Array, " B"] | None = None,
  prompt: bool = False,
  logits: bool = True,
  override: types.Float[types.Array, "B Q R"] | None = None,
  trace: bool = False,
) -> tuple[types.DecodeCache, types.Array | None, types.Trace]:
  """The decode form: adds X tokens of text to every row.

  Args:
    params: as in `mllm.apply`; only "decoder" is read.
    config: static.
    cache: what came before, with room for X more.
    tokens: int32 [B, X].
    budget: int32 [B], K of each row.
    count: int32 [B], how many of the tokens are real, all by default; a row
      with none stays as it is.
    prompt: static; the text is of the prompt, not of the answer: it is routed
      as such, and what its last real token gives is returned alone (X = 1
      below).
    logits: static; whether they are wanted. The head reads the whole table of
      tokens, and what follows more of the prompt is never looked at.
    override: as in `mllm.apply`.
    trace: static; see `gaze.decode`.

  Returns:
    The grown cache; logits float32 [B, X, V], or None; the `Trace` of
    [N, B, X, Q, R].
  """
  if count is None:
    count = jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)
  attend = functools.partial(
    _attend_text,
    *(config.gaze, cache, budget),
    last=jnp.maximum(count, 1) - 1 if prompt else None,
    override=override,
    trace=trace,
  )
  run = functools.partial(decoder.call, params, config.decoder)
  layers = jnp.arange(config.decoder.depth)
  memory = (layers, mllm.dense_layers(config), cache.choice)
  position = cache.position[:, None] + jnp.arange(tokens.shape[1])
  x, (k, v, traced, choice) = run(
    "__call__", run("embed", tokens), position, attend, memory
  )
  if prompt:
    x = _at(x, jnp.maximum(count, 1) - 1)
  said = run("logits", x) if logits else None
  traced = shard.constrain_tree(traced, shard.NEW_OF_LAYERS)
  return _grown(cache, k, v, count, choice), said, traced


def _grown(cache: types.DecodeCache, k, v, count, choice) -> types.DecodeCache:
  """The cache with `count` of X tokens, whose k and v are [N, B, X, J, D]."""
  grown = dataclasses.replace(
    cache,
    k=cache_ops.append(cache.k, k, cache.length),
    v=cache_ops.append(cache.v, v, cache.length),
    length=cache.length + count,
    position=cache.position + count,
    choice=choice,
  )
  return cache_ops.constrain(grown)


def _attend_text(
  g: config_lib.GazeConfig, cache, budget, q, k, v, memory, *, last, **options
):
  """A layer's attention in `extend`; `last`: of a prompt, its last token."""
  layer, dense, choice = memory
  text = linear.attend(q, (cache.k, cache.v), (k, v), cache.length, layer)
  prompt = last is not None
  routed = gaze.decode(
    *(q, cache.visual, text, budget, g),
    layer=layer,
    dense=(prompt and not g.route_prompt) or mllm.flag(dense),
    choice=None if prompt else choice,
    **options,
  )
  seen = routed.members, routed.scores, routed.dense
  if prompt:
    seen = (None if x is None else _at(x, last) for x in seen)
    if g.refresh == "question":
      choice = pages.choose(
        pages.Lookup(
          _at(q, last), cache.visual, layer, budget, g, options["override"]
        )
      )[:, 0]
  return routed.out, (k, v, types.Trace(*seen), choice)


def _at(x: types.Array, last: types.Array) -> types.Array:
  """[B, 1, ...] of [B, X, ...], at each row's last token."""
  return jnp.take_along_axis(x, last.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)
