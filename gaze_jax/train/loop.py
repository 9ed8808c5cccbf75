"""The training loop: resume, step, log, save."""

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
from gaze_jax.train import metrics
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import schedule
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib


class NotFiniteError(errors.GazeError):
  """The loss was NaN or infinite."""


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
  first = 0
  if saved.latest() is not None:
    state, first = saved.restore(state, config)
    print(f"resuming {workdir} at step {first}")
  (workdir / "config.json").write_text(
    json.dumps(config_lib.to_dict(config), indent=2), encoding="utf-8"
  )
  source = sources.make(config, "train")
  features, frozen = None, {}
  if config.train.features == "cached":
    features = features_lib.cached(config, source, workdir / "features")
  elif config.model.vision.frozen:
    frozen = {"vision": jax.device_put(features_lib.tower(config))}
  batches = pipeline.make_iterator(
    config, source=source, features=features, start_step=first
  )
  writer = metrics.Writer(workdir, first)
  try:
    _run(config, state, first, batches, frozen, saved, writer)
  finally:
    batches.close()
    writer.close()
    saved.close()


def _run(config, state, first, batches, frozen, saved, writer) -> None:
  """Steps `first` to the end; reads a step's numbers one step late."""
  c = config.train
  step_of = step_lib.make(config, optimizer_lib.make(c))
  regions = layout.row_shape(config).regions
  meter = _Meter(c.log_every, writer, saved)
  pending: deque[_Pending] = deque()
  bar = tqdm.tqdm(
    total=c.steps, initial=first, desc="train", unit="step", mininterval=5
  )
  for step in range(first, c.steps):
    element = next(batches)
    budget = schedule.budget(
      step,
      c.batch_size,
      regions=regions,
      top_k=config.model.gaze.top_k,
      train=c,
    )
    batch, budget = jax.device_put((element["batch"], budget))
    state, values = step_of(state, batch, budget, frozen)
    pending.append(_Pending(step + 1, element["indices"], values))
    done = step + 1
    saving = done % c.save_every == 0 or done == c.steps
    # One step stays in flight, except before saving: a state is saved only
    # when its loss is known to be finite.
    while len(pending) > (0 if saving else 1):
      bar.set_postfix(meter.read(pending.popleft()), refresh=False)
      bar.update()
    if saving:
      saved.save(done, state, config)
  bar.close()


class _Meter:
  """Reads the numbers of finished steps and writes means to the log."""

  def __init__(self, every: int, writer: metrics.Writer, saved):
    self._every, self._writer, self._saved = every, writer, saved
    self._sums: list[dict[str, float]] = []
    self._start = time.perf_counter()

  def read(self, pending: _Pending) -> dict[str, str]:
    """Waits for a step; returns what the progress bar shows."""
    values: dict[str, Any] = {
      k: float(v) for k, v in jax.device_get(pending.values).items()
    }
    if not math.isfinite(values["loss"]):
      good = self._saved.latest()
      raise NotFiniteError(
        f"the loss of step {pending.step} is {values['loss']}; samples"
        f" {pending.indices.tolist()}; last good checkpoint:"
        f" {'none' if good is None else f'step {good}'}"
      )
    self._sums.append(values)
    if pending.step % self._every == 0:
      self._write(pending.step)
    return dict(loss=f"{values['loss']:.3f}", k=f"{values['k']:.1f}")

  def _write(self, step: int) -> None:
    now = time.perf_counter()
    mean = {
      k: sum(v[k] for v in self._sums) / len(self._sums) for k in self._sums[0]
    }
    tokens = mean.pop("tokens") * len(self._sums)
    mean["tokens_per_second"] = tokens / (now - self._start)
    mean["seconds_per_step"] = (now - self._start) / len(self._sums)
    self._writer.write(step, mean)
    self._sums, self._start = [], now
