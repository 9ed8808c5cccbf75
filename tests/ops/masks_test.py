"""The visibility table, as literal matrices."""

import numpy as np

from gaze_jax.layout import row as row_lib
from gaze_jax.ops import masks

SHAPE = row_lib.RowShape(
  slots=12,
  units=2,
  unit_tokens=2,
  regions=2,
  region_length=2,
  answer_slots=4,
  region=(1, 2, 1),
  context_tokens=1,
)


SLOTS = np.arange(SHAPE.slots)[None]


def _visible(*parts):
  row = row_lib.lay_out(parts, SHAPE)
  batch = row_lib.make_batch([row], np.zeros(()))
  seen = masks.visible(batch.layout, batch.layout, SLOTS, SLOTS)
  return np.asarray(seen)[0].astype(int)


def _matrix(*rows):
  out = np.zeros((SHAPE.slots, SHAPE.slots), int)
  for i, row in enumerate(rows):
    cells = [int(c) for c in row.split()]
    out[i, : len(cells)] = cells
  return out


def test_one_unit_between_text():
  # t v v c t t, then padding
  seen = _visible(row_lib.Text([1]), row_lib.Unit(1, 2), row_lib.Text([2, 3]))
  np.testing.assert_array_equal(
    seen,
    _matrix(
      "1",
      "1 1",
      "1 1 1",
      "0 1 1 1",  # a context token sees its unit alone
      "1 1 1 1 1",
      "1 1 1 1 1 1",
    ),
  )


def test_two_units():
  # v v c v v c t
  seen = _visible(row_lib.Unit(1, 2), row_lib.Unit(1, 2), row_lib.Text([1]))
  np.testing.assert_array_equal(
    seen,
    _matrix(
      "1",
      "1 1",
      "1 1 1",
      "1 1 1 1",  # the other unit's visual and context tokens are visible
      "1 1 1 1 1",
      "0 0 0 1 1 1",
      "1 1 1 1 1 1 1",
    ),
  )


def test_branches_share_the_trunk_alone():
  # t | a a | b b
  seen = _visible(
    row_lib.Text([1]), row_lib.Text([2, 3], 1), row_lib.Text([4, 5], 2)
  )
  np.testing.assert_array_equal(
    seen, _matrix("1", "1 1", "1 1 1", "1 0 0 1", "1 0 0 1 1")
  )


def test_packed_samples_never_see_each_other():
  row = row_lib.lay_out_together([[row_lib.Text([1, 2])]] * 2, SHAPE)
  batch = row_lib.make_batch([row], np.zeros(()))
  seen = masks.visible(batch.layout, batch.layout, SLOTS, SLOTS)
  np.testing.assert_array_equal(
    np.asarray(seen)[0].astype(int), _matrix("1", "1 1", "0 0 1", "0 0 1 1")
  )
