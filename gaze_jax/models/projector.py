"""From visual features to the decoder's width, and the context tokens."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.models import layers


class Projector(nn.Module):
  """Two-layer MLP with exact GELU (LLaVA-1.5), C learnable context tokens.

  Attributes:
    config: `ProjectorConfig`.
    width: E, width of the decoder.
    grid: visual tokens a side that the position tables are made for.
    context_tokens: C; with 0 there is no such parameter.
    newline: whether there is a learned newline token.
  """

  config: config_lib.ProjectorConfig
  width: int
  grid: int
  context_tokens: int
  newline: bool = False

  @nn.compact
  def __call__(
    self, features: types.Array
  ) -> tuple[types.Array, types.Array | None, types.Array | None]:
    """Projects the features of square units.

    Args:
      features: float [B, M, T, F].

    Returns:
      Visual embeddings float32 [B, M, T, E], context embeddings [C, E] or
      None, and the newline [E] or None.
    """
    x = features.astype(jnp.float32)
    if self.config.input_norm:
      # Not ours: to the last digit what its runs were trained with.
      x = nn.LayerNorm(
        name="norm",
        scale_init=_named(nn.initializers.ones, "vision_embed"),
        bias_init=_named(nn.initializers.zeros, "vision_embed"),
      )(x)
    hidden = self.config.hidden or self.width
    linear = functools.partial(layers.Linear, bias=True, weight_name="kernel")
    into, out_of = (x.shape[-1], hidden), (hidden, self.width)
    x = linear(into, ("vision_embed", "mlp"), name="linear_1")(x)
    x = nn.gelu(x, approximate=False)
    x = linear(out_of, ("mlp", "embed"), name="linear_2")(x)
    if self.config.positions == "row_column":
      x += self._positions(int(features.shape[2] ** 0.5))
    x *= self.config.output_scale
    small = nn.initializers.normal(0.02)
    context = newline = None
    if self.context_tokens:
      spread = nn.initializers.normal(self.config.context_std)
      shape = (self.context_tokens, self.width)
      context = layers.param(
        self, "context", spread, ("context", "embed"), shape
      )
    if self.newline:
      newline = layers.param(self, "newline", small, ("embed",), (self.width,))
    return x, context, newline

  def _positions(self, side: int) -> types.Array:
    """[T, E]; the tables stretch linearly when a unit has another grid."""
    small = nn.initializers.normal(self.config.position_std)
    shape = (self.grid, self.width)
    axes = ("position", "embed")
    rows = layers.param(self, "rows", small, axes, shape)
    columns = layers.param(self, "columns", small, axes, shape)
    if side != self.grid:
      stretch = _stretch(self.grid, side)
      rows, columns = stretch @ rows, stretch @ columns
    return (rows[:, None] + columns[None]).reshape(side * side, self.width)


def _named(init, *axes: str):
  return nn.with_logical_partitioning(init, axes)


def _stretch(source: int, target: int) -> np.ndarray:
  """float32 [target, source], linear interpolation between cell centres."""
  centre = (np.arange(target) + 0.5) * source / target - 0.5
  centre = np.clip(centre, 0, source - 1)
  distance = np.abs(centre[:, None] - np.arange(source))
  return np.maximum(0.0, 1.0 - distance).astype(np.float32)
