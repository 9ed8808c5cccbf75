"""Layers of the decoder: parameters in thin modules, math in functions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gaze_jax import types


def rms_norm(
  x: types.Float[types.Array, "*dims E"],
  scale: types.Float[types.Array, " E"],
  eps: float,
) -> types.Float[types.Array, "*dims E"]:
  """RMSNorm over the last axis; float32 inside, the dtype is kept."""
  wide = x.astype(jnp.float32)
  wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
  return (wide * scale).astype(x.dtype)


class RMSNorm(nn.Module):
  """Plain weight, as in Qwen (no +1 as in Gemma)."""

  axis: str  # logical name of the normalised axis
  eps: float

  @nn.compact
  def __call__(self, x: types.Array) -> types.Array:
    init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
    scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
    return rms_norm(x, scale, self.eps)


class Project(nn.Module):
  """A linear map of the trailing axes, without bias.

  Attributes:
    shape: shape of the weight, inputs first.
    axes: logical name of each of its axes.
    inputs: how many leading axes are contracted.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  inputs: int = 1

  @nn.compact
  def __call__(self, x: types.Array) -> types.Array:
    contracted = tuple(range(self.inputs))
    init = nn.initializers.variance_scaling(
      1.0,
      "fan_in",
      "truncated_normal",
      in_axis=contracted,
      out_axis=tuple(range(self.inputs, len(self.shape))),
    )
    init = nn.with_logical_partitioning(init, self.axes)
    weight: Any = self.param("weight", init, self.shape, jnp.float32)
    trailing = tuple(range(x.ndim - self.inputs, x.ndim))
    dims = ((trailing, contracted), ((), ()))
    out = jax.lax.dot_general(
      x,
      weight.astype(x.dtype),
      dims,
      preferred_element_type=jnp.float32,
    )
    return out.astype(x.dtype)


class SwiGLU(nn.Module):
  """Gated MLP: down(silu(gate(x)) * up(x))."""

  hidden: int

  @nn.compact
  def __call__(self, x: types.Array) -> types.Array:
    width = x.shape[-1]
    into, out_of = (width, self.hidden), (self.hidden, width)
    gate = Project(into, ("embed", "mlp"), name="gate")(x)
    up = Project(into, ("embed", "mlp"), name="up")(x)
    return Project(out_of, ("mlp", "embed"), name="down")(nn.silu(gate) * up)
