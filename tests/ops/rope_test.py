"""Rotation by hand, and the property it is there for."""

import numpy as np

from gaze_jax.ops import rope


def test_half_split_rotation_by_hand():
  # theta = 1: every pair turns by the position, here a quarter turn.
  cosine, sine = rope.angles(np.array([[1]]), 4, 1.0)
  np.testing.assert_allclose(cosine[0, 0], np.cos([1.0, 1.0]), rtol=1e-6)
  quarter = (np.zeros((1, 1, 2), np.float32), np.ones((1, 1, 2), np.float32))
  x = np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 1, 4)
  np.testing.assert_allclose(rope.rotate(x, *quarter)[0, 0, 0], [-3, -4, 1, 2])
  assert sine.shape == (1, 1, 2)


def test_frequencies_by_hand():
  cosine, _ = rope.angles(np.array([[10]]), 4, 100.0)
  np.testing.assert_allclose(
    cosine[0, 0], [np.cos(10.0), np.cos(1.0)], rtol=1e-5
  )


def test_logits_depend_on_the_distance_alone(heads):
  h = heads(1, 1, query_heads=1, kv_heads=1)

  def logit(i, j):
    q = rope.rotate(h.q, *rope.angles(np.array([[i]]), 8, 1e4))
    k = rope.rotate(h.k, *rope.angles(np.array([[j]]), 8, 1e4))
    return float(np.sum(np.asarray(q) * np.asarray(k)))

  np.testing.assert_allclose(logit(7, 3), logit(107, 103), rtol=1e-4)
  assert abs(logit(7, 3) - logit(8, 3)) > 1e-3
