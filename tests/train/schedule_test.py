"""K over the steps, against hand-computed numbers."""

import dataclasses

import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax.train import schedule


def train(kind="progressive", steps=100, **schedule_):
  return config_lib.TrainConfig(
    steps=steps, k_schedule=config_lib.ScheduleConfig(kind, **schedule_)
  )


def k(step, *, dense=16, final=4, **kwargs):
  rows = schedule.budget(
    step, 3, dense=dense, final=final, train=train(**kwargs)
  )
  assert rows.dtype == np.int32 and rows.shape == (3,)
  assert len(set(rows.tolist())) == 1
  return int(rows[0])


def test_progressive_by_hand():
  # Dense to step 10, then 16 * (4 / 16) ** ((step - 10) / 50), 4 from step 60.
  assert [k(s) for s in (0, 9, 10)] == [16, 16, 16]
  assert k(35) == 8  # half way down: the geometric mean of 16 and 4
  assert k(22) == 11  # 16 * 4 ** -0.24 = 11.47
  assert k(48) == 6  # 16 * 4 ** -0.76 = 5.58
  assert [k(s) for s in (60, 61, 99)] == [4, 4, 4]


def test_progressive_down_to_zero_passes_through_one():
  assert k(59, final=0) == 1
  assert k(60, final=0) == 0


def test_progressive_never_rises_nor_falls_below_final():
  for final in (0, 1, 3, 16):
    steps = [k(s, final=final) for s in range(100)]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == final and min(steps) == final


def test_budget_is_at_most_all_regions():
  assert k(0, dense=4, final=9) == 4
  assert k(99, dense=4, final=9) == 4
  assert k(99, dense=4, final=9, kind="constant") == 4


def test_constant_is_constant():
  assert {k(s, kind="constant") for s in range(100)} == {4}


def test_dense_until_the_end():
  same = dict(dense_until=1.0, final_at=1.0)
  assert {k(s, **same) for s in range(100)} == {16}


@pytest.fixture
def random_budget():
  def make(step, rows=512, seed=0, **kwargs):
    config = dataclasses.replace(train("random", **kwargs), seed=seed)
    return schedule.budget(step, rows, dense=16, final=4, train=config)

  return make


def test_random_is_a_pure_function_of_step_and_seed(random_budget):
  one = random_budget(70)
  np.testing.assert_array_equal(one, random_budget(70))
  assert (one != random_budget(71)).any()
  assert (one != random_budget(70, seed=1)).any()


def test_random_covers_every_budget_in_every_other_row(random_budget):
  kept = set()
  for step in range(60, 70):
    rows = random_budget(step)
    held, drawn = sorted((rows[::2], rows[1::2]), key=np.ptp)
    assert set(held.tolist()) == {4}  # every other row keeps to final
    assert set(drawn.tolist()) == set(range(1, 17))
    assert abs(drawn.mean() - 8.5) < 1
    kept.add(int(np.ptp(rows[::2]) > 0))
  assert kept == {0, 1}  # now the one half, now the other


def test_random_draws_for_a_single_row(random_budget):
  steps = range(3000, 5000)
  alone = np.array([random_budget(s, rows=1, steps=5000)[0] for s in steps])
  assert set(alone.tolist()) == set(range(1, 17))
  assert abs(np.mean(alone != 4) - 15 / 16 / 2) < 0.03
  seeds = {int(random_budget(70, rows=1, seed=n)[0]) for n in range(200)}
  assert seeds == set(range(1, 17))


def test_random_rows_do_not_depend_on_how_many_there_are(random_budget):
  for step in range(60, 80):
    many = random_budget(step, rows=64)
    for rows in (1, 2, 3, 7, 63):
      np.testing.assert_array_equal(random_budget(step, rows=rows), many[:rows])


def test_samples_of_a_row_have_each_their_own():
  """Of 16, 4, 1 and no regions; down to 4, half way down the means of both."""
  dense = np.array([[16, 4], [1, 0]])
  at = lambda step, kind: schedule.budget(
    step, 2, dense=dense, final=4, train=train(kind)
  ).tolist()
  assert at(0, "progressive") == [[16, 4], [1, 0]]
  assert at(35, "progressive") == [[8, 4], [1, 0]]
  assert at(60, "progressive") == at(0, "constant") == [[4, 4], [1, 0]]


def test_random_draws_within_each_sample():
  dense = np.tile([9, 40], (64, 1))
  at = lambda step, dense: schedule.budget(
    step, 64, dense=dense, final=3, train=train("random")
  )
  drawn = np.concatenate([at(step, dense) for step in range(60, 100)])
  assert set(drawn[:, 0].tolist()) == set(range(1, 10))
  assert drawn[:, 1].max() == 40 and drawn[:, 1].min() == 1
  assert abs((drawn[:, 1] != 3).mean() - 0.5) < 0.05
  # What another row or sample has changes nothing, as another host may have it.
  other = dense.copy()
  other[5:] = 0
  np.testing.assert_array_equal(at(70, dense)[:5], at(70, other)[:5])


def test_random_is_progressive_until_it_draws(random_budget):
  for step in (0, 9, 35, 59):
    assert set(random_budget(step).tolist()) == {k(step)}
