"""The training loop: resume, step, log, save.

With several processes each runs it: all step, read the same numbers and save
together; process 0 alone prints and writes what is no checkpoint.
"""

import contextlib
import json
import os
import pathlib
from collections import deque

import jax
import tqdm
from jax.experimental import multihost_utils

from gaze_jax import config as config_lib
from gaze_jax import schema
from gaze_jax.data import sources
from gaze_jax.layout import budgets
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.train import checkpoint
from gaze_jax.train import feed as feed_lib
from gaze_jax.train import flops
from gaze_jax.train import meter as meter_lib
from gaze_jax.train import metrics
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import provenance
from gaze_jax.train import schedule
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib
from gaze_jax.train import words


def train(config: config_lib.Config, workdir: pathlib.Path) -> None:
  """Trains until `config.train.steps`, from the newest checkpoint if any.

  Leaves checkpoints, `metrics.jsonl`, `tensorboard/` and `config.json` in the
  workdir. Told to stop by SIGTERM (any process of the run), it saves after the
  step at hand and returns; the same call goes on from there.

  Raises:
    meter.NotFiniteError: with the step, the samples and the last good
      checkpoint.
    checkpoint.CheckpointError: the workdir belongs to another config or other
      data, or none of its checkpoints is whole.
    mesh.MeshError: model and batch can't be laid on the devices.
  """
  mesh = mesh_lib.make_mesh(config.parallel)
  rules.check(config, dict(mesh.shape))
  words.check(config)
  source = sources.make(config, "train")
  inputs = provenance.inputs(config, source)
  workdir.mkdir(parents=True, exist_ok=True)
  first = jax.process_index() == 0
  saved = checkpoint.Writer(workdir, config.train, inputs)
  with contextlib.ExitStack() as stack:
    stack.callback(saved.close)
    state, start = _start(config, saved, mesh)
    before = saved.config() if start.next_batch else config  # all at once
    if first:
      if start.next_batch:
        print(f"resuming {workdir} at step {start.next_batch}")
        _tell_steps(before, config, start.next_batch)
      _write_config(config, workdir)
    feed = stack.enter_context(
      feed_lib.open_feed(config, source, workdir, start, mesh)
    )
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
    count = flops.count(config, feed.frozen, state.params)
    meter = meter_lib.Meter(config.train, writer, saved, start, count)
    stack.enter_context(jax.set_mesh(mesh))
    stopped = _run(config, state, start, feed, saved, meter, bar)
  if first and stopped is not None:
    print(f"preempted: saved step {stopped}; run the same command to go on")


def _start(
  config: config_lib.Config,
  saved: checkpoint.Writer,
  mesh: jax.sharding.Mesh,
) -> tuple[state_lib.TrainState, checkpoint.Position]:
  """The newest state of the workdir, or a new one."""
  optimizer = optimizer_lib.make(config.train)
  if saved.latest() is None:
    return state_lib.create(config, optimizer, mesh), checkpoint.Position()
  return saved.restore(state_lib.abstract(config, optimizer, mesh), config)


def _tell_steps(
  before: config_lib.Config, now: config_lib.Config, done: int
) -> None:
  """Says what another train.steps does to the schedules of a run."""
  old, new = before.train, now.train
  if old.steps == new.steps:
    return
  dense, final = budgets.of_config(now)
  numbers = [
    (
      float(optimizer_lib.learning_rate(train)(done)),
      int(schedule.budget(done, 1, dense=dense, final=final, train=train)[0]),
    )
    for train in (old, new)
  ]
  (rate, k), (new_rate, new_k) = numbers
  print(
    f"train.steps: {old.steps} -> {new.steps}, and the schedules follow from"
    f" here on, as if the run had been planned so: at step {done} the learning"
    f" rate goes from {rate:.3g} to {new_rate:.3g}, K from {k} to {new_k}"
  )


def _write_config(config: config_lib.Config, workdir: pathlib.Path) -> None:
  partial = workdir / "config.json.partial"
  said = schema.mark("run") | config_lib.to_dict(config)
  text = json.dumps(said, indent=2)
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, workdir / "config.json")


def _run(config, state, start, feed, saved, meter, bar) -> int | None:
  """Steps to the end, or to where it is told to stop, and returns that step.

  Reads a step's numbers one step late.
  """
  c = config.train
  step_of = step_lib.make(config, optimizer_lib.make(c), feed.mesh)
  pending: deque[meter_lib.Pending] = deque()
  for done in range(start.next_batch + 1, c.steps + 1):
    batch, budget, numbers, mine = feed.next(done - 1)
    state, values = step_of(state, batch, budget, feed.frozen)
    values["sample_ids"] = meter_lib.digest(done - 1, numbers)
    pending.append(meter_lib.Pending(done, mine, values))
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
