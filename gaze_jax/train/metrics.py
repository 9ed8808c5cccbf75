"""The numbers of a run's steps: read late, checked, averaged, written."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import whole_file
from gaze_jax.train import checkpoint
from gaze_jax.train import flops
from gaze_jax.train import wandb_run

NUMBERS = "metrics.jsonl"
# What a run that resumes goes on with, in its workdir.
FILES = (NUMBERS, wandb_run.IDENTITY)


class NotFiniteError(errors.GazeError):
  """A step's loss or gradient is NaN or infinite.

  Names the step, its samples and the last good checkpoint.
  """


@jax.jit
def digest(step: jax.Array, indices: jax.Array) -> jax.Array:
  """Mixes which sample is in which row of a step into uint32; see `Log`.

  Args:
    step: int32, from 0.
    indices: uint32 [B] or [B, G], of the global batch.
  """
  indices = indices.reshape(-1)
  row = jnp.arange(indices.size, dtype=jnp.uint32)
  row += step.astype(jnp.uint32) * jnp.uint32(indices.size)
  mixed = (indices + 1) * jnp.uint32(0x9E3779B1) ^ row * jnp.uint32(0x85EBCA6B)
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    mixed = (mixed ^ mixed >> shift) * jnp.uint32(factor)
  return (mixed ^ mixed >> 16).sum(dtype=jnp.uint32)


class Log:
  """Reads the numbers of finished steps and writes means of them.

  A mean is over the steps since the last one; those that a checkpoint falls
  between are kept in it, so that a resumed run logs what a whole run would. So
  is the sum of all steps' digests of sample ids, which the log shows as
  `sample_ids`: runs that show the same have read the same samples in the same
  order up to there, on whatever mesh.

  Every process reads, and finds the same; process 0 alone writes and shows a
  progress bar.

  Args:
    workdir: of the run, on this machine.
    config: of the run.
    saved: its checkpoints.
    start: where it is.
    count: of its operations.
    samples_read: what is logged of the samples of the first steps, by name.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    config: config_lib.Config,
    saved: checkpoint.Checkpoints,
    start: checkpoint.Position,
    count: flops.Count,
    samples_read: Callable[[int], dict[str, int]] = lambda done: {},
  ):
    first, train = jax.process_index() == 0, config.train
    self._train, self._saved = train, saved
    self._count, self._peak = count, flops.peak(train)
    self._samples_read = samples_read
    self._unlogged, self._sample_ids = start.unlogged, start.sample_ids
    self._losses: list[float] = []  # since the last save
    self._mark = (time.perf_counter(), len(self._unlogged))
    self._writers: list[wandb_run.WandbRun | LogWriter] = []
    if first and train.wandb:
      self._writers.append(wandb_run.WandbRun(workdir, config))
    if first:
      self._writers.append(LogWriter(workdir, start.next_batch))
    self._scores: dict[str, float] = {}  # the last ones, for the bar
    self._bar = tqdm.tqdm(
      total=train.steps,
      initial=start.next_batch,
      desc="train",
      unit="step",
      mininterval=5,
      disable=not first,
    )

  def read(
    self,
    done: int,
    indices: np.ndarray,
    numbers: dict[str, jax.Array],
    scores: dict[str, float],
  ) -> None:
    """Waits for a step, and logs if it is time to.

    Args:
      done: steps done after it.
      indices: int [b] or [b, G], samples of this process's rows.
      numbers: float32 scalars, and uint32 `sample_ids`, from `digest`.
      scores: of an evaluation after it, at a step that is logged; or none.

    Raises:
      NotFiniteError: its loss or gradient is not.
    """
    fetched = jax.device_get(numbers)
    ids = int(fetched.pop("sample_ids"))
    values = {name: float(x) for name, x in fetched.items()}
    # An infinite gradient of a finite loss would end up in the parameters.
    for name in ("loss", "grad_norm"):
      if not math.isfinite(values[name]):
        good = self._saved.latest()
        raise NotFiniteError(
          f"the {name} of step {done} is {values[name]}; samples"
          f" {indices.tolist()}; last good checkpoint:"
          f" {'none' if good is None else f'step {good}'}"
        )
    self._sample_ids = (self._sample_ids + ids) % 2**32
    self._losses.append(values["loss"])
    self._unlogged.append(values)
    if done == self._train.steps or done % self._train.log_every == 0:
      self._write(done, scores)
    self._scores |= scores
    shown = dict(loss=f"{values['loss']:.3f}", k=f"{values['k']:.1f}")
    shown |= {name: f"{score:.3f}" for name, score in self._scores.items()}
    self._bar.set_postfix(shown, refresh=False)
    self._bar.update()

  def position(self, done: int) -> checkpoint.Position:
    """Where a run is, the numbers of `done` steps read."""
    return checkpoint.Position(done, self._sample_ids, list(self._unlogged))

  def loss_since_save(self) -> float:
    """Mean loss of the steps since this was asked last."""
    losses, self._losses = self._losses, []
    return sum(losses) / len(losses)

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Within it time passes that is not the steps'."""
    began = time.perf_counter()
    yield
    started, before = self._mark
    self._mark = (started + time.perf_counter() - began, before)

  def close(self) -> None:
    """Ends the bar, and closes the files."""
    self._bar.close()
    for writer in self._writers:
      writer.close()

  def _write(self, done: int, scores: dict[str, float]) -> None:
    steps = self._unlogged
    mean = {k: sum(v[k] for v in steps) / len(steps) for k in steps[0]}
    del mean["tokens"]
    kv_saved = mean.pop("visual_kv_saved")
    # Speed is that of the steps taken by this process.
    started, before = self._mark
    now, mine = time.perf_counter(), steps[before:]
    mean["tokens_per_second"] = sum(v["tokens"] for v in mine) / (now - started)
    seconds = mean["seconds_per_step"] = (now - started) / len(mine)
    mean |= flops.speed(self._count, self._peak, kv_saved, seconds)
    mean |= scores | dict(sample_ids=f"{self._sample_ids:08x}")
    mean |= self._samples_read(done)
    for writer in self._writers:
      writer.write(done, mean)
    self._unlogged, self._mark = [], (now, 0)


