"""Scores, ranks and choices, by hand and by exhaustive comparison."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gaze_jax import config as config_lib
from gaze_jax.ops import regions
from gaze_jax.ops import routing

CONFIG = config_lib.GazeConfig()


def test_scores_by_hand():
  query = np.array([1.0, 2, 3, 4], np.float32).reshape(1, 1, 1, 4)
  descriptors = np.eye(4, dtype=np.float32)[None, None, [0, 3]]
  got = routing.scores(query, descriptors, CONFIG)
  np.testing.assert_allclose(got[0, 0, 0], [0.5, 2.0])  # / sqrt(4)


def test_a_region_is_available_once_complete_and_in_its_segment():
  got = routing.available(
    segment=np.array([[0, 0, 1, -1]]),
    slots=np.array([[2, 3, 9, 9]]),
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
  budget = np.array([[k]], np.int32)
  members = np.asarray(routing.members(SCORE, OPEN, budget))[0, 0, 0]
  np.testing.assert_array_equal(np.flatnonzero(members), sorted(ids))
  ranked = np.asarray(routing.ranked(SCORE, OPEN, 5))[0, 0, 0]
  assert ranked[: members.sum()].tolist() == ids


@hypothesis.given(
  scores=st.lists(st.integers(-3, 3), min_size=1, max_size=90),
  k=st.integers(0, 90),
  data=st.data(),
)
def test_both_forms_choose_as_a_stable_sort_does(scores, k, data):
  r = len(scores)
  open_ = data.draw(st.lists(st.booleans(), min_size=r, max_size=r))
  want = sorted((i for i in range(r) if open_[i]), key=lambda i: -scores[i])[:k]
  score = np.array(scores, np.float32).reshape(1, 1, 1, r)
  flags = np.array(open_).reshape(1, 1, r)
  budget = np.array([[k]], np.int32)
  members = np.asarray(routing.members(score, flags, budget))[0, 0, 0]
  assert np.flatnonzero(members).tolist() == sorted(want)
  ranked = np.asarray(routing.ranked(score, flags, r))[0, 0, 0]
  assert ranked[: members.sum()].tolist() == want


# Each with others that a comparison and a sort order differently.
ODD = (-0.0, 0.0, 1e-45, -1e-45, 1e-39, np.nan, -np.nan, np.inf, -np.inf, -1, 1)


@pytest.mark.parametrize("r", [11, 65])  # by pairs, and by a sort
@pytest.mark.parametrize("most", [3, 65])
def test_odd_scores_are_chosen_alike_by_every_form(r, most):
  """Zeros are one, and so is what is too small to be told from them.

  NaN and -inf come last of what is available.
  """
  rng = np.random.default_rng(r)
  rows = [np.roll(ODD, i)[:9] for i in range(len(ODD))]
  score = np.stack([rng.permutation(np.resize(x, r)) for x in rows])
  open_ = rng.random((len(rows), 1, r)) < 0.8
  open_ = np.repeat(open_, 7, axis=1)
  budget = np.broadcast_to([0, 1, 2, 3, 9, 40, 65], (len(rows), 7))
  budget = np.minimum(budget, most).astype(np.int32)
  score = np.float32(score)[:, None, None]
  score = np.broadcast_to(score, (len(rows), 7, 1, r))
  members = np.asarray(routing.members(score, open_, budget, most))
  ids = np.asarray(routing.ranked(score, open_, most))
  worth = lambda x: 0 if abs(x) < 1e-38 else max(x, -9) if x == x else -9
  for row, x in np.ndindex(*budget.shape):
    at = row, x, 0
    ranked = sorted(
      np.flatnonzero(open_[row, x]), key=lambda i: -worth(score[at][i])
    )
    want = ranked[: budget[row, x]]
    assert np.flatnonzero(members[at]).tolist() == sorted(want)
    assert ids[at][: len(want)].tolist() == want


def test_each_row_has_its_own_budget():
  score = np.broadcast_to(SCORE, (2, 1, 1, 5))
  open_ = np.broadcast_to(OPEN, (2, 1, 5))
  members = routing.members(score, open_, np.array([[1], [3]], np.int32))
  np.testing.assert_array_equal(np.asarray(members).sum(-1).ravel(), [1, 3])


def test_scores_of_a_group_and_of_a_layer_are_sums():
  query = np.eye(4, dtype=np.float32)[None, None]  # 4 heads, 2 KV heads
  descriptors = np.arange(16, dtype=np.float32).reshape(1, 2, 2, 4)
  score = lambda kind: np.asarray(
    routing.scores(query, descriptors, config_lib.GazeConfig(granularity=kind))
  )[0, 0]
  by_head = [[0, 4], [1, 5], [10, 14], [11, 15]]
  np.testing.assert_allclose(2 * score("query_head"), by_head)
  np.testing.assert_allclose(2 * score("kv_group"), [[1, 9], [21, 29]])
  np.testing.assert_allclose(2 * score("layer"), [[22, 38]])


def test_minmax_is_the_greatest_logit_of_the_box():
  query = np.array([1.0, -2], np.float32).reshape(1, 1, 1, 2)
  box = np.array([[-1.0, 3], [4, 5]], np.float32)[None, None]  # least, most
  config = config_lib.GazeConfig(descriptor="minmax")
  got = routing.scores(query, box, config).ravel() * np.sqrt(2)
  np.testing.assert_allclose(got, [1 * 4 - 2 * 3], rtol=1e-6)


def test_submean_takes_the_best_part():
  query = np.array([1.0, 0], np.float32).reshape(1, 1, 1, 2)
  # Two regions; part 0 of both, then part 1 of both.
  parts = np.array([[1.0, 9], [2, 9], [5, 9], [-4, 9]], np.float32)[None, None]
  config = config_lib.GazeConfig(descriptor="submean", sub_cells=2)
  got = routing.scores(query, parts, config).ravel() * np.sqrt(2)
  np.testing.assert_allclose(got, [5, 2], rtol=1e-6)


@pytest.mark.parametrize(
  ("config", "k", "want"),
  [
    (dict(), 2, [2, 1, 0]),
    (dict(budget="ratio"), 500, [2, 1, 0]),  # of 3 regions 1.5, up
    (dict(budget="ratio"), 1000, [3, 1, 0]),
    (dict(budget="ratio"), 1, [1, 1, 0]),
    (dict(budget="per_unit"), 1, [2, 1, 0]),  # both units are in sight
    (dict(budget="per_unit"), 9, [3, 1, 0]),
  ],
)
def test_how_many_by_hand(config, k, want):
  """Units 0 0 1 and no fourth region; queries that see 3, 1 and 0 of them."""
  open_ = np.array([[[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]], bool)
  opens = np.array([[1, 0, 1, 0]])
  budget = np.array([[k]], np.int32)
  config = config_lib.GazeConfig(**config)
  allowed = lambda dense: routing.allowed(
    budget, open_, opens, config, dense=dense
  )
  np.testing.assert_array_equal(allowed(False)[0], want)
  np.testing.assert_array_equal(allowed(np.array(True))[0], [3, 1, 0])


def test_frames_that_regions_open_by_hand():
  """Units 0; 1 and 2 together in two regions; 3; then nothing."""
  first, last = np.array([[0, 0, 1, 1, 3, -1]]), np.array([[0, 0, 2, 2, 3, -1]])
  np.testing.assert_array_equal(
    regions.opened(first, last), [[1, 0, 2, 0, 1, 0]]
  )


def test_visits_are_the_union_with_a_bit_for_each_row():
  """2 KV heads of 2 query heads, 5 regions."""
  members = np.zeros((1, 1, 4, 5), bool)
  members[0, 0, 0, [4, 1]] = True
  members[0, 0, 1, [1, 3]] = True
  visits = routing.visits(members, 2)
  np.testing.assert_array_equal(visits.count, [[3, 0]])
  np.testing.assert_array_equal(np.asarray(visits.ids)[0, 0, :3], [1, 3, 4])
  rows = np.asarray(visits.rows)
  assert rows.shape == (1, 2, 1, 5)
  np.testing.assert_array_equal(rows[0, 0, 0, :3], [3, 2, 1])


@pytest.mark.few(2)
@pytest.mark.parametrize(
  ("x", "group"), [(32, 1), (33, 1), (9, 4), (9, 7), (9, 8)]
)
def test_visits_of_more_rows_than_a_word_has_bits(x, group):
  """Every row finds itself again in its word."""
  rng = np.random.default_rng(x)
  members = rng.random((2, x, 3 * group, 11)) < 0.1
  members[..., 4] = False
  visits = routing.visits(members, 3)
  assert visits.rows.shape == (2, 3, -(-x * group // 32), 11)
  got = np.zeros_like(members)
  for b, h in np.ndindex(2, 3):
    for u in range(int(visits.count[b, h])):
      for i in range(x * group):
        bit = int(visits.rows[b, h, i // 32, u]) >> i % 32 & 1
        page = int(visits.ids[b, h, u])
        got[b, i // group, h * group + i % group, page] = bit
  np.testing.assert_array_equal(got, members)
