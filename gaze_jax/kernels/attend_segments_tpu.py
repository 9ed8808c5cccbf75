"""Attention within segments on TPU: JAX's splash attention."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from gaze_jax import types
from gaze_jax.kernels import attend_visual_tpu
from gaze_jax.kernels import target

NAME = "pallas"

_LANES = 128  # rows, keys and head dims come in multiples
_NOBODY = -1  # segment of a key that nobody sees
_LEAST = -1e30  # no log-sum-exp of real logits is below


def supported(**sizes) -> str | None:
  """Any sizes, on TPU."""
  del sizes
  return target.other_than("tpu")


def attend_segments(
  query,
  key,
  value,
  query_segment,
  key_segment,
  *,
  causal: bool,
  interpret: Any = None,
) -> types.Attended:
  """As `attend_segments.attend_segments`; forward alone.

  `interpret` as `pl.pallas_call` takes it; None for the target's.
  """
  if interpret is None:
    interpret = bool(target.target().interpret)
  x, q, d = query.shape[1:]
  up = lambda x, axis, fill=0: jnp.pad(
    x,
    [(0, -n % _LANES if i == axis else 0) for i, n in enumerate(x.shape)],
    constant_values=fill,
  )
  ready = lambda x: up(up(x.transpose(0, 2, 1, 3), 2), 3)
  # Scaled in float32: bfloat16 would round each query once more.
  scaled = (query.astype(jnp.float32) * d**-0.5).astype(query.dtype)
  query_, key_, value_ = (ready(x) for x in (scaled, key, value))
  kernel = _kernel(query_.shape[2], key_.shape[2], q, causal, interpret)
  ids = splash.SegmentIds(
    q=up(query_segment, 1), kv=up(key_segment, 1, _NOBODY)
  )
  with attend_visual_tpu.exactly(query.dtype):
    out, (lse,) = jax.vmap(kernel)(query_, key_, value_, ids)
  lse = lse[:, :, :x].transpose(0, 2, 1)
  # The kernel has the mean of all values where no key is seen.
  seen = lse > _LEAST
  out = out[:, :, :x, :d].transpose(0, 2, 1, 3)
  return types.Attended(
    out=jnp.where(seen[..., None], out, 0).astype(value.dtype),
    lse=jnp.where(seen, lse.astype(jnp.float32), -jnp.inf),
  )


@functools.lru_cache(maxsize=16)
def _mask(
  rows: int, keys: int, heads: int, causal: bool
) -> splash.MultiHeadMask:
  kind = splash.CausalMask if causal else splash.FullMask
  return splash.MultiHeadMask([kind((rows, keys))] * heads)


def _kernel(rows: int, keys: int, heads: int, causal: bool, interpret: Any):
  block = attend_visual_tpu.block
  return splash.make_splash_mha(
    mask=_mask(rows, keys, heads, causal),
    block_sizes=splash.BlockSizes(block_q=block(rows), block_kv=block(keys)),
    head_shards=1,
    q_seq_shards=1,
    save_residuals=True,
    interpret=interpret,
  )
