"""Decode attention over listed pages in plain XLA, read where they lie.

XLA's gather copies what it picks, and its matmul then reads the copy: three
times the traffic, and on CPU a [4, 128] x [128, 36] product runs far below the
memory's speed. On CPU the pages are therefore read by two loops that XLA makes
of one `lax.reduce` each, the page lookup fused into them:

  keys    for page, token, page of 8:   128 products, 8 at a time   -> logits
  values  for page, token, 8 channels:  8 pages x 4 rows summed     -> out

Three things make XLA emit loops of vectors; lose one and they are scalar:

* One reduce of several operands, a row of the group each: XLA leaves a reduce
  of one operand to a library that wants its input copied, and with several a
  page is read once for all rows.
* Its length is 8 to 16 and its operand a bare product, so that LLVM unrolls it
  whole; the innermost loop left runs over channels that lie side by side.
* Eight pages are read side by side. Pages lie anywhere, and one after the other
  the memory's latency is paid at the start of each.

Elsewhere, and for the gradient, the pages are gathered.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from gaze_jax import types
from gaze_jax.ops import attention
from gaze_jax.ops import merge

# A row of a KV head's group is a bit of an int32.
_MAX_ROWS = 32
# Pages read side by side, rows summed side by side, products of one sum.
_PAGES, _ROWS, _PRODUCTS = 8, 4, 16
# A step of the loop over a long list visits so many pages of all KV heads.
_STEP = 512


def attend_pages(
  query: types.Float[types.Array, "B X Q D"],
  cache: types.VisualCache,
  ids: types.Int[types.Array, "B H U"],
  rows: types.Int[types.Array, "B H U"],
  count: types.Int[types.Array, "B H"],
  layer: types.Int[types.Array, ""] | None = None,
) -> types.Attended:
  """Attends to the listed pages, and to nothing else.

  Logits and softmax are float32. Time goes with the largest count, not with U.
  Differentiable in the query and the cache's keys and values, in reverse.

  Args:
    query: [B, X, Q, D], post-RoPE.
    cache: `VisualCache` of one layer, or of N with `layer`. The filled tokens
      of a page come first; what lies behind them is finite.
    ids: int32 [B, H, U], pages to visit, each at most once, in any order;
      those past `count` are not looked at.
    rows: int32 [B, H, U]; bit x * G + g is set where query head h * G + g of
      token x reads the page.
    count: int32 [B, H], entries of the list that are real.
    layer: int32 scalar, the layer to read; to slice it out would copy it.

  Returns:
    `Attended` of [B, X, Q, D] in the dtype of the values; out 0 and lse -inf
    for a row that reads nothing.

  Raises:
    ValueError: X * G exceeds 32.
  """
  b, x, q, d = query.shape
  k, v = cache.k, cache.v
  if layer is None:
    k, v, layer = k[None], v[None], jnp.zeros((), jnp.int32)
  h = k.shape[2]
  group = q // h
  if x * group > _MAX_ROWS:
    raise ValueError(f"{x * group} rows of a KV head; at most {_MAX_ROWS}")
  matrix = query.reshape(b, x, h, group, d).transpose(0, 2, 1, 3, 4)
  filled = cache.valid.sum(axis=-1, dtype=jnp.int32)
  out, lse = _attend(
    matrix.reshape(b, h, -1, d).astype(jnp.float32),
    k,
    v,
    (layer, filled, ids, rows, count),
  )
  out = out.reshape(b, h, x, group, d).transpose(0, 2, 1, 3, 4)
  lse = lse.reshape(b, h, x, group).transpose(0, 2, 1, 3)
  return types.Attended(
    out=out.reshape(b, x, q, d).astype(v.dtype), lse=lse.reshape(b, x, q)
  )


@jax.custom_vjp
def _attend(query, k, v, listed):
  """Rows [B, H, M, D] to (out, lse), float32 [B, H, M, D] and [B, H, M]."""
  return lax.platform_dependent(
    query, k, v, listed, cpu=_streamed, default=_gathered
  )


def _attend_forward(query, k, v, listed):
  return _attend(query, k, v, listed), (query, k, v, listed)


def _attend_backward(saved, cotangents):
  query, k, v, listed = saved
  pull = jax.vjp(lambda *x: _gathered(*x, listed), query, k, v)[1]
  return *pull(cotangents), None


_attend.defvjp(_attend_forward, _attend_backward)


def _gathered(query, k, v, listed):
  """The plain form: the oracle of `_streamed`, and its gradient."""
  b, h, m, d = query.shape
  layer, *listed = listed
  ids, length, reads = _entries(listed, m)
  mask = jnp.arange(k.shape[4]) < length[..., None]  # [B, H, U, L]
  mask = mask[:, :, None] & reads[..., None]
  picked = lambda x: (
    _pages(x, layer, ids).astype(jnp.float32).reshape(b, h, -1, d)
  )
  logits = jnp.einsum("bhmd,bhyd->bhmy", query, picked(k)) * d**-0.5
  weights, lse = attention.softmax(logits, mask.reshape(logits.shape))
  out = jnp.einsum("bhmy,bhyd->bhmd", weights, picked(v))
  return _where_seen(out, lse), lse


def _entries(listed, m: int):
  """Ids, filled tokens [B, H, U] and whether a row reads it [B, H, M, U].

  Entries past the count become the first entry, of which no row reads a token.
  """
  filled, ids, rows, count = listed
  real = jnp.arange(ids.shape[-1]) < count[..., None]
  ids = jnp.where(real, ids, ids[..., :1])
  length = jax.vmap(lambda filled, ids: filled[ids])(filled, ids)
  bit = jnp.arange(m, dtype=jnp.int32)[:, None]
  reads = ((rows[:, :, None] >> bit) & 1) == 1
  return ids, jnp.where(real, length, 0), reads


def _pages(x, layer, ids):
  """Pages [B, H, ..., L, D] of x [N, B, H, R, L, D] at ids [B, H, ...]."""
  n = ids.ndim
  numbers = lax.GatherDimensionNumbers(
    offset_dims=(n, n + 1),
    collapsed_slice_dims=(0, 3),
    start_index_map=(0, 3),
    operand_batching_dims=(1, 2),
    start_indices_batching_dims=(0, 1),
  )
  size = (1, 1, 1, 1, *x.shape[4:])
  at = jnp.stack([jnp.broadcast_to(layer, ids.shape), ids], axis=-1)
  return lax.gather(x, at, numbers, size, mode="promise_in_bounds")


def _where_seen(out, lse):
  # A page that is read for nobody may hold what it likes: 0 * nan is nan.
  return jnp.where(jnp.isfinite(lse)[..., None], out, 0.0)


def _streamed(query, k, v, listed):
  """The list in steps, up to the largest count."""
  layer, filled, ids, rows, count = listed
  b, h, u = ids.shape
  step = max(_STEP // (b * h) // _PAGES, 1) * _PAGES
  step = min(step, -(-u // _PAGES) * _PAGES)
  spare = -u % step
  pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, spare)))
  ids, rows = pad(ids), pad(rows)

  def part(start) -> types.Attended:
    cut = lambda x: lax.dynamic_slice_in_dim(x, start, step, axis=2)
    now = layer, filled, cut(ids), cut(rows), jnp.clip(count - start, 0, step)
    return types.Attended(*_step(query, k, v, now))

  if u <= step:
    return _step(query, k, v, (layer, filled, ids, rows, count))
  nothing = types.Attended(
    out=jnp.zeros_like(query), lse=jnp.full(query.shape[:-1], -jnp.inf)
  )
  steps = -(-count.max() // step)
  done = lax.fori_loop(
    0, steps, lambda i, so_far: merge.merge(so_far, part(i * step)), nothing
  )
  return done.out, done.lse


def _step(query, k, v, listed):
  """Attention to a list whose length is a multiple of `_PAGES`."""
  b, h, m, d = query.shape
  l = k.shape[4]
  layer, *listed = listed
  ids, length, reads = _entries(listed, m)
  n = ids.shape[-1] // _PAGES
  at = ids.reshape(b, h, n, _PAGES)
  logits = _logits(query, k, layer, at).reshape(b, h, m, n, l, _PAGES) * d**-0.5
  mask = jnp.arange(l)[:, None] < length.reshape(b, h, 1, n, 1, _PAGES)
  mask &= reads.reshape(b, h, m, n, 1, _PAGES)
  logits = jnp.where(mask, logits, -jnp.inf)
  peak = logits.max(axis=(3, 4, 5))
  peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
  weights = jnp.exp(logits - peak[..., None, None, None])
  total = weights.sum(axis=(3, 4, 5))
  lse = peak + jnp.log(total)
  safe = jnp.where(total > 0, total, 1.0)
  out = _weighted(weights, v, layer, at) / safe[..., None]
  return _where_seen(out, lse), lse


def _logits(query, k, layer, at):
  """query . key, [B, H, M, n, L, 8], for pages `at` [B, H, n, 8]."""
  b, h, m, d = query.shape
  lanes = _lanes(d, k.dtype.itemsize)
  page = _pages(k, layer, at).astype(jnp.float32).swapaxes(3, 4)
  page = page.reshape(*page.shape[:5], 1, d // lanes, lanes)
  rows = _in_blocks(query)  # [B, H, blocks, a, D]
  rows = rows.reshape(*rows.shape[:4], d // lanes, lanes)
  rows = rows[:, :, None, None, None]  # [B, H, 1, 1, 1, blocks, a, D / 8, 8]
  terms = [page * rows[..., i, :, :] for i in range(rows.shape[6])]
  parts = _sums(_sums(terms, axis=6), axis=6)
  out = jnp.stack(parts, axis=-1)  # [B, H, n, L, 8, blocks, a]
  out = out.reshape(*out.shape[:5], -1)[..., :m]
  return out.transpose(0, 1, 5, 2, 3, 4)


def _weighted(weights, v, layer, at):
  """Sum of the values by `weights` [B, H, M, n, L, 8]: [B, H, M, D]."""
  b, h, m = weights.shape[:3]
  page = (
    _pages(v, layer, at).astype(jnp.float32).swapaxes(3, 4)[:, :, :, :, None]
  )
  rows = _in_blocks(weights).transpose(0, 1, 3, 4, 5, 2, 6)[..., None]
  terms = [page * rows[:, :, i] for i in range(rows.shape[2])]
  parts = _sums(_sums(terms, axis=5), axis=2)  # [B, H, L, blocks, D] each
  out = jnp.stack(_sums(parts, axis=2), axis=3)
  return out.reshape(b, h, -1, v.shape[-1])[:, :, :m]


def _in_blocks(x):
  """Rows [B, H, M, ...] as [B, H, blocks, a, ...], with 2 <= a <= 4."""
  m = x.shape[2]
  blocks = -(-m // _ROWS)
  a = max(-(-m // blocks), 2)  # of one operand it would be the library's
  spare = blocks * a - m
  x = jnp.pad(x, ((0, 0), (0, 0), (0, spare), *((0, 0),) * (x.ndim - 3)))
  return x.reshape(*x.shape[:2], blocks, a, *x.shape[3:])


def _sums(terms, axis: int):
  """Each of several arrays summed over an axis, in one loop."""
  zeros = (jnp.zeros((), jnp.float32),) * len(terms)
  add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
  return lax.reduce(tuple(terms), zeros, add, (axis,))


@functools.cache
def _lanes(d: int, item: int) -> int:
  """Channels of a vector: 8 or more, so that few enough make up the rest."""
  most = _PRODUCTS if item == 4 else _PRODUCTS // 2  # a conversion to each
  for lanes in range(8, d, 8):
    if d % lanes == 0 and d // lanes <= most:
      return lanes
  return math.gcd(d, 8)
