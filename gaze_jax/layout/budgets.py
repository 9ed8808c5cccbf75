"""Budgets: how many regions a query reads, in the unit of `gaze.budget`.

  fixed     K regions
  per_unit  K regions for each unit in sight, picked over all units together
  ratio     thousandths of the regions in sight, rounded up

What a row holds is given as the regions of each of its units, in reading order:
a tiled image is two units, and its grid has more regions than its square.
"""

import math
from collections.abc import Sequence

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.layout import tiles

RATIO_PARTS = 1000


def dense(gaze: config_lib.GazeConfig, regions: Sequence[int]) -> int:
  """The least budget that reads all regions, after any of the units."""
  if gaze.budget == "ratio":
    return RATIO_PARTS
  if gaze.budget == "fixed":
    return sum(regions)
  in_sight, units = np.cumsum(regions), np.arange(len(regions)) + 1
  return int((-(-in_sight // units)).max(initial=0))


def of_share(
  gaze: config_lib.GazeConfig, share: float, regions: Sequence[int]
) -> int:
  """The budget that reads a share of all regions, rounded up."""
  # Rounded first, so that 0.07 of 100 regions is 7 and not 8.
  return math.ceil(round(share * dense(gaze, regions), 6))


def of_count(
  gaze: config_lib.GazeConfig, k: int, regions: Sequence[int]
) -> int:
  """K regions, or with "per_unit" K for each unit.

  As a "ratio" it is K of all regions in the row: exactly so many of up to
  1,000, of more at most one in a thousand above.
  """
  if gaze.budget != "ratio" or not k:
    return k
  return min(max(k * RATIO_PARTS // max(sum(regions), 1), 1), RATIO_PARTS)


def random_scores(seed: int, heads: int, regions: int) -> np.ndarray:
  """Scores that choose regions at random, float32 [Q, R]; equal for a seed."""
  drawn = np.random.default_rng([7, seed]).random((heads, regions))
  return drawn.astype(np.float32)


def of_segments(
  gaze: config_lib.GazeConfig, batch: types.Batch, segments: int
) -> np.ndarray:
  """The budget that reads every region of each sample of packed rows.

  Args:
    gaze: for `budget`.
    batch: `Batch` of [B], in numpy.
    segments: G, samples that a row may hold.

  Returns:
    int32 [B, G], 0 for what has no region.
  """
  out = np.zeros((len(batch.tokens), segments), np.int32)
  last = batch.region_slots.max(axis=-1)  # of each region
  for row, slots in enumerate(last):
    slots = slots[slots >= 0]
    segment, unit = (
      x[row][slots] for x in (batch.layout.segment, batch.layout.unit)
    )
    for number in np.unique(segment):
      units = unit[segment == number]
      regions = np.bincount(units - units.min())
      out[row, number] = dense(gaze, regions.tolist())
  return out


def of_config(config: config_lib.Config) -> tuple[int, int]:
  """The budget that reads every region of any row, and the trained one."""
  gaze = config.model.gaze
  regions = tiles.unit_regions(config.model, config.data.max_units)
  most = dense(gaze, regions)
  if gaze.budget == "ratio":
    return most, max(round(gaze.ratio * RATIO_PARTS), 1)
  return most, min(gaze.top_k, most)
