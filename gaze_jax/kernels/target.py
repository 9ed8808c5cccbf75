"""The platform that programs are traced for."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Target:
  """What programs are traced for.

  Attributes:
    platform: "tpu", "gpu" or "cpu".
    interpret: as `pl.pallas_call` takes it; simulates the platform elsewhere.
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


def other_than(platform: str) -> str | None:
  """Why a form of one platform does not serve; None where it is the target."""
  current = target().platform
  if current == platform:
    return None
  return f"the backend is {current!r}, the form is for {platform!r}"


def always(**sizes) -> None:
  """`supported` of an oracle, which serves everything."""
  del sizes


def unknown_dtype(dtype: Any) -> str | None:
  """Why a Pallas kernel does not take a dtype; None where it does."""
  name = jax.numpy.dtype(dtype).name
  if name in ("float32", "bfloat16"):
    return None
  return f"dtype {name} is neither float32 nor bfloat16"
