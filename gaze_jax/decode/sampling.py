"""The next token of each row: greedy, or drawn by temperature, top-k, top-p.

The options are arrays, one number a row, so rows with different ones share a
program and a batch. There is no sort of the vocabulary, which takes XLA's CPU
compiler 25 ms a row for 151,936 ids: the value of the last token that is kept
is found by bisection over its bits, 31 sums of the row, 1 ms. A draw is the
argmax of the logits and Gumbel noise, so no sum over the row is behind it.
"""

import dataclasses
import functools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import errors
from gaze_jax import types

_INFINITY = 0x7F800000  # the bits of inf, float32
_TINY, _HUGE = map(float, (np.finfo("f4").tiny, np.finfo("f4").max))

# A user's number, or a list of one a row; what else may come is refused.
OneOrEach = Any


class SamplingError(errors.GazeError):
  """A sampling option out of its range; the message names it."""


@functools.partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class Sampling:
  """How each row is sampled; arrays of [B], traced.

  Attributes:
    temperature: float32; 0 is greedy, and the other fields mean nothing then.
    top_p: float32 in (0, 1]; the likeliest tokens are kept until they weigh so
      much. 1 keeps all.
    sample_top_k: int32; so many of the likeliest tokens are kept. 0 keeps all.
    seed: uint32; a row's draws are a function of it and of the step.
  """

  temperature: types.Leaf
  top_p: types.Leaf
  sample_top_k: types.Leaf
  seed: types.Leaf


def make(
  rows: int,
  *,
  temperature: OneOrEach = 0.0,
  top_p: OneOrEach = 1.0,
  sample_top_k: OneOrEach = 0,
  seed: OneOrEach = 0,
) -> Sampling:
  """The options of a batch from a user's numbers, on the host.

  Args:
    rows: B.
    temperature: at least 0, of all rows or of each, as are the others.
    top_p: above 0 and at most 1.
    sample_top_k: at least 0.
    seed: of 32 bits, not negative. Rows of one seed and the same logits draw
      the same.

  Returns:
    numpy arrays of [B].

  Raises:
    SamplingError: something is no number, or out of its range, or there are
      more or fewer than rows.
  """
  given = dict(
    temperature=temperature, top_p=top_p, sample_top_k=sample_top_k, seed=seed
  )
  return Sampling(**{name: _column(name, given[name], rows) for name in given})


# Type, range, and the range in words.
_RANGES = {
  "temperature": (np.float32, lambda t: t >= 0, "a number, 0 (greedy) or more"),
  "top_p": (np.float32, lambda p: 0 < p <= 1, "above 0 and at most 1 (off)"),
  "sample_top_k": (
    np.int32,
    lambda k: 0 <= k < 2**31,
    "a whole number, 0 (off) or more",
  ),
  "seed": (
    np.uint32,
    lambda s: 0 <= s < 2**32,
    "a whole number from 0 to 4294967295",
  ),
}


# Options by name, as in `Sampling`.
NAMES = tuple(_RANGES)


def _column(name: str, value: OneOrEach, rows: int) -> np.ndarray:
  """One option of each row as an array, or an error that names it."""
  dtype, fits, wanted = _RANGES[name]
  real = dtype == np.float32
  kind = numbers.Real if real else numbers.Integral
  several = isinstance(value, (list, tuple, np.ndarray))
  for one in (values := list(value) if several else [value]):
    number = isinstance(one, kind) and not isinstance(one, bool)
    if not number or not math.isfinite(one) or not fits(one):
      raise SamplingError(f"{name} = {one!r}: it must be {wanted}")
  if several and len(values) != rows:
    raise SamplingError(
      f"{name} has {len(values)} numbers for {rows} rows: give one for all, or"
      " one a row"
    )
  if real:
    # Rounded to float32, what is above 0 stays so, and finite.
    values = [min(max(v, _TINY), _HUGE) if v > 0 else v for v in values]
  return np.broadcast_to(np.asarray(values, dtype), (rows,)).copy()


