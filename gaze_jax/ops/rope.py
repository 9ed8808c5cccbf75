"""Rotary position embedding, half-split as in Llama and Qwen."""

import jax.numpy as jnp

from gaze_jax import types


def angles(
  position: types.Int[types.Array, "B X"], head_dim: int, theta: float
) -> tuple[
  types.Float[types.Array, "B X half"], types.Float[types.Array, "B X half"]
]:
  """Cosine and sine, float32 [B, X, D / 2] each, for int positions [B, X]."""
  exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  angle = position.astype(jnp.float32)[..., None] * theta**-exponent
  return jnp.cos(angle), jnp.sin(angle)


def rotate(
  x: types.Float[types.Array, "B X N D"],
  cosine: types.Float[types.Array, "#B X half"],
  sine: types.Float[types.Array, "#B X half"],
) -> types.Float[types.Array, "B X N D"]:
  """Rotates heads [B, X, heads, D]; float32 inside, the dtype is kept."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cosine, sine = cosine[:, :, None], sine[:, :, None]
  turned = [first * cosine - second * sine, second * cosine + first * sine]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
