"""The parallel form under one mask: the oracle of the others."""

import jax
import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.ops import regions
from gaze_jax.ops.parallel import inputs as inputs_lib

# Bits of a word, and words up to which choosing among them beats a gather.
_WORD, _FEW_WORDS = 32, 8


def attend(inputs: inputs_lib.Inputs) -> inputs_lib.Result:
  """All queries at once, under a mask of S x S."""
  s = inputs.query.shape[1]
  return attend_some(inputs_lib.finite(inputs), range(s), s)


def attend_some(
  inputs: inputs_lib.Inputs, slots: inputs_lib.Slots, stop: int
) -> inputs_lib.Result:
  """Queries under the region test; it changes nothing for those not routed.

  Args:
    inputs: of the layer, from `finite`.
    slots: of the queries.
    stop: keys past this slot are not looked at.
  """
  plan, config = inputs.plan, inputs.config
  q, k = inputs_lib.take(inputs.query, slots), inputs.key[:, :stop]
  seen = inputs_lib.visible(inputs, slots, stop)
  choice = inputs_lib.choose(inputs, slots)
  visual = plan.layout.role[:, None, :stop] == types.Role.VISUAL
  tested = (inputs_lib.take(plan.routed, slots)[..., None] & visual)[:, None]
  region = plan.layout.region[:, :stop]
  hit = _hit(choice.members, region, q.shape[2])
  bias = None
  learns = ~jnp.asarray(inputs.dense)
  if config.gradient == "straight_through":
    new = choice.score - jax.lax.stop_gradient(choice.score)
    new = jnp.where(choice.members & learns, new * config.gradient_weight, 0.0)
    bias = _spread(new, region, q.shape[2])
  mask = seen[:, None] & (~tested | hit)
  value, of = (
    inputs.value[:, :stop],
    inputs_lib.lost(inputs, slots, range(stop)),
  )
  out = attention.attend(q, k, value, mask, bias, of).out
  loss = inputs_lib.no_loss(inputs)
  if config.gradient == "kl":
    loss = _distil(q, k, seen, choice, region) * learns
  return inputs_lib.Result(out, choice.members, loss)


def _hit(members: types.Array, region: types.Array, heads: int) -> types.Array:
  """Whether a query reads a key's region: bool, [B, heads or 1, X, Y].

  The regions of a row are the bits of a few words, so that the test is a shift
  that fuses into the softmax: nothing of queries x keys is made for it.
  """
  r, n = members.shape[-1], members.shape[2]
  count = -(-r // _WORD)
  spare = count * _WORD - r
  bits = jnp.pad(members, ((0, 0),) * 3 + ((0, spare),))
  bits = bits.reshape(*members.shape[:3], count, _WORD).astype(jnp.uint32)
  words = (bits << jnp.arange(_WORD, dtype=jnp.uint32)).sum(-1)
  words = jnp.repeat(words, heads // n if n > 1 else 1, axis=2)
  words = words.transpose(0, 2, 1, 3)[..., None, :]  # [B, heads, X, 1, count]
  region = region[:, None, None]
  index = region // _WORD
  if count <= _FEW_WORDS:
    word = words[..., 0]
    for i in range(1, count):
      word = jnp.where(index == i, words[..., i], word)
  else:
    word = jnp.take_along_axis(words[..., 0, :], jnp.maximum(index, 0), axis=3)
  shift = jnp.maximum(region % _WORD, 0).astype(jnp.uint32)
  return (((word >> shift) & 1) == 1) & (region >= 0)


def _spread(x: types.Array, region: types.Array, heads: int) -> types.Array:
  """[B, X, n, R] of regions to [B, heads or 1, X, Y] of keys; 0 outside."""
  out = jnp.einsum(
    "bxnr,bry->bnxy",
    x,
    regions.one_hot(region, x.shape[-1]),
    precision=jax.lax.Precision.HIGHEST,
  )
  n = x.shape[2]
  return jnp.repeat(out, heads // n if n > 1 else 1, axis=1)


def _distil(
  query, key, visible, choice: inputs_lib.Choice, region
) -> types.Array:
  """KL(dense attention's mass of each region || softmax of the scores).

  The teacher is what attention over everything visible gives each region in
  sight, a mean over the heads that choose together; it gets no gradient.

  Returns:
    float32 [B, n], summed over the queries of `routing.choosing`.
  """
  b, x, n, r = choice.score.shape
  logits = attention.scaled_logits(*jax.lax.stop_gradient((query, key)))
  weights, _ = attention.softmax(logits, visible[:, None])
  one_hot = regions.one_hot(region, r)
  mass = jnp.einsum("bqxy,bry->bxqr", weights, one_hot)
  mass = mass.reshape(b, x, n, -1, r).mean(axis=3)
  open_ = choice.open[:, :, None]
  mass = jnp.where(open_, mass, 0.0)
  total = mass.sum(axis=-1, keepdims=True)
  teacher = mass / jnp.where(total > 0, total, 1.0)
  score = jnp.where(open_, choice.score, -jnp.inf)
  top = jax.lax.stop_gradient(score.max(axis=-1, keepdims=True))
  top = jnp.where(jnp.isfinite(top), top, 0.0)
  sum_ = jnp.exp(score - top).sum(axis=-1, keepdims=True)
  log_student = jnp.where(
    open_, choice.score - top - jnp.log(jnp.where(sum_ > 0, sum_, 1.0)), 0.0
  )
  log_teacher = jnp.log(jnp.where(teacher > 0, teacher, 1.0))
  return (teacher * (log_teacher - log_student)).sum(axis=(1, 3))
