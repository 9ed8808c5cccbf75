"""Next-token prediction, the only loss of the paper."""

import jax
import jax.numpy as jnp
import optax

from gaze_jax import types


def targets(batch: types.Batch) -> tuple[jax.Array, jax.Array]:
  """What each answer slot should predict.

  Returns:
    Token ids int32 [B, A], and bool [B, A], False where a slot is padding.
  """
  scored = jnp.greater_equal(batch.answer_slots, 0)
  following = jnp.where(scored, batch.answer_slots + 1, 0)
  return jnp.take_along_axis(batch.tokens, following, axis=1), scored


def next_token(
  logits: jax.Array, target: jax.Array, scored: jax.Array
) -> jax.Array:
  """Mean cross-entropy in nats over the scored slots; 0 without any.

  Args:
    logits: float32 [B, A, V].
    target: int32 [B, A].
    scored: bool [B, A].
  """
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
  total = jnp.where(scored, loss, 0.0).sum()
  return total / jnp.maximum(scored.sum(), 1)
