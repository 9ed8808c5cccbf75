"""The budget K over the steps (docs/method.md, section 5)."""

import numpy as np

from gaze_jax import config as config_lib


def budget(
  step: int,
  rows: int,
  *,
  dense: int | np.ndarray,
  final: int,
  train: config_lib.TrainConfig,
) -> np.ndarray:
  """K of each row at a step: a pure function of its arguments.

  progressive: dense for the first `dense_until` of the steps, then log-linear
  down to `final` at `final_at`, then held. constant: `final`. random: as
  progressive down to `final_at`; from there on one of each two rows draws its
  K anew from 1 .. `dense`, so that one checkpoint serves every budget. Which of
  the two is tossed at each step, so a batch of one row draws at every other
  step. A row's K depends on seed, step and row, and not on how many rows there
  are.

  Args:
    step: 0 .. train.steps - 1.
    rows: B.
    dense: the K that reads every region (`budgets.of_config`); of packed rows
      int [rows, G], that of each sample (`budgets.of_segments`).
    final: the K that is trained.
    train: for the schedule, the number of steps and the seed.

  Returns:
    int32 [rows], or [rows, G].
  """
  schedule = train.k_schedule
  packed = np.ndim(dense) > 0
  shape = np.shape(dense) or (rows,)
  final = np.broadcast_to(np.minimum(final, dense), shape).astype(np.int32)
  if schedule.kind == "constant":
    return final
  begin = schedule.dense_until * train.steps
  end = schedule.final_at * train.steps
  share = np.clip((step - begin) / max(end - begin, 1e-9), 0.0, 1.0)
  if share == 1.0:
    out = final
  else:
    most = np.maximum(dense, 1)
    level = most * (np.maximum(final, 1) / most) ** share
    out = np.maximum(final, np.minimum(np.rint(level), dense))
  if schedule.kind == "random" and share == 1.0:
    rng = np.random.default_rng((train.seed, step))
    draws = (np.arange(out.size).reshape(shape) + rng.integers(2)) % 2 == 1
    if packed:  # the same numbers, whatever other samples have
      drawn = np.minimum(np.floor(rng.random(shape) * dense) + 1, dense)
    else:
      drawn = rng.integers(1, dense + 1, rows, np.int32)
    out = np.where(draws, drawn, out)
  return out.astype(np.int32)
