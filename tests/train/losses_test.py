"""Next-token loss, against hand-computed numbers."""

import math

import jax.numpy as jnp
import numpy as np

from gaze_jax.layout import row as row_lib
from gaze_jax.train import losses

SHAPE = row_lib.RowShape(
  slots=8,
  units=0,
  unit_tokens=1,
  regions=1,
  region_length=1,
  answer_slots=3,
  region=(1, 1, 1),
  context_tokens=0,
)


def batch(*rows):
  images = np.zeros((len(rows), 0, 1, 4), np.float32)
  return row_lib.make_batch([row_lib.lay_out(r, SHAPE) for r in rows], images)


def test_targets_are_the_tokens_after_the_answer_slots():
  row = [row_lib.Text([9, 8]), row_lib.Text([5, 6], question=0)]
  target, scored = losses.targets(batch(row, [row_lib.Text([7])]))
  assert target[0, :2].tolist() == [5, 6]
  assert scored.tolist() == [[True, True, False], [False] * 3]


def test_loss_by_hand():
  # Two classes. Logits (0, 0): p = 1/2. Logits (0, log 3): p = 3/4 or 1/4.
  logits = jnp.array([[[0.0, 0.0], [0.0, math.log(3)], [0.0, math.log(3)]]])
  target = jnp.array([[0, 1, 0]])
  both = jnp.array([[True, True, False]])
  expected = (math.log(2) + math.log(4 / 3)) / 2
  assert abs(losses.next_token(logits, target, both) / 2 - expected) < 1e-6
  every = jnp.array([[True, True, True]])
  expected = (math.log(2) + math.log(4 / 3) + math.log(4)) / 3
  assert abs(losses.next_token(logits, target, every) / 3 - expected) < 1e-6


def test_z_loss_by_hand():
  # Denominators 2 and 1 + 3; the third slot is not scored.
  logits = jnp.array([[[0.0, 0.0], [0.0, math.log(3)], [9.0, 9.0]]])
  scored = jnp.array([[True, True, False]])
  expected = math.log(2) ** 2 + math.log(4) ** 2
  assert abs(losses.z(logits, scored) - expected) < 1e-6


def test_nothing_scored_is_zero():
  logits = jnp.full((1, 2, 3), jnp.nan)
  nothing = jnp.zeros((1, 2), bool)
  target = jnp.zeros((1, 2), jnp.int32)
  assert losses.next_token(logits, target, nothing) == 0.0


def test_likeliest_is_the_first_of_the_largest():
  logits = jnp.array([[[1.0, 3.0, 3.0, -1.0], [-2.0, -3.0, -4.0, -2.0]]])
  found = losses.likeliest(logits)
  assert found.tolist() == jnp.argmax(logits, -1).tolist() == [[1, 0]]
  assert found.dtype == jnp.int32


def test_any_id_that_ends_an_answer_is_right_at_its_end():
  said = np.array([[5, 7, 2], [5, 9, 7]])
  target = np.array([[5, 2, 2], [6, 2, 5]])
  ends = np.array([2, 7])
  expected = [[True, True, True], [False, False, False]]
  assert losses.right(said, target, ends).tolist() == expected
  alone = losses.right(said, target, ends[:1])
  assert alone.tolist() == [[True, False, True], [False, False, False]]


def test_an_answer_is_exact_when_none_of_its_tokens_is_wrong():
  right = jnp.array(
    [[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0], [1, 0, 0, 1, 1, 1]]
  )
  answer_of = jnp.array(
    [[0, 0, 1, 1, 2, 2], [0, 1, 1, 2, -1, -1], [-1, -1, -1, -1, -1, -1]]
  )
  exact, answers = losses.exact(right > 0, answer_of >= 0, answer_of)
  assert (float(exact), float(answers)) == (4.0, 6.0)
