"""One training step: a pure function, compiled once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.models import mllm
from gaze_jax.train import losses
from gaze_jax.train import param_groups
from gaze_jax.train import state as state_lib

Sums = dict[str, jax.Array]


def make(
  config: config_lib.Config,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]]:
  """Compiles `step(state, batch, budget, frozen) -> (state, metrics)`.

  `budget` is int32 [B] and traced: K changes recompile nothing. `frozen` holds
  parameters that get no gradient ({} when features are cached). The state is
  donated, and keeps its sharding on the mesh (one device by default). Metrics
  are float32 scalars.
  """
  train = config.train
  abstract = state_lib.abstract(config, optimizer, mesh)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
  def step(
    state: state_lib.TrainState,
    batch: types.Batch,
    budget: jax.Array,
    frozen: dict[str, Any],
  ) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
    trains, held = param_groups.split(train, state.params)
    counts = _counts(config, batch)

    def loss_of(trains, part):
      params = frozen | param_groups.merge(held, trains)
      sums = _sums(params, config, *part)
      return _loss(config, sums, counts), sums

    gradient = functools.partial(jax.grad(loss_of, has_aux=True), trains)
    grads, sums = _add_up(gradient, (batch, budget), train.accumulation)
    updates, opt_state = optimizer.update(grads, state.opt_state, trains)
    trains = optax.apply_updates(trains, updates)
    metrics = _means(sums, counts) | dict(
      grad_norm=optax.tree.norm(grads),
      k=_mean_budget(budget, batch.layout),
      tokens=(batch.layout.role != types.Role.PAD).sum(),
    )
    ema = state.ema
    if train.ema:
      ema = optax.incremental_update(trains, ema, 1.0 - train.ema)
    new = state_lib.TrainState(
      step=state.step + 1,
      params=param_groups.merge(held, trains),
      opt_state=opt_state,
      ema=ema,
    )
    return new, metrics

  return step


def _mean_budget(budget: jax.Array, layout: types.Layout) -> jax.Array:
  """The mean K of all rows; where it is given by segment, of all segments."""
  k = budget.reshape(len(budget), -1).astype(jnp.float32)
  there = jnp.arange(k.shape[1]) <= layout.segment.max(axis=1, keepdims=True)
  there |= k.shape[1] == 1
  return jnp.where(there, k, 0.0).sum() / there.sum()


def make_score(config: config_lib.Config) -> Callable[..., Sums]:
  """Compiles `score(params, batch, budget, ends) -> sums` without a gradient.

  `params` are all of the model's; `ends` are int32 [Z], ids that end an answer.
  The sums of a batch are float32 scalars: `loss` in nats over `slots` scored
  slots, and `exact` of `answers`, those whose every token is the likeliest one
  after the tokens before it. Rows come in as many micro-batches as in training.
  """

  @jax.jit
  def score(
    params: mllm.Params, batch: types.Batch, budget: jax.Array, ends: jax.Array
  ) -> Sums:
    def of(part: tuple[types.Batch, jax.Array]) -> Sums:
      some, k = part
      target, scored = losses.targets(some)
      logits = mllm.apply(params, config.model, some, k).logits
      right = losses.right(losses.likeliest(logits), target, ends)
      exact, answers = losses.exact(right, scored, some.answer_of)
      return dict(
        loss=losses.next_token(logits, target, scored),
        slots=scored.sum(dtype=jnp.float32),
        exact=exact,
        answers=answers,
      )

    return _add_up(of, (batch, budget), config.train.accumulation)

  return score


def _loss(config: config_lib.Config, sums: Sums, counts: Sums) -> jax.Array:
  """What is minimised: a weighted sum of means; of a micro-batch its share."""
  gaze, train = config.model.gaze, config.train
  router_loss = gaze.gradient_weight if gaze.gradient == "kl" else 0.0
  weights = dict(loss=1.0, z_loss=train.z_loss, router_loss=router_loss)
  return sum(w * sums[k] / counts[k] for k, w in weights.items() if w)


def _counts(config: config_lib.Config, batch: types.Batch) -> Sums:
  """How many terms each sum has in the whole batch, at least 1.

  Known before the model runs: so micro-batches weigh what they should.
  """
  _, scored = losses.targets(batch)
  slots = scored.sum(dtype=jnp.float32)
  counts = dict(loss=slots, z_loss=slots, accuracy=slots)
  if config.model.gaze.gradient == "kl":
    counts["router_loss"] = mllm.router_terms(config.model, batch).sum()
  return {name: jnp.maximum(n, 1.0) for name, n in counts.items()}


def _sums(
  params: Any, config: config_lib.Config, batch: types.Batch, budget: jax.Array
) -> Sums:
  """What a batch, or a micro-batch, adds to the step's numbers."""
  target, scored = losses.targets(batch)
  out = mllm.apply(params, config.model, batch, budget)
  right = (losses.likeliest(out.logits) == target) & scored
  used = out.usage
  sums = dict(
    loss=losses.next_token(out.logits, target, scored),
    accuracy=right.sum(dtype=jnp.float32),
    chosen=used.chosen,
    unique=used.unique,
    visible=used.visible,
    visual_kv_saved=used.visible + used.context - used.chosen,
  )
  if config.train.z_loss:
    sums["z_loss"] = losses.z(out.logits, scored)
  if config.model.gaze.gradient == "kl":
    sums["router_loss"] = out.router_loss.sum()
  return sums


def _means(sums: Sums, counts: Sums) -> dict[str, jax.Array]:
  """The metrics that come of sums."""
  sums = dict(sums)
  visible = jnp.maximum(sums.pop("visible"), 1.0)
  return dict(
    visual_kv_fraction=sums.pop("chosen") / visible,
    unique_visual_kv_fraction=sums.pop("unique") / visible,
    **{name: x / counts.get(name, 1.0) for name, x in sums.items()},
  )


def _add_up(of: Callable[[Any], Any], batch: Any, n: int) -> Any:
  """The sum of `of` over n micro-batches of a batch, one after the other.

  Micro-batch a is rows a, a + n, a + 2 n, ...: devices that hold contiguous
  runs of a batch's rows all have their share of it, and no row moves.

  Args:
    of: a pytree of float32 of a micro-batch.
    batch: pytree of [B, ...].
    n: divides B.
  """
  if n == 1:
    return of(batch)
  apart = lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1)
  parts = jax.tree.map(apart, batch)
  like = jax.eval_shape(of, jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
  add = lambda total, part: (jax.tree.map(jnp.add, total, of(part)), None)
  return jax.lax.scan(add, zeros, parts)[0]
