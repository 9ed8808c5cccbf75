"""Greedy generation, token by token, from a prefilled cache."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.decode import trace
from gaze_jax.models import mllm

_CAPACITY_STEP = 64  # linear caches come in multiples, so few programs compile


def stream(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  batch: types.Batch,
  *,
  top_k: int,
  max_tokens: int,
  stop: int,
) -> Iterator[trace.Step]:
  """Generates greedily for a batch of one row, a token at a time.

  Args:
    params: as in `mllm.apply`.
    config: static.
    batch: `Batch` with one row: the prompt, one sample, trunk only.
    top_k: K, the budget of this request, in the unit of `gaze.budget`.
    max_tokens: at most so many tokens, `stop` included.
    stop: the token id that ends the answer; it is yielded too.
  """
  budget = jnp.full((1,), top_k, jnp.int32)
  cache, logits, chosen = prefill(
    params, config, batch, budget, max_tokens=max_tokens
  )
  chosen = chosen[:, 0]
  for left in reversed(range(max_tokens)):
    token = int(logits[0].argmax())
    yield trace.Step(token, np.asarray(chosen))
    if token == stop or not left:
      return
    cache, logits, chosen = _extend(
      params, config, cache, jnp.array([[token]]), budget
    )
    logits, chosen = logits[:, 0], chosen[:, 0, 0]


def prefill(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  batch: types.Batch,
  budget: jax.Array,
  *,
  max_tokens: int,
) -> tuple[types.DecodeCache, jax.Array, jax.Array]:
  """`mllm.prefill` with room for `max_tokens` more."""
  role = np.asarray(batch.layout.role)
  text = (role == types.Role.TEXT) | (role == types.Role.CONTEXT)
  need = int(text.sum(axis=1).max()) + max_tokens
  capacity = -(-need // _CAPACITY_STEP) * _CAPACITY_STEP
  return _prefill(params, config, batch, budget, capacity=capacity)


_prefill = functools.partial(jax.jit, static_argnames=("config", "capacity"))(
  mllm.prefill
)
_extend = functools.partial(jax.jit, static_argnames="config")(mllm.extend)


@dataclasses.dataclass(frozen=True)
class Accounting:
  """What an answer cost, the four figures of METHOD.md section 8.

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

  def text(self) -> str:
    """The figures as lines for a terminal."""
    mib = 2**20
    return "\n".join(
      [
        f"visual tokens                {self.visual_tokens}",
        f"entries per query head       {self.entries_per_query_head:.1f}"
        f"  ({self.visual_kv_fraction:.1%})",
        f"unique entries per KV head   {self.unique_entries_per_kv_head:.1f}"
        f"  ({self.unique_visual_kv_fraction:.1%})",
        f"resident KV, descriptors     {self.kv_bytes / mib:.2f} MiB,"
        f" {self.descriptor_bytes / mib:.3f} MiB",
        f"decode step, gaze and dense  {self.gaze_milliseconds:.2f} ms,"
        f" {self.dense_milliseconds:.2f} ms",
      ]
    )


def account(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  batch: types.Batch,
  steps: list[trace.Step],
  *,
  top_k: int,
) -> Accounting:
  """Counts what `steps` read, and times a decode step against dense.

  Args:
    params: as in `mllm.apply`.
    config: static.
    batch: the batch of one row that `steps` were generated from.
    steps: not empty.
    top_k: the budget they were generated with.
  """
  pages = np.asarray(batch.region_slots)[0] >= 0
  size = pages.sum(-1)
  role = np.asarray(batch.layout.role)[0]
  context = int((role == types.Role.CONTEXT).sum())
  chosen = np.stack([s.chosen for s in steps])  # [steps, N, Q, R]
  h = config.decoder.kv_heads
  group = chosen.reshape(*chosen.shape[:2], h, -1, chosen.shape[-1]).any(3)
  milliseconds, cache = _time(params, config, batch, top_k)
  visual = cache.visual
  return Accounting(
    visual_tokens=int(size.sum()),
    entries_per_query_head=float((chosen @ size).mean()) + context,
    unique_entries_per_kv_head=float((group @ size).mean()) + context,
    kv_bytes=visual.k.nbytes + visual.v.nbytes,
    descriptor_bytes=visual.descriptors.nbytes,
    gaze_milliseconds=milliseconds[0],
    dense_milliseconds=milliseconds[1],
  )


def _time(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  batch: types.Batch,
  top_k: int,
) -> tuple[tuple[float, float], types.DecodeCache]:
  """Median milliseconds of a step at `top_k` and at all regions, in turns."""
  every_layer = tuple(range(config.decoder.depth))
  dense = dataclasses.replace(config.gaze, dense_layers=every_layer)
  configs = (config, dataclasses.replace(config, gaze=dense))
  budget = jnp.full((1,), top_k, jnp.int32)
  cache, _, _ = prefill(params, config, batch, budget, max_tokens=1)
  token = jnp.zeros((1, 1), jnp.int32)
  seen: tuple[list[float], list[float]] = ([], [])
  for i in range(33):
    for c, times in zip(configs, seen, strict=True):
      start = time.perf_counter()
      out = _extend(params, c, cache, token, budget)
      jax.block_until_ready(out)
      if i >= 3:  # the first calls compile and warm up
        times.append(1e3 * (time.perf_counter() - start))
  return (statistics.median(seen[0]), statistics.median(seen[1])), cache
