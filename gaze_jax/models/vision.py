"""A ViT encoder: pictures to visual tokens.

Pre-norm blocks as in ViT (Dosovitskiy et al. 2021), with what sets its
descendants apart: LayerScale (DINOv2), a norm before the blocks (CLIP),
pictures of any aspect (SigLIP2 NaFlex). Only the blocks that the configured
hidden state needs are run, and only these are parameters:

  {"patch": {kernel, bias}, "class_token", "positions",
   "pre_norm": {scale, bias},
   "blocks": {"norm1", "attention": {query, key, value, out}, "scale1",
              "norm2", "mlp": {up, down}, "scale2"},   # leading axis N
   "norm": {scale, bias}}                              # if `final_norm`

Dims: B' units (rows x units of a row), T patches, X = T or T + 1 with the
class token, F width, Q heads, D head dim, P patch side, G position grid side.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.models import layers
from gaze_jax.models import positions as positions_lib
from gaze_jax.parallel import shard

Array = types.Array

_WIDTH = "vision_embed"  # the logical name of F
_PATCHES = ("batch", None, None)  # how [B', X, F] is sharded


def to_patches(images: Array, patch: int) -> Array:
  """Cuts pictures into patches.

  Args:
    images: [B', height, width, 3].
    patch: P.

  Returns:
    [B', T, P * P * 3]; the patches and the pixels of each are row-major. What
    is left at the bottom and on the right is dropped, as a convolution does.
  """
  units, height, width, channels = images.shape
  rows, columns = height // patch, width // patch
  images = images[:, : rows * patch, : columns * patch]
  x = images.reshape(units, rows, patch, columns, patch, channels)
  return x.swapaxes(2, 3).reshape(units, rows * columns, -1)


def normalise(pixels: Array, config: config_lib.VisionConfig) -> Array:
  """float32 pixels by the tower's mean and std; float ones are so already.

  Args:
    pixels: uint8 or float [..., n * 3], channels of n pixels.
    config: of the tower.
  """
  if pixels.dtype != jnp.uint8:
    return pixels
  n = pixels.shape[-1] // 3
  mean = np.asarray(config.mean, np.float32) * 255
  scale = 1 / (np.asarray(config.std, np.float32) * 255)
  return (pixels.astype(jnp.float32) - np.tile(mean, n)) * np.tile(scale, n)


def activate(x: Array, kind: str) -> Array:
  """The activation that a `VisionConfig` names.

  Args:
    x: [...].
    kind: "gelu" by the error function, "gelu_tanh" its approximation, or
      "quick_gelu", x * sigmoid(1.702 x) (Hendrycks and Gimpel 2016).
  """
  if kind == "quick_gelu":
    return x * jax.nn.sigmoid(1.702 * x)
  return jax.nn.gelu(x, approximate=kind == "gelu_tanh")


def attend(
  q: Array,
  k: Array,
  v: Array,
  dtype: Any,
  mask: Array | None = None,
) -> Array:
  """Full softmax attention; the softmax and both sums are in float32.

  Args:
    q: [B', X, Q, D]; k and v alike.
    k: keys.
    v: values.
    dtype: what the operands of both matmuls are rounded to.
    mask: bool [B', X], the keys that are seen, at least one; None for all.

  Returns:
    float32 [B', X, Q, D].
  """
  # Heads before tokens: XLA's CPU dot is three times slower without.
  q, k, v = (a.swapaxes(1, 2).astype(dtype) for a in (q, k, v))
  scores = jnp.einsum(
    "bqtd,bqsd->bqts", q, k, preferred_element_type=jnp.float32
  )
  scores *= q.shape[-1] ** -0.5
  if mask is not None:
    # Added, not chosen by `where`: nothing of the mask is kept for backward.
    scores += jnp.where(mask, 0.0, -jnp.inf)[:, None, None]
  weights = jax.nn.softmax(scores, axis=-1)
  out = jnp.einsum(
    "bqts,bqsd->bqtd",
    weights.astype(dtype),
    v,
    preferred_element_type=jnp.float32,
  )
  return out.swapaxes(1, 2)


def _linear(
  shape: tuple[int, ...],
  axes: tuple[str, ...],
  dtype: Any,
  bias: bool = True,
  **options,
) -> layers.Linear:
  """Operands are rounded to `dtype`; what goes in and comes out is float32."""
  return layers.Linear(
    shape,
    axes,
    bias=bias,
    weight_name="kernel",
    initializer=nn.initializers.xavier_uniform,
    dtype=dtype,
    **options,
  )


class Attention(nn.Module):
  """Multi-head self-attention with biases."""

  config: config_lib.VisionConfig

  @nn.compact
  def __call__(self, x: Array, mask: Array | None) -> Array:
    c = self.config
    heads, axes = (c.heads, c.width // c.heads), ("heads", "head_dim")
    q, k, v = (
      _linear((c.width, *heads), (_WIDTH, *axes), c.dtype, name=name)(x)
      for name in ("query", "key", "value")
    )
    with jax.named_scope("attend"):
      out = attend(q, k, v, c.dtype, mask)
    back = (*heads, c.width), (*axes, _WIDTH)
    return _linear(*back, c.dtype, inputs=2, name="out")(out)


class Mlp(nn.Module):
  """Two linear layers with a gelu between."""

  config: config_lib.VisionConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    into, out_of = (c.width, c.mlp_dim), (c.mlp_dim, c.width)
    axes = (_WIDTH, "vision_mlp")
    x = _linear(into, axes, c.dtype, name="up")(x)
    x = activate(x, c.activation)
    return _linear(out_of, axes[::-1], c.dtype, name="down")(x)


class Block(nn.Module):
  """One pre-norm block; carry in, carry out, as `nn.scan` wants it."""

  config: config_lib.VisionConfig

  @nn.compact
  def __call__(self, x: Array, mask: Array | None) -> tuple[Array, None]:
    c = self.config
    attention, mlp = Attention(c, name="attention"), Mlp(c, name="mlp")
    branches = (lambda y: attention(y, mask)), mlp
    for i, branch in enumerate(branches, start=1):
      y = branch(layers.LayerNorm(_WIDTH, c.norm_eps, name=f"norm{i}")(x))
      if c.layer_scale:
        ones = nn.initializers.ones
        y *= layers.param(self, f"scale{i}", ones, (_WIDTH,), (c.width,))
      x = shard.constrain(x + y, *_PATCHES)
    return x, None


class ViT(nn.Module):
  """The encoder.

  Attributes:
    config: a `VisionConfig`; `hidden_state` tells how many blocks there are,
      `final_norm` whether the closing LayerNorm follows, `dtype` to what the
      operands of every matmul are rounded. Sums, norms, softmax and the
      residual stream are float32 always.
  """

  config: config_lib.VisionConfig

  @nn.compact
  def __call__(self, images: Array | types.Patches) -> Array:
    """Encodes pictures.

    Args:
      images: uint8 [B', height, width, 3], or float32 that is normalised with
        the config's mean and std; of any size of whole patches (the positions
        follow), or of `image_size`. With `max_patches`, `Patches` of
        [B', T, P * P * 3].

    Returns:
      float32 [B', T, F], row-major patches, without the class token. Past the
      grid of a unit of `Patches` the numbers mean nothing, but are finite.

    Raises:
      ValueError: pictures where the config asks for patches or the other way
        round, or of a size that is not a whole number of patches.
    """
    c = self.config
    x, mask = self._embed(images)
    x = shard.constrain(x, *_PATCHES)
    if c.pre_norm:
      x = layers.LayerNorm(_WIDTH, c.norm_eps, name="pre_norm")(x)
    if c.layers_used:
      # Of a scan, which keeps the two passes apart: CSE needs no preventing.
      remat = functools.partial(nn.remat, prevent_cse=False)
      blocks = nn.scan(
        remat(Block) if c.remat == "full" else Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=c.layers_used,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )
      x, _ = blocks(c, name="blocks")(x, mask)
    if c.final_norm:
      x = layers.LayerNorm(_WIDTH, c.norm_eps, name="norm")(x)
    return x[:, 1:] if c.class_token else x

  def _embed(self, images: Array | types.Patches) -> tuple[Array, Array | None]:
    """Embeddings [B', X, F], and which of them are real; None if all are."""
    c = self.config
    _check(images, c)
    normal = nn.initializers.normal(0.02)
    pixels = c.patch_size**2 * 3
    project = _linear(
      (pixels, c.width),
      ("patch", _WIDTH),
      c.dtype,
      bias=c.patch_bias,
      name="patch",
    )
    cells = c.position_grid**2 + c.class_token
    table = layers.param(
      self, "positions", normal, ("position", _WIDTH), (cells, c.width)
    )
    if isinstance(images, types.Patches):
      patches = images.pixels.shape[1]
      x = project(normalise(images.pixels, c))
      x += positions_lib.resize_each(table, images.grid, patches)
      # A unit that is not there keeps one patch: a softmax of none is NaN.
      filled = jnp.maximum(images.grid.prod(axis=-1, keepdims=True), 1)
      return x, jnp.arange(patches) < filled
    rows, columns = (n // c.patch_size for n in images.shape[1:3])
    x = project(normalise(to_patches(images, c.patch_size), c))
    if not c.class_token:
      return x + positions_lib.resize(table, rows, columns), None
    x += positions_lib.resize(table[1:], rows, columns)
    token = layers.param(self, "class_token", normal, (_WIDTH,), (c.width,))
    token += table[0]
    token = jnp.broadcast_to(token, (x.shape[0], 1, c.width))
    return jnp.concatenate([token, x], axis=1), None


def blank(
  config: config_lib.VisionConfig, *units: int
) -> Array | types.Patches:
  """Black pictures of the config's size: what `ViT` is initialised with.

  Args:
    config: tells whether these are pixels or `Patches`.
    *units: leading axes.
  """
  if not config.max_patches:
    side = config.image_size
    return jnp.zeros((*units, side, side, 3), jnp.uint8)
  pixels = config.patch_size**2 * 3
  return types.Patches(
    pixels=jnp.zeros((*units, config.max_patches, pixels), jnp.uint8),
    grid=jnp.ones((*units, 2), jnp.int32),
  )


@functools.cache
def param_shapes(config: config_lib.VisionConfig) -> dict[str, Any]:
  """Nested dict of `jax.ShapeDtypeStruct`: what `ViT(config)` must be given."""
  images = jax.eval_shape(lambda: blank(config, 1))
  key = jax.eval_shape(lambda: jax.random.key(0))
  return nn.unbox(jax.eval_shape(ViT(config).init, key, images))["params"]


def _check(
  images: Array | types.Patches, config: config_lib.VisionConfig
) -> None:
  if isinstance(images, types.Patches) != bool(config.max_patches):
    got, want = "pixels", "Patches (data/naflex.py)"
    if isinstance(images, types.Patches):
      got, want = want, got
    raise ValueError(
      f"vision: a tower of max_patches = {config.max_patches} reads {want},"
      f" got {got}"
    )
  if isinstance(images, types.Patches):
    return
  height, width = images.shape[1:3]
  patch = config.patch_size
  # SigLIP of 384 pixels and patches of 14 drops 6 pixels, and is to.
  if any(n % patch and n != config.image_size for n in (height, width)):
    raise ValueError(
      f"vision: a picture of {height} x {width} pixels is not a whole number"
      f" of patches of {patch} x {patch}"
    )
