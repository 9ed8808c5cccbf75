"""When a kernel can serve: None, or the reason why it can't."""

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from gaze_jax.kernels import gaze_decode
from gaze_jax.kernels import gaze_prefill


@dataclasses.dataclass(frozen=True)
class Target:
  """What programs are traced for.

  Attributes:
    platform: "tpu", "gpu" or "cpu".
    interpret: as `pl.pallas_call` takes it; simulates a TPU elsewhere.
  """

  platform: str
  interpret: Any = False


_target: contextvars.ContextVar[Target | None] = contextvars.ContextVar(
  "target", default=None
)


def target() -> Target:
  """What programs are traced for: JAX's default backend, unless told."""
  return _target.get() or Target(jax.default_backend())


@contextlib.contextmanager
def tracing_for(platform: str, interpret: Any = False) -> Iterator[None]:
  """Traces for another platform, to compile ahead of time or to simulate it.

  A function that is already jitted and traced is not traced again.
  """
  token = _target.set(Target(platform, interpret))
  try:
    yield
  finally:
    _target.reset(token)


def say(field: str, form: str, reason: str | None) -> None:
  """Logs which form serves, once for each kind of reason.

  On TPU that it is not the kernel is a warning; elsewhere none is meant to
  serve.

  Args:
    field: what was to be chosen.
    form: what was.
    reason: why the kernel can't serve, or None.
  """
  kind = re.sub(r"\d+", "", reason or "")  # sizes make no other reason
  if (field, form, kind) not in _said:
    _said.add((field, form, kind))
    fell = reason and target().platform == "tpu"
    because = f": {reason}" if reason else ""
    logging.log(
      logging.WARNING if fell else logging.INFO,
      f"{field}: auto takes {form!r}{because}",
    )


_said: set[tuple[str, str, str]] = set()


def decode(
  rows: int, shape: tuple[int, int, int, int, int], dtype: Any
) -> str | None:
  """Whether `gaze_decode` can serve.

  Args:
    rows: new tokens times query heads of a KV head.
    shape: (B, H, R, L, D) of the cache.
    dtype: of the cache.
  """
  if reason := _backend():
    return reason
  if rows > gaze_decode.MAX_ROWS:
    return (
      f"{rows} query rows of a KV head, the kernel takes {gaze_decode.MAX_ROWS}"
    )
  if reason := _dtype(dtype):
    return reason
  smem, vmem = gaze_decode.memory_bytes(
    shape, size=shape[2], dtype=dtype, rows=rows
  )
  if smem > gaze_decode.MAX_SMEM_BYTES:
    return f"lists of {shape[2]} regions take {smem} bytes of SMEM"
  if vmem > gaze_decode.MAX_VMEM_BYTES:
    return f"pages of {shape[3]} tokens take {vmem} bytes of VMEM"
  return None


def prefill(
  rows: int, group: int, length: int, dim: int, dtypes: set, gradient: str
) -> str | None:
  """Whether `gaze_prefill` can serve.

  Args:
    rows: X, routed rows of a call.
    group: G.
    length: L.
    dim: D.
    dtypes: of queries, keys and values.
    gradient: `GazeConfig.gradient`.
  """
  if reason := _backend():
    return reason
  if gradient != "none":
    return f"gradient = {gradient!r} needs a gradient into the scores"
  if len(dtypes) > 1:
    return f"queries, keys and values are of dtypes {sorted(map(str, dtypes))}"
  (dtype,) = dtypes
  if reason := _dtype(dtype):
    return reason
  if group > gaze_prefill.ROWS:
    return f"{group} query heads of a KV head, it takes {gaze_prefill.ROWS}"
  length += -length % gaze_prefill.PAGE_MULTIPLE
  vmem = gaze_prefill.vmem_bytes(
    rows, group, length, dim, jax.numpy.dtype(dtype).itemsize
  )
  if vmem > gaze_prefill.VMEM_LIMIT:
    return f"{rows} rows of head dim {dim} take {vmem} bytes of VMEM"
  return None


def _backend() -> str | None:
  platform = target().platform
  if platform == "tpu":
    return None
  return f"the backend is {platform!r}, the kernels are for TPU"


def _dtype(dtype: Any) -> str | None:
  name = jax.numpy.dtype(dtype).name
  if name in ("float32", "bfloat16"):
    return None
  return f"dtype {name} is neither float32 nor bfloat16"
