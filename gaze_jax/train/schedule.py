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
  random: as progressive down to `final_at`; from there on every other row
  draws its K anew from 1 .. R, so that one checkpoint serves every budget.

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
  k = top_k if share == 1.0 else max(top_k, round(level))
  out = np.full(rows, k, np.int32)
  if schedule.kind == "random" and share == 1.0:
    rng = np.random.default_rng((train.seed, step))
    out[1::2] = rng.integers(1, regions + 1, len(out[1::2]))
  return out
