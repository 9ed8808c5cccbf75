"""The kernel of `gaze_decode`: a ring of chunks, and softmax online."""

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

WORD = 32  # rows of a word


def step(*refs, scale, direct):
  """One KV head of one row; see gaze_decode."""
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

    k, v = _matrix(k_ring, slot, direct), _matrix(v_ring, slot, direct)
    ring_ref[used] += 1
    return _attend(q_ref[...], k, v, bits, scale, carry)

  m = q_ref.shape[0]
  nothing = jnp.full((m, 1), -jnp.inf), jnp.zeros((m, 1)), jnp.zeros((m, d))
  peak, total, out = lax.fori_loop(0, chunks_of(head), visit_chunk, nothing)
  safe = jnp.where(total > 0, total, 1.0)
  out_ref[...] = (out / safe).astype(out_ref.dtype)
  lse_ref[...] = jnp.where(total > 0, peak + jnp.log(safe), -jnp.inf)


def _matrix(ring, slot, direct):
  """The tokens [Y, D] in a slot of a ring [slots, pages, L / t, t, D].

  (8, 128) tiles lie in memory just as (t, 128) tiles do, so the matrix can be
  loaded as it is; reshaping the loaded pages would move every tile instead.
  bfloat16 goes as pairs of rows, which are the 32-bit words. The interpreter
  knows no views, so there the pages are loaded and reshaped.
  """
  if not direct:
    return ring[slot].reshape(-1, ring.shape[-1])
  words = ring.bitcast(jnp.int32) if ring.dtype == jnp.bfloat16 else ring
  flat = math.prod(words.shape[1:-1]), words.shape[-1]
  return pltpu.bitcast(words.at[slot].reshape(*flat)[...], ring.dtype)


def _attend(q, k, v, bits, scale, carry):
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
  logits = _dot(q.astype(shared), k.astype(shared), contract=1)
  m, y = logits.shape
  seen = []
  for i, word in enumerate(bits):
    rows = min(WORD, m - i * WORD)
    seen.append((word >> lax.broadcasted_iota(jnp.int32, (rows, y), 0)) & 1)
  seen = jnp.concatenate(seen) != 0
  logits = jnp.where(seen, logits * scale, -jnp.inf)
  top = jnp.maximum(peak, logits.max(axis=1, keepdims=True))
  base = jnp.where(top == -jnp.inf, 0.0, top)
  weights = jnp.exp(logits - base)
  decay = jnp.exp(peak - base)
  total = total * decay + weights.sum(axis=1, keepdims=True)
  new = _dot(weights.astype(v.dtype), v, contract=0)
  return top, total, out * decay + new


def _dot(a, b, *, contract):
  """a [M, Y] by b, over dim `contract` of b, in float32."""
  # Stated for both, as a process may set another default, which Mosaic refuses
  # for bfloat16.
  exact = a.dtype == jnp.float32
  return lax.dot_general(
    a,
    b,
    (((1,), (contract,)), ((), ())),
    precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )
