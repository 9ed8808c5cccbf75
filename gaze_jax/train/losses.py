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


def right(
  predicted: types.Array, target: types.Array, ends: types.Array
) -> types.Array:
  """Where the prediction is the target; where that ends, any id that ends.

  Args:
    predicted: int [B, A], the likeliest token at each slot.
    target: int [B, A], the reference's.
    ends: int [Z], ids that end an answer.

  Returns:
    bool [B, A].
  """
  end = lambda ids: (ids[..., None] == ends).any(-1)
  return (predicted == target) | (end(predicted) & end(target))


def exact(
  right: jax.Array, scored: jax.Array, answer_of: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """How many answers have no wrong token, and how many there are.

  Args:
    right: bool [B, A], from `right`.
    scored: bool [B, A], from `targets`.
    answer_of: int32 [B, A], as in `types.Batch`: an answer is a run of slots.

  Returns:
    Two float32 scalars.
  """
  changes = answer_of[:, 1:] != answer_of[:, :-1]
  edge = jnp.ones((len(right), 1), bool)
  first = jnp.concatenate([edge, changes], axis=1)
  last = jnp.concatenate([changes, edge], axis=1) & scored
  wrong = (scored & ~right).astype(jnp.int32)
  up_to_here = jnp.cumsum(wrong, axis=1)
  before = jnp.where(first, up_to_here - wrong, 0)
  none_wrong = up_to_here == jax.lax.cummax(before, axis=1)
  count = lambda where: where.sum(dtype=jnp.float32)
  return count(last & none_wrong), count(last)


def likeliest(logits: jax.Array) -> jax.Array:
  """The first token of the largest logit, int32 [...], of float32 [..., V].

  As argmax, which moves a vocabulary that is sharded.
  """
  largest = logits.max(axis=-1, keepdims=True)
  numbers = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  return jnp.where(logits >= largest, numbers, logits.shape[-1]).min(axis=-1)
