"""Attention of routed rows to the pages they chose: Pallas TPU, both passes.

Of a sequence's rows few are routed (TEXT and CONTEXT); compacted, they come as
`query`. Tiles of them are on lanes and keys on sublanes, so that "who reads
this page" is one lane row, and the softmax statistics are lane vectors. A tile
is as many routed rows as fit `rows` lanes with the G query heads of one KV head
side by side; N = tiles * rows lanes in all:

  lane    0       1       ..  G-1      G       ..           rows-1
  holds   row 0   row 0       row 0    row 1       ..       row TX-1 | unused
          head 0  head 1      head G-1 head 0

  kernel    grid                 walks                      by
  forward   (B, H, tiles)        pages that any lane reads  DMA from HBM
  dq        (B, H, tiles)        the same                   the same
  dk, dv    (B, H, R / GROUP)    tiles that read each page  q, do in VMEM

A walk over pages fetches some 512 tokens at a time into one of two buffers
while the other is at work; a page outside the tile's list is never fetched.
dk and dv hold the rows of one KV head in VMEM (`vmem_bytes`), since each page
needs them; a page that nobody reads gets exact zeros.

Every kernel takes

  reads   who reads what: a list in SMEM (`by_tile` or `by_page`), `length` in
          SMEM, `words` in VMEM (`_Lists`)
  lanes   q^T [1, 1, D, ..]; in the backward pass do^T, lse and shift too
  kv      k and v: all pages in HBM, or [1, 1, GROUP, L, D] in VMEM

and recomputes the weights from lse in the backward pass,
ds = p * (dp - shift), shift = sum(do * out) - dlse.

It wins where tiles read few of the pages. Where their unions hold most pages
(few regions, or large budgets), dense attention does the same work in longer
matrices; and a tile that reads a handful of pages waits for its first chunk,
which nothing hides.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from gaze_jax import types
from gaze_jax.kernels import products
from gaze_jax.kernels import target

NAME = "pallas"

ROWS = 256
CHUNK = 512
GROUP = 8  # pages of a step of the dk, dv kernel
PAGE_MULTIPLE = 8  # pages of another length are padded, in a copy
VMEM_LIMIT = 60 * 2**20  # of 64 (v7x) to 128 MiB
_WORD = 32  # pages of a word
_BLOCK = 8 * _WORD  # pages of a block of words: 8 sublanes
_LOWEST = -1e30  # a finite start of the running maximum: no inf - inf


def supported(
  *, rows: int, group: int, length: int, dim: int, dtypes: set, gradient: str
) -> str | None:
  """Whether this form can serve: None, or the reason why not.

  Args:
    rows: X, routed rows of a call.
    group: G.
    length: L.
    dim: D.
    dtypes: of queries, keys and values.
    gradient: `GazeConfig.gradient`.
  """
  if reason := target.other_than("tpu"):
    return reason
  if gradient != "none":
    return f"gradient = {gradient!r} needs a gradient into the scores"
  if len(dtypes) > 1:
    return f"queries, keys and values are of dtypes {sorted(map(str, dtypes))}"
  (dtype,) = dtypes
  if reason := target.unknown_dtype(dtype):
    return reason
  if group > ROWS:
    return f"{group} query heads of a KV head, the kernel takes {ROWS}"
  itemsize = jnp.dtype(dtype).itemsize
  vmem = vmem_bytes(rows, group, page_length(length), dim, itemsize)
  if vmem > VMEM_LIMIT:
    return f"{rows} rows of head dim {dim} take {vmem} bytes of VMEM"
  return None


def page_length(tokens: int) -> int:
  """How long pages of so many tokens are best made."""
  return _round_up(tokens, PAGE_MULTIPLE)


@dataclasses.dataclass(frozen=True)
class _Tiling:
  rows: int  # lanes of a tile
  pages: int  # pages of a chunk
  interpret: bool | pltpu.InterpretParams


class _Lists(NamedTuple):
  """Who reads what, int32; W = ceil((R + 1) / _BLOCK) * 8.

  Page R is nobody's: it ends the lists and has no token.

  Attributes:
    length: [B, 1, 32 W], filled tokens of each page, 0 past R.
    words: [B, H, W, N]; lane n reads page r if bit r % 32 of word r // 32.
    by_tile: [B, H, tiles, 1, 1 + R], a count, then the ids of the pages that
      some lane of the tile reads, ascending, then R. As long as asked for.
    by_page: [B, H, 32 W, 1 + tiles], a count, then the tiles that read it.
  """

  length: types.Leaf
  words: types.Leaf
  by_tile: types.Leaf
  by_page: types.Leaf


def attend_regions(
  query,
  k,
  v,
  length,
  members,
  *,
  rows: int = ROWS,
  chunk: int = CHUNK,
  interpret: Any = None,
) -> types.Attended:
  """As `attend_regions.attend_regions`.

  Pages whose L is no multiple of 8 are copied and padded first: lay them out
  padded where that matters.

  Args:
    query: as there, and so are k, v, length and members.
    rows: lanes of a tile, at least G; a multiple of 128 on a TPU.
    chunk: tokens fetched at a time, rounded down to whole pages.
    interpret: as `pl.pallas_call` takes it; None for the target's.

  Raises:
    ValueError: dtypes differ or are of another kind, Q is no multiple of H,
      or a tile has no room for G heads.
  """
  _check(query, k, v, rows)
  b, x, q, _ = query.shape
  h, r, l, _ = k.shape[1:]
  if x == 0 or r == 0:
    lse = jnp.full_like(query[..., 0], -jnp.inf, jnp.float32)
    return types.Attended(out=jnp.zeros_like(query), lse=lse)
  rows = _tile_rows(x, q // h, rows)
  l_padded = page_length(l)
  if l_padded != l:
    padding = [(0, 0)] * 3 + [(0, l_padded - l), (0, 0)]
    k, v = jnp.pad(k, padding), jnp.pad(v, padding)
  pages = max(1, min(chunk // l_padded, 16, r))
  if interpret is None:
    interpret = target.target().interpret
  tiling = _Tiling(rows=rows, pages=pages, interpret=interpret)
  lists = _make_lists(length, members, h, rows, pages)
  out, lse = _attend(tiling, _to_lanes(query, h, rows), k, v, lists)
  back = lambda a: _from_lanes(a, x, q // h, rows)
  return types.Attended(out=back(out), lse=back(lse)[..., 0])


def vmem_bytes(
  x: int, group: int, length: int, dim: int, itemsize: int, rows: int = ROWS
) -> int:
  """VMEM of the dk, dv kernel, which takes the most; at most VMEM_LIMIT.

  Args:
    x: X, routed rows.
    group: G.
    length: L, as padded.
    dim: D.
    itemsize: bytes of an element of query, k and v.
    rows: as in `attend_regions`.
  """
  rows = _tile_rows(x, group, rows)
  lanes = pl.cdiv(x, rows // group) * rows
  # q, do; lse, shift; eight words. Each is there twice, as are the pages.
  held = lanes * (2 * _round_up(dim, 16) * itemsize + 2 * 4 + 8 * 4)
  page = length * _round_up(dim, 128)
  return (
    2 * held + 2 * 4 * GROUP * page * itemsize + 8 * 4 * (length * rows + page)
  )


def _check(query, k, v, rows):
  q, h = query.shape[2], k.shape[1]
  if not query.dtype == k.dtype == v.dtype:
    raise ValueError(
      f"query, k and v must be of one dtype, not {query.dtype}, {k.dtype}, "
      f"{v.dtype}"
    )
  if query.dtype not in (jnp.float32, jnp.bfloat16):
    raise ValueError(f"float32 or bfloat16, not {query.dtype}")
  if q % h:
    raise ValueError(f"{q} query heads are no multiple of {h} KV heads")
  if rows < q // h:
    raise ValueError(f"a tile of {rows} rows cannot hold a group of {q // h}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiling: _Tiling, query_t, k, v, lists: _Lists):
  """Lanes [B, H, D, N] of queries to out [B, H, D, N], lse [B, H, 1, N]."""
  return _attend_forward(tiling, query_t, k, v, lists)[0]


def _attend_forward(tiling, query_t, k, v, lists):
  out = (query_t.shape, v.dtype), ((*query_t[:, :, :1].shape,), jnp.float32)
  out, lse = _call_tiles(_forward, tiling, (query_t,), (k, v), lists, out)
  # Of both, so that remat can keep what else would run this kernel again.
  out, lse = (checkpoint_name(x, "attention") for x in (out, lse))
  return (out, lse), (query_t, k, v, lists, out, lse)


def _attend_backward(tiling, residuals, cotangents):
  query_t, k, v, lists, out, lse = residuals
  dout, dlse = cotangents
  seen = lse > -jnp.inf
  # ds = p * (dp - delta + dlse)
  delta = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(2)
  shift = jnp.where(seen, delta[:, :, None] - dlse, 0)
  lanes = query_t, dout, jnp.where(seen, lse, 0), shift
  out = ((query_t.shape, query_t.dtype),)
  (dq,) = _call_tiles(_dq, tiling, lanes, (k, v), lists, out)
  dk, dv = _call_pages(tiling, lanes, (k, v), lists)
  return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _call_tiles(kernel, tiling, lanes, kv, lists, out):
  """A kernel over (B, H, tiles) that walks the pages of each tile's list."""
  b, h, r, l, d = kv[0].shape
  n, rows = lanes[0].shape[-1], tiling.rows
  block = lambda shape: pl.BlockSpec(
    (1, 1, shape[2], rows), lambda b, h, t: (b, h, 0, t)
  )
  reads = (
    _scalars(
      (1, 1, 1, *lists.by_tile.shape[3:]), lambda b, h, t: (b, h, t, 0, 0)
    ),
    _scalars((1, *lists.length.shape[1:]), lambda b, h, t: (b, 0, 0)),
    block(lists.words.shape),
  )
  buffer = pltpu.VMEM((2, tiling.pages, l, d), kv[0].dtype)
  return pl.pallas_call(
    functools.partial(kernel, scale=d**-0.5),
    grid=(b, h, n // rows),
    in_specs=[
      reads,
      tuple(block(a.shape) for a in lanes),
      (pl.BlockSpec(memory_space=pl.ANY),) * 2,
    ],
    out_specs=[block(shape) for shape, _ in out],
    out_shape=[jax.ShapeDtypeStruct(*o) for o in out],
    scratch_shapes=[
      pltpu.VMEM((d, rows), jnp.float32),
      (buffer, buffer),
      pltpu.SemaphoreType.DMA((2, 2)),
    ],
    compiler_params=_COMPILER,
    interpret=tiling.interpret,
    name=f"attend_regions{kernel.__name__}",
  )((lists.by_tile, lists.length, lists.words), lanes, kv)


def _call_pages(tiling, lanes, kv, lists):
  """The dk, dv kernel over (B, H, pages), the lanes of a KV head in VMEM."""
  b, h, r, l, d = kv[0].shape
  n = lanes[0].shape[-1]
  page = pl.BlockSpec(
    (1, 1, min(r, GROUP), l, d), lambda b, h, g: (b, h, g, 0, 0)
  )
  held = lambda height, index: pl.BlockSpec((1, 1, height, n), index)
  reads = (
    _scalars(
      (1, 1, GROUP, lists.by_page.shape[3]), lambda b, h, g: (b, h, g, 0)
    ),
    _scalars((1, *lists.length.shape[1:]), lambda b, h, g: (b, 0, 0)),
    # 8 words serve the _BLOCK pages of _BLOCK / GROUP = 32 steps.
    held(8, lambda b, h, g: (b, h, g >> 5, 0)),
  )
  return pl.pallas_call(
    functools.partial(_dkdv, scale=d**-0.5, rows=tiling.rows),
    grid=(b, h, pl.cdiv(r, GROUP)),
    in_specs=[
      reads,
      tuple(held(a.shape[2], lambda b, h, g: (b, h, 0, 0)) for a in lanes),
      (page, page),
    ],
    out_specs=[page, page],
    out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in kv],
    compiler_params=_COMPILER,
    interpret=tiling.interpret,
    name="attend_regions_dkdv",
  )((lists.by_page, lists.length, lists.words), lanes, kv)


