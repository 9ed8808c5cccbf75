"""Decode attention over listed pages on CPU: read in place, copied nowhere.

XLA's gather copies what it picks, and its matmul then reads the copy: three
times the traffic, and on CPU a [4, 128] x [128, 36] product runs far below the
memory's speed. The pages are therefore read by two loops that XLA makes of one
`lax.reduce` each (`cpu_reductions`), the page lookup fused into them:

  keys    for token, 2 rows, page of 16:  128 products, 8 at a time  -> logits
  values  for token, 2 rows, channels:    16 pages summed            -> out

What else keeps these loops as they are:

* The operand of a sum is a bare product: a scale would be too much. So a page
  is found by one number, and what makes these numbers and the query is kept
  from being fused.
* Rows beyond those of one reduce look a page up again. Broadcast over them, a
  lookup would not be fused.
* Many pages are read side by side. They are stored anywhere, and one after the
  other the memory's latency is paid at the start of each.

Many rows take copies, as everywhere.
"""

import functools

import jax.numpy as jnp
from jax import lax

from gaze_jax import types
from gaze_jax.kernels import attend_pages as oracle
from gaze_jax.kernels import cpu_reductions
from gaze_jax.kernels import target

NAME = oracle.NAME  # to a config, what plain XLA does

# Pages read side by side.
_PAGES = 16
# Pages of a step, where room is made for copies that are hardly ever needed.
_FEW_PAGES = 8

page_shape, most_rows = oracle.page_shape, oracle.most_rows


def supported(**sizes) -> str | None:
  """Any sizes, on CPU."""
  del sizes
  return target.other_than("cpu")


def attend_pages(query, k, v, length, visits, *, layer) -> types.Attended:
  """As `attend_pages.attend_pages`."""
  return oracle.of_rows(_streamed, query, k, v, length, visits, layer)


def _streamed(query, k, v, listed):
  """Pages read in place."""
  beside = min(_PAGES, listed[2].shape[-1])
  attend = functools.partial(_step, beside=beside)
  out, lse = oracle.in_steps(_made(query), k, v, listed, attend, beside)
  # A value that a row does not see may be NaN, and 0 * NaN is. To ask that of
  # each product would take a third longer; copies of pages are asked.
  again = lambda: oracle.in_steps(query, k, v, listed, most=_FEW_PAGES)
  return lax.cond(jnp.isnan(out).any(), again, lambda: (out, lse))


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
  rows = cpu_reductions.in_blocks(query)  # [B, H, blocks, a, D]
  page = _pages_of_blocks(k, at, rows.shape[2])
  rows = [rows[:, :, None, None, :, None, i] for i in range(rows.shape[3])]
  out = cpu_reductions.dots(rows, page)  # [B, H, n, L, blocks, s, a]
  out = out.transpose(0, 1, 4, 6, 2, 3, 5)
  b, h, m = query.shape[:3]
  return out.reshape(b, h, -1, *out.shape[4:])[:, :, :m]


def _weighted(weights, v, at):
  """Sum of the values by `weights` [B, H, M, n, L, s]: [B, H, M, D]."""
  b, h, m, n, l, _ = weights.shape
  rows = cpu_reductions.in_blocks(weights)  # [B, H, blocks, a, n, L, s]
  blocks, a = rows.shape[2:4]
  page = _pages_of_blocks(v, at, blocks).astype(jnp.float32)
  rows = rows.transpose(0, 1, 3, 4, 5, 2, 6)[..., None]
  parts = cpu_reductions.sums([page * rows[:, :, i] for i in range(a)], axis=5)
  # [B, H, n, L, blocks, D] each; the rest of the sum, short sums at a time.
  parts = [x.reshape(b, h, n * l, blocks, -1) for x in parts]
  left = n * l
  while left > 1:
    short = max(x for x in range(1, 17) if left % x == 0)
    short = short if short > 1 else left
    left //= short
    parts = [x.reshape(b, h, short, left, blocks, -1) for x in parts]
    parts = cpu_reductions.sums(parts, axis=2)
  out = jnp.stack([x.reshape(b, h, blocks, -1) for x in parts], axis=3)
  return out.reshape(b, h, blocks * a, -1)[:, :, :m]


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
  return cpu_reductions.sums(terms, axis=0)
