"""Arithmetic of a training step, and the share of the hardware it is.

Model FLOPs, counted from the shapes of the parameters and of a row: a matrix
product of x [n, *inputs] with a weight costs 2 n times the weight's size in
the forward pass, as much again for the gradient of a weight that trains, and
as much again for that of x where something before it trains. Lookups, norms
and softmax are not counted, nor is what remat runs again. Every slot of a row
counts, padding too; the head at answer slots alone.

Attention of the decoder is counted as the dense, causal one, 4 Q D for each
pair of slots; what gaze saves of it is apart, from the regions that queries
really chose. Their scores, D for each region and head, are not counted.
"""

import dataclasses
import math
from typing import Any

import jax

from gaze_jax import config as config_lib
from gaze_jax.layout import row as row_lib
from gaze_jax.train import param_groups

# bfloat16 TFLOP/s, dense, of what JAX calls a device, from vendors' pages. The
# first that a device's kind starts with; half a chip of TPU7x is a device.
_PEAK = {
  "TPU v4 lite": 137.0,
  "TPU v4": 275.0,
  "TPU v5 lite": 197.0,
  "TPU v5e": 197.0,
  "TPU v5": 459.0,  # "TPU v5p", too
  "TPU v6": 918.0,
  "TPU7x": 1153.5,
  "NVIDIA A100": 312.0,
  "NVIDIA H100 PCIe": 756.0,
  "NVIDIA H100": 989.0,
}

# Stages: parameters by prefix, in the order in which they meet the data.
_ORDER = (
  *("vision.patch", "vision.", "projector.norm", "projector.linear_1"),
  *("projector.linear_2", "projector.", "decoder.embedding"),
  *("decoder.layers", "decoder."),
)
# Several products one after the other: all but the first see gradients if any
# of these trains.
_STACKS = ("vision.", "decoder.layers", "decoder.")


@dataclasses.dataclass(frozen=True)
class Count:
  """FLOPs of a step.

  Attributes:
    model: forward and backward, with dense attention.
    entry: of one pair of a query and a visual token, all heads of a layer: what
      is saved where gaze does not read it.
  """

  model: float
  entry: float


def count(config: config_lib.Config, frozen: Any, params: Any) -> Count:
  """Counts a step of a run.

  Args:
    config: of the run.
    frozen: nested dict of what is no part of the state, as the step takes it;
      without "vision" the tower does not run.
    params: nested dict of the parameters of the state; shapes are enough.
  """
  given = param_groups.flat(frozen)
  mine = param_groups.flat(params)
  trains = {path for path in mine if param_groups.share(config.train, path) > 0}
  stages = {_stage(path) for path in trains}
  c, rows = config.model.decoder, config.train.batch_size
  total = 0.0
  for path, leaf in (given | mine).items():
    total += _product(config, path, leaf.shape, path in trains, stages)
    if path.startswith("vision.blocks") and path.endswith("query.kernel"):
      depth, width, heads, dim = leaf.shape
      total += depth * _pairs(config) * 4 * heads * dim * _passes(path, stages)
  entry = 4.0 * c.query_heads * c.head_dim * _passes("decoder.layers", stages)
  slots = config.data.sequence_length
  total += c.depth * rows * slots * (slots + 1) / 2 * entry
  return Count(model=total, entry=entry)


def _product(
  config: config_lib.Config,
  path: str,
  shape: tuple[int, ...],
  trains: bool,
  stages: set[int],
) -> float:
  """What the products with one parameter cost; 0 for what is no matrix."""
  data = config.data
  tied = path == "decoder.embedding" and config.model.decoder.tied
  if path.rsplit(".", 1)[-1] not in ("weight", "kernel") and not tied:
    return 0.0
  rows = config.train.batch_size
  if tied or path.startswith("decoder.head"):
    slots, path = data.answer_slots, "decoder.head"
  elif path.startswith("decoder."):
    slots = data.sequence_length
  else:
    slots = config.model.vision.tokens
    if path.startswith("vision.blocks"):
      slots += config.model.vision.class_token
    rows = _pictures(config)
  passes = 1 + trains + _sees_gradient(path, stages)
  return 2.0 * rows * slots * math.prod(shape) * passes


def _pairs(config: config_lib.Config) -> int:
  """Pairs of tokens that a block of the tower looks at, in a step."""
  vision = config.model.vision
  tokens = vision.tokens + vision.class_token
  return _pictures(config) * tokens**2


def _pictures(config: config_lib.Config) -> int:
  """Pictures that the tower is given in a step, blank ones too."""
  pools = config.train.batch_size // config.data.pool_rows
  return pools * row_lib.pool_tiles(config)


def _passes(path: str, stages: set[int]) -> int:
  """Of attention: the backward pass costs twice the forward one."""
  return 3 if _sees_gradient(path, stages) else 1


def _sees_gradient(path: str, stages: set[int]) -> bool:
  """Whether what enters here has a gradient: something before it trains."""
  stage = _stage(path)
  own = _ORDER[stage] in _STACKS and stage in stages
  return own or any(other < stage for other in stages)


def _stage(path: str) -> int:
  return next(i for i, start in enumerate(_ORDER) if path.startswith(start))


def peak(config: config_lib.TrainConfig) -> float | None:
  """TFLOP/s of all devices; None where it is not known."""
  kind = jax.devices()[0].device_kind
  table = (of for start, of in _PEAK.items() if kind.startswith(start))
  of_one = config.peak_tflops or next(table, None)
  return None if of_one is None else of_one * jax.device_count()


def speed(
  of: Count, peak_tflops: float | None, saved: float, seconds: float
) -> dict[str, float]:
  """What is logged of a step.

  Args:
    of: the step.
    peak_tflops: TFLOP/s of all devices, or None.
    saved: visual entries that gaze did not read, summed over routed queries,
      rows and layers, a mean over the heads: `visual_kv_saved` of the step.
    seconds: that the step took.

  Returns:
    `model_tflops`, of a step with dense attention; `gaze_saved_tflops`, what
    gaze need not do of them; and, where the peak is known, `mfu`: the rest over
    what the devices could have done.
  """
  model, less = of.model / 1e12, of.entry * saved / 1e12
  out = dict(model_tflops=model, gaze_saved_tflops=less)
  if peak_tflops:
    out["mfu"] = (model - less) / (seconds * peak_tflops)
  return out
