"""Attention to a linear cache on CPU: its filled part is read as pages."""

import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import attend_pages_cpu
from gaze_jax.kernels import target

NAME = "cpu"

_PAGE = 16  # slots that are read as a page


def supported(*, capacity: int) -> str | None:
  """Whole pages, on CPU.

  Args:
    capacity: Y.
  """
  if capacity % _PAGE:
    return f"{capacity} slots are no multiple of {_PAGE}"
  return target.other_than("cpu")


def attend_linear(query, k, v, length, *, layer) -> types.Attended:
  """As `attend_linear.attend_linear`."""
  n, b, h, y, d = k.shape
  x, q = query.shape[1:3]
  r = y // _PAGE
  k, v = (a.reshape(n, b, h, r, _PAGE, d) for a in (k, v))
  words = -(-x * q // h // 32)
  count = jnp.broadcast_to(-(-length // _PAGE)[:, None], (b, h))
  visits = types.Visits(
    ids=jnp.broadcast_to(jnp.arange(r, dtype=jnp.int32), (b, h, r)),
    rows=jnp.full((b, h, words, r), -1),
    count=count,
  )
  slot = jnp.arange(y).reshape(1, r, _PAGE)
  filled = (slot < length[:, None, None]).sum(axis=-1, dtype=jnp.int32)
  return attend_pages_cpu.attend_pages(query, k, v, filled, visits, layer=layer)
