"""Products of one token's queries with descriptors, on CPU.

A step of decoding waits for the table to be read: here it is read once, and at
the memory's speed.
"""

import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import cpu_reductions
from gaze_jax.kernels import target

NAME = "cpu"


def supported(*, tokens: int) -> str | None:
  """One token, on CPU.

  Args:
    tokens: X.
  """
  if tokens != 1:
    return f"{tokens} tokens: a matrix product does better"
  return target.other_than("cpu")


def region_scores(query, table) -> types.Array:
  """As `region_scores.region_scores`."""
  rows = cpu_reductions.in_blocks(query[:, 0].astype(jnp.float32))
  rows = [rows[:, :, None, :, i] for i in range(rows.shape[3])]
  # [B, H, PR, blocks, a]
  out = cpu_reductions.dots(rows, table[:, :, :, None])
  out = out.reshape(*out.shape[:3], -1)[..., : query.shape[3]]
  return out.swapaxes(2, 3)[:, None]
