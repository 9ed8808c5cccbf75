"""What a run is scored on while it trains: `train.eval_every`."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import plugins
from gaze_jax.data import mixture
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.layout import budgets
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard
from gaze_jax.train import features as features_lib
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib

Score = Callable[[state_lib.TrainState], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class EvalSet:
  """Samples to score.

  Attributes:
    config: what their rows are made by.
    source: where they are.
    indices: int64 [n], which of its samples.
    held_out: whether the source is that of training.
  """

  config: config_lib.Config
  source: samples.Source
  indices: np.ndarray
  held_out: bool


def open_set(
  config: config_lib.Config, source: samples.Source, mesh: jax.sharding.Mesh
) -> EvalSet | None:
  """What a run scores; None where it scores nothing.

  Args:
    config: of the run.
    source: of its training samples.
    mesh: that it runs on.

  Raises:
    config_lib.ConfigError: there is nothing to score.
    samples.DataError: it can't be read, or leaves nothing to train on.
    mesh.MeshError: its rows can't be laid on the mesh.
  """
  held_out = mixture.order_of(config, source).held_out()
  if not config.train.eval_every:
    return None
  if len(held_out):
    return EvalSet(config, source, held_out, held_out=True)
  spec = plugins.source(config.data.source)
  made_by = spec.splits(config).get("new")
  if made_by is None:
    raise config_lib.ConfigError(
      f"config: train.eval_every = {config.train.eval_every} finds nothing to"
      " score: set data.eval_path, or train.eval_share to hold out a share of"
      " the training samples"
    )
  rules.check(made_by, dict(mesh.shape))
  opened = spec.make(made_by, "new")
  if not len(opened):
    raise samples.DataError("the evaluation set is empty")
  alone = dataclasses.replace(made_by, data=mixture.alone(made_by, opened))
  return EvalSet(alone, opened, np.arange(len(opened)), held_out=False)


def make(
  chosen: EvalSet,
  run: config_lib.Config,
  features: np.ndarray | None,
  folder: pathlib.Path,
  frozen: dict[str, Any],
  mesh: jax.sharding.Mesh,
) -> Score:
  """A function of a run's state that scores it at the trained budget.

  It scores the parameters that launch/eval.py would read: with `train.ema` the
  moving means. All processes must call it, under the mesh; each reads the rows
  that its devices hold, and gets the same numbers: `eval_loss`, nats a scored
  slot, and `eval_accuracy`, the share of answers that are right to the last
  token under teacher forcing, which is that of greedy decoding.

  Args:
    chosen: the samples.
    run: config of the run.
    features: the run's cached features, if it has any.
    folder: where those of another source are kept.
    frozen: parameters that are not in the state.
    mesh: that the run is on.
  """
  if features is not None and not chosen.held_out:
    features = features_lib.cached(
      chosen.config, chosen.source, folder, run=run
    )
  batcher = pipeline.Batcher(chosen.config, chosen.source, features)
  size = run.train.batch_size
  held = shard.local_rows(mesh, size)
  everywhere = jax.sharding.NamedSharding(mesh, shard.P())
  ends = shard.put(np.array(batcher.tokenizer.ends, np.int32), everywhere)
  _, trained = budgets.of_config(chosen.config)
  budget = np.full(len(held), trained, np.int32)
  of_batch = step_lib.make_score(chosen.config)

  def score(state: state_lib.TrainState) -> dict[str, float]:
    params = frozen | state_lib.apart(state)[0]
    total, before = {}, {}
    for start in range(0, len(chosen.indices), size):
      some = chosen.indices[start : start + size]
      mine = [(int(some[row]), 0) for row in held if row < len(some)]
      batch = batcher.batch(mine, rows=len(held)).batch
      local = shard.put_rows((batch, budget), held, size, mesh)
      sums = of_batch(params, *local, ends)
      _add(total, before)  # one batch stays in flight
      before = sums
    _add(total, before)
    return dict(
      eval_loss=total["loss"] / total["slots"],
      eval_accuracy=total["exact"] / total["answers"],
    )

  return score


def _add(total: dict[str, float], sums: dict[str, jax.Array]) -> None:
  for name, value in jax.device_get(sums).items():
    total[name] = total.get(name, 0.0) + float(value)
