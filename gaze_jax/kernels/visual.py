"""Rows of visual tokens on TPU: JAX's splash attention, causal."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from gaze_jax import types

_LANES = 128  # rows and head dims come in multiples
_OUTSIDE = -2  # segment of what no visual token sees


def attend_visual(
  query: types.Float[types.Array, "B S Q D"],
  key: types.Float[types.Array, "B S H D"],
  value: types.Float[types.Array, "B S H D"],
  layout: types.Layout,
  *,
  interpret: Any = False,
) -> types.Float[types.Array, "B S Q D"]:
  """Causal attention within the trunk of each segment, differentiable.

  That is what VISUAL slots see; other slots come out as anything finite.

  Args:
    query: float32 or bfloat16 [B, S, Q, D], post-RoPE.
    key: [B, S, H, D].
    value: [B, S, H, D].
    layout: `Layout` of [B, S].
    interpret: as `pl.pallas_call` takes it.
  """
  b, s, q, d = query.shape
  room, lanes = -s % _LANES, -d % _LANES
  trunk = (layout.role != types.Role.PAD) & (layout.branch == 0)
  ids = jnp.where(trunk, layout.segment, _OUTSIDE)
  ids = jnp.pad(ids, ((0, 0), (0, room)), constant_values=_OUTSIDE)
  ready = lambda x: jnp.pad(
    x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, room), (0, lanes))
  )
  kernel = _kernel(s + room, q, interpret)
  # Every row sees its own key, so that no row is empty.
  out = jax.vmap(
    lambda q, k, v, i: kernel(q, k, v, splash.SegmentIds(q=i, kv=i))
  )(ready(query * d**-0.5), ready(key), ready(value), ids)
  return out[:, :, :s, :d].transpose(0, 2, 1, 3).astype(value.dtype)


@functools.lru_cache(maxsize=16)
def _mask(slots: int, heads: int) -> splash.MultiHeadMask:
  return splash.MultiHeadMask([splash.CausalMask((slots, slots))] * heads)


def _kernel(slots: int, heads: int, interpret: Any):
  block = max(b for b in (512, 384, 256, 128) if slots % b == 0)
  return splash.make_splash_mha_single_device(
    mask=_mask(slots, heads),
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    residual_checkpoint_name="attention",  # as gaze_prefill's
    interpret=interpret,
  )
