"""The conditions that a checkpoint is evaluated under, in one registry.

A condition is a budget and a rule for choosing regions; all of them run the
same weights through the same compiled program.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.data import pipeline
from gaze_jax.layout import budgets
from gaze_jax.layout import grid
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles


@dataclasses.dataclass(frozen=True)
class Condition:
  """One line of the report.

  Attributes:
    name: its name in the report.
    top_k: K, in the unit of `model.gaze.budget`.
    choice: by score, or by a fixed preference that replaces the scores.
    image: False takes every visual and context slot away: language alone.
    share: of the regions of each row, in the place of K.
  """

  name: str
  top_k: int = 0
  choice: Literal["scores", "random", "centre"] = "scores"
  image: bool = True
  share: float | None = None


def conditions(
  config: config_lib.Config, others: Sequence[int | float] | None = None
) -> list[Condition]:
  """The trained budget beside its controls, then other budgets.

  Args:
    config: for the trained budget, and `eval.budgets`.
    others: these instead of `eval.budgets`: whole numbers are K, the rest
      shares. A K above all regions reads them all.
  """
  dense, k = budgets.of_config(config)
  regions = tiles.unit_regions(config.model, config.data.max_units)
  count = lambda b: budgets.of_count(config.model.gaze, b, regions)
  if others is None:
    listed = sorted(set(config.eval.budgets))
    others = [b for b in listed if count(b) != k and count(b) < dense]
  return [
    Condition("gaze", k),
    Condition("dense", dense),
    Condition("blind", dense, image=False),
    Condition("random_regions", k, "random"),
    Condition("centre_regions", k, "centre"),
    *(
      Condition(f"gaze_share_{b:g}", share=b)
      if isinstance(b, float)
      else Condition(f"gaze_k{b}", min(count(b), dense))
      for b in dict.fromkeys(others)
    ),
  ]


def budget(
  condition: Condition, batch: pipeline.EvalBatch, config: config_lib.Config
) -> np.ndarray:
  """K of each row, int32 [B]; 0 past the valid ones where it is a share."""
  if condition.share is None:
    return np.full(len(batch.indices), condition.top_k, np.int32)
  out, region = np.zeros(len(batch.indices), np.int32), config.model.gaze.region
  for row, units in enumerate(batch.units):
    counts = [unit.completes(region) for unit in units]
    out[row] = budgets.of_share(config.model.gaze, condition.share, counts)
  return out


def override(
  condition: Condition,
  batch: pipeline.EvalBatch,
  model: config_lib.ModelConfig,
) -> np.ndarray | None:
  """Scores that replace the model's, float32 [B, Q, R], or None.

  Random regions are drawn for each sample and query head, the same in every
  layer and at every step; centre regions are the nearest to the middle.
  """
  if condition.choice == "scores":
    return None
  b, r = batch.batch.region_slots.shape[:2]
  heads = model.decoder.query_heads
  if condition.choice == "random":
    draw = lambda i: budgets.random_scores(int(i) + 1, heads, r)
    return np.stack([draw(i) for i in batch.indices])
  nearness = np.zeros((b, heads, r), np.float32)
  for row, units in enumerate(batch.units):
    region = model.gaze.region
    near = [_nearness(u, region) for u in units if u.completes(region)]
    if near:
      joined = np.concatenate(near)
      nearness[row, :, : len(joined)] = joined
  return nearness


def _nearness(unit: row_lib.Unit, region: grid.Region) -> np.ndarray:
  """How near each region of a unit is to its middle, float [R]; 0 is there."""
  regions = grid.region_map(unit.rows, unit.columns, region)
  ids, tokens = regions.ravel(), np.bincount(regions.ravel())
  from_middle = lambda x, side: (
    np.bincount(ids, weights=x.ravel()) / tokens - (side - 1) / 2
  )
  y, x = np.indices(regions.shape)
  return -np.hypot(from_middle(y, unit.rows), from_middle(x, unit.columns))


def without_image(batch: types.Batch) -> types.Batch:
  """The same rows with every visual and context slot turned into padding."""
  role = np.asarray(batch.layout.role)
  gone = (role == types.Role.VISUAL) | (role == types.Role.CONTEXT)
  pad: Callable = lambda x, fill: np.where(gone, np.int32(fill), np.asarray(x))
  old = batch.layout
  return dataclasses.replace(
    batch,
    layout=types.Layout(
      role=pad(old.role, types.Role.PAD),
      unit=pad(old.unit, -1),
      region=pad(old.region, -1),
      position=old.position,
      segment=pad(old.segment, -1),
      branch=pad(old.branch, 0),
    ),
    region_slots=np.full_like(batch.region_slots, -1),
  )
