"""Next-token prediction, the only loss of the paper; as sums over slots.

A mean is over all scored slots of a step's batch. What is added up over
micro-batches or devices is therefore the sum, never a mean of means.
"""

import jax
import jax.numpy as jnp

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
  """Cross-entropy in nats, summed over the scored slots.

  Args:
    logits: float32 [B, A, V].
    target: int32 [B, A].
    scored: bool [B, A].
  """
  # Not a gather of the target's logit: its gradient would be a scatter into
  # all logits, and a vocabulary that is sharded would be moved.
  hit = jnp.arange(logits.shape[-1]) == target[..., None]
  own = jnp.where(hit, logits, 0.0).sum(axis=-1)
  loss = jax.nn.logsumexp(logits, axis=-1) - own
  return jnp.where(scored, loss, 0.0).sum()


def z(logits: jax.Array, scored: jax.Array) -> jax.Array:
  """The square of the log of the softmax's denominator, summed likewise.

  It keeps logits from drifting: adding a constant to all of them changes no
  probability (PaLM, section 5).

  Args:
    logits: float32 [B, A, V].
    scored: bool [B, A].
  """
  square = jax.nn.logsumexp(logits, axis=-1) ** 2
  return jnp.where(scored, square, 0.0).sum()


def likeliest(logits: jax.Array) -> jax.Array:
  """The first token of the largest logit, int32 [...], of float32 [..., V].

  As argmax, which moves a vocabulary that is sharded.
  """
  largest = logits.max(axis=-1, keepdims=True)
  numbers = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  return jnp.where(logits >= largest, numbers, logits.shape[-1]).min(axis=-1)
