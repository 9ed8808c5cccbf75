"""How many regions: what reads all of them, in every unit of a budget."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaze_jax import config as config_lib
from gaze_jax.data import units
from gaze_jax.layout import budgets
from gaze_jax.layout import row as row_lib
from gaze_jax.ops import routing

KINDS = ("fixed", "ratio", "per_unit")
ROWS = st.lists(st.integers(1, 40), max_size=6)


_allowed = jax.jit(routing.allowed, static_argnames="config")


def read(kind, k, regions):
  """How many regions a query reads after each unit, and how many there are."""
  unit = np.full(256, -1, np.int32)
  unit[: sum(regions)] = np.repeat(np.arange(len(regions)), regions)
  open_ = (unit >= 0) & (unit <= np.arange(6)[:, None])
  opens = (np.diff(unit, prepend=-1) > 0).astype(np.int32)
  gaze = config_lib.GazeConfig(budget=kind)
  got = _allowed(
    np.array([[k]], np.int32), open_[None], opens[None], config=gaze
  )
  return np.asarray(got)[0], open_.sum(-1)


@pytest.mark.parametrize("kind", KINDS)
@given(ROWS)
def test_the_dense_budget_reads_all_and_one_less_does_not(kind, regions):
  gaze = config_lib.GazeConfig(budget=kind)
  k = budgets.dense(gaze, regions)
  if not regions:
    return
  got, want = read(kind, k, regions)
  np.testing.assert_array_equal(got, want)
  for more in (k + 1, 2**30, 2**31 - 1):  # and no product overflows
    np.testing.assert_array_equal(read(kind, more, regions)[0], want)
  if kind != "ratio":  # of fewer than 1,000 regions a part less reads all too
    assert (read(kind, k - 1, regions)[0] < want).any()


def test_the_dense_budget_of_each_sample_of_a_row_by_hand():
  """Pictures of 4 and 1 regions; text; one of 2, and two frames in 2."""
  video = [row_lib.Unit(1, 3, frame=i, frames=2) for i in range(2)]
  shape = row_lib.RowShape(
    slots=64,
    units=8,
    unit_tokens=16,
    regions=12,
    region_length=8,
    answer_slots=1,
    region=(2, 2, 2),
    context_tokens=1,
  )
  text = row_lib.Text([1])
  samples = [
    [row_lib.Unit(3, 3), text, row_lib.Unit(2, 2)],
    [text],
    [row_lib.Unit(1, 3), *video, text],
  ]
  rows = [row_lib.lay_out_together(some, shape) for some in (samples, [])]
  batch = row_lib.make_batch(rows, None)
  of = lambda kind: budgets.of_segments(
    config_lib.GazeConfig(budget=kind, region=shape.region), batch, 4
  ).tolist()
  assert of("fixed") == [[5, 0, 4, 0], [0] * 4]
  assert of("per_unit") == [[4, 0, 2, 0], [0] * 4]
  assert of("ratio") == [[1000, 0, 1000, 0], [0] * 4]


def test_the_dense_budget_by_hand():
  dense = lambda kind, regions: budgets.dense(
    config_lib.GazeConfig(budget=kind), regions
  )
  assert dense("fixed", [4, 217]) == 221
  assert dense("per_unit", [4, 217]) == 111  # twice 110 would be 220
  assert dense("per_unit", [100, 2]) == 100  # between the two, all of one
  assert dense("ratio", [4, 217]) == 1000
  assert dense("fixed", []) == dense("per_unit", []) == 0


@given(st.integers(0, 300), ROWS)
def test_a_count_is_that_many_whatever_the_unit(k, regions):
  total = sum(regions)
  if not total:
    return
  for kind in ("fixed", "ratio"):
    gaze = config_lib.GazeConfig(budget=kind)
    got, _ = read(kind, budgets.of_count(gaze, k, regions), regions)
    assert got[-1] == min(k, total)


def test_a_share_by_hand():
  share = lambda kind, s, regions: budgets.of_share(
    config_lib.GazeConfig(budget=kind), s, regions
  )
  assert share("fixed", 0.5, [4, 217]) == 111
  assert share("per_unit", 0.5, [4, 217]) == 56  # 112 of 221
  assert share("ratio", 0.5, [4, 217]) == 500
  assert 0.07 * 100 > 7  # what rounding adds is no region
  assert share("fixed", 0.07, [100]) == 7
  assert share("fixed", 0.0701, [100]) == 8
  assert share("fixed", 0.5, []) == 0


def _config(kind, max_units, gaze):
  vision = dict(image_size=28, patch_size=7, position_grid=4)
  model = dict(vision=vision, gaze=gaze)
  if kind == "anyres":
    points = [[28 * i, 28 * j] for i in (1, 2, 3) for j in (1, 2, 3)]
    model["tiling"] = dict(kind=kind, pinpoints=points, max_tiles=4)
  if kind == "naflex":
    vision |= dict(max_patches=15, class_token=False)
  data = dict(max_units=max_units, sequence_length=1000)
  return config_lib.from_config_dict(dict(model=model, data=data))


SIZES = (10, 28, 45, 77, 200)


@pytest.mark.parametrize("budget", KINDS)
@pytest.mark.parametrize("kind", ["none", "anyres", "naflex"])
def test_training_asks_for_all_that_any_row_holds(kind, budget):
  """Of every picture, the dense budget of a run reads every region."""
  gaze = dict(region=(2, 3, 1), budget=budget, top_k=1000, ratio=1.0)
  config = _config(kind, 4, gaze)
  dense, trained = budgets.of_config(config)
  assert trained == dense
  needed = 0
  for size in itertools.product(SIZES, SIZES):
    alone = units.of_sizes([size], config.model)[0]
    several = units.of_sizes([size] * 3, config.model)
    rows = [alone, alone * (4 // len(alone)), sum(several, ())]
    for row in rows:
      regions = [u.completes((2, 3, 1)) for u in row]
      needed = max(needed, budgets.dense(config.model.gaze, regions))
      got, want = read(budget, dense, regions)
      np.testing.assert_array_equal(got, want)
  most = row_lib.row_shape(config).regions
  assert needed <= dense <= dict(fixed=most, ratio=1000, per_unit=most)[budget]


def test_the_trained_budget():
  fixed = config_lib.Config()
  assert budgets.of_config(fixed) == (4, 4)  # 12 x 12 tokens in 6 x 6 regions
  for gaze, want in (
    (dict(top_k=3), (4, 3)),
    (dict(top_k=0), (4, 0)),
    (dict(budget="ratio", ratio=0.25), (1000, 250)),
    (dict(budget="ratio", ratio=1e-6), (1000, 1)),
    (dict(budget="per_unit", top_k=3), (4, 3)),
  ):
    model = dataclasses.replace(fixed.model, gaze=config_lib.GazeConfig(**gaze))
    assert budgets.of_config(dataclasses.replace(fixed, model=model)) == want
