"""Metrics, against hand-computed numbers."""

import numpy as np
import pytest

from gaze_jax.evals import metrics


def test_exact_match_needs_every_token():
  right = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 0, 1]], bool)
  answer_of = np.array([[0, 0, 1, 1, 2], [0, 1, 1, -1, -1]])
  expected = [[True, False, True], [False, True, True]]
  assert metrics.exact_match(right, answer_of, 3).tolist() == expected


def test_exact_match_of_nothing():
  nothing = np.zeros((2, 3), bool)
  padding = np.full((2, 3), -1)
  assert metrics.exact_match(nothing, padding, 2).all()


@pytest.mark.parametrize(
  "right, n, low, high",
  [
    # From the closed form by hand: 8 of 10, z = 1.96.
    (8, 10, 0.4902, 0.9433),
    (0, 10, 0.0, 0.2775),
    (10, 10, 0.7225, 1.0),
    (0, 0, 0.0, 1.0),
  ],
)
def test_wilson(right, n, low, high):
  np.testing.assert_allclose(metrics.wilson(right, n), (low, high), atol=2e-4)


def test_wilson_holds_the_share_and_narrows():
  for n in (1, 7, 100, 10_000):
    for right in {0, n // 3, n}:
      low, high = metrics.wilson(right, n)
      assert -1e-9 <= low <= right / n <= high + 1e-9
  widths = [np.ptp(metrics.wilson(n // 2, n)) for n in (10, 100, 1000)]
  assert widths == sorted(widths, reverse=True)


def test_on_target_by_hand():
  # 4 x 4 pixels, 2 x 2 tokens, a region each: 4 pixels a region.
  mask = np.zeros((4, 4), bool)
  mask[0, 0] = mask[2:, 2:] = True
  regions = np.array([[0, 1], [2, 3]])
  covered = lambda t: metrics.on_target(mask[None], regions, t).tolist()
  assert covered(0.25) == [True, False, False, True]
  assert covered(0.26) == [False, False, False, True]


def test_on_target_of_uneven_regions():
  # 3 x 3 tokens: region 0 is the first column, region 1 the rest.
  regions = np.array([[0, 1, 1]] * 3)
  mask = np.zeros((6, 6), bool)
  mask[:, :3] = True  # all of region 0, a quarter of region 1
  assert metrics.on_target(mask[None], regions, 0.25).tolist() == [True, True]
  assert metrics.on_target(mask[None], regions, 0.3).tolist() == [True, False]


def test_on_target_of_two_frames():
  """All of region 0 in one frame is half of it; a quarter of 1 an eighth."""
  regions = np.array([[0, 1, 1]] * 3)
  mask = np.zeros((2, 6, 6), bool)
  mask[1, :, :3] = True
  on_target = lambda t: metrics.on_target(mask, regions, t).tolist()
  assert on_target(0.125) == [True, True]
  assert on_target(0.5) == [True, False]
  assert on_target(0.51) == [False, False]


def test_routing_accuracy_by_hand():
  # Two layers, two heads, four regions; regions 0 and 1 show the thing.
  chosen = np.zeros((2, 2, 4), bool)
  chosen[0, 0, [0, 1]] = chosen[0, 1, [0, 2]] = True  # 3 of 4
  chosen[1, 0, 3] = chosen[1, 1, 1] = True  # 1 of 2
  target = np.array([True, True, False, False])
  layers, chance = metrics.routing_accuracy(chosen, target)
  assert layers.tolist() == [0.75, 0.5] and chance == 0.5


def test_routing_accuracy_of_a_layer_that_chose_nothing():
  chosen = np.zeros((2, 1, 2), bool)
  chosen[0, 0, 0] = True
  layers, _ = metrics.routing_accuracy(chosen, np.array([True, False]))
  assert layers[0] == 1.0 and np.isnan(layers[1])
