"""Times methods in turns, beside the speed at which memory streams."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

try:
  import torch
except ImportError:
  torch = None

_STREAM_BYTES = 256 * 2**20
_FLUSH_BYTES = 96 * 2**20  # more than a last-level cache holds
_LEAST_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Times:
  """Of one method, over the rounds, in milliseconds."""

  least: float
  median: float


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run of rounds measured.

  Attributes:
    times: by method.
    bandwidth: bytes a second that the fastest streaming read reached.
    rounds: how many there were.
  """

  times: dict[str, Times]
  bandwidth: float
  rounds: int


def write_json(file: str | None, result: dict[str, Any]) -> None:
  """Writes what was measured, if a file was asked for, and says so."""
  if file:
    text = json.dumps(result, indent=1) + "\n"
    pathlib.Path(file).write_text(text, encoding="utf-8")
    print(f"wrote {file}")


def machine() -> dict[str, Any]:
  """What a measurement depends on: the machine, and versions (None: absent)."""

  def version(name: str) -> str | None:
    try:
      return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      return None

  return dict(
    cores=os.cpu_count(),
    machine=platform.machine(),
    device=jax.devices()[0].device_kind,
    **{name: version(name) for name in ("jax", "torch", "transformers")},
  )


def in_turns(
  methods: dict[str, Callable[[], Any]], *, rounds: int, seconds: float
) -> Result:
  """Calls every method once a round, so that a busy spell hits all of them.

  Before each call an array larger than the last-level cache is read: in a
  model, the weights and the other layers' caches pass between two calls. The
  streaming read is timed in each round too: the sum of 256 MiB of float32, by
  JAX and by PyTorch if it is there, with all their threads.

  Args:
    methods: by name; each returns what must be waited for.
    rounds: at most so many rounds,
    seconds: fewer once they took so long, but three.
  """
  _warm_up(methods)
  taken = {name: [] for name in methods}
  fastest = np.inf
  start = time.perf_counter()
  done = 0
  while done < rounds:
    fastest = min(fastest, *(_timed(s) for s in _streams()))
    for name, method in methods.items():
      jax.block_until_ready(_sum(_array(_FLUSH_BYTES)))
      taken[name].append(_timed(method))
    done += 1
    if done >= _LEAST_ROUNDS and time.perf_counter() - start > seconds:
      break
  return Result(
    times={
      name: Times(least=min(t) * 1e3, median=float(np.median(t)) * 1e3)
      for name, t in taken.items()
    },
    bandwidth=_STREAM_BYTES / fastest,
    rounds=done,
  )


def _warm_up(methods: dict[str, Callable[[], Any]]) -> None:
  """Compiles, and starts the threads."""
  for method in (*methods.values(), *methods.values(), *_streams()):
    jax.block_until_ready(method())


def _timed(method: Callable[[], Any]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(method())
  return time.perf_counter() - start


_sum = jax.jit(jnp.sum)
_arrays = {}


def _array(size: int) -> jax.Array:
  if size not in _arrays:
    _arrays[size] = jax.random.uniform(jax.random.key(0), (size // 4,))
  return _arrays[size]


def _streams() -> list[Callable[[], Any]]:
  array = _array(_STREAM_BYTES)
  streams = [lambda: _sum(array)]
  if torch is not None:
    shared = torch.from_dlpack(array)
    streams.append(lambda: shared.sum())
  return streams
