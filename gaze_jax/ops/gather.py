"""Decode attention over listed pages in plain XLA, read where they lie.

XLA's gather copies what it picks, and its matmul then reads the copy: three
times the traffic, and on CPU a [4, 128] x [128, 36] product runs far below the
memory's speed. On CPU the pages are therefore read by two loops that XLA makes
of one `lax.reduce` each, the page lookup fused into them:

  keys    for token, 2 rows, page of 16:  128 products, 8 at a time  -> logits
  values  for token, 2 rows, channels:    16 pages summed            -> out

What makes XLA emit loops of vectors that copy nothing; lose one, and they are
scalar or the copy is back:

* One reduce of several operands, a row of the group each: XLA leaves a reduce
  of one operand to a library that wants its input copied, and with several a
  page is read once for all rows.
* The sum is short and its operand a bare product, so that LLVM unrolls it
  whole; the innermost loop that is left runs over channels that lie side by
  side. A scale would be too much. So a page is found by one number, and what
  makes these numbers and the query is kept from being fused.
* Rows beyond those of one reduce look a page up again. Broadcast over them, a
  lookup would not be fused.
* Many pages are read side by side. They lie anywhere, and one after the other
  the memory's latency is paid at the start of each.

Elsewhere, and for the gradient, the pages are gathered. So are those of many
rows everywhere, some at a time: a matrix product repays the copy there.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from gaze_jax import types
from gaze_jax.ops import attention
from gaze_jax.ops import merge

# Up to so many rows of a KV head read pages in place.
_FEW_ROWS = 32
# Rows of a reduce: more leave room for fewer pages side by side; of one alone
# the library would take the reduce.
_ROWS = 2
# A step of the loop over a long list visits so many pages of all KV heads.
_STEP = 64
# Or so few, where room is made for copies that are hardly ever needed.
_FEW_PAGES = 8
# Pages read side by side, and products of one sum: what LLVM still unrolls.
_PAGES, _PRODUCTS = 16, 16
_VECTOR = 8


def attend_pages(
  query: types.Float[types.Array, "B X Q D"],
  cache: types.VisualCache,
  ids: types.Int[types.Array, "B H U"],
  rows: types.Int[types.Array, "B H words U"],
  count: types.Int[types.Array, "B H"],
  layer: types.Int[types.Array, ""] | None = None,
) -> types.Attended:
  """Attends to the listed pages, and to nothing else.

  Logits and softmax are float32. Time goes with the largest count, not with U,
  and no more pages are copied at a time than a step of the loop takes.
  Differentiable in the query and the cache's keys and values, in reverse.

  Args:
    query: [B, X, Q, D], post-RoPE.
    cache: `VisualCache` of one layer, or of N with `layer`. The filled tokens
      of a page come first; what lies behind them may be anything.
    ids: int32 [B, H, U], pages to visit, each at most once, in any order;
      those past `count` are not looked at.
    rows: int32 [B, H, words, U]; row x * G + g is query head h * G + g of token
      x, and bit i % 32 of word i // 32 is set where row i reads the page.
    count: int32 [B, H], entries of the list that are real.
    layer: int32 scalar, the layer to read; to slice it out would copy it.

  Returns:
    `Attended` of [B, X, Q, D] in the dtype of the values; out 0 and lse -inf
    for a row that reads nothing.
  """
  b, x, q, d = query.shape
  k, v = cache.k, cache.v
  if layer is None:
    k, v, layer = k[None], v[None], jnp.zeros((), jnp.int32)
  h = k.shape[2]
  group = q // h
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
  if query.shape[2] > _FEW_ROWS:
    return _in_steps(query, k, v, listed)
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
  """The plain form: the oracle of the others, and their gradient."""
  layer, *listed = listed
  return _copied(query, k, v, layer, _entries(listed, query.shape[2]))


def _copied(query, k, v, layer, entries):
  """Attention to copies of some pages."""
  b, h, _, d = query.shape
  ids, length, reads = entries
  mask = jnp.arange(k.shape[4]) < length[..., None]  # [B, H, U, L]
  mask = mask[:, :, None] & reads[..., None]
  picked = lambda x: attention.known(
    _copies(x, layer, ids).astype(jnp.float32).reshape(b, h, -1, d)
  )
  (k, lost_k), (v, lost_v) = picked(k), picked(v)
  logits = jnp.einsum("bhmd,bhyd->bhmy", query, k) * d**-0.5
  logits += (lost_k + lost_v)[:, :, None]
  weights, lse = attention.softmax(logits, mask.reshape(logits.shape))
  return jnp.einsum("bhmy,bhyd->bhmd", weights, v), lse


def _entries(listed, m: int):
  """Ids, filled tokens [B, H, U] and whether a row reads it [B, H, M, U].

  Entries past the count become the first entry, of which no row reads a token.
  """
  filled, ids, rows, count = listed
  real = jnp.arange(ids.shape[-1]) < count[..., None]
  ids = jnp.where(real, ids, ids[..., :1])
  length = jax.vmap(lambda filled, ids: filled[ids])(filled, ids)
  words = jnp.repeat(rows, 32, axis=2)[:, :, :m]
  bit = jnp.arange(m, dtype=jnp.int32)[:, None] % 32
  reads = ((words >> bit) & 1) == 1
  return ids, jnp.where(real, length, 0), reads


def _copies(x, layer, ids):
  """Pages [B, H, U, L, D] of x [N, B, H, R, L, D]; rows and heads stay apart.

  Sharded over rows or heads, x stays so.
  """
  numbers = lax.GatherDimensionNumbers(
    offset_dims=(3, 4),
    collapsed_slice_dims=(0, 3),
    start_index_map=(0, 3),
    operand_batching_dims=(1, 2),
    start_indices_batching_dims=(0, 1),
  )
  size = (1, 1, 1, 1, *x.shape[4:])
  at = jnp.stack([jnp.broadcast_to(layer, ids.shape), ids], axis=-1)
  return lax.gather(x, at, numbers, size, mode="promise_in_bounds")


def _pages(x, at):
  """Pages [B, H, ..., L, D] of x [N, B, H, R, L, D], by `_numbers` `at`."""
  numbers = lax.GatherDimensionNumbers(
    offset_dims=(at.ndim, at.ndim + 1),
    collapsed_slice_dims=(0,),
    start_index_map=(0,),
  )
  size = (1, *x.shape[4:])
  return lax.gather(
    x.reshape(-1, *size[1:]),
    at[..., None],
    numbers,
    size,
    mode="promise_in_bounds",
  )


def _pages_of_blocks(x, at, blocks: int):
  """Pages [B, H, n, L, blocks, s, D] at [B, H, n, s], looked up by each block.

  First all s pages for some rows, from memory, then for the next, from cache.
  """
  b, h, n, beside = at.shape
  at = jnp.broadcast_to(at[:, :, :, None], (b, h, n, blocks, beside))
  return _pages(x, at).transpose(0, 1, 2, 5, 3, 4, 6)


def _numbers(shape, layer, ids, length):
  """Numbers of pages among all pages of all heads, rows and layers.

  And the lengths as they are: a reduce of two operands is not fused into the
  loops that read its results, which would then look an id up for each value.

  Args:
    shape: [N, B, H, R, L, D].
    layer: int32 scalar.
    ids: int32 [B, H, U].
    length: int32 [B, H, U].
  """
  b, h, r = shape[1:4]
  head = jnp.arange(b * h, dtype=jnp.int32).reshape(b, h, 1)
  first = jnp.broadcast_to((head + layer * (b * h)) * r, ids.shape)
  terms = [jnp.stack([ids, first]), jnp.stack([length, jnp.zeros_like(length)])]
  return _sums(terms, axis=0)


def _streamed(query, k, v, listed):
  """Pages read in place."""
  beside = min(_PAGES, listed[2].shape[-1])
  attend = functools.partial(_step, beside=beside)
  out, lse = _in_steps(_made(query), k, v, listed, attend, beside)
  # A value that a row does not see may be NaN, and 0 * NaN is. To ask that of
  # each product would take a third longer; copies of pages are asked.
  again = lambda: _in_steps(query, k, v, listed, most=_FEW_PAGES)
  return lax.cond(jnp.isnan(out).any(), again, lambda: (out, lse))


def _in_steps(
  query, k, v, listed, attend_some=_copied, multiple: int = 1, most: int = 0
):
  """The list up to the largest count, a multiple of pages at a time."""
  layer, *listed = listed
  count = listed[-1].max()
  ids, length, reads = _entries(listed, query.shape[2])
  u = ids.shape[-1]
  step = min(most or _STEP, -(-u // multiple) * multiple)
  spare = -u % step
  pad = lambda x: jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, spare)))
  listed = tuple(pad(x) for x in (ids, length, reads))
  nothing = types.Attended(
    out=jnp.zeros_like(query), lse=jnp.full(query.shape[:-1], -jnp.inf)
  )

  def part(start) -> types.Attended:
    cut = lambda x: lax.dynamic_slice_in_dim(x, start, step, axis=-1)
    now = tuple(cut(x) for x in listed)
    attend = lambda: types.Attended(*attend_some(query, k, v, layer, now))
    # Always true in a loop. Were it not asked, XLA would convert a bfloat16
    # cache as a whole, once, before the loop (this one, or over the layers).
    return lax.cond(start < count, attend, lambda: nothing)

  if u <= step:
    done = part(jnp.int32(0))
  else:
    add = lambda i, so_far: merge.merge(so_far, part(i * step))
    done = lax.fori_loop(0, -(-count // step), add, nothing)
  return done.out, done.lse


def _made(query):
  """The same; what it is made by is not fused into the loop over keys."""
  same = jnp.eye(query.shape[-1], dtype=query.dtype)
  return jnp.einsum(
    "bhmd,de->bhme", query, same, precision=lax.Precision.HIGHEST
  )


def _step(query, k, v, layer, entries, beside: int):
  """Attention to a list of pages that is a multiple of `beside` long."""
  b, h, m, d = query.shape
  l = k.shape[4]
  ids, length, reads = entries
  at, length = _numbers(k.shape, layer, ids, length)
  n = ids.shape[-1] // beside
  at = at.reshape(b, h, n, beside)
  logits = _logits(query, k, at) * d**-0.5
  mask = jnp.arange(l)[:, None] < length.reshape(b, h, 1, n, 1, beside)
  mask &= reads.reshape(b, h, m, n, 1, beside)
  logits = jnp.where(mask, logits, -jnp.inf)
  peak = logits.max(axis=(3, 4, 5))
  peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
  weights = jnp.exp(logits - peak[..., None, None, None])
  total = weights.sum(axis=(3, 4, 5))
  lse = peak + jnp.log(total)
  safe = jnp.where(total > 0, total, 1.0)
  out = _weighted(weights, v, at) / safe[..., None]
  # What fills up a list may be a page that nobody reads.
  return jnp.where(jnp.isneginf(lse)[..., None], 0.0, out), lse


def _logits(query, k, at):
  """query . key, [B, H, M, n, L, s], for the pages `at` [B, H, n, s]."""
  rows = _in_blocks(query)  # [B, H, blocks, a, D]
  page = _pages_of_blocks(k, at, rows.shape[2])
  rows = [rows[:, :, None, None, :, None, i] for i in range(rows.shape[3])]
  out = _dots(rows, page)  # [B, H, n, L, blocks, s, a]
  out = out.transpose(0, 1, 4, 6, 2, 3, 5)
  b, h, m = query.shape[:3]
  return out.reshape(b, h, -1, *out.shape[4:])[:, :, :m]


def _weighted(weights, v, at):
  """Sum of the values by `weights` [B, H, M, n, L, s]: [B, H, M, D]."""
  b, h, m, n, l, _ = weights.shape
  rows = _in_blocks(weights)  # [B, H, blocks, a, n, L, s]
  blocks, a = rows.shape[2:4]
  page = _pages_of_blocks(v, at, blocks).astype(jnp.float32)
  rows = rows.transpose(0, 1, 3, 4, 5, 2, 6)[..., None]
  parts = _sums([page * rows[:, :, i] for i in range(a)], axis=5)
  # [B, H, n, L, blocks, D] each; the rest of the sum, short sums at a time.
  parts = [x.reshape(b, h, n * l, blocks, -1) for x in parts]
  left = n * l
  while left > 1:
    short = max(x for x in range(1, 17) if left % x == 0)
    short = short if short > 1 else left
    left //= short
    parts = [x.reshape(b, h, short, left, blocks, -1) for x in parts]
    parts = _sums(parts, axis=2)
  out = jnp.stack([x.reshape(b, h, blocks, -1) for x in parts], axis=3)
  return out.reshape(b, h, blocks * a, -1)[:, :, :m]


def dots(
  query: types.Float[types.Array, "B H M D"],
  table: types.Float[types.Array, "B H R D"],
) -> types.Float[types.Array, "B H M R"]:
  """float32 query . table, read once and at the memory's speed on CPU."""
  b, h, m, d = query.shape
  rows = _in_blocks(query.astype(jnp.float32))
  rows = [rows[:, :, None, :, i] for i in range(rows.shape[3])]
  out = _dots(rows, table[:, :, :, None])  # [B, H, R, blocks, a]
  return out.reshape(*out.shape[:3], -1)[..., :m].swapaxes(2, 3)


