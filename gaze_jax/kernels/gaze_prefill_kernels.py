"""The three kernels of `gaze_prefill`, and their walk over pages.

Keys lie on sublanes, query rows on lanes. Every kernel takes

  reads   who reads what: a list in SMEM (`by_tile` or `by_page`), `length` in
          SMEM, `words` in VMEM (gaze_prefill_plan.py)
  lanes   q^T [1, 1, D, ..]; in the backward pass do^T, lse and shift too
  kv      k and v: all pages in HBM, or [1, 1, GROUP, L, D] in VMEM

and recomputes the weights from lse in the backward pass,
ds = p * (dp - shift), shift = sum(do * out) - dlse.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

GROUP = 8  # pages of a step of the dk, dv kernel
_LOWEST = -1e30  # a finite start of the running maximum: no inf - inf


def _dot(a, b, contract):
  """float32 matmul; float32 inputs are not rounded to bfloat16 on the MXU."""
  # Stated for both, as in gaze_decode.
  exact = a.dtype == jnp.float32
  return jax.lax.dot_general(
    a,
    b,
    (((contract[0],), (contract[1],)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )


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
  logits = _dot(k.reshape(pages * l, d), q_t, (1, 0)) * scale
  logits = logits.reshape(pages, l, -1)
  token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
  return jnp.where(token < limits, logits, -jnp.inf)


def forward(
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
    acc_ref[...] += _dot(_clean(v, filled), weights, (0, 0))
    return top, total

  row = (1, acc_ref.shape[1])
  start = jnp.full(row, _LOWEST, jnp.float32), jnp.zeros(row, jnp.float32)
  peak, total = _walk(reads, kv, buffers, sems, step, start)
  seen = total > 0
  safe = jnp.where(seen, total, 1.0)
  out_ref[0, 0] = (acc_ref[...] / safe).astype(out_ref.dtype)
  lse_ref[0, 0] = jnp.where(seen, peak + jnp.log(safe), -jnp.inf)


def dq(reads, lanes, kv, dq_ref, acc_ref, buffers, sems, *, scale):
  """dq^T [D, rows] = sum over pages of k^T ds^T."""
  acc_ref[...] = jnp.zeros_like(acc_ref)
  q_t, do_t, lse, shift = (ref[0, 0] for ref in lanes)

  def step(k, v, filled, limits, carry):
    logits = _logits(k, q_t, limits, scale)
    weights = jnp.exp(logits - lse)
    dp = _dot(_clean(v, filled), do_t, (1, 0)).reshape(logits.shape)
    ds = weights * (dp - shift)
    ds = ds.reshape(-1, ds.shape[-1]).astype(k.dtype)
    acc_ref[...] += _dot(_clean(k, filled), ds, (0, 0))
    return carry

  _walk(reads, kv, buffers, sems, step, 0)
  dq_ref[0, 0] = (acc_ref[...] * scale).astype(dq_ref.dtype)


def dkdv(reads, lanes, kv, dk_ref, dv_ref, *, scale, rows):
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
      ds = weights * (_dot(v, do_t, (1, 0)) - shift)
      dk += _dot(ds.astype(q_t.dtype), q_t, (1, 1))
      dv += _dot(weights.astype(do_t.dtype), do_t, (1, 1))
      return dk, dv

    zero = jnp.zeros((l, d), jnp.float32)
    dk, dv = jax.lax.fori_loop(0, list_ref[0, 0, p, 0], of_tile, (zero, zero))
    dk_ref[0, 0, p] = (dk * scale).astype(dk_ref.dtype)
    dv_ref[0, 0, p] = dv.astype(dv_ref.dtype)
    return 0

  jax.lax.fori_loop(0, pages, of_page, 0)
