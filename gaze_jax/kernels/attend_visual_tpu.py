"""Rows of visual tokens on TPU: JAX's splash attention, causal."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from gaze_jax import types
from gaze_jax.kernels import target

NAME = "pallas"

_LANES = 128  # rows and head dims come in multiples
_OUTSIDE = -2  # segment of what no visual token sees


def supported(**sizes) -> str | None:
  """Any sizes, on TPU."""
  del sizes
  return target.other_than("tpu")


def attend_visual(
  query, key, value, layout: types.Layout, *, interpret: Any = None
) -> types.Array:
  """As `attend_visual.attend_visual`; slots that are not VISUAL are finite.

  `interpret` as `pl.pallas_call` takes it; None for the target's.
  """
  if interpret is None:
    interpret = bool(target.target().interpret)
  b, s, q, d = query.shape
  room, lanes = -s % _LANES, -d % _LANES
  trunk = (layout.role != types.Role.PAD) & (layout.branch == 0)
  ids = jnp.where(trunk, layout.segment, _OUTSIDE)
  ids = jnp.pad(ids, ((0, 0), (0, room)), constant_values=_OUTSIDE)
  ready = lambda x: jnp.pad(
    x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, room), (0, lanes))
  )
  # Every row sees its own key, so that no row is empty.
  out = _attend(
    interpret, ready(query * d**-0.5), ready(key), ready(value), ids
  )
  return out[:, :, :s, :d].transpose(0, 2, 1, 3).astype(value.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(interpret, query, key, value, ids):
  """[B, Q, S, D] by [B, H, S, D] of each; ids int32 [B, S]."""
  with exactly(query.dtype):
    return _of_jax(interpret, ids)(query, key, value)


def _attend_forward(interpret, query, key, value, ids):
  with exactly(query.dtype):
    return jax.vjp(_of_jax(interpret, ids), query, key, value)


def _attend_backward(interpret, pull, gradient):
  del interpret
  with exactly(gradient.dtype):
    return *pull(gradient), None


_attend.defvjp(_attend_forward, _attend_backward)


def _of_jax(interpret, ids):
  """JAX's kernel, of rows with these segments."""

  def attend(query, key, value):
    kernel = _kernel(query.shape[2], query.shape[1], interpret)
    one = lambda q, k, v, i: kernel(q, k, v, splash.SegmentIds(q=i, kv=i))
    return jax.vmap(one)(query, key, value, ids)

  return attend


def exactly(dtype):
  """Products of float32 that are not rounded, and of bfloat16 as they are.

  JAX's kernels take the precision that a process has set as its default, which
  Mosaic refuses for bfloat16.
  """
  return jax.default_matmul_precision(
    "highest" if dtype == jnp.float32 else "default"
  )


@functools.lru_cache(maxsize=16)
def _mask(slots: int, heads: int) -> splash.MultiHeadMask:
  return splash.MultiHeadMask([splash.CausalMask((slots, slots))] * heads)


def block(slots: int) -> int:
  """Rows or keys of a step of JAX's kernel; slots are a multiple of 128."""
  return max(b for b in (512, 384, 256, 128) if slots % b == 0)


def _kernel(slots: int, heads: int, interpret: Any):
  size = block(slots)
  return splash.make_splash_mha_single_device(
    mask=_mask(slots, heads),
    block_sizes=splash.BlockSizes(
      block_q=size,
      block_kv=size,
      block_q_dkv=size,
      block_kv_dkv=size,
      block_q_dq=size,
      block_kv_dq=size,
    ),
    residual_checkpoint_name="attention",  # as attend_regions_tpu's
    interpret=interpret,
  )
