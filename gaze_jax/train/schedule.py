"""The budget K over the steps (docs/method.md, section 5)."""

import numpy as np

from gaze_jax import config as config_lib


def budget(
  step: int,
  rows: int,
  *,
  dense: int,
  final: int,
  train: config_lib.TrainConfig,
  segments: int = 1,
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
    dense: the K that reads every region; see `budgets.of_config`.
    final: the K that is trained.
    train: for the schedule, the number of steps and the seed.
    segments: G, samples of a row, each of which has a K of its own.

  Returns:
    int32 [rows]; of more than one segment [rows, G].
  """
  if segments > 1:
    each = budget(step, rows * segments, dense=dense, final=final, train=train)
    return each.reshape(rows, segments)
  schedule = train.k_schedule
  final = min(final, dense)
  if schedule.kind == "constant":
    return np.full(rows, final, np.int32)
  begin = schedule.dense_until * train.steps
  end = schedule.final_at * train.steps
  share = np.clip((step - begin) / max(end - begin, 1e-9), 0.0, 1.0)
  floor = max(final, 1)
  level = dense * (floor / dense) ** share
  k = final if share == 1.0 else max(final, round(level))
  out = np.full(rows, k, np.int32)
  if schedule.kind == "random" and share == 1.0:
    rng = np.random.default_rng((train.seed, step))
    draws = (np.arange(rows) + rng.integers(2)) % 2 == 1
    out = np.where(draws, rng.integers(1, dense + 1, rows, np.int32), out)
  return out
