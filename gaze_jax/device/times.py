"""Times of attention on the device at hand, beside its bytes over bandwidth."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import types
from gaze_jax.device import cases
from gaze_jax.device import check
from gaze_jax.kernels import attend_pages
from gaze_jax.kernels import attend_pages_cpu
from gaze_jax.kernels import attend_pages_tpu
from gaze_jax.kernels import attend_visual
from gaze_jax.kernels import attend_visual_gpu
from gaze_jax.kernels import attend_visual_tpu
from gaze_jax.kernels import attention

# Bytes a second of a device's memory by `jax.Device.device_kind`, as vendors
# state them. A device of TPU7x is half of a chip.
BANDWIDTH = {
  "TPU v4": 1.2e12,
  "TPU v5 lite": 0.819e12,
  "TPU v5": 2.765e12,
  "TPU v6 lite": 1.64e12,
  "TPU7x": 3.69e12,
  "NVIDIA A100-SXM4-40GB": 1.555e12,
  "NVIDIA A100-SXM4-80GB": 2.039e12,
  "NVIDIA H100 PCIe": 2.0e12,
  "NVIDIA H100 80GB HBM3": 3.35e12,
  "NVIDIA H200": 4.8e12,
  "NVIDIA L4": 0.3e12,
}

_TOKENS, _DIM = 36, 128
_HEADS = 32, 8
_CHOSEN = 0.1  # of the regions
_ROUNDS, _SECONDS = 20, 0.5  # of a form, at most


@dataclasses.dataclass(frozen=True)
class Row:
  """How long a form takes.

  Attributes:
    operation: a decoding step of one layer, or a row of visual tokens.
    tokens: visual tokens.
    form: dense, plain XLA, or a kernel.
    milliseconds: the least of the rounds.
    bytes: that must be read and written.
    bound_milliseconds: bytes over the bandwidth; None where that is unknown.
    failure: what is wrong, or None.
  """

  operation: str
  tokens: int
  form: str
  milliseconds: float | None = None
  bytes: int | None = None
  bound_milliseconds: float | None = None
  failure: str | None = None


def measure(platform: str, kind: str) -> Iterator[Row]:
  """Dense, plain XLA and kernel, in bfloat16.

  On CPU small sizes, to see that it works.

  Args:
    platform: of the device.
    kind: its `device_kind`.
  """
  small = platform == "cpu"
  tokens, layers = (144, 2) if small else (20_480, 8)
  forms = _decoding(tokens, layers, platform)
  yield from _measured("decode", tokens, forms, layers, kind)
  if not small:
    yield from _measured("visual rows", 2048, _rows(2048, platform), 1, kind)


# By name of a form: bytes of a call, and how to make it: a function and its
# arguments.
_Forms = dict[str, tuple[int, Callable[[], tuple[Callable, tuple]]]]


def _measured(
  operation: str, tokens: int, forms: _Forms, layers: int, kind: str
) -> Iterator[Row]:
  for form, (size, make) in forms.items():
    row = Row(operation, tokens, form, bytes=size)
    if bandwidth := BANDWIDTH.get(kind):
      bound = size / bandwidth * 1e3
      row = dataclasses.replace(row, bound_milliseconds=bound)
    try:
      taken = _least(*make()) / layers * 1e3
    except Exception as error:  # of any kind: the rest is measured all the same
      yield dataclasses.replace(row, failure=check.one_line(error))
    else:
      yield dataclasses.replace(row, milliseconds=taken)


def _least(function: Callable[..., Any], arguments: tuple) -> float:
  """Seconds of the fastest call."""
  for _ in range(2):
    jax.block_until_ready(function(*arguments))
  taken, begin = [], time.perf_counter()
  while len(taken) < _ROUNDS and time.perf_counter() - begin < _SECONDS:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    taken.append(time.perf_counter() - start)
  return min(taken)


def _decoding(tokens: int, layers: int, platform: str) -> _Forms:
  """One new token before the visual cache of some layers, one after another.

  Each layer's query is made of the output before it, as in a model; a call of
  one layer would time its dispatch.
  """
  (q, h), r = _HEADS, -(-tokens // _TOKENS)
  count = max(1, round(_CHOSEN * r))
  page = 2 * h * _TOKENS * _DIM * 2  # bytes of keys and values in bfloat16
  rng = np.random.default_rng(0)
  ids = np.stack([rng.permutation(r)[:count] for _ in range(h)])[None]
  visits = types.Visits(
    ids=jnp.asarray(ids, jnp.int32),
    rows=jnp.full((1, h, 1, count), -1),
    count=jnp.full((1, h), count),
  )
  length = jnp.full((1, r), _TOKENS)

  def dense(query, k, v, layer):
    take = lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
    k, v = (take(x).reshape(1, h, -1, _DIM).swapaxes(1, 2) for x in (k, v))
    everything = jnp.ones((1, 1, 1, 1), bool)
    return attention.attend(query, k, v, everything).out

  def listed(file):
    return lambda query, k, v, layer: (
      file.attend_pages(query, k, v, length, visits, layer=layer).out
    )

  def make(attend, shape):
    keys = jax.random.split(jax.random.key(0), 3)
    stack = (layers, 1, h, r, *shape)
    k, v = (jax.random.normal(x, stack, jnp.bfloat16) for x in keys[:2])
    query = jax.random.normal(keys[2], (1, 1, q, _DIM), jnp.bfloat16)

    @jax.jit
    def call(query, k, v):
      step = lambda query, layer: (query + attend(query, k, v, layer), None)
      return jax.lax.scan(step, query, jnp.arange(layers))[0]

    return call, (query, k, v)

  files = {cases.PLAIN: attend_pages}
  if platform == "tpu":
    files["pallas"] = attend_pages_tpu
  if platform == "cpu":
    files["cpu"] = attend_pages_cpu
  shape = lambda file: file.page_shape(_TOKENS, _DIM, jnp.bfloat16)
  of = lambda file: functools.partial(make, listed(file), shape(file))
  forms = {"dense": (r * page, functools.partial(make, dense, (_TOKENS, _DIM)))}
  return forms | {name: (count * page, of(x)) for name, x in files.items()}


def _rows(tokens: int, platform: str) -> _Forms:
  """Forward and backward of a row of visual tokens."""
  q, h = _HEADS
  layout = cases.row_layout(tokens, segments=1)
  batch = cases.ROWS
  # Queries, keys, values and their gradients, and the output and its own.
  size = 2 * (2 * q + 2 * h) * batch * tokens * _DIM * 2

  def make(file):
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [
      jax.random.normal(key, (batch, tokens, n, _DIM), jnp.bfloat16)
      for key, n in zip(keys, (q, h, h), strict=True)
    ]
    visual = (layout.role == types.Role.VISUAL)[..., None, None]

    def total(*qkv):
      out = jnp.where(visual, file.attend_visual(*qkv, layout), 0)
      return out.astype(jnp.float32).sum()

    return jax.jit(jax.grad(total, (0, 1, 2))), tuple(qkv)

  files = {cases.PLAIN: attend_visual}
  files |= {"tpu": {"pallas": attend_visual_tpu}}.get(platform, {})
  files |= {"gpu": {"cudnn": attend_visual_gpu}}.get(platform, {})
  return {n: (size, functools.partial(make, x)) for n, x in files.items()}


HEADER = (
  "operation    tokens  form          ms       bytes   bound ms   times the"
  " bound"
)


def text(row: Row) -> str:
  """A row of the table under HEADER."""
  number = lambda x: f"{'-' if x is None else f'{x:.3f}':>9s}"
  bound, ratio = row.bound_milliseconds, None
  if row.milliseconds and bound:
    ratio = row.milliseconds / bound
  out = (
    f"{row.operation:11s} {row.tokens:7,d}  {row.form:8s}"
    f" {number(row.milliseconds)} {row.bytes:11,d} {number(bound)}"
    f"   {number(ratio)}"
  )
  return out + (f"  FAILED: {row.failure}" if row.failure else "")
