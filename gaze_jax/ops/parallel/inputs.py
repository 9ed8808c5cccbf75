"""One layer's attention of whole rows: what every form takes and returns."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.ops import masks
from gaze_jax.ops import routing


@dataclasses.dataclass(frozen=True)
class Inputs:
  """One layer's attention of whole rows; see `gaze.parallel`.

  Attributes:
    query: [B, S, Q, D].
    key: [B, S, H, D].
    value: [B, S, H, D].
    descriptors: float32 [B, H, P * R, D]; None where nothing is routed.
    budget: int32 [B], or [B, G] for each segment.
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Result:
  """Attention of X queries of each row.

  Attributes:
    out: [B, X, Q, D].
    members: bool [B, X, n, R], the regions read.
    loss: float32 [B, n], distillation loss in nats, summed over the queries.
  """

  out: types.Leaf
  members: types.Leaf
  loss: types.Leaf


# Queries are a run of slots, or int32 [B, X] slots (those past the last wanted
# query: any that the caller throws away).
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
  if isinstance(slots, range):
    return jnp.asarray(slots, jnp.int32)[None]
  return slots


def join(parts: Sequence[Result]) -> Result:
  """Runs of queries one after the other."""
  together = lambda xs: jnp.concatenate(xs, axis=1)
  return Result(
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
  """Looks once for what is not finite, and not for each run of queries."""
  vectors = inputs.query, inputs.key, inputs.value
  (q, k, v), lost = attention.finite(*vectors)
  return dataclasses.replace(inputs, query=q, key=k, value=v, lost=lost)


def lost(inputs: Inputs, slots: Slots, keys: Slots) -> attention.Lost:
  """`Inputs.lost` of the queries and the keys at these slots."""
  of_query, of_key = inputs.lost
  return take(of_query, slots), take(of_key, keys)


def no_loss(inputs: Inputs) -> types.Array:
  """float32 [B, n], what nothing distilled costs."""
  return jnp.zeros((inputs.query.shape[0], _choosers(inputs)))


def nothing(inputs: Inputs, count: int) -> Result:
  """`count` queries that read nothing."""
  b, _, q, d = inputs.query.shape
  r = inputs.plan.segment.shape[1]
  return Result(
    out=jnp.zeros((b, count, q, d), inputs.value.dtype),
    members=jnp.zeros((b, count, _choosers(inputs), r), bool),
    loss=no_loss(inputs),
  )


def _choosers(inputs: Inputs) -> int:
  q, h = inputs.query.shape[2], inputs.key.shape[2]
  return routing.choosers(q, h, inputs.config)


@dataclasses.dataclass(frozen=True)
class Choice:
  """What a run of queries reads.

  Attributes:
    score: float32 [B, X, n, R].
    open: bool [B, X, R], the regions in sight.
    members: bool [B, X, n, R], those that are read; none for unrouted queries.
  """

  score: types.Array
  open: types.Array
  members: types.Array


def choose(inputs: Inputs, slots: Slots) -> Choice:
  """Chooses regions for the queries at `slots`."""
  plan, config = inputs.plan, inputs.config
  routed = take(plan.routed, slots)
  if plan.source is not None:
    slots = take(plan.source, slots)
  open_ = routing.available(
    take(plan.layout.segment, slots), as_array(slots), plan.segment, plan.end
  )
  open_ &= routed[..., None]
  b, x = routed.shape
  if inputs.dense is True:
    shape = (b, x, _choosers(inputs), open_.shape[-1])
    members = jnp.broadcast_to(open_[:, :, None], shape)
    return Choice(jnp.zeros(shape), open_, members)
  query, heads = take(inputs.query, slots), inputs.key.shape[2]
  score = routing.scores_of(
    query, inputs.descriptors, inputs.override, heads, config
  )
  budget = inputs.budget.reshape(b, -1)
  if budget.shape[1] > 1:
    segment = jnp.maximum(take(plan.layout.segment, slots), 0)
    budget = jnp.take_along_axis(budget, segment, axis=1)
  k = routing.allowed(budget, open_, plan.opens, config, dense=inputs.dense)
  return Choice(score, open_, routing.members(score, open_, k))
