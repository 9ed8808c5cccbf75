"""The training loop: resume, step, log, save."""

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections import deque
from typing import Any

import jax
import numpy as np
import tqdm

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import layout
from gaze_jax.data import pipeline
from gaze_jax.data import sources
from gaze_jax.train import checkpoint
from gaze_jax.train import features as features_lib
from gaze_jax.train import flops
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
  workdir.

  Raises:
    NotFiniteError: with the step, the samples and the last good checkpoint.
    checkpoint.CheckpointError: the workdir belongs to another config.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  optimizer = optimizer_lib.make(config.train)
  state = state_lib.create(config, optimizer)
  saved = checkpoint.Checkpoints(workdir, keep=config.train.keep, create=True)
  with contextlib.ExitStack() as stack:
    stack.callback(saved.close)
    start = checkpoint.Restored(state, next_batch=0, unlogged=[])
    if saved.latest() is not None:
      start = saved.restore(state, config)
      print(f"resuming {workdir} at step {start.next_batch}")
    (workdir / "config.json").write_text(
      json.dumps(config_lib.to_dict(config), indent=2), encoding="utf-8"
    )
    source = sources.make(config, "train")
    features = None
    if config.train.features == "cached":
      features = features_lib.cached(config, source, workdir / "features")
    frozen = frozen_lib.load(config, pixels=features is None)
    batches = pipeline.make_iterator(
      config, source=source, features=features, start_step=start.next_batch
    )
    stack.callback(batches.close)
    writer = metrics.Writer(workdir, start.next_batch)
    stack.callback(writer.close)
    bar = stack.enter_context(
      tqdm.tqdm(
        total=config.train.steps,
        initial=start.next_batch,
        desc="train",
        unit="step",
        mininterval=5,
      )
    )
    count = flops.count(config, frozen, state.params)
    meter = _Meter(config.train, writer, saved, start.unlogged, count)
    _run(config, start, batches, frozen, saved, meter, bar)


def _run(config, start, batches, frozen, saved, meter, bar) -> None:
  """Steps to the end; reads a step's numbers one step late."""
  c, state = config.train, start.state
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
    batch, budget = jax.device_put((element["batch"], budget))
    state, values = step_of(state, batch, budget, frozen)
    pending.append(_Pending(step + 1, element["indices"], values))
    done = step + 1
    saving = done % c.save_every == 0 or done == c.steps
    # One step stays in flight, except before saving: a state is saved only
    # when its loss and gradient are known to be finite.
    while len(pending) > (0 if saving else 1):
      bar.set_postfix(meter.read(pending.popleft()), refresh=False)
      bar.update()
    if saving:
      saved.save(done, state, config, meter.unlogged)


class _Meter:
  """Reads the numbers of finished steps and writes means to the log.

  A mean is over the steps since the last one; those that a checkpoint falls
  between travel in it, so that a resumed run logs what a whole run would.

  Attributes:
    unlogged: numbers of the steps since the last mean.
  """

  def __init__(
    self,
    train: config_lib.TrainConfig,
    writer: metrics.Writer,
    saved: checkpoint.Checkpoints,
    unlogged: list[dict[str, float]],
    count: flops.Count,
  ):
    self._train, self._writer, self._saved = train, writer, saved
    self._count, self._peak = count, flops.peak(train)
    self.unlogged = unlogged
    self._mark = (time.perf_counter(), len(unlogged))

  def read(self, pending: _Pending) -> dict[str, str]:
    """Waits for a step; returns what the progress bar shows."""
    values: dict[str, Any] = {
      k: float(v) for k, v in jax.device_get(pending.values).items()
    }
    # An infinite gradient of a finite loss would end up in the parameters.
    for name in ("loss", "grad_norm"):
      if not math.isfinite(values[name]):
        good = self._saved.latest()
        raise NotFiniteError(
          f"the {name} of step {pending.step} is {values[name]}; samples"
          f" {pending.indices.tolist()}; last good checkpoint:"
          f" {'none' if good is None else f'step {good}'}"
        )
    self.unlogged.append(values)
    last = pending.step == self._train.steps
    if last or pending.step % self._train.log_every == 0:
      self._write(pending.step)
    return dict(loss=f"{values['loss']:.3f}", k=f"{values['k']:.1f}")

  def _write(self, step: int) -> None:
    steps = self.unlogged
    mean = {k: sum(v[k] for v in steps) / len(steps) for k in steps[0]}
    del mean["tokens"]
    saved = mean.pop("visual_kv_saved")
    # Speed is that of the steps taken by this process.
    started, before = self._mark
    now, mine = time.perf_counter(), steps[before:]
    mean["tokens_per_second"] = sum(v["tokens"] for v in mine) / (now - started)
    seconds = mean["seconds_per_step"] = (now - started) / len(mine)
    mean |= flops.speed(self._count, self._peak, saved, seconds)
    self._writer.write(step, mean)
    self.unlogged, self._mark = [], (now, 0)
