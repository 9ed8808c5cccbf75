"""The ways to attend to a cache of visual tokens in one decoding step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from gaze_jax import types
from gaze_jax.ops import gather

REGION = 36
HEAD_DIM = 128
ROUTED = 0.1


@dataclasses.dataclass(frozen=True)
class Case:
  """One decoding step of a layer: sizes, and its random inputs.

  Attributes:
    tokens: visual tokens of a row; its last region may be ragged.
    query: [B, 1, Q, D].
    cache: `VisualCache`.
  """

  tokens: int
  query: jax.Array
  cache: types.VisualCache

  @property
  def budget(self) -> int:
    """K: a tenth of the regions, at least one."""
    return max(1, round(ROUTED * self.cache.k.shape[2]))

  def first(self, batch: int) -> "Case":
    """The first rows alone."""
    cut = lambda x: jnp.copy(x[:batch])
    return dataclasses.replace(
      self, query=cut(self.query), cache=jax.tree.map(cut, self.cache)
    )


def make(tokens: int, batch: int, dtype: str, q: int, h: int) -> Case:
  """Random keys and values; heads and rows pick regions independently."""
  r = -(-tokens // REGION)
  keys = jax.random.split(jax.random.key(tokens, impl="unsafe_rbg"), 3)
  draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
  k, v = (draw(key, (batch, h, r, REGION, HEAD_DIM), dtype) for key in keys[:2])
  slots = np.arange(r * REGION).reshape(1, r, REGION)
  valid = jnp.asarray(np.broadcast_to(slots < tokens, (batch, r, REGION)))
  mean = jax.jit(
    lambda k, valid: (
      jnp.where(valid[:, None, :, :, None], k, 0).sum(3, dtype=jnp.float32)
      / valid.sum(-1)[:, None, :, None]
    )
  )
  return Case(
    tokens=tokens,
    query=draw(keys[2], (batch, 1, q, HEAD_DIM), dtype),
    cache=types.VisualCache(
      k=k,
      v=v,
      descriptors=mean(k, valid),
      valid=valid,
      unit=jnp.zeros((batch, r), jnp.int32),
    ),
  )


@functools.partial(jax.jit, static_argnames=("granularity", "k_max"))
def gaze(query, cache, k, *, granularity: str, k_max: int):
  """One routed step: scores, choice, attention to the pages chosen."""
  visits = _visits(query, cache, k, granularity, k_max)
  return gather.attend_pages(query, cache, *visits)


@functools.partial(jax.jit, static_argnames=("granularity", "k_max"))
def visited(query, cache, k, *, granularity: str, k_max: int):
  """int32 [B, H], pages that each KV head reads."""
  return _visits(query, cache, k, granularity, k_max)[2]


def _visits(query, cache, k, granularity: str, k_max: int):
  """(ids, rows, count) of `gather.attend_pages`."""
  b, _, q, d = query.shape
  h, r = cache.descriptors.shape[1:3]
  g = q // h
  grouped = query.reshape(b, h, g, d).astype(jnp.float32)
  score = jnp.einsum("bhgd,bhrd->bhgr", grouped, cache.descriptors)
  if granularity == "kv_group":
    _, ids = jax.lax.top_k(score.sum(2).reshape(b * h, r), k_max)
    ids = ids.reshape(b, h, k_max)
    return ids, jnp.full_like(ids, 2**g - 1), jnp.broadcast_to(k, (b, h))
  flat = score.reshape(b * h * g, r)
  best, ids = jax.lax.top_k(flat, k_max)
  at = lambda x: jax.lax.dynamic_index_in_dim(x, k - 1, 1)
  members = (flat > at(best)) | (
    (flat == at(best)) & (jnp.arange(r) <= at(ids))
  )
  bits = members.reshape(b, h, g, r) << jnp.arange(g, dtype=jnp.int32)[:, None]
  bits = bits.sum(2, dtype=jnp.int32)
  size = min(g * k_max, r)
  place = jnp.cumsum(bits != 0, axis=-1, dtype=jnp.int32)
  put = jax.vmap(
    jax.vmap(
      lambda at, x: jnp.zeros(size, jnp.int32).at[at].set(x, mode="drop")
    )
  )
  at = jnp.where(bits != 0, place - 1, size)
  every = jnp.broadcast_to(jnp.arange(r, dtype=jnp.int32), at.shape)
  return put(at, every), put(at, bits), place[..., -1]


def _jax_heads_first(query, k, v):
  """k and v [B, H, Y, D]."""
  b, _, q, d = query.shape
  rows = query.reshape(b, k.shape[1], -1, d)
  logits = jnp.einsum(
    "bhgd,bhyd->bhgy", rows, k, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(logits * d**-0.5, axis=-1).astype(v.dtype)
  return jnp.einsum(
    "bhgy,bhyd->bhgd", weights, v, preferred_element_type=jnp.float32
  )


def _jax_keys_turned(query, k, v):
  """k [B, H, D, Y], v [B, H, Y, D]."""
  b, _, q, d = query.shape
  rows = query.reshape(b, k.shape[1], -1, d)
  logits = jnp.einsum(
    "bhgd,bhdy->bhgy", rows, k, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(logits * d**-0.5, axis=-1).astype(v.dtype)
  return jnp.einsum(
    "bhgy,bhyd->bhgd", weights, v, preferred_element_type=jnp.float32
  )


def _jax_slots_first(query, k, v):
  """k and v [B, Y, H, D]."""
  return jax.nn.dot_product_attention(query, k, v)


def _torch_attention(query, k, v):
  attend = timing.torch.nn.functional.scaled_dot_product_attention
  with timing.torch.no_grad():
    return attend(query, k, v, enable_gqa=True)


def dense(case: Case, method: str, layout: str) -> Callable[[], Any]:
  """Dense attention to all pages, in one layout of the cache.

  The contiguous [B, H, Y, D] is the cache itself. The few slots that pad the
  last region count as tokens here: a mask would cost more than they do.
  """
  b, h, r, l, d = case.cache.k.shape
  k, v = (x.reshape(b, h, r * l, d) for x in (case.cache.k, case.cache.v))
  if layout == "keys turned":
    k = jnp.swapaxes(k, 2, 3)
  elif layout == "slots first":
    k, v = (jnp.swapaxes(x, 1, 2) for x in (k, v))
  if method == "jax_dense":
    forms = {
      "heads first": _jax_heads_first,
      "keys turned": _jax_keys_turned,
      "slots first": _jax_slots_first,
    }
    return functools.partial(jax.jit(forms[layout]), case.query, k, v)
  query, k, v = (timing.torch.from_dlpack(x) for x in (case.query, k, v))
  query = query.transpose(1, 2)  # [B, Q, 1, D]
  if layout == "slots first":
    k, v = k.transpose(1, 2), v.transpose(1, 2)
  elif layout == "group as rows":  # of one token, no mask: the same function
    query = query.reshape(b, h, -1, d)
  return functools.partial(_torch_attention, query, k, v)


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
  k = jnp.int32(case.budget)
  return functools.partial(
    gaze,
    case.query,
    case.cache,
    k,
    granularity=granularity,
    k_max=case.budget,
  )


def every_region(case: Case) -> Callable[[], Any]:
  """The loops of the routed step, told to read all pages: dense attention."""
  b, h, r = case.cache.k.shape[:3]
  group = case.query.shape[2] // h
  ids = jnp.broadcast_to(jnp.arange(r, dtype=jnp.int32), (b, h, r))
  rows, count = jnp.full_like(ids, 2**group - 1), jnp.full((b, h), r)
  step = jax.jit(gather.attend_pages)
  return functools.partial(step, case.query, case.cache, ids, rows, count)


def page_bytes(case: Case, pages: float) -> float:
  """Bytes of the keys and values of so many pages of a KV head."""
  return pages * REGION * HEAD_DIM * case.cache.k.dtype.itemsize * 2


def chosen_bytes(case: Case, granularity: str) -> tuple[float, float]:
  """What a routed step must read, and the share of pages that is."""
  count = visited(
    case.query,
    case.cache,
    jnp.int32(case.budget),
    granularity=granularity,
    k_max=case.budget,
  )
  pages = float(count.sum())
  share = pages / case.cache.k[..., 0, 0].size
  return page_bytes(case, pages) + case.cache.descriptors.nbytes, share
