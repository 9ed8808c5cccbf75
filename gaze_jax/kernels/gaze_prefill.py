"""Attention of routed rows to the pages they chose: Pallas TPU, both passes.

The training and prefill form of docs/method.md, section 6. Few rows of a
sequence are routed (TEXT and CONTEXT); compacted, they come as `query`. Tiles
of them (gaze_prefill_plan.py) lie on lanes and keys on sublanes, so that "who
reads this page" is one lane row, and the softmax statistics are lane vectors.

  kernel    grid                 walks                      by
  forward   (B, H, tiles)        pages that any lane reads  DMA from HBM
  dq        (B, H, tiles)        the same                   the same
  dk, dv    (B, H, R / GROUP)    tiles that read each page  q, do in VMEM

A walk over pages fetches some 512 tokens at a time into one of two buffers
while the other is at work; a page outside the tile's list is never fetched.
dk and dv hold the rows of one KV head in VMEM (`vmem_bytes`), since each page
needs them; a page that nobody reads gets exact zeros.

It wins where tiles read few of the pages. Where their unions hold most pages
(few regions, or large budgets), dense attention does the same work in longer
matrices; and a tile that reads a handful of pages waits for its first chunk,
which nothing hides.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from gaze_jax import types
from gaze_jax.kernels import gaze_prefill_kernels as kernels
from gaze_jax.kernels import gaze_prefill_plan as plan_lib

ROWS = 256
CHUNK = 512
PAGE_MULTIPLE = 8  # pages of another length are padded, in a copy
VMEM_LIMIT = 60 * 2**20  # of 64 (v7x) to 128 MiB


@dataclasses.dataclass(frozen=True)
class _Tiling:
  rows: int  # lanes of a tile
  pages: int  # pages of a chunk
  interpret: bool | pltpu.InterpretParams


def attend_regions(
  query: types.Float[types.Array, "B X Q D"],
  k: types.Float[types.Array, "B H R L D"],
  v: types.Float[types.Array, "B H R L D"],
  length: types.Int[types.Array, "B R"],
  members: types.Bool[types.Array, "B X Q R"],
  *,
  rows: int = ROWS,
  chunk: int = CHUNK,
  interpret: bool | pltpu.InterpretParams = False,
) -> types.Attended:
  """Attention of each row to the pages it chose, differentiable in q, k, v.

  Softmax and sums are float32 whatever the inputs are. Pages whose L is no
  multiple of 8 are copied and padded first: lay them out padded where that
  matters.

  Args:
    query: float32 or bfloat16 [B, X, Q, D], post-RoPE; query head q reads KV
      head q // G.
    k: [B, H, R, L, D], region-major pages, in the dtype of `query`.
    v: [B, H, R, L, D], likewise.
    length: int32 [B, R], filled tokens of each page, a prefix of L; what lies
      behind is never used. 0 where there is no region.
    members: bool [B, X, Q, R], the regions that each row of each head reads.
    rows: lanes of a tile, at least G; a multiple of 128 on a TPU.
    chunk: tokens fetched at a time, rounded down to whole pages.
    interpret: `pltpu.InterpretParams()` to run on a CPU.

  Returns:
    `Attended` of [B, X, Q, D] in the dtype of `v`, lse float32 [B, X, Q]; 0
    and -inf for a row that reads no token. Cotangents of both are used.

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
  query, k, v, length, members = _vary_alike(query, k, v, length, members)
  rows = plan_lib.tile_rows(x, q // h, rows)
  l_padded = plan_lib.round_up(l, 8)
  if l_padded != l:
    padding = [(0, 0)] * 3 + [(0, l_padded - l), (0, 0)]
    k, v = jnp.pad(k, padding), jnp.pad(v, padding)
  pages = max(1, min(chunk // l_padded, 16, r))
  tiling = _Tiling(rows=rows, pages=pages, interpret=interpret)
  plan = plan_lib.make(length, members, h, rows, pages)
  out, lse = _attend(tiling, plan_lib.to_lanes(query, h, rows), k, v, plan)
  back = lambda a: plan_lib.from_lanes(a, x, q // h, rows)
  return types.Attended(out=back(out), lse=back(lse)[..., 0])


def fetched_bytes(
  length: types.Int[types.Array, "B R"],
  members: types.Bool[types.Array, "B X Q R"],
  kv_heads: int,
  page_bytes: int,
  *,
  rows: int = ROWS,
) -> types.Float[types.Array, ""]:
  """Bytes of K and V that the forward pass reads; the dq pass reads as many.

  Args:
    length: int32 [B, R].
    members: bool [B, X, Q, R].
    kv_heads: H.
    page_bytes: L * D * itemsize, L as padded.
    rows: as in `attend_regions`.

  Returns:
    float32 scalar: 2 * page_bytes for each page of each tile's union.
  """
  _, x, q, _ = members.shape
  rows = plan_lib.tile_rows(x, q // kv_heads, rows)
  counts = plan_lib.make(length, members, kv_heads, rows, 1).by_tile[..., 0]
  return counts.astype(jnp.float32).sum() * 2 * page_bytes


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
  rows = plan_lib.tile_rows(x, group, rows)
  lanes = pl.cdiv(x, rows // group) * rows
  # q, do; lse, shift; eight words. Each is there twice, as are the pages.
  held = lanes * (2 * plan_lib.round_up(dim, 16) * itemsize + 2 * 4 + 8 * 4)
  page = length * plan_lib.round_up(dim, 128)
  return (
    2 * held
    + 2 * 4 * kernels.GROUP * page * itemsize
    + 8 * 4 * (length * rows + page)
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


def _vary_alike(*arrays):
  """Inside shard_map: all vary over the same mesh axes, as kernels want it."""
  varying = [_varying(a) for a in arrays]
  union = frozenset().union(*varying)
  return [
    jax.lax.pcast(a, tuple(union - had), to="varying") if union - had else a
    for a, had in zip(arrays, varying, strict=True)
  ]


def _varying(array) -> frozenset:
  aval = jax.typeof(array)
  # JAX 0.10.2 and later; `vma` before.
  kind = getattr(aval, "manual_axis_type", None)
  return aval.vma if kind is None else kind.varying


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiling: _Tiling, query_t, k, v, plan: plan_lib.Plan):
  """Lanes [B, H, D, N] of queries to out [B, H, D, N], lse [B, H, 1, N]."""
  return _attend_forward(tiling, query_t, k, v, plan)[0]


def _attend_forward(tiling, query_t, k, v, plan):
  out = (query_t.shape, v.dtype), ((*query_t[:, :, :1].shape,), jnp.float32)
  out, lse = _call_tiles(kernels.forward, tiling, (query_t,), (k, v), plan, out)
  # Of both, so that remat can keep what else would run this kernel again.
  out, lse = (checkpoint_name(x, "attention") for x in (out, lse))
  return (out, lse), (query_t, k, v, plan, out, lse)


def _attend_backward(tiling, residuals, cotangents):
  query_t, k, v, plan, out, lse = residuals
  dout, dlse = cotangents
  seen = lse > -jnp.inf
  # ds = p * (dp - delta + dlse)
  delta = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(2)
  shift = jnp.where(seen, delta[:, :, None] - dlse, 0)
  lanes = query_t, dout, jnp.where(seen, lse, 0), shift
  out = ((query_t.shape, query_t.dtype),)
  (dq,) = _call_tiles(kernels.dq, tiling, lanes, (k, v), plan, out)
  dk, dv = _call_pages(tiling, lanes, (k, v), plan)
  return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _call_tiles(kernel, tiling, lanes, kv, plan, out):
  """A kernel over (B, H, tiles) that walks the pages of each tile's list."""
  b, h, r, l, d = kv[0].shape
  n, rows = lanes[0].shape[-1], tiling.rows
  block = lambda shape: pl.BlockSpec(
    (1, 1, shape[2], rows), lambda b, h, t: (b, h, 0, t)
  )
  reads = (
    _scalars(
      (1, 1, 1, *plan.by_tile.shape[3:]), lambda b, h, t: (b, h, t, 0, 0)
    ),
    _scalars((1, *plan.length.shape[1:]), lambda b, h, t: (b, 0, 0)),
    block(plan.words.shape),
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
    out_shape=[_like(kv[0], *o) for o in out],
    scratch_shapes=[
      pltpu.VMEM((d, rows), jnp.float32),
      (buffer, buffer),
      pltpu.SemaphoreType.DMA((2, 2)),
    ],
    compiler_params=_COMPILER,
    interpret=tiling.interpret,
    name=f"gaze_prefill_{kernel.__name__}",
  )((plan.by_tile, plan.length, plan.words), lanes, kv)


def _call_pages(tiling, lanes, kv, plan):
  """The dk, dv kernel over (B, H, pages), the lanes of a KV head in VMEM."""
  b, h, r, l, d = kv[0].shape
  n = lanes[0].shape[-1]
  page = pl.BlockSpec(
    (1, 1, min(r, kernels.GROUP), l, d), lambda b, h, g: (b, h, g, 0, 0)
  )
  held = lambda height, index: pl.BlockSpec((1, 1, height, n), index)
  reads = (
    _scalars(
      (1, 1, kernels.GROUP, plan.by_page.shape[3]), lambda b, h, g: (b, h, g, 0)
    ),
    _scalars((1, *plan.length.shape[1:]), lambda b, h, g: (b, 0, 0)),
    # 8 words serve the BLOCK pages of BLOCK / GROUP = 32 steps.
    held(8, lambda b, h, g: (b, h, g >> 5, 0)),
  )
  return pl.pallas_call(
    functools.partial(kernels.dkdv, scale=d**-0.5, rows=tiling.rows),
    grid=(b, h, pl.cdiv(r, kernels.GROUP)),
    in_specs=[
      reads,
      tuple(held(a.shape[2], lambda b, h, g: (b, h, 0, 0)) for a in lanes),
      (page, page),
    ],
    out_specs=[page, page],
    out_shape=[_like(a, a.shape, a.dtype) for a in kv],
    compiler_params=_COMPILER,
    interpret=tiling.interpret,
    name="gaze_prefill_dkdv",
  )((plan.by_page, plan.length, plan.words), lanes, kv)


_COMPILER = pltpu.CompilerParams(
  dimension_semantics=("parallel",) * 3,
  vmem_limit_bytes=VMEM_LIMIT,
  # The ids are positions in a sorted list: checks of every DMA take longer
  # than its start.
  disable_bounds_checks=True,
)


def _scalars(block, index):
  return pl.BlockSpec(block, index, memory_space=pltpu.SMEM)


def _like(array, shape, dtype):
  """Abstract output that varies over the mesh axes `array` varies over."""
  fill = lambda a: jnp.broadcast_to(a.ravel()[0].astype(dtype), shape)
  return jax.eval_shape(fill, array)
