"""Sizes in few steps; a count of and a bound on the programs for them."""

import functools
import gc
import inspect
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging

# Linux lets a process have 65,530 mappings (vm.max_map_count) and its compiler
# aborts at the next one. A program takes 10 to 500 of them, for as long as JAX
# keeps it, which is for ever.
MOST_MAPPINGS = 20_000
_MAPS = pathlib.Path("/proc/self/maps")


def mappings() -> int:
  """How many this process has; 0 where the system does not tell."""
  return _MAPS.read_bytes().count(b"\n") if _MAPS.exists() else 0


def _drop_if_too_many() -> None:
  """Drops all compiled programs once they take more than `MOST_MAPPINGS`.

  What is called again is compiled again, or read from JAX's cache on disk. If
  most mappings are of something else, programs get half as many beside it.
  """
  global _left
  if mappings() > max(MOST_MAPPINGS, _left + MOST_MAPPINGS // 2):
    _log_once(
      "the compiled programs are dropped whenever there are more than "
      f"{MOST_MAPPINGS} mappings, of which Linux allows a process 65,530"
    )
    jax.clear_caches()
    gc.collect()
    _left = mappings()


_left = 0  # when programs were last dropped
_log_once = functools.cache(lambda message: logging.info(message))


def bucket(size: int, least: int) -> int:
  """The first size of least * (1, 1.5, 2, 3, 4, 6, 8, ...) that is enough.

  At most a third is padding, and a process meets few sizes. `least` is even.
  """
  out = least
  while out < size:
    if 3 * out // 2 >= size:
      return 3 * out // 2
    out *= 2
  return out


class Program:
  """A jitted function that counts, logs and bounds what is compiled for it.

  Args:
    function: to be jitted; its "config", if it takes one, is static.
    name: what the log calls it, and launch/aot_check.py.
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
    if "config" in inspect.signature(function).parameters:
      static = ("config", *static)
    self._jitted = jax.jit(
      function,
      static_argnames=static,
      donate_argnames=tuple(donate),
    )
    self.name = name
    self.count = 0  # of the programs compiled for this function, ever
    self._all.append(self)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    before, start = self._jitted._cache_size(), time.perf_counter()
    out = self._jitted(*args, **kwargs)
    if self._jitted._cache_size() > before:
      self.count += 1
      logging.info(
        "program %d: %s, %.1f s",
        compiled(),
        self.name,
        time.perf_counter() - start,
      )
      _drop_if_too_many()
    return out

  def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced:
    """The program for these arguments, which may be abstract; not run."""
    return self._jitted.trace(*args, **kwargs)


def compiled() -> int:
  """How many programs were compiled in this process."""
  return sum(p.count for p in Program._all)
