"""A ViT encoder: pictures to visual tokens.

Pre-norm blocks as in ViT (Dosovitskiy et al. 2021), with the optional
LayerScale and the interpolated positions of DINOv2. Only the blocks that the
configured hidden state needs are run, and only these are parameters:

  {"patch": {kernel, bias}, "class_token", "positions",
   "blocks": {"norm1", "attention": {query, key, value, out}, "scale1",
              "norm2", "mlp": {up, down}, "scale2"},   # leading axis N
   "norm": {scale, bias}}                              # if `final_norm`

Dims: B' units (rows x units of a row), T patches, X = T or T + 1 with the
class token, F width, Q heads, D head dim, P patch side, G position grid side.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types

Array = types.Array
Axis = tuple[str, int]  # logical name and size of an axis

_CUBIC = -0.75  # the coefficient of torch's and ONNX's bicubic resize


def cubic_matrix(size: int, new_size: int) -> np.ndarray:
  """The bicubic resize of one axis, as a matrix.

  Half-pixel centres, edges repeated, no antialiasing: torch's
  `interpolate(mode="bicubic", align_corners=False)` and ONNX's `Resize` with
  `half_pixel` and `cubic_coeff_a=-0.75`. Keys 1981, with a = -0.75.

  Returns:
    float32 [new_size, size]; rows sum to 1; the identity for equal sizes.
  """
  centre = (np.arange(new_size) + 0.5) * size / new_size - 0.5
  taps = np.floor(centre)[:, None].astype(int) + np.arange(-1, 3)
  t = np.abs(centre[:, None] - taps)
  near = ((_CUBIC + 2) * t - (_CUBIC + 3)) * t * t + 1
  far = ((_CUBIC * t - 5 * _CUBIC) * t + 8 * _CUBIC) * t - 4 * _CUBIC
  matrix = np.zeros((new_size, size))
  rows = np.arange(new_size)[:, None]
  np.add.at(
    matrix,
    (rows, np.clip(taps, 0, size - 1)),  # taps past the edge add up on it
    np.where(t <= 1, near, far),
  )
  return matrix.astype(np.float32)


def resize_positions(table: Array, rows: int, columns: int) -> Array:
  """Bicubic resize of a square position table.

  Args:
    table: float32 [G * G, F], row-major.
    rows: patches of a column of the picture.
    columns: patches of a row of the picture.

  Returns:
    float32 [rows * columns, F], row-major; the table itself on an equal grid.
  """
  side = round(table.shape[0] ** 0.5)
  if (rows, columns) == (side, side):
    return table
  resized = jnp.einsum(
    "yi,xj,ijf->yxf",
    cubic_matrix(side, rows),
    cubic_matrix(side, columns),
    table.reshape(side, side, -1),
    precision=jax.lax.Precision.HIGHEST,  # tiny; bf16 positions would drift
  )
  return resized.reshape(rows * columns, -1)


def to_patches(images: Array, patch: int) -> Array:
  """Cuts pictures into patches.

  Args:
    images: [B', height, width, 3].
    patch: P.

  Returns:
    [B', T, P * P * 3]; the patches and the pixels of each are row-major.

  Raises:
    ValueError: the picture is not a whole number of patches.
  """
  units, height, width, channels = images.shape
  if height % patch or width % patch:
    raise ValueError(
      f"vision: a picture of {height} x {width} pixels is not a whole number"
      f" of patches of {patch} x {patch}"
    )
  rows, columns = height // patch, width // patch
  x = images.reshape(units, rows, patch, columns, patch, channels)
  return x.swapaxes(2, 3).reshape(units, rows * columns, -1)


def layer_norm(
  x: Array,
  scale: Array,
  bias: Array,
  eps: float,
) -> Array:
  """LayerNorm over the last axis (Ba et al. 2016).

  Args:
    x: float32 [..., F].
    scale: float32 [F].
    bias: float32 [F].
    eps: added to the variance.
  """
  centred = x - x.mean(-1, keepdims=True)
  variance = jnp.square(centred).mean(-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + eps) * scale + bias


def linear(x: Array, kernel: Array, bias: Array, dtype: Any) -> Array:
  """x . kernel + bias over the last axes of x and the first of the kernel.

  Args:
    x: [..., *inputs].
    kernel: [*inputs, *outputs].
    bias: [*outputs].
    dtype: what the operands are rounded to.

  Returns:
    float32 [..., *outputs], accumulated in float32.
  """
  y = jnp.tensordot(
    x.astype(dtype),
    kernel.astype(dtype),
    axes=kernel.ndim - bias.ndim,
    preferred_element_type=jnp.float32,
  )
  return y + bias


def attend(
  q: Array,
  k: Array,
  v: Array,
  dtype: Any,
) -> Array:
  """Full softmax attention; the softmax and both sums are in float32.

  Args:
    q: [B', X, Q, D]; k and v alike.
    k: keys.
    v: values.
    dtype: what the operands of both matmuls are rounded to.

  Returns:
    float32 [B', X, Q, D].
  """
  # Heads before tokens: XLA's CPU dot is three times slower without.
  q, k, v = (a.swapaxes(1, 2).astype(dtype) for a in (q, k, v))
  scores = jnp.einsum(
    "bqtd,bqsd->bqts", q, k, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1)
  out = jnp.einsum(
    "bqts,bqsd->bqtd",
    weights.astype(dtype),
    v,
    preferred_element_type=jnp.float32,
  )
  return out.swapaxes(1, 2)


class LayerNorm(nn.Module):
  """Owns the scale and the bias of `layer_norm`."""

  axis: Axis
  eps: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = _param(self, "scale", nn.initializers.ones, [self.axis])
    bias = _param(self, "bias", nn.initializers.zeros, [self.axis])
    return layer_norm(x, scale, bias, self.eps)


class Linear(nn.Module):
  """Owns the kernel and the bias of `linear`."""

  inputs: tuple[Axis, ...]
  outputs: tuple[Axis, ...]
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    n = len(self.inputs)
    init = nn.initializers.xavier_uniform(
      in_axis=tuple(range(n)),
      out_axis=tuple(range(n, n + len(self.outputs))),
    )
    kernel = _param(self, "kernel", init, self.inputs + self.outputs)
    bias = _param(self, "bias", nn.initializers.zeros, self.outputs)
    return linear(x, kernel, bias, self.dtype)


class Attention(nn.Module):
  """Multi-head self-attention with biases."""

  config: config_lib.VisionConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    embed = (("vision_embed", c.width),)
    heads = (("heads", c.heads), ("head_dim", c.width // c.heads))
    q, k, v = (
      Linear(embed, heads, c.dtype, name=name)(x)
      for name in ("query", "key", "value")
    )
    return Linear(heads, embed, c.dtype, name="out")(attend(q, k, v, c.dtype))


class Mlp(nn.Module):
  """Two linear layers with a gelu between."""

  config: config_lib.VisionConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    embed, hidden = ("vision_embed", c.width), ("vision_mlp", c.mlp_dim)
    x = Linear((embed,), (hidden,), c.dtype, name="up")(x)
    x = jax.nn.gelu(x, approximate=c.activation == "gelu_tanh")
    return Linear((hidden,), (embed,), c.dtype, name="down")(x)


class Block(nn.Module):
  """One pre-norm block; carry in, carry out, as `nn.scan` wants it."""

  config: config_lib.VisionConfig

  @nn.compact
  def __call__(self, x: Array, _) -> tuple[Array, None]:
    c = self.config
    embed = ("vision_embed", c.width)
    for i, branch in enumerate(
      (Attention(c, name="attention"), Mlp(c, name="mlp")), start=1
    ):
      y = branch(LayerNorm(embed, c.norm_eps, name=f"norm{i}")(x))
      if c.layer_scale:
        y *= _param(self, f"scale{i}", nn.initializers.ones, [embed])
      x += y
    return x, None


class ViT(nn.Module):
  """The encoder.

  Attributes:
    config: a `VisionConfig`; `hidden_state` says how many blocks there are,
      `final_norm` whether the closing LayerNorm follows, `dtype` to what the
      operands of every matmul are rounded. Sums, norms, softmax and the
      residual stream are float32 always.
  """

  config: config_lib.VisionConfig

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """Encodes pictures.

    Args:
      images: float32 [B', height, width, 3], normalised with the config's
        mean and std; any size of whole patches (the positions follow).

    Returns:
      float32 [B', T, F], row-major patches, without the class token.

    Raises:
      ValueError: the picture is not a whole number of patches.
    """
    c = self.config
    embed = ("vision_embed", c.width)
    x = self._embed(images)
    if c.layers_used:
      blocks = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=c.layers_used,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )
      x, _ = blocks(c, name="blocks")(x, None)
    if c.final_norm:
      x = LayerNorm(embed, c.norm_eps, name="norm")(x)
    return x[:, 1:] if c.class_token else x

  def _embed(self, images: Array) -> Array:
    c = self.config
    embed = ("vision_embed", c.width)
    pixels = ("patch", c.patch_size**2 * 3)
    cells = ("position", c.position_grid**2 + c.class_token)
    normal = nn.initializers.normal(0.02)
    rows, columns = (n // c.patch_size for n in images.shape[1:3])
    x = to_patches(images, c.patch_size)
    x = Linear((pixels,), (embed,), c.dtype, name="patch")(x)
    positions = _param(self, "positions", normal, [cells, embed])
    if not c.class_token:
      return x + resize_positions(positions, rows, columns)
    x += resize_positions(positions[1:], rows, columns)
    token = _param(self, "class_token", normal, [embed]) + positions[0]
    token = jnp.broadcast_to(token, (x.shape[0], 1, c.width))
    return jnp.concatenate([token, x], axis=1)


@functools.cache
def param_shapes(config: config_lib.VisionConfig) -> dict[str, Any]:
  """Nested dict of `jax.ShapeDtypeStruct`: what `ViT(config)` must be given."""
  side = config.image_size
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return nn.unbox(jax.eval_shape(ViT(config).init, key, images))["params"]


def _param(
  module: nn.Module, name: str, init: Callable[..., Array], axes: Any
) -> Array:
  """A float32 parameter with the given (logical name, size) axes."""
  names, shape = zip(*axes, strict=True)
  return module.param(name, nn.with_logical_partitioning(init, names), shape)