class LogWriter:
  """Appends a line a step to `metrics.jsonl`, and the same to TensorBoard.

  After a resume the lines past the resumed step are dropped first, so that the
  file reads as that of an uninterrupted run.

  Args:
    workdir: where both are kept.
    done: steps done; lines of later ones are dropped.
  """

  def __init__(self, workdir: pathlib.Path, done: int):
    path = workdir / NUMBERS
    if path.exists():
      _drop_later(path, done)
    self._file = path.open("a", encoding="utf-8")
    from tensorboardX import event_file_writer  # torch, if there: seconds

    # The library's usual writer is a thread with a queue; when a full disk or a
    # clock set back ends that thread, a run waits for it for ever. Without it
    # an error is one.
    self._event = event_file_writer.event_pb2.Event
    folder = workdir / "tensorboard"
    folder.mkdir(exist_ok=True)
    self._board = event_file_writer.EventsWriter(
      str(folder / "events"), f".{os.getpid()}"
    )

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Writes plain numbers, and strings to the file alone, by their names."""
    self._file.write(json.dumps(dict(step=step, **values)) + "\n")
    self._file.flush()
    event = self._event(wall_time=time.time(), step=step)
    for name, value in values.items():
      if not isinstance(value, str):
        event.summary.value.add(tag=name, simple_value=value)
    self._board.write_event(event)
    self._board.flush()

  def close(self) -> None:
    """Closes both files."""
    self._file.close()
    self._board.close()


def _drop_later(path: pathlib.Path, done: int) -> None:
  kept = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      if json.loads(line)["step"] <= done:
        kept.append(line + "\n")
    except (json.JSONDecodeError, KeyError, TypeError):
      continue  # the torn last line of a killed run
  whole_file.write(path, "".join(kept))
