"""Which samples share a row: first fit, windows, counts, resuming."""

import fractions

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from gaze_jax.data import order
from gaze_jax.data import packed
from gaze_jax.data import samples
from gaze_jax.layout import row as row_lib

ROOM = row_lib.Size(100, 10, 4, 4)


def size(slots, answers=1, units=0, tiles=0):
  return row_lib.Size(slots, answers, units, tiles)


def test_first_fit_by_hand():
  # The longest first: 60, 50, 40 beside 60, 30 and 20 beside 50.
  sizes = [size(n) for n in (30, 60, 20, 50, 40)]
  assert packed.first_fit(sizes, ROOM, 9) == [[1, 4], [0, 2, 3]]
  assert packed.first_fit(sizes, ROOM, 2) == [[1, 4], [0, 3], [2]]


@pytest.mark.parametrize(
  "sizes, rows",
  [
    ([size(10, 6), size(10, 5)], [[0], [1]]),  # answers
    ([size(10, 1, 3), size(10, 1, 2)], [[0], [1]]),  # units
    ([size(10, 1, 1, 3), size(10, 1, 1, 2)], [[0], [1]]),  # tiles
    ([size(101), size(5), size(1, 11)], [[1]]),  # too large by itself
    ([], []),
  ],
)
def test_all_that_a_row_has_room_for_counts(sizes, rows):
  assert packed.first_fit(sizes, ROOM, 9) == rows


SIZES = st.builds(
  row_lib.Size, st.integers(1, 110), st.integers(0, 9), st.integers(0, 5),
  st.integers(0, 5),
)  # fmt: skip


@given(st.lists(SIZES, max_size=60), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_no_row_holds_too_much_and_each_item_has_one_place(sizes, most):
  rows = packed.first_fit(sizes, ROOM, most)
  for row in rows:
    assert 1 <= len(row) <= most
    total = np.sum([sizes[i] for i in row], axis=0)
    assert (total <= ROOM).all()
  placed = sorted(i for row in rows for i in row)
  fits = [i for i, s in enumerate(sizes) if (np.array(s) <= ROOM).all()]
  assert placed == fits


def mix(count, slots):
  """70 % of 1/16 to 1/3 of a row, 30 % from there to all of it."""
  rng = np.random.default_rng(0)
  short = rng.random(count) < 0.7
  low = rng.uniform(slots / 16, slots / 3, count)
  high = rng.uniform(slots / 3, slots, count)
  return np.where(short, low, high).astype(int).tolist()


def rows_of(lengths, *, parts=None, slots=1024, **options):
  parts = parts or [len(lengths)]
  shares = [fractions.Fraction(1, len(parts))] * len(parts)
  given_ = dict(most=16, window=256, seed=0, pool_rows=1, pool_tiles=9)
  given_ |= options
  return packed.PackedRows(
    order.Order(parts, shares, seed=given_["seed"]),
    lambda i: size(lengths[i]),
    room=row_lib.Size(slots, 10**6, 9, 9),
    **given_,
  )


def test_pools_by_hand():
  # The fullest first, each where most room is left: 4, 3 and 2 apart, 1 beside
  # 2, and 0 beside 3.
  assert packed.pooled([1, 4, 0, 3, 2], 2, 6) == [[4, 0], [1, None], [3, 2]]
  # Of three that fill a pool each, two can't share one of two rows.
  assert packed.pooled([6, 6, 6], 2, 6) == [[0, None], [1, None], [2, None]]
  assert packed.pooled([1, 5, 2], 1, 5) == [[0], [1], [2]]
  assert packed.pooled([], 3, 5) == []


@given(
  st.lists(st.integers(0, 9), max_size=40),
  st.integers(1, 5),
  st.integers(9, 30),
)
@settings(max_examples=80, deadline=None)
def test_no_pool_holds_too_much_and_each_row_has_one(tiles, rows, room):
  groups = packed.pooled(tiles, rows, room)
  for group in groups:
    assert len(group) == rows and group[0] is not None
    assert sum(tiles[r] for r in group if r is not None) <= room
  placed = [r for group in groups for r in group if r is not None]
  assert sorted(placed) == list(range(len(tiles)))
  most = -(-sum(tiles) // max(room - 8, 1)) + -(-len(tiles) // rows)
  assert len(groups) <= most


def test_rows_of_a_run_share_pools():
  rng = np.random.default_rng(0)
  sizes = [
    size(int(n), 0, 1, int(n) // 150) for n in rng.integers(60, 900, 400)
  ]
  rows = packed.PackedRows(
    order.Order([400], [fractions.Fraction(1)], seed=0),
    lambda i: sizes[i],
    room=row_lib.Size(1024, 10**6, 9, 6),
    most=16,
    window=100,
    seed=0,
    pool_rows=4,
    pool_tiles=22,
  )
  held = [rows.at(r) for r in range(4 * 50)]
  for start in range(0, len(held), 4):
    group = [sizes[i].tiles for row in held[start : start + 4] for i, _ in row]
    assert sum(group) <= 22
  assert np.mean([bool(row) for row in held]) > 0.95
  assert max(sum(sizes[i].tiles for i, _ in row) for row in held) > 5


def test_rows_are_filled():
  lengths = mix(5000, 1024)
  rows = rows_of(lengths)
  filled = [sum(lengths[i] for i, _ in rows.at(r)) / 1024 for r in range(1000)]
  assert np.mean(filled) > 0.97


def test_a_row_is_a_function_of_its_number():
  lengths = mix(300, 1024)
  one = rows_of(lengths)
  in_turn = [one.at(r) for r in range(250)]
  for r in (249, 3, 120, 0):
    assert rows_of(lengths).at(r) == in_turn[r] == one.at(r)
  other = rows_of(lengths, seed=1)
  assert [other.at(r) for r in range(250)] != in_turn


def test_windows_hold_each_sample_once():
  lengths = mix(64, 1024)
  rows = rows_of(lengths, window=64)
  seen, r = [], 0
  while len(seen) < 3 * 64:
    seen += rows.at(r)
    r += 1
  assert sorted(seen) == [(i, e) for i in range(64) for e in range(3)]


def test_rows_of_a_window_are_mixed():
  lengths = mix(2000, 1024)
  rows = rows_of(lengths)
  longest = [max(lengths[i] for i, _ in rows.at(r)) for r in range(80)]
  order_ = np.argsort(np.argsort(longest))
  assert abs(np.corrcoef(order_, np.arange(80))[0, 1]) < 0.4


def test_counts_by_source():
  lengths = mix(90, 1024)
  rows = rows_of(lengths, parts=[60, 30], window=32)
  for end in (0, 1, 7, 40):
    first = [i for r in range(end) for i, _ in rows.at(r)]
    want = [sum(i < 60 for i in first), sum(i >= 60 for i in first)]
    assert rows.counts(end).tolist() == want


def test_nothing_that_fits():
  with pytest.raises(samples.DataError, match="no sample .* fits a row"):
    rows_of([2000, 3000], window=8).at(0)
