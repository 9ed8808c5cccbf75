"""Rows of visual tokens on GPU: cuDNN's causal attention, through `jax.nn`.

cuDNN takes lengths and no segments, and an explicit mask makes it slow. So each
segment of a row is attended to by itself, moved to the row's start:

  row          [ a a a a . | b b b - - ]     a trunk, its branch, a trunk, PAD
  turn 0       [ a a a a                ]    length 4
  turn 1       [ b b b                  ]    length 3

Turns are as many as the segments of the row that has most, and one turn's time
goes with the squares of its lengths. As their number is not known when the
program is compiled, the backward pass computes each turn's attention again.

Never run so far: no GPU was at hand. `launch/device_check.py` compares it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gaze_jax import types
from gaze_jax.kernels import target

NAME = "cudnn"
NOTE = "the segments of a row in turns, as an explicit mask is slow"

# What every architecture takes; Hopper takes 256.
MAX_DIM, DIM_MULTIPLE = 128, 8


def supported(*, dim: int, dtypes: set, **sizes) -> str | None:
  """Whether this form can serve: None, or the reason why not.

  Args:
    dim: D.
    dtypes: of queries, keys and values.
    **sizes: any others.
  """
  del sizes
  if reason := target.other_than("gpu"):
    return reason
  if target.target().interpret:
    return None
  if len(dtypes) > 1:
    return f"queries, keys and values are of dtypes {sorted(map(str, dtypes))}"
  (dtype,) = dtypes
  if jnp.dtype(dtype).name not in ("bfloat16", "float16"):
    return f"dtype {jnp.dtype(dtype).name} is neither bfloat16 nor float16"
  if dim > MAX_DIM or dim % DIM_MULTIPLE:
    return (
      f"head dim {dim} is no multiple of {DIM_MULTIPLE} up to {MAX_DIM}, which"
      " cuDNN takes"
    )
  here = jax.default_backend() == "gpu"  # or else compiled for another machine
  return _refused(dim, jnp.dtype(dtype)) if here else None


@functools.lru_cache
def _refused(dim: int, dtype: Any) -> str | None:
  """What JAX has against it on this machine's GPU, such as no cuDNN."""
  x = jax.ShapeDtypeStruct((1, 64, 1, dim), dtype)
  length = jax.ShapeDtypeStruct((1,), jnp.int32)
  total = lambda x, length: _causal("cudnn", x, x, x, length).sum()
  try:
    jax.eval_shape(jax.grad(total), x, length)
  except Exception as error:  # of several kinds
    return f"cuDNN can't serve: {error}".splitlines()[0]
  return None


def attend_visual(
  query, key, value, layout: types.Layout, *, interpret: Any = None
) -> types.Array:
  """As `attend_visual.attend_visual`, for all slots of a trunk; 0 elsewhere.

  With `interpret` (None for the target's) XLA takes cuDNN's place, on any
  device and for any dtype.
  """
  if interpret is None:
    interpret = target.target().interpret
  trunk = (layout.role != types.Role.PAD) & (layout.branch == 0)
  segment = jnp.where(trunk, layout.segment, -1)
  implementation = "xla" if interpret else "cudnn"
  return _attend(implementation, (query, key, value), segment)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(implementation, qkv, segment):
  """[B, S, Q, D], by the segment of each slot, int32 [B, S] or -1."""

  def turn(number, out):
    there, back, length = _moves(segment, number)
    return back(_causal(implementation, *map(there, qkv), length), out)

  out = jnp.zeros(qkv[0].shape, qkv[2].dtype)
  out = jax.lax.fori_loop(0, segment.max() + 1, turn, out)
  return checkpoint_name(out, "attention")  # as attend_regions_tpu's


def _attend_forward(implementation, qkv, segment):
  return _attend(implementation, qkv, segment), (qkv, segment)


def _attend_backward(implementation, saved, gradient):
  qkv, segment = saved

  def turn(number, so_far):
    there, back, length = _moves(segment, number)
    attend = lambda *qkv: _causal(implementation, *qkv, length)
    pull = jax.vjp(attend, *map(there, qkv))[1]
    return tuple(map(back, pull(there(gradient)), so_far))

  nothing = tuple(map(jnp.zeros_like, qkv))
  return jax.lax.fori_loop(0, segment.max() + 1, turn, nothing), None


_attend.defvjp(_attend_forward, _attend_backward)


def _moves(segment, number):
  """Functions that move a segment of [B, S, ...] to a row's start and back.

  Returns:
    Both, the first of which leaves 0 behind the segment, and the second of
    which takes all other slots from its second argument; and int32 [B], how
    long the segment is.
  """
  mine = (segment == number)[..., None, None]
  first = jnp.argmax(mine[..., 0, 0], axis=1)
  roll = jax.vmap(functools.partial(jnp.roll, axis=0))
  there = lambda x: roll(jnp.where(mine, x, 0), -first)
  back = lambda x, other: jnp.where(mine, roll(x, first), other)
  return there, back, mine.sum(axis=(1, 2, 3), dtype=jnp.int32)


def _causal(implementation, query, key, value, length):
  """Of the first `length` slots, int32 [B]; further ones come out as anything.

  A row without any slot attends to its first one, so that nothing is empty.
  """
  length = jnp.maximum(length, 1)
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    is_causal=True,
    query_seq_lengths=length,
    key_value_seq_lengths=length,
    implementation=implementation,
  )
