"""Attention of routed rows to the pages they chose: Pallas TPU, both passes.

The training and prefill form of METHOD.md section 6. Few rows of a sequence
are routed (TEXT and CONTEXT); compacted, they come as `query`. A *tile* is as
many of them as fit `rows` lanes with the G heads of one KV head side by side:

  lanes   0       1       ..  G-1      G       ..           rows-1
  holds   row 0   row 0       row 0    row 1       ..       row TX-1 | unused
          head 0  head 1      head G-1 head 0

Everything is transposed, keys on sublanes and query rows on lanes, so that
"who reads this page" is one lane row, and the softmax statistics are lane
vectors. That row is a bit of `words` int32 [B, H, R / 32, lanes].

  kernel    grid                 walks                      by
  forward   (B, H, tiles)        pages that any lane reads  DMA from HBM
  dq        (B, H, tiles)        the same                   the same
  dk, dv    (B, H, R / GROUP)    tiles that read each page  q, do in VMEM

A walk over pages fetches `pages` of them at a time into one of two buffers
while the other is at work; a page outside the tile's list is never fetched.
dk and dv keep the rows of one KV head in VMEM (`vmem_bytes`), since each
page needs them; a page that nobody reads gets exact zeros.

It wins where tiles read few of the pages. Where the tiles' unions hold most
of them (few regions, or large budgets) dense attention does the same work
with longer matrices; the first chunk of each tile is fetched with nothing to
hide behind, which shows where a tile reads only a handful of pages.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from gaze_jax import types

GROUP = 8  # pages of a step of the dk, dv kernel
_LOWEST = -1e30  # a finite start of the running maximum: no inf - inf
_VMEM_LIMIT = 60 * 2**20


@dataclasses.dataclass(frozen=True)
class _Tiling:
  rows: int  # lanes of a tile
  pages: int  # pages of a chunk
  interpret: bool | pltpu.InterpretParams


class _Plan(NamedTuple):
  """Who reads what: int32, no gradient.

  Attributes:
    length: [B, 1, R], filled tokens of each page.
    words: [B, H, W, N], bit r % 32 of word r // 32: lane n reads page r.
    tile_list: [B, H, tiles, 1, 1 + R], a count, then the ids of the pages
      that some lane of the tile reads, ascending.
    page_list: [B, H, R, 1 + tiles], a count, then the tiles that read it; R
      rounded up to GROUP.
  """

  length: types.Leaf
  words: types.Leaf
  tile_list: types.Leaf
  page_list: types.Leaf


def attend_regions(
  query: types.Float[types.Array, "B X Q D"],
  k: types.Float[types.Array, "B H R L D"],
  v: types.Float[types.Array, "B H R L D"],
  length: types.Int[types.Array, "B R"],
  members: types.Bool[types.Array, "B X Q R"],
  *,
  rows: int = 256,
  chunk: int = 512,
  interpret: bool | pltpu.InterpretParams = False,
) -> types.Attended:
  """Attention of each row to the pages it chose, differentiable in q, k, v.

  Softmax and sums are float32 whatever the inputs are. Pages whose L is no
  multiple of 8 (float32) or 16 (bfloat16) are copied and padded first: lay
  them out padded where that matters.

  Args:
    query: float32 or bfloat16 [B, X, Q, D], post-RoPE; query head q reads KV
      head q // G.
    k: [B, H, R, L, D], region-major pages, in the dtype of `query`.
    v: [B, H, R, L, D], likewise.
    length: int32 [B, R], filled tokens of each page, a prefix of L; what lies
      behind is never used. 0 where there is no region.
    members: bool [B, X, Q, R], the regions that each row of each head reads.
    rows: lanes of a tile, a multiple of 128 on a TPU and at least G.
    chunk: tokens fetched at a time, rounded to whole pages.
    interpret: `pltpu.InterpretParams()` to run on a CPU.

  Returns:
    `Attended` of [B, X, Q, D] in the dtype of `v`, lse float32 [B, X, Q]; 0
    and -inf for a row that reads no token. Cotangents of both are used.

  Raises:
    ValueError: dtypes differ or are of another kind, Q is no multiple of H,
      or a tile has no room for G heads.
  """
  b, x, q, d = query.shape
  h, r, l = k.shape[1:4]
  _check(query, k, v, rows)
  if x == 0 or r == 0:
    lse = jnp.full((b, x, q), -jnp.inf, jnp.float32)
    return types.Attended(out=jnp.zeros_like(query), lse=lse)
  query, k, v, length, members = _vary_alike(query, k, v, length, members)
  rows = max(min(rows, _round_up(x * (q // h), 128)), q // h)
  l_padded = _round_up(l, 32 // k.dtype.itemsize)
  if l_padded != l:
    padding = [(0, 0)] * 3 + [(0, l_padded - l), (0, 0)]
    k, v = jnp.pad(k, padding), jnp.pad(v, padding)
  pages = max(1, min(chunk // l_padded, 16, r))
  tiling = _Tiling(rows=rows, pages=pages, interpret=interpret)
  query_t = _to_lanes(query, h, rows)
  plan = _plan(length, members, h, rows)
  out, lse = _attend(tiling, query_t, k, v, plan)
  lse = _from_lanes(lse, x, q // h, rows)[..., 0]
  return types.Attended(out=_from_lanes(out, x, q // h, rows), lse=lse)


def fetched_bytes(
  length: types.Int[types.Array, "B R"],
  members: types.Bool[types.Array, "B X Q R"],
  kv_heads: int,
  page_bytes: int,
  *,
  rows: int = 256,
) -> types.Int[types.Array, ""]:
  """Bytes of K and V that the forward pass reads; the dq pass reads as many.

  Args:
    length: int32 [B, R].
    members: bool [B, X, Q, R].
    kv_heads: H.
    page_bytes: L * D * itemsize, as padded.
    rows: as in `attend_regions`.

  Returns:
    Scalar: 2 * page_bytes for each page of each tile's union.
  """
  group = members.shape[2] // kv_heads
  rows = max(min(rows, _round_up(members.shape[1] * group, 128)), group)
  read = _plan(length, members, kv_heads, rows).tile_list[..., 0]
  return read.sum() * 2 * page_bytes


def vmem_bytes(x: int, group: int, dim: int, itemsize: int, **tile) -> int:
  """VMEM that the dk, dv kernel takes, the largest of the three.

  Args:
    x: X.
    group: G.
    dim: D.
    itemsize: bytes of an element.
    **tile: `length`, L as padded; `rows`, as in `attend_regions`.
  """
  rows = tile["rows"]
  lanes = pl.cdiv(x, rows // group) * rows
  held = 2 * 2 * lanes * (_round_up(dim, 16) * itemsize + 8 * 4)
  page = tile["length"] * _round_up(dim, 128)
  blocks = 2 * 4 * GROUP * page * itemsize
  values = 4 * (6 * _round_up(tile["length"], 8) * rows + 4 * page)
  return held + blocks + values


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


def _round_up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple


def _vary_alike(*arrays):
  """Inside shard_map: all vary over the same mesh axes, as kernels want it."""
  varying = [frozenset(getattr(jax.typeof(a), "vma", ())) for a in arrays]
  union = frozenset().union(*varying)
  vary = lambda a, had: jax.lax.pcast(a, tuple(union - had), to="varying")
  return [
    vary(a, had) if union - had else a
    for a, had in zip(arrays, varying, strict=True)
  ]


def _to_lanes(array, h: int, rows: int):
  """[B, X, Q, D] to [B, H, D, N]; unused lanes are 0."""
  b, x, q, d = array.shape
  group = q // h
  tile_x = rows // group
  tiles = pl.cdiv(x, tile_x)
  array = jnp.pad(array, ((0, 0), (0, tiles * tile_x - x), (0, 0), (0, 0)))
  array = array.reshape(b, tiles, tile_x, h, group, d)
  array = array.transpose(0, 3, 5, 1, 2, 4)
  array = array.reshape(b, h, d, tiles, tile_x * group)
  unused = rows - tile_x * group
  array = jnp.pad(array, [(0, 0)] * 4 + [(0, unused)])
  return array.reshape(b, h, d, tiles * rows)


def _from_lanes(array, x: int, group: int, rows: int):
  """[B, H, D, N] back to [B, X, Q, D]."""
  b, h, d, n = array.shape
  tile_x = rows // group
  array = array.reshape(b, h, d, n // rows, rows)[..., : tile_x * group]
  array = array.reshape(b, h, d, n // rows, tile_x, group)
  array = array.transpose(0, 3, 4, 1, 5, 2)
  return array.reshape(b, -1, h * group, d)[:, :x]


def _plan(length, members, h: int, rows: int) -> _Plan:
  b, _, _, r = members.shape
  length = length.astype(jnp.int32)
  members &= (length > 0)[:, None, None]
  members = jnp.pad(members, [(0, 0)] * 3 + [(0, _round_up(r, 256) - r)])
  bits = members.reshape(*members.shape[:3], -1, 32)
  powers = jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)
  words = jnp.where(bits, powers, 0).sum(-1, dtype=jnp.uint32)
  words = _to_lanes(words, h, rows)
  by_tile = words.reshape(*words.shape[:3], -1, rows)
  union = jax.lax.reduce(
    by_tile, jnp.uint32(0), jax.lax.bitwise_or, (4,)
  )  # [B, H, W, tiles]
  reads = (union[:, :, :, None] & powers[:, None]) > 0
  reads = reads.reshape(b, h, -1, union.shape[-1])  # [B, H, 32 W, tiles]
  return _Plan(
    length=length[:, None],
    words=jax.lax.bitcast_convert_type(words, jnp.int32),
    tile_list=_ids(reads[:, :, :r].swapaxes(2, 3))[:, :, :, None],
    page_list=_ids(reads[:, :, : _round_up(r, GROUP)]),
  )


def _ids(flags):
  """bool [..., n] to int32 [..., 1 + n]: a count, then where True."""
  n = flags.shape[-1]
  ids = jnp.sort(jnp.where(flags, jnp.arange(n, dtype=jnp.int32), n), axis=-1)
  count = flags.sum(-1, keepdims=True, dtype=jnp.int32)
  return jnp.concatenate([count, ids], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiling: _Tiling, query_t, k, v, plan: _Plan):
  """Lanes [B, H, D, N] of queries to out [B, H, D, N], lse [B, H, 1, N]."""
  return _attend_forward(tiling, query_t, k, v, plan)[0]


def _attend_forward(tiling, query_t, k, v, plan):
  b, h, d, n = query_t.shape
  out, lse = _call_tiles(
    functools.partial(_forward_kernel, scale=d**-0.5),
    tiling,
    (query_t,),
    k,
    v,
    plan,
    out=((d, v.dtype), (1, jnp.float32)),
    name="gaze_prefill_forward",
  )
  return (out, lse), (query_t, k, v, plan, out, lse)


def _attend_backward(tiling, residuals, cotangents):
  query_t, k, v, plan, out, lse = residuals
  dout, dlse = cotangents
  d = query_t.shape[2]
  seen = lse > -jnp.inf
  dout = jnp.where(seen, dout, 0)
  f32 = lambda a: a.astype(jnp.float32)
  # ds = p * (dp - delta + dlse)
  delta = (f32(dout) * f32(out)).sum(2, keepdims=True)
  shift = jnp.where(seen, delta - dlse, 0)
  lse = jnp.where(seen, lse, 0)
  lanes = (query_t, dout, lse, shift)
  (dq,) = _call_tiles(
    functools.partial(_dq_kernel, scale=d**-0.5),
    tiling,
    lanes,
    k,
    v,
    plan,
    out=((d, query_t.dtype),),
    name="gaze_prefill_dq",
  )
  dk, dv = _call_pages(tiling, lanes, k, v, plan)
  return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _call_tiles(kernel, tiling, lanes, k, v, plan, *, out, name):
  """A kernel over (B, H, tiles) that walks the pages of each tile's list."""
  b, h, r, l, d = k.shape
  n, rows, pages = lanes[0].shape[-1], tiling.rows, tiling.pages
  entries = plan.tile_list.shape[-1]
  lane_block = lambda height: pl.BlockSpec(
    (1, 1, height, rows), lambda b, h, t: (b, h, 0, t)
  )
  buffer = lambda a: pltpu.VMEM((2, pages, l, d), a.dtype)
  return pl.pallas_call(
    kernel,
    grid=(b, h, n // rows),
    in_specs=[
      pl.BlockSpec(
        (1, 1, 1, 1, entries),
        lambda b, h, t: (b, h, t, 0, 0),
        memory_space=pltpu.SMEM,
      ),
      pl.BlockSpec(
        (1, 1, r), lambda b, h, t: (b, 0, 0), memory_space=pltpu.SMEM
      ),
      lane_block(plan.words.shape[2]),
      *[lane_block(a.shape[2]) for a in lanes],
      pl.BlockSpec(memory_space=pl.ANY),
      pl.BlockSpec(memory_space=pl.ANY),
    ],
    out_specs=[lane_block(height) for height, _ in out],
    out_shape=[_like(k, (b, h, height, n), dtype) for height, dtype in out],
    scratch_shapes=[
      pltpu.VMEM((d, rows), jnp.float32),
      buffer(k),
      buffer(v),
      pltpu.SemaphoreType.DMA((2, 2)),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * 3,
      vmem_limit_bytes=_VMEM_LIMIT,
    ),
    interpret=tiling.interpret,
    name=name,
  )(plan.tile_list, plan.length, plan.words, *lanes, k, v)


def _call_pages(tiling, lanes, k, v, plan):
  """The dk, dv kernel over (B, H, pages), the lanes of one KV head in VMEM."""
  b, h, r, l, d = k.shape
  n, rows = lanes[0].shape[-1], tiling.rows
  page = pl.BlockSpec((1, 1, GROUP, l, d), lambda b, h, g: (b, h, g, 0, 0))
  held = lambda a: pl.BlockSpec(
    (1, 1, a.shape[2], n), lambda b, h, g: (b, h, 0, 0)
  )
  return pl.pallas_call(
    functools.partial(_dkdv_kernel, scale=d**-0.5, rows=rows),
    grid=(b, h, pl.cdiv(r, GROUP)),
    in_specs=[
      pl.BlockSpec(
        (1, 1, GROUP, plan.page_list.shape[-1]),
        lambda b, h, g: (b, h, g, 0),
        memory_space=pltpu.SMEM,
      ),
      pl.BlockSpec(
        (1, 1, r), lambda b, h, g: (b, 0, 0), memory_space=pltpu.SMEM
      ),
      # Eight words, the 256 pages of 32 steps, at a time.
      pl.BlockSpec((1, 1, 8, n), lambda b, h, g: (b, h, g >> 5, 0)),
      *[held(a) for a in lanes],
      page,
      page,
    ],
    out_specs=[page, page],
    out_shape=[_like(k, k.shape, k.dtype), _like(v, v.shape, v.dtype)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * 3,
      vmem_limit_bytes=_VMEM_LIMIT,
    ),
    interpret=tiling.interpret,
    name="gaze_prefill_dkdv",
  )(plan.page_list, plan.length, plan.words, *lanes, k, v)


def _like(array, shape, dtype):
  """Abstract output that varies over the mesh axes `array` varies over."""
  fill = lambda a: jnp.broadcast_to(a.ravel()[0].astype(dtype), shape)
  return jax.eval_shape(fill, array)


def _dot(a, b, contract):
  """float32 matmul; float32 inputs are not rounded to bfloat16 on the MXU."""
  exact = a.dtype == jnp.float32
  return jax.lax.dot_general(
    a,
    b,
    (((contract[0],), (contract[1],)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )


def _walk(list_ref, length_ref, words_ref, k_hbm, v_hbm, buffers, step, carry):
  """Goes through the pages of a tile's list, one chunk fetched ahead.

  Args:
    list_ref: SMEM [1, 1, 1, 1, 1 + R], a count and ids.
    length_ref: SMEM [1, 1, R].
    words_ref: VMEM [1, 1, W, rows].
    k_hbm: [B, H, R, L, D].
    v_hbm: likewise.
    buffers: VMEM [2, pages, L, D] for k and for v, DMA semaphores [2, 2].
    step: takes k and v [pages, L, D], the filled tokens of each page as a
      list of scalars (0 past the end of the list) and, where a lane reads it,
      as int32 [pages, 1, rows], and the carry; returns the carry.
    carry: of the first step.
  """
  *kv_buffers, sems = buffers
  _, pages, l, d = kv_buffers[0].shape
  b, h = pl.program_id(0), pl.program_id(1)
  count = list_ref[0, 0, 0, 0, 0]
  page_id = lambda i: list_ref[0, 0, 0, 0, 1 + i]

  def each_copy(c, slot, act):
    for p in range(pages):

      @pl.when(c * pages + p < count)
      def _(p=p):
        page = page_id(c * pages + p)
        for i, (hbm, buffer) in enumerate(
          zip((k_hbm, v_hbm), kv_buffers, strict=True)
        ):
          act(
            pltpu.make_async_copy(
              hbm.at[b, h, page], buffer.at[slot, p], sems.at[i, slot]
            )
          )

  def body(c, carry):
    slot = jax.lax.rem(c, 2)
    each_copy(c + 1, 1 - slot, lambda copy: copy.start())
    each_copy(c, slot, lambda copy: copy.wait())
    filled, limits = [], []
    for p in range(pages):
      i = c * pages + p
      page = page_id(jnp.minimum(i, count - 1))
      filled.append(jnp.where(i < count, length_ref[0, 0, page], 0))
      limits.append(_reads(words_ref, page, page >> 5) * filled[-1])
    k, v = (buffer[slot] for buffer in kv_buffers)
    return step(k, v, filled, jnp.stack(limits), carry)

  each_copy(0, 0, lambda copy: copy.start())
  return jax.lax.fori_loop(0, pl.cdiv(count, pages), body, carry)


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
  logits = _dot(k.reshape(pages * l, d), q_t, (1, 0)) * scale
  logits = logits.reshape(pages, l, -1)
  token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
  return jnp.where(token < limits, logits, -jnp.inf)


def _forward_kernel(
  list_ref,
  length_ref,
  words_ref,
  q_ref,
  k_hbm,
  v_hbm,
  out_ref,
  lse_ref,
  acc_ref,
  *buffers,
  scale,
):
  """Online softmax over the chunks: out^T [D, rows], lse [1, rows]."""
  acc_ref[...] = jnp.zeros_like(acc_ref)
  q_t = q_ref[0, 0]

  def step(k, v, filled, limits, carry):
    peak, total = carry
    logits = _logits(k, q_t, limits, scale)
    top = jnp.maximum(peak, logits.max(axis=(0, 1))[None])
    weights = jnp.exp(logits - top)
    shrink = jnp.exp(peak - top)
    total = total * shrink + weights.sum(axis=(0, 1))[None]
    weights = weights.reshape(-1, weights.shape[-1]).astype(v.dtype)
    acc_ref[...] *= shrink
    acc_ref[...] += _dot(_clean(v, filled), weights, (0, 0))
    return top, total

  row = (1, acc_ref.shape[1])
  start = jnp.full(row, _LOWEST, jnp.float32), jnp.zeros(row, jnp.float32)
  peak, total = _walk(
    list_ref, length_ref, words_ref, k_hbm, v_hbm, buffers, step, start
  )
  seen = total > 0
  safe = jnp.where(seen, total, 1.0)
  out_ref[0, 0] = (acc_ref[...] / safe).astype(out_ref.dtype)
  lse_ref[0, 0] = jnp.where(seen, peak + jnp.log(safe), -jnp.inf)


def _dq_kernel(
  list_ref,
  length_ref,
  words_ref,
  q_ref,
  do_ref,
  lse_ref,
  shift_ref,
  k_hbm,
  v_hbm,
  dq_ref,
  acc_ref,
  *buffers,
  scale,
):
  """dq^T [D, rows] = sum over pages of k^T ds^T."""
  acc_ref[...] = jnp.zeros_like(acc_ref)

  def step(k, v, filled, limits, carry):
    logits = _logits(k, q_ref[0, 0], limits, scale)
    weights = jnp.exp(logits - lse_ref[0, 0])
    dp = _dot(_clean(v, filled), do_ref[0, 0], (1, 0)).reshape(logits.shape)
    ds = weights * (dp - shift_ref[0, 0])
    ds = ds.reshape(-1, ds.shape[-1]).astype(k.dtype)
    acc_ref[...] += _dot(_clean(k, filled), ds, (0, 0))
    return carry

  _walk(list_ref, length_ref, words_ref, k_hbm, v_hbm, buffers, step, 0)
  dq_ref[0, 0] = (acc_ref[...] * scale).astype(dq_ref.dtype)


def _dkdv_kernel(
  list_ref,
  length_ref,
  words_ref,
  q_ref,
  do_ref,
  lse_ref,
  shift_ref,
  k_ref,
  v_ref,
  dk_ref,
  dv_ref,
  *,
  scale,
  rows,
):
  """dv = p^T do and dk = ds^T q of a page, over the tiles that read it."""
  _, _, pages, l, d = k_ref.shape
  r = length_ref.shape[2]

  def of_page(p, _):
    page = jnp.minimum(pl.program_id(2) * pages + p, r - 1)
    filled = [length_ref[0, 0, page]]
    k, v = (_clean(ref[0, 0, pl.ds(p, 1)], filled) for ref in (k_ref, v_ref))

    def of_tile(i, sums):
      dk, dv = sums
      tile = list_ref[0, 0, p, 1 + i]
      lanes = pl.ds(pl.multiple_of(tile * rows, rows), rows)
      q_t, do_t = q_ref[0, 0, :, lanes], do_ref[0, 0, :, lanes]
      limits = _reads(words_ref, page, (page >> 5) & 7, lanes) * filled[0]
      logits = _logits(k[None], q_t, limits[None], scale)[0]
      weights = jnp.exp(logits - lse_ref[0, 0, :, lanes])
      dp = _dot(v, do_t, (1, 0))
      ds = weights * (dp - shift_ref[0, 0, :, lanes])
      dv += _dot(weights.astype(do_t.dtype), do_t, (1, 1))
      dk += _dot(ds.astype(q_t.dtype), q_t, (1, 1))
      return dk, dv

    zero = jnp.zeros((l, d), jnp.float32)
    dk, dv = jax.lax.fori_loop(0, list_ref[0, 0, p, 0], of_tile, (zero, zero))
    dk_ref[0, 0, p] = (dk * scale).astype(dk_ref.dtype)
    dv_ref[0, 0, p] = dv.astype(dv_ref.dtype)
    return 0

  jax.lax.fori_loop(0, pages, of_page, 0)
