"""Sizes in few steps, and a count of the programs compiled for them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging


def up(size: int, least: int) -> int:
  """The first of least * (1, 1.5, 2, 3, 4, 6, 8, ...) that is enough.

  At most a third is padding, and a process meets few sizes. `least` is even.
  """
  bucket = least
  while bucket < size:
    if 3 * bucket // 2 >= size:
      return 3 * bucket // 2
    bucket *= 2
  return bucket


class Program:
  """A jitted function that counts and logs what is compiled for it.

  Args:
    function: to be jitted; "config" is static.
    name: what the log calls it.
    static: further static arguments.
    donate: arguments that its result is written into.
  """

  _all: list["Program"] = []

  def __init__(
    self,
    function: Callable[..., Any],
    name: str,
    *,
    static: Sequence[str] = (),
    donate: Sequence[str] = (),
  ):
    self._jitted = jax.jit(
      function,
      static_argnames=("config", *static),
      donate_argnames=tuple(donate),
    )
    self._name = name
    self._all.append(self)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    before, start = self.count, time.perf_counter()
    out = self._jitted(*args, **kwargs)
    if self.count > before:
      logging.info(
        "program %d: %s, %.1f s",
        compiled(),
        self._name,
        time.perf_counter() - start,
      )
    return out

  @property
  def count(self) -> int:
    """Programs compiled for this function."""
    return self._jitted._cache_size()


def compiled() -> int:
  """Programs that the engine has compiled in this process."""
  return sum(p.count for p in Program._all)
