"""The parallel form in plain XLA: whole rows under a mask, in chunks.

Rows are taken in reading order, so a chunk looks at no later key. A chunk that
holds no routed row skips the region test: it is standard causal attention.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.ops import attention
from gaze_jax.ops import masks
from gaze_jax.ops import regions
from gaze_jax.ops import routing

# Bits of a word, and words up to which choosing among them beats a gather.
_WORD, _FEW_WORDS = 32, 8


@dataclasses.dataclass(frozen=True)
class Inputs:
  """One layer's attention of whole rows; see `gaze.parallel`.

  Attributes:
    query: [B, S, Q, D].
    key: [B, S, H, D].
    value: [B, S, H, D].
    descriptors: float32 [B, H, P * R, D]; None where nothing is routed.
    budget: int32 [B].
    plan: `Plan`.
    config: static.
    dense: bool, or a bool scalar: the layer reads every region.
    override: float32 [B, Q, R] or None.
    lost: of query and key, if these are finite; see `finite`.
  """

  query: types.Array
  key: types.Array
  value: types.Array
  descriptors: types.Array | None
  budget: types.Array
  plan: types.Plan
  config: config_lib.GazeConfig
  dense: bool | types.Array
  override: types.Array | None
  lost: attention.Lost | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
  """What a run of rows reads.

  Attributes:
    score: float32 [B, X, n, R].
    open: bool [B, X, R], the regions in sight.
    members: bool [B, X, n, R], those that are read; none for unrouted rows.
  """

  score: types.Array
  open: types.Array
  members: types.Array


# Rows are a run of slots, or int32 [B, X] slots (those past the last wanted
# row: any that the caller throws away).
Slots = range | types.Array


def take(x: types.Array, slots: Slots) -> types.Array:
  """The entries [B, X, ...] of x [B, S, ...] at `slots`."""
  if isinstance(slots, range):
    return x[:, slots.start : slots.stop]
  index = slots.reshape(*slots.shape, *(1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


@jax.custom_vjp
def permute(
  x: types.Array, order: types.Array, back: types.Array
) -> types.Array:
  """`take` of a permutation, whose gradient is one too.

  JAX's own gradient of a gather is a scatter, which TPUs do row by row.

  Args:
    x: float [B, S, ...].
    order: int32 [B, S], a permutation of each row's slots.
    back: int32 [B, S], its inverse.
  """
  del back
  return take(x, order)


def _permute_forward(x, order, back):
  return take(x, order), (order, back)


def _permute_backward(saved, gradient):
  order, back = saved
  return take(gradient, back), None, None


permute.defvjp(_permute_forward, _permute_backward)


def as_array(slots: Slots) -> types.Array:
  """int32 [B, X] or [1, X]."""
  return (
    jnp.asarray(slots, jnp.int32)[None] if isinstance(slots, range) else slots
  )


def choose(inputs: Inputs, slots: Slots) -> Choice:
  """Chooses regions for the rows at `slots`."""
  plan, config = inputs.plan, inputs.config
  routed = take(plan.routed, slots)
  if plan.source is not None:
    slots = take(plan.source, slots)
  open_ = routing.available(
    take(plan.layout.segment, slots), as_array(slots), plan.segment, plan.end
  )
  open_ &= routed[..., None]
  b, x = routed.shape
  heads = inputs.key.shape[2]
  if inputs.dense is True:
    shape = (b, x, chooser_count(inputs), open_.shape[-1])
    members = jnp.broadcast_to(open_[:, :, None], shape)
    return Choice(jnp.zeros(shape), open_, members)
  if inputs.override is None:
    query = take(inputs.query, slots)
    score = routing.scores(query, inputs.descriptors, config)
  else:
    score = routing.summed(inputs.override[:, None], heads, config)
    score = jnp.broadcast_to(score, (b, x, *score.shape[2:]))
  k = routing.allowed(
    inputs.budget, open_, plan.unit, config, dense=inputs.dense
  )
  return Choice(score, open_, routing.members(score, open_, k))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """Attention of a run of rows.

  Attributes:
    out: [B, X, Q, D].
    members: bool [B, X, n, R].
    loss: float32 [B, n], distillation loss in nats, summed over the rows.
  """

  out: types.Leaf
  members: types.Leaf
  loss: types.Leaf


def attend(inputs: Inputs, chunk: int) -> Rows:
  """All rows, `chunk` at a time; one chunk of all rows is the oracle."""
  s, inputs = inputs.query.shape[1], finite(inputs)
  parts = []
  for start in range(0, s, chunk):
    slots = range(start, min(start + chunk, s))
    tested = functools.partial(routed_rows, inputs, slots, slots.stop)
    plain = functools.partial(_plain_rows, inputs, slots)
    if chunk >= s:
      parts.append(tested())
    elif inputs.dense is True:
      part = plain()
      members = choose(inputs, slots).members
      parts.append(dataclasses.replace(part, members=members))
    else:
      any_ = inputs.plan.routed[:, start : slots.stop].any()
      parts.append(jax.lax.cond(any_, tested, plain))
  return join(parts)


def join(parts: Sequence[Rows]) -> Rows:
  """Runs of rows one after the other."""
  together = lambda xs: jnp.concatenate(xs, axis=1)
  return Rows(
    out=together([p.out for p in parts]),
    members=together([p.members for p in parts]),
    loss=sum(p.loss for p in parts),
  )


def visible(inputs: Inputs, slots: Slots, stop: int) -> types.Array:
  """bool [B, X, stop], before the region test; the keys are the first slots."""
  layout = inputs.plan.layout
  return masks.visible(
    jax.tree.map(lambda x: take(x, slots), layout),
    jax.tree.map(lambda x: x[:, :stop], layout),
    as_array(slots),
    jnp.arange(stop)[None],
    own_unit=inputs.config.visual_attention == "own_unit",
  )


def finite(inputs: Inputs) -> Inputs:
  """Looks once for what is not finite, and not for each run of rows."""
  vectors = inputs.query, inputs.key, inputs.value
  (q, k, v), lost = attention.finite(*vectors)
  return dataclasses.replace(inputs, query=q, key=k, value=v, lost=lost)


def lost(inputs: Inputs, slots: Slots, keys: Slots) -> attention.Lost:
  """`Inputs.lost` of the queries and the keys at these slots."""
  of_query, of_key = inputs.lost
  return take(of_query, slots), take(of_key, keys)


def chooser_count(inputs: Inputs) -> int:
  """n, how many choose."""
  q, h = inputs.query.shape[2], inputs.key.shape[2]
  return dict(query_head=q, kv_group=h, layer=1)[inputs.config.granularity]


def no_loss(inputs: Inputs) -> types.Array:
  """float32 [B, n], what nothing distilled costs."""
  return jnp.zeros((inputs.query.shape[0], chooser_count(inputs)))


def no_rows(inputs: Inputs, count: int) -> Rows:
  """`count` rows that read nothing."""
  b, _, q, d = inputs.query.shape
  r = inputs.plan.segment.shape[1]
  return Rows(
    out=jnp.zeros((b, count, q, d), inputs.value.dtype),
    members=jnp.zeros((b, count, chooser_count(inputs), r), bool),
    loss=no_loss(inputs),
  )


def _plain_rows(inputs: Inputs, slots: range) -> Rows:
  """Rows of which none is routed: standard causal attention."""
  stop = slots.stop
  out = attention.attend(
    take(inputs.query, slots),
    inputs.key[:, :stop],
    inputs.value[:, :stop],
    visible(inputs, slots, stop)[:, None],
    lost=lost(inputs, slots, range(stop)),
  ).out
  return dataclasses.replace(no_rows(inputs, len(slots)), out=out)


def routed_rows(inputs: Inputs, slots: Slots, stop: int) -> Rows:
  """Rows under the region test; it changes nothing for those not routed.

  Args:
    inputs: of the layer, from `finite`.
    slots: of the rows.
    stop: keys past this slot are not looked at.
  """
  plan, config = inputs.plan, inputs.config
  q, k = take(inputs.query, slots), inputs.key[:, :stop]
  seen = visible(inputs, slots, stop)
  choice = choose(inputs, slots)
  visual = plan.layout.role[:, None, :stop] == types.Role.VISUAL
  tested = (take(plan.routed, slots)[..., None] & visual)[:, None]
  region = plan.layout.region[:, :stop]
  hit = _hit(choice.members, region, q.shape[2])
  bias = None
  learns = ~jnp.asarray(inputs.dense)
  if config.gradient == "straight_through":
    new = choice.score - jax.lax.stop_gradient(choice.score)
    new = jnp.where(choice.members & learns, new * config.gradient_weight, 0.0)
    bias = _spread(new, region, q.shape[2])
  mask = seen[:, None] & (~tested | hit)
  value, of = inputs.value[:, :stop], lost(inputs, slots, range(stop))
  out = attention.attend(q, k, value, mask, bias, of).out
  loss = no_loss(inputs)
  if config.gradient == "kl":
    loss = _distil(q, k, seen, choice, region) * learns
  return Rows(out, choice.members, loss)


def _hit(members: types.Array, region: types.Array, heads: int) -> types.Array:
  """Whether a row reads a key's region: bool, [B, heads or 1, X, Y].

  The regions of a row are the bits of a few words, so that the test is a shift
  that fuses into the softmax: nothing of rows x keys is made for it.
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


def _distil(query, key, visible, choice: Choice, region) -> types.Array:
  """KL(dense attention's mass of each region || softmax of the scores).

  The teacher is what attention over everything visible gives each region in
  sight, a mean over the heads that choose together; it gets no gradient.

  Returns:
    float32 [B, n], summed over the rows; see `routing.choosing` for how many.
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
