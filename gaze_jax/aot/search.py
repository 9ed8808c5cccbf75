"""What makes a training step fit: other settings, cheapest first.

A step that does not fit is tried with

  1. parameters sharded over more devices (fsdp), from where what is held takes
     a quarter of the memory, as far as widths and rows allow;
  2. more run again in the backward pass: decoder.remat, then the tower's;
  3. smaller micro-batches: train.accumulation, doubled each time.

Only what arithmetic does not rule out is compiled: the parts that are held
anyway, parameters, optimizer and gradients.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from gaze_jax import config as config_lib
from gaze_jax.aot import arithmetic
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules

# Of the decoder; those that run more again come later.
REMAT = ("none", "dots", "attention", "full")


def settings(
  config: config_lib.Config, devices: int, limit: int
) -> Iterator[config_lib.Config]:
  """The config itself, then with what is tried, in that order."""
  if _is_possible(config, devices):
    yield config
  meshes = [config.parallel, *_meshes(config, devices, limit)]
  for parallel, accumulation, remat in itertools.product(
    meshes, _accumulations(config), _remats(config)
  ):
    changed = _with(config, parallel, accumulation, *remat)
    if changed != config and _is_possible(changed, devices):
      yield changed


def find(
  config: config_lib.Config,
  devices: int,
  limit: int,
  compiled: Callable[[config_lib.Config], Any],
) -> list[Any]:
  """Reports of what was compiled, the one that fits last, if there is one.

  Args:
    config: of the run.
    devices: how many there are.
    limit: bytes of each.
    compiled: gives the report of a config's training step.

  Raises:
    mesh_lib.MeshError: no setting fits so many devices; with the reason of
      the config's own.
  """
  reports, any_possible = [], False
  for changed in settings(config, devices, limit):
    any_possible = True
    if _fixed_bytes(changed, devices) > limit:
      continue
    reports.append(compiled(changed))
    if reports[-1].fits:
      break
  if not any_possible:
    rules.check(config, mesh_lib.axis_sizes(config.parallel, devices))
  return reports


def difference(one: config_lib.Config, other: config_lib.Config) -> str:
  """What to change, as flags of a command; "" for nothing."""
  flags = []

  def walk(a: Any, b: Any, path: str) -> None:
    for key, value in a.items():
      if isinstance(value, dict):
        walk(value, b[key], f"{path}.{key}")
      elif value != b[key]:
        flags.append(f"--{path}.{key}={b[key]}")

  walk(config_lib.to_dict(one), config_lib.to_dict(other), "config")
  return " ".join(flags)


def _is_possible(config: config_lib.Config, devices: int) -> bool:
  """Whether the mesh and the micro-batches divide what they must."""
  try:
    rules.check(config, mesh_lib.axis_sizes(config.parallel, devices))
  except mesh_lib.MeshError:
    return False
  return config.train.batch_size % config.train.accumulation == 0


def _fixed_bytes(config: config_lib.Config, devices: int) -> int:
  """Bytes of a device that no remat and no micro-batch makes fewer."""
  sizes = mesh_lib.axis_sizes(config.parallel, devices)
  parts = arithmetic.estimate(config, sizes)
  return sum(parts.values()) - parts["activations"]


def _meshes(
  config: config_lib.Config, devices: int, limit: int
) -> Iterator[config_lib.ParallelConfig]:
  """fsdp doubled; the rest of the rows over data."""
  fsdp = config.parallel.fsdp * 2
  while fsdp <= devices:
    changed = _fsdp(config, fsdp)
    last = not _is_possible(_fsdp(changed, 2 * fsdp), devices)
    if _is_possible(changed, devices):
      if last or _fixed_bytes(changed, devices) < limit / 4:
        yield changed.parallel
    fsdp *= 2


def _fsdp(config: config_lib.Config, fsdp: int) -> config_lib.Config:
  parallel = dataclasses.replace(config.parallel, data=-1, fsdp=fsdp)
  return dataclasses.replace(config, parallel=parallel)


def _accumulations(config: config_lib.Config) -> Iterator[int]:
  n = config.train.accumulation
  while n <= config.train.batch_size:
    yield n
    n *= 2


def _remats(config: config_lib.Config) -> Iterator[tuple[str, str]]:
  """(decoder's, tower's), from what the config has on."""
  model = config.model
  own = REMAT.index(model.decoder.remat)
  for remat in REMAT[own:]:
    yield remat, model.vision.remat
  if model.vision.remat == "none" and not model.vision.frozen:
    yield "full", "full"


def _with(
  config: config_lib.Config,
  parallel: config_lib.ParallelConfig,
  accumulation: int,
  remat: str,
  vision_remat: str,
) -> config_lib.Config:
  model = config.model
  model = dataclasses.replace(
    model,
    decoder=dataclasses.replace(model.decoder, remat=remat),
    vision=dataclasses.replace(model.vision, remat=vision_remat),
  )
  train = dataclasses.replace(config.train, accumulation=accumulation)
  return dataclasses.replace(
    config, model=model, train=train, parallel=parallel
  )
