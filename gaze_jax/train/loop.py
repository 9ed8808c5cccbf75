"""The training loop: resume, step, log, save.

With several processes each runs it: all step, read the same numbers and save
together; process 0 alone prints and writes what is no checkpoint.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import layout
from gaze_jax.data import pipeline
from gaze_jax.data import sources
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.train import checkpoint
from gaze_jax.train import features as features_lib
from gaze_jax.train import frozen as frozen_lib
from gaze_jax.train import metrics
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import schedule
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib


class NotFiniteError(errors.GazeError):
  """The loss or its gradient was NaN or infinite."""


@dataclasses.dataclass
class _Pending:
  """A dispatched step whose numbers have not been read yet."""

  step: int  # steps done after it
  indices: np.ndarray
  values: dict[str, jax.Array]


def train(config: config_lib.Config, workdir: pathlib.Path) -> None:
  """Trains until `config.train.steps`, from the newest checkpoint if any.

  Leaves checkpoints, `metrics.jsonl`, `tensorboard/` and `config.json` in the
  workdir. Told to stop by SIGTERM (any process of the run), it saves after the
  step at hand and returns; the same call goes on from there.

  Raises:
    NotFiniteError: with the step, the samples and the last good checkpoint.
    checkpoint.CheckpointError: the workdir belongs to another config, or none
      of its checkpoints is whole.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  first = jax.process_index() == 0
  mesh = mesh_lib.one_device()
  saved = checkpoint.Writer(workdir, config.train)
  with contextlib.ExitStack() as stack:
    stack.callback(saved.close)
    source = sources.make(config, "train")
    state, start = _start(config, mesh, saved, len(source))
    if first and start.next_batch:
      print(f"resuming {workdir} at step {start.next_batch}")
    if first:
      (workdir / "config.json").write_text(
        json.dumps(config_lib.to_dict(config), indent=2), encoding="utf-8"
      )
    features = None
    if config.train.features == "cached":
      features = features_lib.cached(config, source, workdir / "features")
    frozen = frozen_lib.load(config, pixels=features is None)
    batches = pipeline.make_iterator(
      config, source=source, features=features, start_step=start.next_batch
    )
    stack.callback(batches.close)
    writer = metrics.Writer(workdir, start.next_batch) if first else None
    if writer:
      stack.callback(writer.close)
    bar = stack.enter_context(
      tqdm.tqdm(
        total=config.train.steps,
        initial=start.next_batch,
        desc="train",
        unit="step",
        mininterval=5,
        disable=not first,
      )
    )
    meter = _Meter(config.train, writer, saved, start)
    stopped = _run(config, state, start, batches, frozen, saved, meter, bar)
  if first and stopped is not None:
    print(f"preempted: saved step {stopped}; run the same command to go on")


def _start(
  config: config_lib.Config,
  mesh: jax.sharding.Mesh,
  saved: checkpoint.Writer,
  samples: int,
) -> tuple[state_lib.TrainState, checkpoint.Position]:
  """The state that comes first, new or from the newest checkpoint."""
  optimizer = optimizer_lib.make(config.train)
  if saved.latest() is None:
    state = state_lib.create(config, optimizer, mesh)
    return state, checkpoint.Position(samples=samples)
  like = state_lib.abstract(config, optimizer, mesh)
  state, start = saved.restore(like, config)
  if start.samples != samples:
    raise checkpoint.CheckpointError(
      f"trained on {start.samples} samples, and now there are {samples}: the"
      " batches would be others. Put the data back as it was, or choose"
      " another --workdir"
    )
  return state, start


def _run(
  config, state, start, batches, frozen, saved, meter, bar
) -> int | None:
  """Steps to the end, or to where it is told to stop, and returns that step.

  Reads a step's numbers one step late.
  """
  c = config.train
  step_of = step_lib.make(config, optimizer_lib.make(c))
  dense, trained = layout.budgets(config)
  pending: deque[_Pending] = deque()
  for step in range(start.next_batch, c.steps):
    element = next(batches)
    budget = schedule.budget(
      step,
      c.batch_size,
      dense=dense,
      final=trained,
      train=c,
    )
    batch, budget, indices = jax.device_put(
      (element["batch"], budget, element["indices"].astype(np.uint32))
    )
    state, values = step_of(state, batch, budget, frozen)
    values["sample_ids"] = _digest(step, indices)
    pending.append(_Pending(step + 1, element["indices"], values))
    done = step + 1
    # All processes ask after each step, and are told at the same one.
    stop = multihost_utils.reached_preemption_sync_point(done)
    saving = stop or done % c.save_every == 0 or done == c.steps
    # One step stays in flight, except before saving: a state is saved only
    # when its loss and gradient are known to be finite.
    while len(pending) > (0 if saving else 1):
      bar.set_postfix(meter.read(pending.popleft()), refresh=False)
      bar.update()
    if saving:
      position = meter.position(done)
      saved.save(position, state, config, loss=meter.loss_since_save())
    if stop:
      return done
  return None


@jax.jit
def _digest(step: jax.Array, indices: jax.Array) -> jax.Array:
  """Mixes which sample is in which row of a step into uint32; see `_Meter`.

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


class _Meter:
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
  ):
    self._train, self._writer, self._saved = train, writer, saved
    self._samples = start.samples
    self._unlogged, self._sample_ids = start.unlogged, start.sample_ids
    self._losses: list[float] = []  # since the last save
    self._mark = (time.perf_counter(), len(self._unlogged))

  def read(self, pending: _Pending) -> dict[str, str]:
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
    """Where the run is once the numbers of `step` steps are read."""
    return checkpoint.Position(
      step, self._samples, self._sample_ids, list(self._unlogged)
    )

  def loss_since_save(self) -> float:
    """Mean loss of the steps since this was asked last."""
    losses, self._losses = self._losses, []
    return sum(losses) / len(losses)

  def _write(self, step: int) -> None:
    steps = self._unlogged
    mean = {k: sum(v[k] for v in steps) / len(steps) for k in steps[0]}
    del mean["tokens"]
    # Speed is that of the steps taken by this process.
    started, before = self._mark
    now, mine = time.perf_counter(), steps[before:]
    mean["tokens_per_second"] = sum(v["tokens"] for v in mine) / (now - started)
    mean["seconds_per_step"] = (now - started) / len(mine)
    if self._writer:
      ids = f"{self._sample_ids:08x}"
      self._writer.write(step, mean | dict(sample_ids=ids))
    self._unlogged, self._mark = [], (now, 0)
