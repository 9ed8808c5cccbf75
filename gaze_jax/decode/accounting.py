"""What an answer cost: the four figures of docs/method.md, section 8."""

import dataclasses
import functools
import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import engine
from gaze_jax.decode import loop
from gaze_jax.decode import sampling
from gaze_jax.layout import tiles
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.parallel import shard

_MIB = 2**20
# Steps of each kind that are timed, fewer once they took so long, but three.
_ROUNDS, _SECONDS, _LEAST = 30, 3.0, 3


@dataclasses.dataclass(frozen=True)
class Accounting:
  """What an answer cost.

  Attributes:
    visual_tokens: what dense attention reads at each step.
    entries_per_query_head: mean visual KV entries that a query head read,
      context tokens included.
    unique_entries_per_kv_head: mean union over the heads of a KV group: what
      memory traffic pays.
    kv_bytes: resident bytes of visual keys and values, all layers.
    descriptor_bytes: resident bytes of the descriptors, all layers.
    gaze_milliseconds: median decode step at this budget.
    dense_milliseconds: median decode step over all regions, same run.
  """

  visual_tokens: int
  entries_per_query_head: float
  unique_entries_per_kv_head: float
  kv_bytes: int
  descriptor_bytes: int
  gaze_milliseconds: float
  dense_milliseconds: float

  @property
  def visual_kv_fraction(self) -> float:
    """Entries per query head over visual tokens."""
    return self.entries_per_query_head / max(self.visual_tokens, 1)

  @property
  def unique_visual_kv_fraction(self) -> float:
    """Unique entries per KV head over visual tokens."""
    return self.unique_entries_per_kv_head / max(self.visual_tokens, 1)

  def figures(self) -> dict[str, str]:
    """The figures by name, for people."""
    return {
      "visual tokens": str(self.visual_tokens),
      "entries per query head": f"{self.entries_per_query_head:.1f}"
      f"  ({self.visual_kv_fraction:.1%})",
      "unique entries per KV head": f"{self.unique_entries_per_kv_head:.1f}"
      f"  ({self.unique_visual_kv_fraction:.1%})",
      "resident KV, descriptors": f"{self.kv_bytes / _MIB:.2f} MiB,"
      f" {self.descriptor_bytes / _MIB:.3f} MiB",
      "decode step, gaze and dense": f"{self.gaze_milliseconds:.2f} ms,"
      f" {self.dense_milliseconds:.2f} ms",
    }

  def text(self) -> str:
    """The figures as lines for a terminal."""
    return "\n".join(f"{k:28s} {v}" for k, v in self.figures().items())

  def as_dict(self) -> dict[str, Any]:
    """The figures as numbers, fit for JSON."""
    return dataclasses.asdict(self) | dict(
      visual_kv_fraction=self.visual_kv_fraction,
      unique_visual_kv_fraction=self.unique_visual_kv_fraction,
    )


@functools.lru_cache(maxsize=64)
def visual_bytes(
  config: config_lib.ModelConfig, regions: int
) -> tuple[int, int]:
  """Resident bytes of visual keys and values, and of descriptors.

  Args:
    config: the model.
    regions: of the request, that is answered alone.
  """
  visual = jax.eval_shape(
    lambda: (
      cached.empty(
        config,
        1,
        regions=context_lib.regions_of(regions),
        region_length=tiles.largest_region(config),
        capacity=1,
      ).visual
    )
  )
  size = lambda x: math.prod(x.shape) * x.dtype.itemsize
  return size(visual.k) + size(visual.v), size(visual.descriptors)


def account(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  context: context_lib.Context,
  entries: tuple[float, float],
  *,
  budget: int,
) -> Accounting:
  """Counts what an answer read, and times a decode step against dense.

  Args:
    params: as in `mllm.apply`.
    config: static.
    context: the prompt and its answer.
    entries: as `engine.Decoding.entries`.
    budget: K that it was given with.
  """
  own = context.context_tokens(config.gaze)
  gaze, dense = _time(params, config, context, budget)
  visual = context.cache.visual
  return Accounting(
    visual_tokens=context.visual_tokens,
    entries_per_query_head=entries[0] + own,
    unique_entries_per_kv_head=entries[1] + own,
    kv_bytes=visual.k.nbytes + visual.v.nbytes,
    descriptor_bytes=visual.descriptors.nbytes,
    gaze_milliseconds=gaze,
    dense_milliseconds=dense,
  )


def _time(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  context: context_lib.Context,
  budget: int,
) -> tuple[float, float]:
  """Median milliseconds of a step at `budget` and at all regions, in turns."""
  every_layer = tuple(range(config.decoder.depth))
  dense = dataclasses.replace(config.gaze, dense_layers=every_layer)
  configs = (config, dataclasses.replace(config, gaze=dense))
  cache = context_lib.reserve(
    context_lib.current_cache(context),
    regions=len(context.sizes),
    slots=context.length + 1,
  )
  rows, regions = cache.visual.valid.shape[:2]
  options = loop.Options(
    budget=np.full(rows, budget, np.int32),
    sampling=sampling.make(rows),
    stop=np.zeros(1, np.int32),
    max_tokens=np.ones(rows, np.int32),
    sizes=np.zeros((rows, regions), np.float32),
  )
  # A row that is done: every step reads the same token at the same place.
  carry = loop.Carry(
    cache=dataclasses.replace(cache, visual=None),
    tokens=jnp.zeros((rows, engine.TOKENS), jnp.int32),
    count=jnp.ones(rows, jnp.int32),
    done=jnp.ones(rows, bool),
    entries=jnp.zeros((rows, 2)),
  )
  # Where the cache is, as what comes out of a step: one program for both.
  if shard.spread():
    carry = shard.constrain_tree(carry, loop.SHARDING)
  else:
    carry = jax.device_put(carry, cache.k.sharding)
  decoder = {"decoder": params["decoder"]}
  spent: tuple[list[float], list[float]] = ([], [])
  began = None
  for i in range(_ROUNDS + _LEAST):
    for c, times in zip(configs, spent, strict=True):
      start = time.perf_counter()
      carry, _ = loop.step_program(
        decoder, c, cache.visual, carry, options, greedy=True
      )
      jax.block_until_ready(carry)
      if i >= _LEAST:  # the first calls compile and warm up
        times.append(1e3 * (time.perf_counter() - start))
    began = began or time.perf_counter()
    if i >= 2 * _LEAST and time.perf_counter() - began > _SECONDS:
      break
  return statistics.median(spent[0]), statistics.median(spent[1])