def sample(
  logits: types.Float[types.Array, "B V"],
  sampling: Sampling,
  step: types.Int[types.Array, "..."] | int,
  *,
  greedy: bool = False,
) -> types.Int[types.Array, " B"]:
  """Picks the next token of each row.

  A draw depends on the row's logits, options, seed and step alone, not on what
  else is in the batch nor on its size. (One thing may differ between programs
  of other shapes: the sum that top_p is compared with, in its last bit.)

  Args:
    logits: float32. A token at -inf is never drawn while another is not.
    sampling: `Sampling` of [B].
    step: int32 [B] or one for all: number of the token within its answer.
    greedy: static; True where all temperatures are known to be 0, which spares
      the noise and the filters.

  Returns:
    int32 [B]. Of equal logits the lower id goes first: it is the greedy choice
    and the one that a filter keeps.
  """
  if greedy:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  noisy = _scaled(logits, sampling) + _noise(logits, sampling.seed, step)
  noisy = jnp.where(kept(logits, sampling), noisy, -jnp.inf)
  return jnp.argmax(noisy, axis=-1).astype(jnp.int32)


def kept(
  logits: types.Float[types.Array, "B V"], sampling: Sampling
) -> types.Bool[types.Array, "B V"]:
  """Which tokens `sample` may draw: temperature, then sample_top_k, then top_p.

  As the logits processors of transformers, but that of equal logits at the
  end of sample_top_k just so many are kept. At least one token is.

  Args:
    logits: float32.
    sampling: `Sampling` of [B]; a greedy row keeps its argmax alone.
  """
  scaled = _scaled(logits, sampling)
  # A filter that no row asks for costs nothing.
  top_k = lambda: _until(scaled, jnp.ones_like(scaled), sampling.sample_top_k)
  by_k = sampling.sample_top_k > 0
  keep = jax.lax.cond(by_k.any(), top_k, lambda: jnp.ones(scaled.shape, bool))
  keep = keep | ~by_k[:, None]

  def top_p():
    weight = jnp.where(keep, jnp.exp(scaled), 0)
    return keep & _until(scaled, weight, sampling.top_p * weight.sum(-1))

  by_p = sampling.top_p < 1
  nucleus = jax.lax.cond(by_p.any(), top_p, lambda: keep)
  keep = jnp.where(by_p[:, None], nucleus, keep)
  best = jnp.argmax(logits, axis=-1)[:, None] == jnp.arange(logits.shape[1])
  return jnp.where((sampling.temperature >= _TINY)[:, None], keep, best)


def _scaled(
  logits: types.Float[types.Array, "B V"], sampling: Sampling
) -> types.Float[types.Array, "B V"]:
  """Logits over the temperature; the largest is 0, so none is infinite."""
  top = logits.max(axis=-1, keepdims=True)
  return (logits - top) / jnp.maximum(sampling.temperature, _TINY)[:, None]


def _until(
  scaled: types.Float[types.Array, "B V"],
  weight: types.Float[types.Array, "B V"],
  wanted: types.Array,
) -> types.Bool[types.Array, "B V"]:
  """Keeps the likeliest tokens until their weight is at least `wanted`.

  That is each whose betters weigh less than `wanted`; the best has none, so it
  is kept. `wanted` is [B], `scaled` at most 0.
  """
  # Floats that are not negative are in the order of their bits.
  distance = jax.lax.bitcast_convert_type(jnp.abs(scaled), jnp.int32)
  wanted = jnp.maximum(wanted, _TINY)[:, None]
  up_to = lambda last: jnp.where(distance <= last, weight, 0).sum(-1)[:, None]

  def halve(_, ends):
    low, high = ends
    middle = low + (high - low) // 2
    enough = up_to(middle) >= wanted
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  low = jnp.zeros(wanted.shape, jnp.int32)
  high = jnp.full(wanted.shape, _INFINITY, jnp.int32)
  _, last = jax.lax.fori_loop(0, 31, halve, (low, high))
  # The last that are kept may be equal: those of lower ids go first.
  equal = distance == last
  tied = jnp.where(equal, weight, 0)
  betters = up_to(last - 1) + jnp.cumsum(tied, axis=-1) - tied
  return (distance < last) | (equal & (betters < wanted))


def _noise(
  logits: types.Float[types.Array, "B V"],
  seed: types.Array,
  step: types.Array | int,
) -> types.Float[types.Array, "B V"]:
  """Gumbel noise of each row, by its own key."""
  one = lambda seed, step: jax.random.gumbel(
    jax.random.fold_in(jax.random.key(seed), step), logits.shape[1:]
  )
  return jax.vmap(one)(seed, jnp.broadcast_to(step, seed.shape))
