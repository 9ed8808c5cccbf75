"""The numbers of a run's steps: read late, checked, averaged, logged."""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.train import checkpoint
from gaze_jax.train import flops
from gaze_jax.train import metrics


class NotFiniteError(errors.GazeError):
  """The loss or its gradient was NaN or infinite."""


@dataclasses.dataclass
class Pending:
  """A dispatched step whose numbers have not been read yet."""

  step: int  # steps done after it
  indices: np.ndarray
  values: dict[str, jax.Array]


@jax.jit
def digest(step: jax.Array, indices: jax.Array) -> jax.Array:
  """Mixes which sample is in which row of a step into uint32; see `Meter`.

  Args:
    step: int32, from 0.
    indices: uint32 [B], of the global batch.
  """
  row = jnp.arange(indices.size, dtype=jnp.uint32)
  row += step.astype(jnp.uint32) * jnp.uint32(indices.size)
  mixed = (indices + 1) * jnp.uint32(0x9E3779B1) ^ row * jnp.uint32(0x85EBCA6B)
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    mixed = (mixed ^ mixed >> shift) * jnp.uint32(factor)
  return (mixed ^ mixed >> 16).sum(dtype=jnp.uint32)


class Meter:
  """Reads the numbers of finished steps and writes means to the log.

  A mean is over the steps since the last one; those that a checkpoint falls
  between travel in it, so that a resumed run logs what a whole run would. So
  does the sum of all steps' digests of sample ids, which the log shows as
  `sample_ids`: runs that show the same have read the same samples in the same
  order up to there, on whatever mesh.
  """

  def __init__(
    self,
    train: config_lib.TrainConfig,
    writer: metrics.Writer | None,
    saved: checkpoint.Checkpoints,
    start: checkpoint.Position,
    count: flops.Count,
  ):
    self._train, self._writer, self._saved = train, writer, saved
    self._count, self._peak = count, flops.peak(train)
    self._unlogged, self._sample_ids = start.unlogged, start.sample_ids
    self._losses: list[float] = []  # since the last save
    self._mark = (time.perf_counter(), len(self._unlogged))

  def read(self, pending: Pending) -> dict[str, str]:
    """Waits for a step; returns what the progress bar shows."""
    fetched = jax.device_get(pending.values)
    ids = int(fetched.pop("sample_ids"))
    values: dict[str, Any] = {k: float(v) for k, v in fetched.items()}
    # An infinite gradient of a finite loss would end up in the parameters.
    for name in ("loss", "grad_norm"):
      if not math.isfinite(values[name]):
        good = self._saved.latest()
        raise NotFiniteError(
          f"the {name} of step {pending.step} is {values[name]}; samples"
          f" {pending.indices.tolist()}; last good checkpoint:"
          f" {'none' if good is None else f'step {good}'}"
        )
    self._sample_ids = (self._sample_ids + ids) % 2**32
    self._losses.append(values["loss"])
    self._unlogged.append(values)
    last = pending.step == self._train.steps
    if last or pending.step % self._train.log_every == 0:
      self._write(pending.step)
    return dict(loss=f"{values['loss']:.3f}", k=f"{values['k']:.1f}")

  def position(self, step: int) -> checkpoint.Position:
    """Where a run is, the numbers of `step` steps read."""
    return checkpoint.Position(step, self._sample_ids, list(self._unlogged))

  def loss_since_save(self) -> float:
    """Mean loss of the steps since this was asked last."""
    losses, self._losses = self._losses, []
    return sum(losses) / len(losses)

  def _write(self, step: int) -> None:
    steps = self._unlogged
    mean = {k: sum(v[k] for v in steps) / len(steps) for k in steps[0]}
    del mean["tokens"]
    saved = mean.pop("visual_kv_saved")
    # Speed is that of the steps taken by this process.
    started, before = self._mark
    now, mine = time.perf_counter(), steps[before:]
    mean["tokens_per_second"] = sum(v["tokens"] for v in mine) / (now - started)
    seconds = mean["seconds_per_step"] = (now - started) / len(mine)
    mean |= flops.speed(self._count, self._peak, saved, seconds)
    if self._writer:
      ids = f"{self._sample_ids:08x}"
      self._writer.write(step, mean | dict(sample_ids=ids))
    self._unlogged, self._mark = [], (now, 0)
