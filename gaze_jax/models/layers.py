"""Layers of every part: parameters in thin modules, math in functions."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gaze_jax import types
from gaze_jax.kernels import products
from gaze_jax.parallel import shard


def param(
  module: nn.Module,
  name: str,
  init: Callable[..., types.Array],
  axes: tuple[str, ...],
  shape: tuple[int, ...],
) -> Any:
  """A float32 parameter of a module, with the logical names of its axes."""
  init = nn.with_logical_partitioning(init, axes)
  return module.param(name, init, shape, jnp.float32)


def rms_norm(
  x: types.Float[types.Array, "*dims E"],
  scale: types.Float[types.Array, " E"],
  eps: float,
) -> types.Float[types.Array, "*dims E"]:
  """RMSNorm over the last axis; float32 inside, the dtype is kept."""
  wide = x.astype(jnp.float32)
  wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
  return (wide * scale).astype(x.dtype)


def layer_norm(
  x: types.Float[types.Array, "*dims F"],
  scale: types.Float[types.Array, " F"],
  bias: types.Float[types.Array, " F"],
  eps: float,
) -> types.Float[types.Array, "*dims F"]:
  """LayerNorm over the last axis (Ba et al. 2016), of float32."""
  centred = x - x.mean(-1, keepdims=True)
  variance = jnp.square(centred).mean(-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + eps) * scale + bias


class RMSNorm(nn.Module):
  """Plain weight, as in Qwen (no +1 as in Gemma)."""

  axis: str  # logical name of the normalised axis
  eps: float

  @nn.compact
  def __call__(self, x: types.Array) -> types.Array:
    size = x.shape[-1:]
    scale = param(self, "scale", nn.initializers.ones, (self.axis,), size)
    return rms_norm(x, scale, self.eps)


class LayerNorm(nn.Module):
  """Owns the scale and the bias of `layer_norm`."""

  axis: str  # logical name of the normalised axis
  eps: float

  @nn.compact
  def __call__(self, x: types.Array) -> types.Array:
    axes, size = (self.axis,), x.shape[-1:]
    scale = param(self, "scale", nn.initializers.ones, axes, size)
    bias = param(self, "bias", nn.initializers.zeros, axes, size)
    return layer_norm(x, scale, bias, self.eps)


class Linear(nn.Module):
  """A linear map of the trailing axes, summed in float32.

  Attributes:
    shape: shape of the weight, inputs first.
    axes: logical name of each of its axes.
    inputs: how many leading axes are contracted.
    bias: whether a bias is added.
    weight_name: of the parameter.
    initializer: its initializer, given the numbers of the axes.
    dtype: what the operands of the product are rounded to; None for that of
      the input.
    out: dtype of the output; None for that of the input.
    used: how the weight is sharded for its product, if it is moved for it.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  inputs: int = 1
  bias: bool = False
  weight_name: str = "weight"
  initializer: Callable[..., Any] = nn.initializers.lecun_normal
  dtype: Any = None
  out: Any = None
  used: tuple[str | None, ...] = ()

  @nn.compact
  def __call__(self, x: types.Array) -> types.Array:
    n = self.inputs
    init = self.initializer(
      in_axis=tuple(range(n)), out_axis=tuple(range(n, len(self.shape)))
    )
    weight = param(self, self.weight_name, init, self.axes, self.shape)
    if self.used:
      weight = shard.constrain(weight, *self.used)
    operand = x.astype(self.dtype or x.dtype)
    out = products.contract(operand, weight, n, self.out or x.dtype)
    if self.bias:
      zeros, shape = nn.initializers.zeros, self.shape[n:]
      bias = param(self, "bias", zeros, self.axes[n:], shape)
      out += bias.astype(out.dtype)
    return checkpoint_name(out, self.name)  # see `decoder._KEPT`


class SwiGLU(nn.Module):
  """Gated MLP: down(silu(gate(x)) * up(x))."""

  hidden: int

  @nn.compact
  def __call__(self, x: types.Array) -> types.Array:
    width = x.shape[-1]
    into, out_of = (width, self.hidden), (self.hidden, width)
    gate = Linear(into, ("embed", "mlp"), name="gate")(x)
    up = Linear(into, ("embed", "mlp"), name="up")(x)
    return Linear(out_of, ("mlp", "embed"), name="down")(nn.silu(gate) * up)
