"""Conditions and splits."""

import numpy as np
import pytest

from gaze_jax import types
from gaze_jax.data import pipeline
from gaze_jax.evals import conditions
from gaze_jax.layout import row as row_lib


@pytest.fixture
def batch(tiny_config):
  """One row: <bos>, 25 visual and 2 context tokens, two words; and padding."""
  shape = row_lib.row_shape(tiny_config())
  parts = [row_lib.Text([1]), row_lib.Unit(5, 5), row_lib.Text([7, 8])]
  rows = [row_lib.lay_out(parts, shape), row_lib.lay_out((), shape)]
  return row_lib.make_batch(rows, np.zeros((2, 1, 25, 16), np.float32))


def test_conditions_by_hand(tiny_config):
  names = {c.name: c for c in conditions.conditions(tiny_config())}
  assert list(names) == [
    *("gaze", "dense", "blind", "random_regions", "centre_regions"),
    *("gaze_k0", "gaze_k4"),
  ]
  assert names["gaze"].top_k == 2 and names["dense"].top_k == 9
  assert not names["blind"].image and names["dense"].image
  for control in ("random_regions", "centre_regions"):
    assert names[control].top_k == names["gaze"].top_k


def test_budgets_past_all_regions_are_left_out(tiny_config):
  config = tiny_config(eval__budgets=(1, 9, 12), model__gaze__top_k=50)
  names = {c.name: c.top_k for c in conditions.conditions(config)}
  assert names["gaze"] == 9 and "gaze_k12" not in names
  assert names["gaze_k1"] == 1 and "gaze_k9" not in names


def test_budgets_are_regions_in_any_unit(tiny_config):
  """As thousandths of nine regions, 0, 2 and 4 of them."""
  gaze = dict(model__gaze__budget="ratio", model__gaze__ratio=1.0)
  names = {c.name: c.top_k for c in conditions.conditions(tiny_config(**gaze))}
  assert names["gaze"] == names["dense"] == 1000
  assert {k: v for k, v in names.items() if k.startswith("gaze_k")} == dict(
    gaze_k0=0, gaze_k2=222, gaze_k4=444
  )


def test_budgets_that_are_asked_for_need_not_be_in_the_config(tiny_config):
  config = tiny_config(eval__budgets=(1,))
  others = [2, 3, 99, 0.5, 1.0]
  names = {c.name: c for c in conditions.conditions(config, others)}
  # The first five are always there.
  assert {k: v.top_k for k, v in list(names.items())[5:8]} == dict(
    gaze_k2=2, gaze_k3=3, gaze_k99=9
  )
  shares = {k: v.share for k, v in list(names.items())[8:]}
  assert shares == {"gaze_share_0.5": 0.5, "gaze_share_1": 1.0}
  assert len(conditions.conditions(config, [])) == 5


@pytest.mark.parametrize(
  "unit, half", [("fixed", 9), ("per_unit", 5), ("ratio", 500)]
)
def test_a_share_is_of_each_row(tiny_config, batch, unit, half):
  config = tiny_config(model__gaze__budget=unit, data__max_units=2)
  units = ((row_lib.Unit(5, 5),) * 2, ())
  one = pipeline.EvalBatch(batch, np.array([3, -1]), (), units)
  k = lambda **how: conditions.budget(
    conditions.Condition("x", **how), one, config
  )
  assert k(share=0.5)[0] == half and k(share=0.0).tolist() == [0, 0]
  assert k(top_k=4).tolist() == [4, 4] and k(top_k=4).dtype == np.int32


UNITS = (row_lib.Unit(5, 5),), ()


def preference(choice, batch, config, indices=(3, -1), units=UNITS):
  condition = conditions.Condition("x", 2, choice)
  one = pipeline.EvalBatch(batch, np.array(indices), (), units)
  return conditions.override(condition, one, config.model)


def _video(frames):
  unit = lambda i: row_lib.Unit(5, 5, frame=i, frames=frames)
  return tuple(map(unit, range(frames)))


@pytest.mark.parametrize("unit, half", [("fixed", 9), ("per_unit", 5)])
def test_a_share_of_regions_of_two_frames(tiny_config, batch, unit, half):
  """Of 3 frames 2 x 9 regions; after the first, 9 are in sight of one frame."""
  gaze = dict(model__gaze__budget=unit, model__gaze__region=(2, 2, 2))
  config = tiny_config(data__max_units=3, **gaze)
  one = pipeline.EvalBatch(batch, np.array([3, -1]), (), (_video(3), ()))
  k = conditions.budget(conditions.Condition("x", share=0.5), one, config)
  assert k.tolist() == [half, 0]


def test_centre_regions_of_two_frames(tiny_config, batch):
  units = (_video(2), ())
  config = tiny_config(model__gaze__region=(2, 2, 2))
  np.testing.assert_array_equal(
    preference("centre", batch, config, units=units),
    preference("centre", batch, config),
  )


def test_scores_are_not_overridden(batch, tiny_config):
  assert preference("scores", batch, tiny_config()) is None


def test_centre_regions_by_hand(batch, tiny_config):
  # 5 x 5 tokens, edges 0 1 3 5: region 4 is tokens 1-2 of both axes, whose
  # centre (1.5, 1.5) is nearest to (2, 2); region 0 is token (0, 0).
  order = preference("centre", batch, tiny_config())
  assert order.shape == (2, 4, 9)
  np.testing.assert_allclose(order[0, 0, 4], -np.hypot(0.5, 0.5), rtol=1e-6)
  np.testing.assert_allclose(order[0, 0, 0], -np.hypot(2, 2), rtol=1e-6)
  assert order[0, 0].argmax() == 4
  assert (order[0] == order[0, 0]).all()  # the same for every head


def test_centre_regions_of_other_grids(batch, tiny_config):
  # Row 1: 2 x 2 tokens in one region, then 2 x 6 in three across, one behind
  # the other from the left.
  units = (), (row_lib.Unit(2, 2, tail=1), row_lib.Unit(2, 6))
  order = preference("centre", batch, tiny_config(), units=units)
  assert not order[0].any()
  np.testing.assert_array_equal(order[1, 3], [0, -2, 0, -2, *[0] * 5])


def test_random_regions_depend_on_the_sample_alone(batch, tiny_config):
  config = tiny_config()
  one = preference("random", batch, config)
  assert one.shape == (2, 4, 9) and one.dtype == np.float32
  two = preference("random", batch, config, (-1, 3))
  np.testing.assert_array_equal(one[0], two[1])
  assert (one[0] != one[1]).any()
  assert (one[0, 0] != one[0, 1]).any()  # heads differ


def test_without_image_only_text_is_left(batch):
  blind = conditions.without_image(batch)
  role = blind.layout.role[0]
  assert (role == types.Role.TEXT).sum() == 3
  assert (role == types.Role.PAD).sum() == 96 - 3
  assert (blind.layout.region == -1).all() and (blind.layout.unit == -1).all()
  assert (blind.region_slots == -1).all()
  assert (blind.layout.segment[0][role == types.Role.PAD] == -1).all()
  # Where the text stands does not change.
  text = role == types.Role.TEXT
  for name in ("position", "segment", "branch"):
    before, after = (getattr(b.layout, name)[0][text] for b in (batch, blind))
    np.testing.assert_array_equal(before, after)
