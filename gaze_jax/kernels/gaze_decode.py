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

Pages must lie one after the other in HBM, unpadded, or else XLA copies the
whole cache at every call. Its own layout of [B, H, R, L, D] is not so: at
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
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from gaze_jax import types
from gaze_jax.kernels import gaze_decode_kernel as kernel

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


def page_shape(tokens: int, head_dim: int, dtype) -> tuple[int, int, int]:
  """The shape in which a page lies in HBM without padding.

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
  lists = (1 + -(-rows // kernel.WORD)) * h * words(size) + words(r)
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
  return next(
    filter(fits, range(MAX_ROWS, kernel.WORD, -kernel.WORD)), kernel.WORD
  )


def _chunk_pages(tokens: int, size: int) -> int:
  return min(size, max(1, _CHUNK_TOKENS // tokens))


def attend_pages(
  query: types.Float[types.Array, "B X Q D"],
  k: types.Float[types.Array, "*pages W"],
  v: types.Float[types.Array, "*pages W"],
  length: types.Int[types.Array, "B R"],
  ids: types.Int[types.Array, "B H U"],
  rows: types.Int[types.Array, "B H words U"],
  count: types.Int[types.Array, "B H"],
  *,
  layer: types.Int[types.Array, ""] | int | None = None,
  chunk_pages: int | None = None,
  interpret: Any = False,
) -> types.Attended:
  """Attends to the listed pages, and reads nothing else.

  Args:
    query: float32 or bfloat16 [B, X, Q, D], post-RoPE.
    k: float32 or bfloat16 [B, H, R, L, D] or [B, H, R, *page_shape], with a
      leading N if `layer` is given. W may be wider than D, with zeros there.
    v: likewise, of the same dtype.
    length: int32 [B, R], filled tokens of each page, which come first in it;
      what lies behind them is never used. A filled value must be finite if any
      row of the group reads its page.
    ids: int32 [B, H, U], pages to visit, each at most once, in any order.
    rows: int32 [B, H, words, U]; row x * G + g is query head h * G + g of new
      token x; bit i % 32 of word i // 32 is set where row i reads the page.
    count: int32 [B, H], entries of the list that are real: 0 to U.
    layer: int32 scalar, may be traced: reads layer `layer` of a stacked cache
      in place, where slicing it first would copy a whole layer.
    chunk_pages: pages of a chunk; None for about 576 tokens.
    interpret: as `pl.pallas_call` takes it.

  Returns:
    `Attended` of [B, X, Q, D] in the dtype of `v`; out 0 and lse -inf for a
    row that reads nothing.

  Raises:
    ValueError: X * G exceeds MAX_ROWS, k and v differ in dtype, D is wider than
      a page, or k has the wrong rank.
  """
  b, x, q, d = query.shape
  k, v = _layers(k, layer), _layers(v, layer)
  h, r, l, wide = k.shape[2:]
  group, u = q // h, ids.shape[-1]
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
  packed = query.reshape(b, x, h, group, d).transpose(0, 2, 1, 3, 4)
  out, lse = _call(
    jnp.asarray(0 if layer is None else layer, jnp.int32).reshape(1),
    count,
    ids,
    rows.reshape(b, -1, u),
    length[:, None],
    packed.reshape(b, h, x * group, d),
    k,
    v,
    pages=min(u, chunk_pages or _chunk_pages(l, u)),
    interpret=interpret,
  )
  unpack = lambda y: y.reshape(b, h, x, group, -1).transpose(0, 2, 1, 3, 4)
  return types.Attended(
    out=unpack(out).reshape(b, x, q, wide)[..., :d],
    lse=unpack(lse).reshape(b, x, q),
  )


def _layers(pages, layer):
  """Any form of the cache as [N, B, H, R, L, W]."""
  if layer is None:
    pages = pages[None]
  if pages.ndim == 7:
    return pages.reshape(*pages.shape[:4], -1, pages.shape[-1])
  if pages.ndim == 6:
    return pages
  raise ValueError(f"no cache has the shape {pages.shape}, layer = {layer}")


def _tiled(pages):
  """[N, B, H, R, L, W] as [N, B, H, R, L / t, t, W]."""
  l, wide = pages.shape[-2:]
  tiles, t, _ = page_shape(l, wide, pages.dtype)
  if tiles * t > l:  # an odd L in bfloat16: correct, but a copy of the cache
    pages = jnp.pad(pages, [(0, 0)] * 4 + [(0, tiles * t - l), (0, 0)])
  pages = pages.reshape(*pages.shape[:4], tiles, t, wide)
  # Or else XLA first moves a cache that fits there to VMEM, all of it.
  return pltpu.with_memory_space_constraint(pages, pltpu.HBM)


@functools.partial(jax.jit, static_argnames=("pages", "interpret"))
def _call(layer, count, ids, rows, length, q, k, v, *, pages, interpret):
  """The `pallas_call`: q [B, H, X*G, D], k and v [N, B, H, R, L, W].

  And rows [B, H * words, U].
  """
  b, h, m, d = q.shape
  k, v = _tiled(k), _tiled(v)
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
    functools.partial(kernel.step, scale=d**-0.5, direct=not interpret),
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
    name="gaze_decode",
  )(layer, count, ids, rows, length, q, k, v)
