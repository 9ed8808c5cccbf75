"""The attention of a training step: dense causal against routed rows."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.kernels import attention
from gaze_jax.layout import row as row_lib
from gaze_jax.ops import gaze
from gaze_jax.ops import routing

# Frames of 24 x 24 tokens, 576 and 4 context tokens; text is what is left.
FRAMES = {1024: 1, 2048: 3, 4096: 6, 8192: 13}
_GRID = 24
_CONFIG = config_lib.GazeConfig(implementation="chunked")


@dataclasses.dataclass(frozen=True)
class Case:
  """A row of `tokens` slots; query [1, S, Q, D], key and value [1, S, H, D]."""

  tokens: int
  query: jax.Array
  key: jax.Array
  value: jax.Array
  layout: Any
  region_slots: jax.Array


def make(tokens: int, q: int, h: int, d: int) -> Case:
  """Frames after a little text, then text for the rest of the row."""
  frames = FRAMES[tokens]
  unit = _GRID * _GRID
  shape = row_lib.RowShape(
    slots=tokens,
    units=frames,
    unit_tokens=unit,
    regions=frames * unit // 36,
    region_length=36,
    answer_slots=1,
    region=_CONFIG.region,
    context_tokens=_CONFIG.context_tokens,
  )
  before = 16
  after = tokens - before - frames * (unit + _CONFIG.context_tokens)
  parts = [
    row_lib.Text([1] * before),
    *[row_lib.Unit(_GRID, _GRID)] * frames,
    row_lib.Text([1] * after),
  ]
  batch = row_lib.make_batch([row_lib.lay_out(parts, shape)], np.zeros(()))
  keys = jax.random.split(jax.random.key(tokens), 3)
  draw = lambda key, n: jax.random.normal(key, (1, tokens, n, d))
  return Case(
    tokens=tokens,
    query=draw(keys[0], q),
    key=draw(keys[1], h),
    value=draw(keys[2], h),
    layout=jax.tree.map(jnp.asarray, batch.layout),
    region_slots=jnp.asarray(batch.region_slots),
  )


def budget(case: Case) -> int:
  """K: a tenth of the regions, at least one."""
  return max(1, round(0.1 * case.region_slots.shape[1]))


def _causal(query, key, value):
  """Plain causal attention, in the chunks that the routed form takes."""
  s, step = query.shape[1], _CONFIG.chunk
  parts = []
  for start in range(0, s, step):
    stop = min(start + step, s)
    mask = jnp.arange(stop) <= jnp.arange(start, stop)[:, None]
    part = attention.attend(
      query[:, start:stop], key[:, :stop], value[:, :stop], mask[None, None]
    )
    parts.append(part.out)
  return jnp.concatenate(parts, axis=1)


def _routed(query, key, value, layout, region_slots, k):
  plan = routing.plan(layout, region_slots, _CONFIG)
  return gaze.parallel(query, key, value, plan, k, _CONFIG).out


def methods(case: Case) -> dict[str, Callable[[], Any]]:
  """Forward and backward of both."""
  return {
    "dense_causal": functools.partial(
      _with_gradient(_causal), case.query, case.key, case.value
    ),
    "gaze_chunked": functools.partial(
      _with_gradient(_routed),
      case.query,
      case.key,
      case.value,
      case.layout,
      case.region_slots,
      jnp.full(1, budget(case), jnp.int32),
    ),
  }


def _with_gradient(attend):
  loss = lambda *inputs: jnp.square(attend(*inputs)).sum()
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
