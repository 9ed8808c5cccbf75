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
from gaze_jax.train import state as state_lib

Step = Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]]


def make(
  config: config_lib.Config, optimizer: optax.GradientTransformation
) -> Step:
  """Compiles `step(state, batch, budget, frozen) -> (state, metrics)`.

  `budget` is int32 [B] and traced: K changes recompile nothing. `frozen` holds
  parameters that get no gradient ({} when features are cached). The state is
  donated. Metrics are float32 scalars.
  """

  gaze = config.model.gaze

  @functools.partial(jax.jit, donate_argnums=0)
  def step(
    state: state_lib.TrainState,
    batch: types.Batch,
    budget: jax.Array,
    frozen: dict[str, Any],
  ) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
    target, scored = losses.targets(batch)
    terms = jnp.maximum(mllm.router_terms(config.model, batch).sum(), 1.0)

    def loss_of(params):
      out = mllm.apply(frozen | params, config.model, batch, budget)
      loss = losses.next_token(out.logits, target, scored)
      if gaze.gradient == "kl":
        router_loss = out.router_loss.sum() / terms
        return loss + gaze.gradient_weight * router_loss, (out, loss)
      return loss, (out, loss)

    grad_of = jax.value_and_grad(loss_of, has_aux=True)
    (_, (out, loss)), grads = grad_of(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    right = (out.logits.argmax(-1) == target) & scored
    visible = jnp.maximum(out.usage.visible, 1.0)
    metrics = dict(
      loss=loss,
      accuracy=right.sum() / jnp.maximum(scored.sum(), 1),
      grad_norm=optax.tree.norm(grads),
      k=budget.astype(jnp.float32).mean(),
      visual_kv_fraction=out.usage.chosen / visible,
      unique_visual_kv_fraction=out.usage.unique / visible,
      tokens=(batch.layout.role != types.Role.PAD).sum(),
    )
    if gaze.gradient == "kl":
      metrics["router_loss"] = out.router_loss.sum() / terms
    new = state_lib.TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
    return new, metrics

  return step
