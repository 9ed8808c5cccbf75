"""The budget K over the steps (METHOD.md section 5)."""

import numpy as np

from gaze_jax import config as config_lib


def budget(
  step: int,
  rows: int,
  *,
  regions: int,
  top_k: int,
  train: config_lib.TrainConfig,
) -> np.ndarray:
  """K of each row at a step: a pure function of its arguments.

  progressive: all regions for the first `dense_until` of the steps, then
  log-linear down to `top_k` at `final_at`, then held. constant: `top_k`.
  random: per row, log-uniform between 1 and what progressive would give with
  `top_k` = 1 held at the dense value, so that one checkpoint learns every
  budget.

  Args:
    step: 0 .. train.steps - 1.
    rows: B.
    regions: R, what dense means.
    top_k: the final K.
    train: for the schedule, the number of steps and the seed.

  Returns:
    int32 [rows].
  """
  schedule = train.k_schedule
  top_k = min(top_k, regions)
  if schedule.kind == "constant":
    return np.full(rows, top_k, np.int32)
  begin = schedule.dense_until * train.steps
  end = schedule.final_at * train.steps
  share = np.clip((step - begin) / max(end - begin, 1e-9), 0.0, 1.0)
  floor = max(top_k, 1)
  level = regions * (floor / regions) ** share
  if schedule.kind == "progressive":
    k = top_k if share == 1.0 else max(top_k, round(level))
    return np.full(rows, k, np.int32)
  if share == 0.0:
    return np.full(rows, regions, np.int32)
  rng = np.random.default_rng((train.seed, step))
  draw = np.exp(rng.uniform(0, np.log(regions + 0.5), rows))
  return np.clip(draw, 1, regions).astype(np.int32)