def _dots(rows, x):
  """Sums over D of a row times x [..., D], for `a` rows: [..., a]."""
  d = x.shape[-1]
  lanes = _lanes(d)
  split = lambda y: y.reshape(*y.shape[:-1], d // lanes, lanes)
  x = split(x.astype(jnp.float32))
  parts = _sums([x * split(row) for row in rows], axis=x.ndim - 2)
  if lanes > _VECTOR:
    parts = [p.reshape(*p.shape[:-1], -1, _VECTOR) for p in parts]
    parts = _sums(parts, axis=parts[0].ndim - 2)
  return jnp.stack(_sums(parts, axis=parts[0].ndim - 1), axis=-1)


def _in_blocks(x):
  """Rows [B, H, M, ...], padded, as [B, H, blocks, _ROWS, ...]."""
  spare = -x.shape[2] % _ROWS
  x = jnp.pad(x, ((0, 0), (0, 0), (0, spare), *((0, 0),) * (x.ndim - 3)))
  return x.reshape(*x.shape[:2], -1, _ROWS, *x.shape[3:])


def _sums(terms, axis: int):
  """Each of several arrays summed over an axis, in one loop."""
  zeros = (jnp.zeros((), terms[0].dtype),) * len(terms)
  add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
  return lax.reduce(tuple(terms), zeros, add, (axis,))


def _lanes(d: int) -> int:
  """Channels of a vector, a multiple of 8 that leaves few products."""
  for lanes in range(_VECTOR, d, _VECTOR):
    if d % lanes == 0 and d // lanes <= _PRODUCTS:
      return lanes
  return math.gcd(d, _VECTOR)
