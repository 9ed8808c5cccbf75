"""Products of queries with the descriptors of regions."""

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import target

NAME, supported = "xla", target.always


def region_scores(
  query: types.Float[types.Array, "B X H G D"],
  table: types.Float[types.Array, "B H PR D"],
) -> types.Float[types.Array, "B X H G PR"]:
  """query . table, not rounded.

  Args:
    query: float32 [B, X, H, G, D].
    table: float32 [B, H, P * R, D].
  """
  return jnp.einsum(
    "bxhgd,bhrd->bxhgr", query, table, precision=jax.lax.Precision.HIGHEST
  )
