"""Scores, ranks and choices, by hand and by exhaustive comparison."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gaze_jax.ops import routing


def test_scores_by_hand():
  query = np.array([1.0, 2, 3, 4], np.float32).reshape(1, 1, 1, 4)
  descriptors = np.eye(4, dtype=np.float32)[None, None, [0, 3]]
  got = routing.scores(query, descriptors)
  np.testing.assert_allclose(got[0, 0, 0], [0.5, 2.0])  # / sqrt(4)


def test_a_region_is_available_once_complete_and_in_its_segment():
  got = routing.available(
    segment=np.array([[0, 0, 1, -1]]),
    slots=np.array([2, 3, 9, 9]),
    region_segment=np.array([[0, 1, -1]]),
    region_end=np.array([[3, 5, 0]]),
  )
  np.testing.assert_array_equal(
    np.asarray(got)[0].astype(int),
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]],
  )


SCORE = np.array([3.0, 7, 7, 1, 7], np.float32).reshape(1, 1, 1, 5)
OPEN = np.array([True, True, True, True, False]).reshape(1, 1, 5)


@pytest.mark.parametrize(
  ("k", "ids"),
  [
    (0, []),
    (1, [1]),  # a tie: the lower id
    (2, [1, 2]),
    (3, [1, 2, 0]),
    (4, [1, 2, 0, 3]),
    (9, [1, 2, 0, 3]),  # region 4 is not available
  ],
)
def test_choice_by_hand(k, ids):
  budget = np.array([k], np.int32)
  members = np.asarray(routing.members(SCORE, OPEN, budget))[0, 0, 0]
  np.testing.assert_array_equal(np.flatnonzero(members), sorted(ids))
  chosen = routing.select(SCORE, OPEN, budget, k_max=5)
  valid = np.asarray(chosen.valid)[0, 0, 0]
  np.testing.assert_array_equal(np.asarray(chosen.ids)[0, 0, 0][valid], ids)


@hypothesis.given(
  scores=st.lists(st.integers(-3, 3), min_size=1, max_size=80),
  k=st.integers(0, 90),
  data=st.data(),
)
def test_both_forms_choose_as_a_stable_sort_does(scores, k, data):
  r = len(scores)
  open_ = data.draw(st.lists(st.booleans(), min_size=r, max_size=r))
  want = sorted((i for i in range(r) if open_[i]), key=lambda i: -scores[i])[:k]
  score = np.array(scores, np.float32).reshape(1, 1, 1, r)
  flags = np.array(open_).reshape(1, 1, r)
  budget = np.array([k], np.int32)
  members = np.asarray(routing.members(score, flags, budget))[0, 0, 0]
  assert np.flatnonzero(members).tolist() == sorted(want)
  chosen = routing.select(score, flags, budget, k_max=r)
  valid = np.asarray(chosen.valid)[0, 0, 0]
  assert np.asarray(chosen.ids)[0, 0, 0][valid].tolist() == want


def test_each_row_has_its_own_budget():
  score = np.broadcast_to(SCORE, (2, 1, 1, 5))
  open_ = np.broadcast_to(OPEN, (2, 1, 5))
  members = routing.members(score, open_, np.array([1, 3], np.int32))
  np.testing.assert_array_equal(np.asarray(members).sum(-1).ravel(), [1, 3])
