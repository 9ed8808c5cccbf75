"""Decode attention over listed pages, in plain XLA: copied, then multiplied.

The form of every device without one of its own, and the oracle and gradient of
the others. Many rows take some pages at a time, so that no more are copied at
once: a matrix product repays the copy there.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.kernels import target

NAME, supported = "gather", target.always


# Up to so many rows of a KV head take all their pages at once.
FEW_ROWS = 32
# A step of the loop over a long list visits so many pages of all KV heads.
_STEP = 64


def page_shape(tokens: int, head_dim: int, dtype) -> tuple[int, ...]:
  """The shape in which the cache stores a page, (L, D)."""
  del dtype
  return tokens, head_dim


def most_rows(shape: tuple[int, ...], dtype) -> None:
  """Rows of a KV head in one call: any number."""
  del shape, dtype


def attend_pages(
  query: types.Float[types.Array, "B X Q D"],
  k: types.Float[types.Array, "N B H R *page"],
  v: types.Float[types.Array, "N B H R *page"],
  length: types.Int[types.Array, "B R"],
  visits: types.Visits,
  *,
  layer: types.Int[types.Array, ""] | int,
) -> types.Attended:
  """Attends to the listed pages, and to nothing else.

  Logits and softmax are float32. Time goes with the largest count, not with U,
  and no more pages are copied at a time than a step of the loop takes.
  Differentiable in the query, keys and values, in reverse.

  Args:
    query: [B, X, Q, D], post-RoPE.
    k: [N, B, H, R, L, D], or pages as `attend_pages_tpu.page_shape` stores
      them, of all layers.
    v: likewise.
    length: int32 [B, R], filled tokens of each page, which come first in it;
      what follows them may be anything.
    visits: pages to visit, each at most once, in any order.
    layer: int32 scalar, the layer to read; to slice it out would copy it.

  Returns:
    `Attended` of [B, X, Q, D] in the dtype of the values; out 0 and lse -inf
    for a row that reads nothing.
  """
  return of_rows(_gathered, query, k, v, length, visits, layer)


def of_rows(
  attend_few: Callable[..., tuple[types.Array, types.Array]],
  query,
  k,
  v,
  length,
  visits: types.Visits,
  layer,
) -> types.Attended:
  """`attend_pages`; up to FEW_ROWS rows by a function such as `_gathered`."""
  b, x, q, d = query.shape
  h = k.shape[2]
  matrix = query.reshape(b, x, h, q // h, d).transpose(0, 2, 1, 3, 4)
  k, v = (_plain(pages, d) for pages in (k, v))
  lists = layer, length, visits.ids, visits.rows, visits.count
  out, lse = _attend(
    attend_few, matrix.reshape(b, h, -1, d).astype(jnp.float32), k, v, lists
  )
  out = out.reshape(b, h, x, q // h, d).transpose(0, 2, 1, 3, 4)
  lse = lse.reshape(b, h, x, q // h).transpose(0, 2, 1, 3)
  return types.Attended(
    out=out.reshape(b, x, q, d).astype(v.dtype), lse=lse.reshape(b, x, q)
  )


def _plain(pages: types.Array, d: int) -> types.Array:
  """[N, B, H, R, L, D] of pages in any form."""
  tokens = math.prod(pages.shape[4:-1])
  return pages.reshape(*pages.shape[:4], tokens, pages.shape[-1])[..., :d]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(attend_few, query, k, v, listed):
  """Rows [B, H, M, D] to (out, lse), float32 [B, H, M, D] and [B, H, M]."""
  if query.shape[2] > FEW_ROWS:
    return in_steps(query, k, v, listed)
  return attend_few(query, k, v, listed)


def _attend_forward(attend_few, query, k, v, listed):
  return _attend(attend_few, query, k, v, listed), (query, k, v, listed)


def _attend_backward(attend_few, saved, cotangents):
  del attend_few
  query, k, v, listed = saved
  pull = jax.vjp(lambda *x: _gathered(*x, listed), query, k, v)[1]
  return *pull(cotangents), None


_attend.defvjp(_attend_forward, _attend_backward)


def _gathered(query, k, v, listed):
  """All listed pages at once."""
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


def in_steps(
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
    add = lambda i, so_far: attention.merge(so_far, part(i * step))
    done = lax.fori_loop(0, -(-count // step), add, nothing)
  return done.out, done.lse