_COMPILER = pltpu.CompilerParams(
  dimension_semantics=("parallel",) * 3,
  vmem_limit_bytes=VMEM_LIMIT,
  # The ids are positions in a sorted list: checks of every DMA take longer
  # than its start.
  disable_bounds_checks=True,
)


def _scalars(block, index):
  return pl.BlockSpec(block, index, memory_space=pltpu.SMEM)


def _make_lists(
  length, members, kv_heads: int, rows: int, multiple: int
) -> _Lists:
  """Lists what each tile reads, and who reads each page.

  Args:
    length: int [B, R], filled tokens of each page.
    members: bool [B, X, Q, R].
    kv_heads: H.
    rows: lanes of a tile.
    multiple: of this many ids the lists by tile are made.
  """
  b, _, _, r = members.shape
  spare = _round_up(r + 1, _BLOCK) - r
  length = jnp.pad(length.astype(jnp.int32), ((0, 0), (0, spare)))
  members = jnp.pad(members, [(0, 0)] * 3 + [(0, spare)])
  bits = members.reshape(*members.shape[:3], -1, _WORD)
  powers = jnp.uint32(1) << jnp.arange(_WORD, dtype=jnp.uint32)
  words = jnp.where(bits, powers, 0).sum(-1, dtype=jnp.uint32)
  words = _to_lanes(words, kv_heads, rows)
  tiles = words.reshape(*words.shape[:3], -1, rows)
  union = jax.lax.reduce(tiles, jnp.uint32(0), jax.lax.bitwise_or, (4,))
  reads = (union[:, :, :, None] & powers[:, None]) > 0
  reads = reads.reshape(b, kv_heads, r + spare, -1)  # [B, H, 32 W, tiles]
  reads &= (length > 0)[:, None, :, None]
  return _Lists(
    length=length[:, None],
    words=jax.lax.bitcast_convert_type(words, jnp.int32),
    by_tile=_ids(reads[:, :, :r].swapaxes(2, 3), multiple)[:, :, :, None],
    by_page=_ids(reads, 1),
  )


def _ids(flags, multiple: int):
  """bool [..., n] to int32 [..., 1 + n]: a count, where True, then n's."""
  n = flags.shape[-1]
  ids = jnp.sort(jnp.where(flags, jnp.arange(n, dtype=jnp.int32), n), axis=-1)
  count = flags.sum(-1, keepdims=True, dtype=jnp.int32)
  rest = jnp.full((*flags.shape[:-1], _round_up(n, multiple) - n), n, jnp.int32)
  return jnp.concatenate([count, ids, rest], axis=-1)


def _tile_rows(x: int, group: int, rows: int) -> int:
  """Lanes of a tile: `rows`, or fewer (of 128) where all rows are fewer."""
  return max(min(rows, _round_up(x * group, 128)), group)


def _to_lanes(array, kv_heads: int, rows: int):
  """[B, X, Q, D] to [B, H, D, N]; unused lanes are 0."""
  b, x, q, d = array.shape
  group = q // kv_heads
  tile_x = rows // group
  tiles = -(-x // tile_x)
  array = jnp.pad(array, ((0, 0), (0, tiles * tile_x - x), (0, 0), (0, 0)))
  array = array.reshape(b, tiles, tile_x, kv_heads, group, d)
  array = array.transpose(0, 3, 5, 1, 2, 4)
  array = array.reshape(b, kv_heads, d, tiles, tile_x * group)
  array = jnp.pad(array, [(0, 0)] * 4 + [(0, rows - tile_x * group)])
  return array.reshape(b, kv_heads, d, tiles * rows)


def _from_lanes(array, x: int, group: int, rows: int):
  """[B, H, D, N] back to [B, X, Q, D]."""
  b, h, d, n = array.shape
  tile_x = rows // group
  array = array.reshape(b, h, d, n // rows, rows)[..., : tile_x * group]
  array = array.reshape(b, h, d, n // rows, tile_x, group)
  array = array.transpose(0, 3, 4, 1, 5, 2)
  return array.reshape(b, -1, h * group, d)[:, :x]


def _round_up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple


def _page_id(list_ref, i):
  return list_ref[0, 0, 0, 0, 1 + i]


def _copies(list_ref, kv, buffers, sems):
  """Functions of chunk and slot: fetch starts its copies, arrive waits."""
  pages = buffers[0].shape[1]
  b, h = pl.program_id(0), pl.program_id(1)
  left = lambda c: jnp.clip(list_ref[0, 0, 0, 0, 0] - c * pages, 0, pages)

  def start(c, slot, p):
    for i, (hbm, buffer) in enumerate(zip(kv, buffers, strict=True)):
      page = hbm.at[b, h, _page_id(list_ref, c * pages + p)]
      here = buffer.at[slot, p]
      pltpu.make_async_copy(page, here, sems.at[i, slot]).start()

  def wait(slot, p):
    for i, buffer in enumerate(buffers):
      here = buffer.at[slot, p]
      pltpu.make_async_copy(here, here, sems.at[i, slot]).wait()

  def fetch(c, slot):
    # A full chunk, the usual case, is free of branches.
    @pl.when(left(c) == pages)
    def _():
      for p in range(pages):
        start(c, slot, p)

    @pl.when(left(c) < pages)
    def _():
      pl.loop(0, left(c))(lambda p: start(c, slot, p))

  def arrive(c, slot):
    # A semaphore counts bytes: one wait for a full chunk.
    pl.when(left(c) == pages)(lambda: wait(slot, slice(None)))

    @pl.when(left(c) < pages)
    def _():
      pl.loop(0, left(c))(lambda p: wait(slot, p))

  return fetch, arrive


def _walk(reads, kv, buffers, sems, step, carry):
  """Goes through the pages of a tile's list, one chunk fetched ahead.

  Args:
    reads: `by_tile` and `length` in SMEM, `words` [1, 1, W, rows] in VMEM.
    kv: k and v in HBM.
    buffers: VMEM [2, pages, L, D] for k and for v.
    sems: DMA semaphores [2, 2], of buffer and slot.
    step: takes k and v [pages, L, D]; the filled tokens of each page, a list
      of scalars, 0 past the list's end; the same where a lane reads the page,
      else 0, int32 [pages, 1, rows]; and the carry, which it returns.
    carry: of the first step.
  """
  list_ref, length_ref, words_ref = reads
  pages = buffers[0].shape[1]
  fetch, arrive = _copies(list_ref, kv, buffers, sems)

  def body(c, carry):
    slot = jax.lax.rem(c, 2)
    fetch(c + 1, 1 - slot)
    arrive(c, slot)
    ids = [_page_id(list_ref, c * pages + p) for p in range(pages)]
    filled = [length_ref[0, 0, page] for page in ids]
    limits = [
      _reads(words_ref, page, page >> 5) * n
      for page, n in zip(ids, filled, strict=True)
    ]
    k, v = (buffer[slot] for buffer in buffers)
    return step(k, v, filled, jnp.stack(limits), carry)

  fetch(0, 0)
  chunks = pl.cdiv(list_ref[0, 0, 0, 0, 0], pages)
  return jax.lax.fori_loop(0, chunks, body, carry)


def _reads(words_ref, page, word, lanes=slice(None)):
  """int32 [1, rows]: 1 where a lane reads the page, whose bits `word` holds."""
  words = words_ref[0, 0, pl.ds(word, 1), lanes]
  return jax.lax.shift_right_logical(words, page & 31) & 1


def _clean(pages, filled):
  """[pages, L, D] to [pages * L, D], 0 where not filled: no NaN * 0 later."""
  count, l, d = pages.shape
  token = jax.lax.broadcasted_iota(jnp.int32, (1, l, d), 1)
  kept = [
    jnp.where(token < filled[p], pages[p : p + 1], 0) for p in range(count)
  ]
  return jnp.concatenate(kept).reshape(count * l, d)


def _logits(k, q_t, limits, scale):
  """float32 [pages, L, rows], -inf where a lane does not see a token."""
  pages, l, d = k.shape
  logits = products.dot(k.reshape(pages * l, d), q_t, (1, 0)) * scale
  logits = logits.reshape(pages, l, -1)
  token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
  return jnp.where(token < limits, logits, -jnp.inf)


def _forward(
  reads, lanes, kv, out_ref, lse_ref, acc_ref, buffers, sems, *, scale
):
  """Online softmax over the chunks: out^T [D, rows], lse [1, rows]."""
  acc_ref[...] = jnp.zeros_like(acc_ref)
  q_t = lanes[0][0, 0]

  def step(k, v, filled, limits, carry):
    peak, total = carry
    logits = _logits(k, q_t, limits, scale)
    top = jnp.maximum(peak, logits.max(axis=(0, 1))[None])
    weights = jnp.exp(logits - top)
    shrink = jnp.exp(peak - top)
    total = total * shrink + weights.sum(axis=(0, 1))[None]
    weights = weights.reshape(-1, weights.shape[-1]).astype(v.dtype)
    acc_ref[...] *= shrink
    acc_ref[...] += products.dot(_clean(v, filled), weights, (0, 0))
    return top, total

  row = (1, acc_ref.shape[1])
  start = jnp.full(row, _LOWEST, jnp.float32), jnp.zeros(row, jnp.float32)
  peak, total = _walk(reads, kv, buffers, sems, step, start)
  seen = total > 0
  safe = jnp.where(seen, total, 1.0)
  out_ref[0, 0] = (acc_ref[...] / safe).astype(out_ref.dtype)
  lse_ref[0, 0] = jnp.where(seen, peak + jnp.log(safe), -jnp.inf)


def _dq(reads, lanes, kv, dq_ref, acc_ref, buffers, sems, *, scale):
  """dq^T [D, rows] = sum over pages of k^T ds^T."""
  acc_ref[...] = jnp.zeros_like(acc_ref)
  q_t, do_t, lse, shift = (ref[0, 0] for ref in lanes)

  def step(k, v, filled, limits, carry):
    logits = _logits(k, q_t, limits, scale)
    weights = jnp.exp(logits - lse)
    dp = products.dot(_clean(v, filled), do_t, (1, 0)).reshape(logits.shape)
    ds = weights * (dp - shift)
    ds = ds.reshape(-1, ds.shape[-1]).astype(k.dtype)
    acc_ref[...] += products.dot(_clean(k, filled), ds, (0, 0))
    return carry

  _walk(reads, kv, buffers, sems, step, 0)
  dq_ref[0, 0] = (acc_ref[...] * scale).astype(dq_ref.dtype)


def _dkdv(reads, lanes, kv, dk_ref, dv_ref, *, scale, rows):
  """dv = p^T do and dk = ds^T q of a page, over the tiles that read it."""
  list_ref, length_ref, words_ref = reads
  _, _, pages, l, d = dk_ref.shape
  first = pl.program_id(2) * GROUP

  def of_page(p, _):
    page = first + p
    filled = [length_ref[0, 0, page]]
    k, v = (_clean(ref[0, 0, pl.ds(p, 1)], filled) for ref in kv)

    def of_tile(i, sums):
      dk, dv = sums
      tile = list_ref[0, 0, p, 1 + i]
      at = pl.ds(pl.multiple_of(tile * rows, rows), rows)
      q_t, do_t, lse, shift = (ref[0, 0, :, at] for ref in lanes)
      limits = _reads(words_ref, page, (page >> 5) & 7, at) * filled[0]
      logits = _logits(k[None], q_t, limits[None], scale)[0]
      weights = jnp.exp(logits - lse)
      ds = weights * (products.dot(v, do_t, (1, 0)) - shift)
      dk += products.dot(ds.astype(q_t.dtype), q_t, (1, 1))
      dv += products.dot(weights.astype(do_t.dtype), do_t, (1, 1))
      return dk, dv

    zero = jnp.zeros((l, d), jnp.float32)
    dk, dv = jax.lax.fori_loop(0, list_ref[0, 0, p, 0], of_tile, (zero, zero))
    dk_ref[0, 0, p] = (dk * scale).astype(dk_ref.dtype)
    dv_ref[0, 0, p] = dv.astype(dv_ref.dtype)
    return 0

  jax.lax.fori_loop(0, pages, of_page, 0)
