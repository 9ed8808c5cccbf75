"""The order of samples: permutations, epochs, shares of several sources."""

import fractions
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from gaze_jax.data import order
from gaze_jax.data import samples


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_position_once(length, seed):
  got = order.permuted(np.arange(length), length, (seed,))
  assert sorted(got) == list(range(length))


def test_some_positions_are_those_of_all():
  everything = order.permuted(np.arange(1000), 1000, (7, 1))
  some = np.array([3, 999, 3, 0])
  np.testing.assert_array_equal(
    order.permuted(some, 1000, (7, 1)), everything[some]
  )


def test_places_are_equally_likely():
  # Chi-square of 100 cells with 81 degrees of freedom: 5 standard deviations.
  counts = np.zeros((10, 10))
  for key in range(4000):
    counts[np.arange(10), order.permuted(np.arange(10), 10, (key,))] += 1
  assert ((counts - 400) ** 2 / 400).sum() < 81 + 5 * np.sqrt(2 * 81)


def test_neighbours_do_not_stay_together():
  got = order.permuted(np.arange(100_000), 100_000, (0,))
  near = (np.abs(np.diff(got)) < 1000).mean()
  assert 0.015 < near < 0.025  # 2 % of all places are as near
  assert (got[:50_000] < 50_000).mean() == pytest.approx(0.5, abs=0.01)


def shares(*weights):
  weights = [fractions.Fraction(str(w)) for w in weights]
  return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(
  "weights",
  [(1,), (1, 1, 1), (7, 2, 1), (0.7, 0.2, 0.1), (5, 0, 3), (97, 1, 1, 1)],
)
def test_after_any_number_each_count_is_within_one_of_its_share(weights):
  got = order.Order([11] * len(weights), shares(*weights), seed=0)
  source = got.at(np.arange(2000))[0] // 11
  number = np.arange(1, 2001)
  for s, share in enumerate(shares(*weights)):
    counts = np.cumsum(source == s)
    assert np.abs(counts - number * float(share)).max() < 1
  for n in (0, 1, 7, 1999):
    np.testing.assert_array_equal(
      got.counts(n), np.bincount(source[:n], minlength=len(weights))
    )


@given(st.lists(st.integers(1, 500), min_size=2, max_size=9))
@settings(max_examples=40, deadline=None)
def test_counts_of_any_weights(weights):
  lengths = [3] * len(weights)
  source = (
    order.Order(lengths, shares(*weights), seed=0).at(np.arange(600))[0] // 3
  )
  for s, share in enumerate(shares(*weights)):
    counts = np.cumsum(source == s)
    assert np.abs(counts - np.arange(1, 601) * float(share)).max() < 1


def test_shares_of_a_long_cycle_are_rounded():
  sizes = (665_298, 1_234_567, 558_128, 3)
  parts = order._parts(tuple(shares(*sizes)))
  assert sum(parts) == 2**20
  for part, share in zip(parts, shares(*sizes), strict=True):
    assert abs(part - 2**20 * float(share)) <= 1


def test_each_source_has_epochs_of_its_own():
  got = order.Order([5, 2], shares(1, 1), seed=3)
  indices, epochs = got.at(np.arange(40))
  first = [(i, e) for i, e in zip(indices, epochs, strict=True) if i < 5]
  second = [(i, e) for i, e in zip(indices, epochs, strict=True) if i >= 5]
  assert sorted(first) == sorted(itertools.product(range(5), range(4)))
  assert sorted(second) == sorted(itertools.product((5, 6), range(10)))
  runs = [tuple(i for i, e in first if e == epoch) for epoch in range(4)]
  assert len(set(runs)) > 1


def test_what_is_held_out_of_each_source_never_trains():
  got = order.Order([40, 20], shares(2, 1), seed=1, held_out=0.1)
  out = got.held_out()
  assert (out < 40).sum() == 4 and (out >= 40).sum() == 2
  indices, epochs = got.at(np.arange(54 * 3))
  assert set(indices) == set(range(60)) - set(out)
  assert set(np.bincount(indices)[np.unique(indices)]) == {3}
  assert set(epochs) == {0, 1, 2}


def test_a_seed_is_another_order():
  one, two = (order.Order([100], seed=s, held_out=0.1) for s in (0, 1))
  assert one.at(np.arange(90))[0].tolist() != two.at(np.arange(90))[0].tolist()
  assert one.held_out().tolist() != two.held_out().tolist()


def test_nothing_left_to_train_on():
  with pytest.raises(samples.DataError, match="out 1 of 1 samples"):
    order.Order([5, 1], shares(1, 1), seed=0, held_out=0.01)
