"""Decode attention over chosen pages, read straight from the cache (TPU).

One step of decoding reads few regions of many. `attend_pages` takes, for each
KV head, the list of pages that any row of its group chose, and copies exactly
those from HBM to VMEM: no gathered copy, no page twice.

  HBM   k, v   page 0 | page 1 | page 2 | ... | page R-1      one KV head
  list  ids    [ 7 0 3 | 5 2 - ]   count = 5                  chunks of 3
  VMEM  slots  [ 7 0 3 ] [ 5 2 0 ] [ next head's ] [ ... ]    a ring of 4

* Grid (B, H). While a chunk is computed the next three are under way, also
  over the border of two heads; past `count` nothing is copied.
* The group's X * G query rows are one matrix, so a page is read once for all
  of them; a row's bit in `rows` says whether it reads the page, as a mask.
* Softmax runs online over the chunks, in float32.

Made for few pages of a large cache, where a step's time is the time to read
them; on one image (16 regions) there is little to leave out.

Pages must be stored one after the other in HBM, unpadded, or else XLA copies
the whole cache at every call. Its own layout of [B, H, R, L, D] is not so: at
L = 36 it puts R inside L, as a row-major [36, D] pads to 40 rows. It is so for
[B, H, R, *page_shape(L, D, dtype)], which cuts a page in tiles of t rows that
divide L and fills D up to the 128 lanes that a row takes in HBM anyhow: let
the cache be *allocated* in this shape. Reshaped from it to [B, H, R, L, D] in
the same computation (not outside a scan) is as good.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from gaze_jax import types
from gaze_jax.kernels import products
from gaze_jax.kernels import target

NAME = "pallas"

# A chunk of keys and values is 288 KB at D = 128 in bfloat16. Three of them on
# the way cover about a microsecond of latency; four are 2.3 MB in float32.
_CHUNK_TOKENS = 576
_SLOTS = 4
# A row is a bit of a word of the list, of which there are up to four.
MAX_ROWS = 128
# What the compilers for v5e, v5p, v6e and 7x were seen to grant.
MAX_SMEM_BYTES = 1_000_000
MAX_VMEM_BYTES = 12_000_000
_LANES = 128
_WORD = 32  # rows of a word


def supported(
  *, rows: int, shape: tuple[int, int, int, int, int], dtype: Any
) -> str | None:
  """Whether this form can serve: None, or the reason why not.

  Args:
    rows: query heads of a KV head, the least that a call is for.
    shape: (B, H, R, L, D) of the cache.
    dtype: of the cache.
  """
  if reason := target.other_than("tpu"):
    return reason
  if rows > MAX_ROWS:
    return f"{rows} query rows of a KV head, the kernel takes {MAX_ROWS}"
  if reason := target.unknown_dtype(dtype):
    return reason
  smem, vmem = memory_bytes(shape, size=shape[2], dtype=dtype, rows=rows)
  if smem > MAX_SMEM_BYTES:
    return f"lists of {shape[2]} regions take {smem} bytes of SMEM"
  if vmem > MAX_VMEM_BYTES:
    return f"pages of {shape[3]} tokens take {vmem} bytes of VMEM"
  return None


def page_shape(tokens: int, head_dim: int, dtype) -> tuple[int, int, int]:
  """The shape in which HBM stores a page without padding.

  Args:
    tokens: L, tokens of a page.
    head_dim: D.
    dtype: float32 or bfloat16.

  Returns:
    (L / t, t, W): t is the largest of 8, 4, 2, 1 that divides L, for bfloat16
    at least 2, as two rows share a 32-bit word (an odd L counts as L + 1); W
    is D rounded up to a multiple of 128.
  """
  t = max(math.gcd(tokens, 8), 4 // np.dtype(dtype).itemsize)
  return -(-tokens // t), t, -(-head_dim // _LANES) * _LANES


def fetched_bytes(count, *, tokens: int, head_dim: int, dtype) -> int:
  """Bytes of keys and values that `attend_pages` copies from HBM.

  The real compiler's copies are of this size, to the byte.

  Args:
    count: int [...], pages on each list, as given to `attend_pages`.
    tokens: L, tokens of a page, filled or not.
    head_dim: D.
    dtype: float32 or bfloat16, of the cache.
  """
  page = math.prod(page_shape(tokens, head_dim, dtype))
  pages = int(np.asarray(count, np.int64).sum())
  return 2 * pages * page * np.dtype(dtype).itemsize


def memory_bytes(
  k_shape, *, size: int, dtype, rows: int = 1
) -> tuple[int, int]:
  """SMEM, for the lists, and VMEM, for the ring, that `attend_pages` takes.

  Args:
    k_shape: (B, H, R, L, D).
    size: U.
    dtype: float32 or bfloat16, of the cache.
    rows: X * G.
  """
  b, h, r, l, d = k_shape
  words = lambda n: -(-n // _LANES) * _LANES
  lists = (1 + -(-rows // _WORD)) * h * words(size) + words(r)
  page = math.prod(page_shape(l, d, dtype)) * np.dtype(dtype).itemsize
  ring = 2 * _SLOTS * _chunk_pages(l, size) * page
  return 4 * (min(b, 2) * lists + b * words(h)), ring


def most_rows(k_shape, dtype) -> int:
  """Rows of a KV head whose lists fit, 32 to MAX_ROWS.

  Args:
    k_shape: (B, H, R, L, D).
    dtype: float32 or bfloat16, of the cache.
  """
  fits = lambda rows: (
    memory_bytes(k_shape, size=k_shape[2], dtype=dtype, rows=rows)[0]
    <= MAX_SMEM_BYTES
  )
  return next(filter(fits, range(MAX_ROWS, _WORD, -_WORD)), _WORD)


def _chunk_pages(tokens: int, size: int) -> int:
  return min(size, max(1, _CHUNK_TOKENS // tokens))


def attend_pages(
  query,
  k,
  v,
  length,
  visits,
  *,
  layer,
  chunk_pages: int | None = None,
  views: bool | None = None,
  interpret: Any = None,
) -> types.Attended:
  """As `attend_pages.attend_pages`, for up to MAX_ROWS rows of a KV head.

  Args:
    query: float32 or bfloat16 [B, X, Q, D], post-RoPE.
    k: float32 or bfloat16 [N, B, H, R, L, D] or [N, B, H, R, *page_shape], of
      which W may be wider than D, with zeros there. A filled value must be
      finite if any row of the group reads its page.
    v: likewise, of the same dtype.
    length: as there, and so are visits and layer.
    chunk_pages: pages of a chunk; None for about 576 tokens.
    views: whether a chunk's tokens are loaded through views of its tiles, or as
      pages that are then reshaped. None for views, but where
      `pltpu.InterpretParams` simulates the TPU, which knows none.
    interpret: as `pl.pallas_call` takes it; None for the target's.

  Raises:
    ValueError: X * G exceeds MAX_ROWS, k and v differ in dtype, D is wider than
      a page, or k has the wrong rank.
  """
  b, x, q, d = query.shape
  k, v = _untiled(k), _untiled(v)
  h, r, l, wide = k.shape[2:]
  group, u = q // h, visits.ids.shape[-1]
  if x * group > MAX_ROWS:
    raise ValueError(f"{x * group} rows of a KV head; at most {MAX_ROWS}")
  if k.dtype != v.dtype:
    raise ValueError(f"k is {k.dtype}, v is {v.dtype}; they must be equal")
  if d > wide:
    raise ValueError(f"the query's head dim is {d}, the page's {wide}")
  if 0 in (b, x, r, l, u):
    return types.Attended(
      out=jnp.zeros(query.shape, v.dtype),
      lse=jnp.full((b, x, q), -jnp.inf, jnp.float32),
    )
  if interpret is None:
    interpret = target.target().interpret
  if views is None:
    views = not isinstance(interpret, pltpu.InterpretParams)
  packed = query.reshape(b, x, h, group, d).transpose(0, 2, 1, 3, 4)
  out, lse = _call(
    jnp.asarray(layer, jnp.int32).reshape(1),
    visits.count,
    visits.ids,
    visits.rows.reshape(b, -1, u),
    length[:, None],
    packed.reshape(b, h, x * group, d),
    k,
    v,
    pages=min(u, chunk_pages or _chunk_pages(l, u)),
    views=views,
    interpret=interpret,
  )
  unpack = lambda y: y.reshape(b, h, x, group, -1).transpose(0, 2, 1, 3, 4)
  return types.Attended(
    out=unpack(out).reshape(b, x, q, wide)[..., :d],
    lse=unpack(lse).reshape(b, x, q),
  )


def _untiled(pages):
  """Any form of the cache as [N, B, H, R, L, W]."""
  if pages.ndim not in (6, 7):
    raise ValueError(f"no cache has the shape {pages.shape}")
  return pages.reshape(*pages.shape[:4], -1, pages.shape[-1])


def _tiled(pages, interpret):
  """[N, B, H, R, L, W] as [N, B, H, R, L / t, t, W]."""
  l, wide = pages.shape[-2:]
  tiles, t, _ = page_shape(l, wide, pages.dtype)
  if tiles * t > l:  # an odd L in bfloat16: correct, but a copy of the cache
    pages = jnp.pad(pages, [(0, 0)] * 4 + [(0, tiles * t - l), (0, 0)])
  pages = pages.reshape(*pages.shape[:4], tiles, t, wide)
  if interpret:  # knows of one memory alone
    return pages
  # Or else XLA first moves a cache that fits there to VMEM, all of it.
  return pltpu.with_memory_space_constraint(pages, pltpu.HBM)


@functools.partial(jax.jit, static_argnames=("pages", "views", "interpret"))
def _call(layer, count, ids, rows, length, q, k, v, *, pages, views, interpret):
  """The `pallas_call`: q [B, H, X*G, D], k and v [N, B, H, R, L, W].

  And rows [B, H * words, U].
  """
  b, h, m, d = q.shape
  k, v = _tiled(k, interpret), _tiled(v, interpret)
  wide = k.shape[-1]
  q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, wide - d)))
  per_row = lambda x: pl.BlockSpec(
    (None, *x.shape[1:]), lambda i, *_: (i, 0, 0), memory_space=pltpu.SMEM
  )
  per_head = lambda n: pl.BlockSpec(
    (None, None, m, n), lambda i, j, *_: (i, j, 0, 0)
  )
  pages_in_hbm = pl.BlockSpec(memory_space=pltpu.HBM)
  ring = pltpu.VMEM((_SLOTS, pages, *k.shape[4:]), k.dtype)
  return pl.pallas_call(
    functools.partial(_kernel, scale=d**-0.5, views=views),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(b, h),
      in_specs=[
        *(per_row(x) for x in (ids, rows, length)),
        per_head(wide),
        *(pages_in_hbm,) * 2,
      ],
      out_specs=[per_head(wide), per_head(1)],
      scratch_shapes=[
        *(ring,) * 2,
        pltpu.SMEM((4,), jnp.int32),
        pltpu.SemaphoreType.DMA((_SLOTS,)),
      ],
    ),
    out_shape=[
      jax.ShapeDtypeStruct((b, h, m, wide), v.dtype),
      jax.ShapeDtypeStruct((b, h, m, 1), jnp.float32),
    ],
    # Heads in order: while one is computed the next one's copies start.
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary")
    ),
    interpret=interpret,
    name="attend_pages",
  )(layer, count, ids, rows, length, q, k, v)


def _kernel(*refs, scale, views):
  """One KV head of one row: a ring of chunks, and softmax online."""
  layer_ref, count_ref, ids_ref, rows_ref, length_ref, q_ref = refs[:6]
  k_hbm, v_hbm, out_ref, lse_ref, k_ring, v_ring, ring_ref, arrived = refs[6:]
  row, head = pl.program_id(0), pl.program_id(1)
  slots, pages, tiles, tile, d = k_ring.shape
  page_rows, words = tiles * tile, rows_ref.shape[0] // ids_ref.shape[0]
  # What `ring_ref` holds: the chunk to start next, and how many chunks of this
  # row were started and used.
  next_head, next_chunk, started, used = range(4)

  def chunks_of(head):
    # At least one, so that a head without pages takes its turn as well.
    return jnp.maximum(1, pl.cdiv(count_ref[row, head], pages))

  def real_pages(head, chunk):
    return jnp.clip(count_ref[row, head] - chunk * pages, 0, pages)

  def copies(head, page, slot, j):
    where = (layer_ref[0], row, head, page)
    return [
      pltpu.make_async_copy(hbm.at[where], ring.at[slot, j], arrived.at[slot])
      for hbm, ring in ((k_hbm, k_ring), (v_hbm, v_ring))
    ]

  def start_next():
    head, chunk = ring_ref[next_head], ring_ref[next_chunk]

    @pl.when(head < pl.num_programs(1))
    def _():
      slot = lax.rem(ring_ref[started], slots)

      @pl.loop(0, real_pages(head, chunk))
      def _(j):
        page = ids_ref[head, chunk * pages + j]
        for copy in copies(head, page, slot, j):
          copy.start()

      ends = chunk + 1 == chunks_of(head)
      ring_ref[next_head] = jnp.where(ends, head + 1, head)
      ring_ref[next_chunk] = jnp.where(ends, 0, chunk + 1)
      ring_ref[started] += 1

  @pl.when(head == 0)
  def _():
    for i in range(4):
      ring_ref[i] = 0
    for _ in range(slots - 1):
      start_next()

  token = lax.broadcasted_iota(jnp.int32, (1, pages * page_rows), 1)
  in_page = tile * lax.broadcasted_iota(jnp.int32, (tiles, tile, d), 0)
  in_page += lax.broadcasted_iota(jnp.int32, (tiles, tile, d), 1)

  def visit_chunk(chunk, carry):
    start_next()
    slot, n = lax.rem(ring_ref[used], slots), real_pages(head, chunk)

    @pl.loop(0, n)
    def _(j):
      for copy in copies(head, 0, slot, j):
        copy.wait()

    def visit(j, bits):
      entry, first = chunk * pages + j, j * page_rows
      end = length_ref[0, ids_ref[head, entry]]
      mine = (token >= first) & (token < first + end)

      # Values that no row may read become 0, as 0 * NaN would be NaN.
      @pl.when(end < page_rows)
      def _():
        page = v_ring[slot, j]
        v_ring[slot, j] = jnp.where(in_page < end, page, jnp.zeros_like(page))

      return tuple(
        jnp.where(mine, rows_ref[head * words + i, entry], word)
        for i, word in enumerate(bits)
      )

    nobody = (jnp.zeros(token.shape, jnp.int32),) * words
    bits = lax.fori_loop(0, n, visit, nobody)

    @pl.loop(n, pages)
    def _(j):
      v_ring[slot, j] = jnp.zeros(v_ring.shape[2:], v_ring.dtype)

    k, v = _matrix(k_ring, slot, views), _matrix(v_ring, slot, views)
    ring_ref[used] += 1
    return _attend_chunk(q_ref[...], k, v, bits, scale, carry)

  m = q_ref.shape[0]
  nothing = jnp.full((m, 1), -jnp.inf), jnp.zeros((m, 1)), jnp.zeros((m, d))
  peak, total, out = lax.fori_loop(0, chunks_of(head), visit_chunk, nothing)
  safe = jnp.where(total > 0, total, 1.0)
  out_ref[...] = (out / safe).astype(out_ref.dtype)
  lse_ref[...] = jnp.where(total > 0, peak + jnp.log(safe), -jnp.inf)


def _matrix(ring, slot, views):
  """The tokens [Y, D] in a slot of a ring [slots, pages, L / t, t, D].

  (8, 128) tiles are stored just as (t, 128) tiles are, so the matrix can be
  loaded as it is; reshaping the loaded pages would move every tile instead.
  bfloat16 goes as pairs of rows, which are the 32-bit words. Without `views`
  the pages are loaded and reshaped.
  """
  if not views:
    return ring[slot].reshape(-1, ring.shape[-1])
  words = ring.bitcast(jnp.int32) if ring.dtype == jnp.bfloat16 else ring
  flat = math.prod(words.shape[1:-1]), words.shape[-1]
  return pltpu.bitcast(words.at[slot].reshape(*flat)[...], ring.dtype)


def _attend_chunk(q, k, v, bits, scale, carry):
  """One chunk's part of an online softmax.

  Args:
    q: [X*G, D].
    k: [Y, D], tokens of a chunk.
    v: [Y, D].
    bits: int32 [1, Y] for each 32 rows, those that see each token.
    scale: of the logits.
    carry: peak and total [X*G, 1], and the weighted sum [X*G, D].

  Returns:
    The carry.
  """
  peak, total, out = carry
  shared = jnp.promote_types(q.dtype, k.dtype)
  logits = products.dot(q.astype(shared), k.astype(shared), (1, 1))
  m, y = logits.shape
  seen = []
  for i, word in enumerate(bits):
    rows = min(_WORD, m - i * _WORD)
    seen.append((word >> lax.broadcasted_iota(jnp.int32, (rows, y), 0)) & 1)
  seen = jnp.concatenate(seen) != 0
  logits = jnp.where(seen, logits * scale, -jnp.inf)
  top = jnp.maximum(peak, logits.max(axis=1, keepdims=True))
  base = jnp.where(top == -jnp.inf, 0.0, top)
  weights = jnp.exp(logits - base)
  decay = jnp.exp(peak - base)
  total = total * decay + weights.sum(axis=1, keepdims=True)
  new = products.dot(weights.astype(v.dtype), v, (1, 0))
  return top, total, out * decay + new
