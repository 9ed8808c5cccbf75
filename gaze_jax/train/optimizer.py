"""The optimizer: AdamW or Muon, a schedule, clipping, groups of parameters."""

from typing import Any

import jax
import optax
import optax.contrib

from gaze_jax import config as config_lib
from gaze_jax.train import param_groups

# Leaves that are tables or vectors: never decayed, and Adam's under Muon.
_TABLES = (
  *("embedding", "context", "rows", "columns", "newline", "scale", "bias"),
  *("class_token", "positions", "scale1", "scale2"),  # of a tower
)


def learning_rate(train: config_lib.TrainConfig) -> optax.Schedule:
  """Linear warm-up, then what `train.schedule` names.

  Cosine and linear end at `final_learning_rate` of the peak.
  """
  peak, warmup = train.learning_rate, train.warmup_steps
  end = peak * train.final_learning_rate
  last = max(train.steps, warmup + 1)
  if train.schedule == "cosine":
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, last, end)
  after = optax.constant_schedule(peak)
  if train.schedule == "linear":
    after = optax.linear_schedule(peak, end, last - warmup)
  before = optax.linear_schedule(0.0, peak, max(warmup, 1))
  return optax.join_schedules([before, after], [warmup])


def make(train: config_lib.TrainConfig) -> optax.GradientTransformation:
  """The whole chain; weight decay on matrices alone, not norms or tables.

  It is initialised with, and updates, what trains alone (`param_groups.split`).
  """
  rate = learning_rate(train)
  if train.optimizer == "adamw":
    update = optax.adamw(
      rate,
      b1=train.b1,
      b2=train.b2,
      weight_decay=train.weight_decay,
      mask=_matrices,
    )
  else:
    update = optax.contrib.muon(
      rate,
      weight_decay=train.weight_decay,
      adam_b1=train.b1,
      adam_b2=train.b2,
      adam_learning_rate=lambda step: rate(step) * train.adam_share,
      muon_weight_dimension_numbers=_dimensions,
    )
  chain = [optax.clip_by_global_norm(train.clip_norm), update]
  if train.groups:
    chain.append(optax.stateless(lambda u, _: param_groups.scaled(train, u)))
  return optax.chain(*chain)


def _dimensions(params: Any) -> Any:
  """Which axes of each matrix Muon contracts; None is left to Adam.

  Stacked layers are orthogonalised one by one, the heads of a projection
  together: that is the matrix that the layer applies.
  """
  spec = optax.contrib.MuonDimensionNumbers
  by_name = {
    "query": spec((1,), (2, 3)),
    "key": spec((1,), (2, 3)),
    "value": spec((1,), (2, 3)),
    "out": spec((1, 2), (3,)),
    "gate": spec((1,), (2,)),
    "up": spec((1,), (2,)),
    "down": spec((1,), (2,)),
  }

  def of(path, _):
    names = [getattr(p, "key", "") for p in path]
    if names[-1] in _TABLES:
      return None
    return by_name.get(names[-2], spec((0,), (1,)))

  return jax.tree_util.tree_map_with_path(of, params)


def _matrices(params: Any) -> Any:
  name = lambda path: getattr(path[-1], "key", "")
  return jax.tree_util.tree_map_with_path(
    lambda path, _: name(path) not in _TABLES, params
  )
