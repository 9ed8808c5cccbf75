"""The slots of rows, in chunks to loop over."""

from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax import types


def split(x: types.Array, size: int) -> types.Array:
  """[B, S, ...] to [S / size, B, size, ...], filled up with zeros."""
  b, s = x.shape[:2]
  x = jnp.pad(x, ((0, 0), (0, -s % size), *((0, 0),) * (x.ndim - 2)))
  return x.reshape(b, -1, size, *x.shape[2:]).swapaxes(0, 1)


def join(parts: Any, count: int) -> Any:
  """The way back from `split`, of each array of a tree; `count` is S."""

  def one(x):
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :count]

  return jax.tree.map(one, parts)
