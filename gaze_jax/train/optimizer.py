"""The optimizer: AdamW or Muon, warm-up and cosine, global clipping."""

from typing import Any

import jax
import optax

from gaze_jax import config as config_lib


def learning_rate(train: config_lib.TrainConfig) -> optax.Schedule:
  """Linear warm-up, then cosine to `final_learning_rate` of the peak."""
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=train.learning_rate,
    warmup_steps=train.warmup_steps,
    decay_steps=max(train.steps, train.warmup_steps + 1),
    end_value=train.learning_rate * train.final_learning_rate,
  )


def make(train: config_lib.TrainConfig) -> optax.GradientTransformation:
  """The whole chain; weight decay on matrices alone, not norms or tables."""
  return optax.chain(
    optax.clip_by_global_norm(train.clip_norm),
    optax.adamw(
      learning_rate(train),
      b1=train.b1,
      b2=train.b2,
      weight_decay=train.weight_decay,
      mask=_decayed,
    ),
  )


def _decayed(params: Any) -> Any:
  tables = ("embedding", "context", "rows", "columns", "scale", "bias")
  name = lambda path: getattr(path[-1], "key", "")
  return jax.tree_util.tree_map_with_path(
    lambda path, _: name(path) not in tables, params
  )
