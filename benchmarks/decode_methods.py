"""The ways to attend to a cache of visual tokens in one decoding step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.kernels import backends
from gaze_jax.ops import gaze
from gaze_jax.ops.decode import pages

REGION = 36
HEAD_DIM = 128
ROUTED = 0.1


# A call runs the layers of a model one after the other, each with its own
# cache: at most so many, and so many bytes.
_LAYERS, _LAYERS_BYTES = 4, 1.5e9


@dataclasses.dataclass(frozen=True)
class Case:
  """One decoding step of some layers: sizes, and random inputs.

  Attributes:
    tokens: visual tokens of a row; its last region may be ragged.
    query: [B, 1, Q, D].
    caches: a `VisualCache` for each layer.
  """

  tokens: int
  query: jax.Array
  caches: tuple[types.VisualCache, ...]

  @property
  def budget(self) -> int:
    """K: a tenth of the regions, at least one."""
    return max(1, round(ROUTED * self.caches[0].k.shape[2]))

  @property
  def pages(self) -> int:
    """Pages of a layer, of all rows and KV heads."""
    return self.caches[0].k[..., 0, 0].size


def make(tokens: int, batch: int, dtype: str, q: int, h: int) -> Case:
  """Random keys and values; heads and rows pick regions independently."""
  r = -(-tokens // REGION)
  size = batch * h * r * REGION * HEAD_DIM * jnp.dtype(dtype).itemsize * 2
  layers = int(max(1, min(_LAYERS, _LAYERS_BYTES // size)))
  slots = np.arange(r * REGION).reshape(1, r, REGION)
  valid = jnp.asarray(np.broadcast_to(slots < tokens, (batch, r, REGION)))
  keys = jax.random.split(jax.random.key(tokens, impl="unsafe_rbg"), 3)

  def cache(layer: int) -> types.VisualCache:
    shape = (batch, h, r, REGION, HEAD_DIM)
    k, v = (draw(jax.random.fold_in(x, layer), shape, dtype) for x in keys[:2])
    return types.VisualCache(
      k=k,
      v=v,
      descriptors=descriptors(k, valid),
      valid=valid,
      unit=jnp.zeros((batch, r, REGION), jnp.int32),
    )

  return Case(
    tokens=tokens,
    query=draw(keys[2], (batch, 1, q, HEAD_DIM), dtype),
    caches=tuple(cache(i) for i in range(layers)),
  )


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(key, shape: tuple[int, ...], dtype: str):
  """Normal numbers, part by part: at once they would take three times it."""
  parts = jax.random.split(key, shape[0] * shape[1])
  draw = lambda key: jax.random.normal(key, shape[2:], dtype)
  return jax.lax.map(draw, parts).reshape(shape)


@jax.jit
def descriptors(k, valid):
  """Mean keys [B, H, R, D] of pages [B, H, R, L, D]; 0 of an empty one."""

  def of_row(row):
    k, valid = row
    filled = jnp.where(valid[:, :, None], k, 0).sum(2, dtype=jnp.float32)
    return filled / jnp.maximum(valid.sum(-1), 1)[:, None]

  return jax.lax.map(of_row, (k, valid))


def _in_layers(attend):
  """One jitted call of `attend(query, layer)` for each of several layers.

  A layer's query is made of the output before it, as in a model.
  """

  @jax.jit
  def call(query, layers):
    for layer in layers:
      out = attend(query, layer).reshape(query.shape)
      query += (1e-6 * out).astype(query.dtype)
    return query

  return call


def _gaze(granularity: str, k, query, cache):
  """One routed step, with one text key: scores, choice, pages, merge."""
  (b, _, _, d), h = query.shape, cache.k.shape[1]
  none = jnp.zeros((b, 1, h, d), cache.k.dtype)
  stack = lambda x: x[None]
  return gaze.decode(
    query,
    dataclasses.replace(
      cache,
      k=stack(cache.k),
      v=stack(cache.v),
      descriptors=stack(cache.descriptors),
    ),
    attention.attend(query, none, none, jnp.ones((1, 1, 1, 1), bool)),
    jnp.full(b, k, jnp.int32),
    config_lib.GazeConfig(granularity=granularity),
    layer=jnp.int32(0),
  ).out


def _jax_heads_first(query, cache):
  """k and v in pages, which is [B, H, Y, D]."""
  k, v = (x.reshape(*x.shape[:2], -1, HEAD_DIM) for x in cache)
  return _jax_grouped(query, k, v, "bhgd,bhyd->bhgy")


def _jax_keys_turned(query, cache):
  """k [B, H, D, Y], v in pages."""
  k, v = cache
  v = v.reshape(*v.shape[:2], -1, HEAD_DIM)
  return _jax_grouped(query, k, v, "bhgd,bhdy->bhgy")


def _jax_slots_first(query, cache):
  """k and v [B, Y, H, D]."""
  return jax.nn.dot_product_attention(query, *cache)


def _jax_grouped(query, k, v, product: str):
  b, _, q, d = query.shape
  rows = query.reshape(b, k.shape[1], -1, d)
  logits = jnp.einsum(product, rows, k, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(logits * d**-0.5, axis=-1).astype(v.dtype)
  return jnp.einsum(
    "bhgy,bhyd->bhgd", weights, v, preferred_element_type=jnp.float32
  )


@functools.partial(jax.jit, static_argnums=1)
def _turned(x, order: tuple[int, ...]):
  """Pages as [B, H, Y, D] in another order of axes; a copy."""
  return x.reshape(*x.shape[:2], -1, HEAD_DIM).transpose(order)


def _torch_layers(query, layers):
  attend = timing.torch.nn.functional.scaled_dot_product_attention
  with timing.torch.no_grad():
    for k, v in layers:
      query = query + 1e-6 * attend(query, k, v, enable_gqa=True)
  return query


def dense(case: Case, method: str, layout: str) -> Callable[[], Any]:
  """Dense attention to all pages, in one layout of the cache.

  The contiguous [B, H, Y, D] is the cache itself. The few slots that pad the
  last region count as tokens here: a mask would cost more than they do.
  """
  layers = [(cache.k, cache.v) for cache in case.caches]
  if layout == "keys turned":
    layers = [(_turned(k, (0, 1, 3, 2)), v) for k, v in layers]
  elif layout == "slots first":
    layers = [tuple(_turned(x, (0, 2, 1, 3)) for x in kv) for kv in layers]
  if method == "jax_dense":
    forms = {
      "heads first": _jax_heads_first,
      "keys turned": _jax_keys_turned,
      "slots first": _jax_slots_first,
    }
    call = _in_layers(forms[layout])
    return functools.partial(call, case.query, layers)
  b, h = case.caches[0].k.shape[:2]
  shared = timing.torch.from_dlpack
  query = shared(case.query).transpose(1, 2)  # [B, Q, 1, D]
  layers = [tuple(shared(x) for x in kv) for kv in layers]
  if layout == "slots first":
    layers = [tuple(x.transpose(1, 2) for x in kv) for kv in layers]
  else:
    layers = [tuple(x.reshape(b, h, -1, HEAD_DIM) for x in y) for y in layers]
  if layout == "group as rows":  # of one token, no mask: the same function
    query = query.reshape(b, h, -1, HEAD_DIM)
  return functools.partial(_torch_layers, query, layers)


LAYOUTS = {
  "jax_dense": ("heads first", "keys turned", "slots first"),
  "torch_dense": ("heads first", "slots first", "group as rows"),
}


def best_layouts(case: Case) -> dict[str, str]:
  """The fastest layout of each dense method that can run here."""
  out = {}
  for method, layouts in LAYOUTS.items():
    if method == "torch_dense" and timing.torch is None:
      continue
    methods = {x: dense(case, method, x) for x in layouts}
    times = timing.in_turns(methods, rounds=4, seconds=1.0).times
    out[method] = min(times, key=lambda x: times[x].least)
  return out


def routed(case: Case, granularity: str) -> Callable[[], Any]:
  """A routed step; K is traced."""

  @jax.jit
  def call(query, caches, k):
    attend = functools.partial(_gaze, granularity, k)
    return _in_layers(attend)(query, caches)

  return functools.partial(
    call, case.query, case.caches, jnp.int32(case.budget)
  )


def every_region(case: Case) -> Callable[[], Any]:
  """The loops of the routed step, told to read all pages: dense attention."""
  b, h, r = case.caches[0].k.shape[:3]
  ids = jnp.broadcast_to(jnp.arange(r, dtype=jnp.int32), (b, h, r))
  rows, count = jnp.full((b, h, 1, r), -1), jnp.full((b, h), r)
  visits = types.Visits(ids, rows, count)
  shape, dtype = case.caches[0].k.shape, case.caches[0].k.dtype
  form = backends.best(
    backends.ATTEND_PAGES,
    rows=case.query.shape[2] // h,
    shape=shape,
    dtype=dtype,
  )
  call = _in_layers(
    lambda query, cache: (
      form.attend_pages(
        query,
        cache.k[None],
        cache.v[None],
        cache.valid.sum(-1),
        visits,
        layer=0,
      ).out
    )
  )
  return functools.partial(call, case.query, case.caches)


def page_bytes(case: Case, pages: float) -> float:
  """Bytes of the keys and values of so many pages of a KV head."""
  return pages * REGION * HEAD_DIM * case.query.dtype.itemsize * 2


def chosen_bytes(case: Case, granularity: str) -> tuple[float, float]:
  """What a routed step of the first layer must read, and its share of pages."""
  cache, query = case.caches[0], case.query
  (b, _, q, _), (h, r) = query.shape, cache.k.shape[1:3]
  config = config_lib.GazeConfig(granularity=granularity)
  budget = jnp.full(b, case.budget, jnp.int32)
  members = pages.choose(pages.Lookup(query, cache, None, budget, config))
  read = float(members.reshape(b, h, q // h, r).any(2).sum())
  size = page_bytes(case, read) + cache.descriptors.nbytes
  return size, read / case.pages
