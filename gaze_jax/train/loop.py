"""The training loop: resume, step, log, save.

With several processes each runs it: all step, read the same numbers and save
together; process 0 alone prints and writes what is no checkpoint.
"""

import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gaze_jax import config as config_lib
from gaze_jax import schema
from gaze_jax import storage
from gaze_jax import types
from gaze_jax import whole_file
from gaze_jax.data import mixture
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.layout import budgets
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard
from gaze_jax.runtime import profiling
from gaze_jax.train import checkpoint
from gaze_jax.train import compatibility
from gaze_jax.train import evaluation
from gaze_jax.train import features as features_lib
from gaze_jax.train import flops
from gaze_jax.train import metrics
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import pretrained
from gaze_jax.train import schedule
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib
from gaze_jax.train import wandb_run


def train(config: config_lib.Config, workdir: storage.Path) -> None:
  """Trains until `config.train.steps`, from the newest checkpoint if any.

  Leaves checkpoints, `metrics.jsonl`, `tensorboard/` and `config.json` in the
  workdir. Told to stop by SIGTERM (any process of the run), it saves after the
  step at hand and returns; the same call resumes there.

  Raises:
    metrics.NotFiniteError: a step's loss or gradient is NaN or infinite.
    checkpoint.CheckpointError: the workdir belongs to another config or other
      data, or none of its checkpoints is whole.
    mesh.MeshError: model and batch can't be laid out on the devices.
  """
  _check_features(config.train, workdir)
  mesh = mesh_lib.make_mesh(config.parallel)
  rules.check(config, dict(mesh.shape))
  pretrained.check_tokenizer(config)
  wandb_run.check(config.train)
  source = mixture.training(config)
  scored = evaluation.open_set(config, source, mesh)
  inputs = compatibility.inputs(config, source)
  workdir.mkdir(parents=True, exist_ok=True)
  first = jax.process_index() == 0
  writer = checkpoint.Writer(workdir, config.train, inputs)
  with contextlib.closing(writer) as saved:
    state, start = _resume_or_create(config, saved, mesh)
    if start.next_batch:
      before = saved.config()  # read by all processes together
      if first:
        print(f"resuming {workdir} at step {start.next_batch}")
        _print_changed_steps(before, config, start.next_batch)
    if first:
      _write_config(config, workdir)
    preempted = _run(config, workdir, source, scored, saved, state, start, mesh)
  if first and preempted:
    print(f"preempted: saved step {preempted}; run the same command to resume")


def _check_features(
  train: config_lib.TrainConfig, workdir: storage.Path
) -> None:
  several = jax.process_count() > 1
  if train.features == "cached" and several and storage.is_remote(workdir):
    raise config_lib.ConfigError(
      "config: train.features = 'cached' keeps a file that all processes map"
      f" into memory, and {workdir} is in a bucket: give a --workdir on a disk"
      " that they share, or set train.features = 'none'"
    )


@dataclasses.dataclass(frozen=True)
class _Inputs:
  """What a step reads, on the mesh.

  Attributes:
    step: its number, from 0.
    indices: int64 [b], or [b, G] of packed rows, on the host: the samples of
      this process's rows.
    batch: all rows.
    k: int32 [B] or [B, G], the budget of each.
    ids: uint32 likewise, the sample of each.
  """

  step: int
  indices: np.ndarray
  batch: types.Batch
  k: jax.Array
  ids: jax.Array


def _run(
  config: config_lib.Config,
  workdir: storage.Path,
  source: samples.Source,
  scored: evaluation.EvalSet | None,
  saved: checkpoint.Writer,
  state: state_lib.TrainState,
  start: checkpoint.Position,
  mesh: jax.sharding.Mesh,
) -> int | None:
  """Steps to the end; or to a preemption, and returns that step."""
  c, features = config.train, None
  kept = storage.near(workdir) / "features"
  if c.features == "cached":
    features = features_lib.cached(config, source, kept)
  frozen = pretrained.load_frozen(config, pixels=features is None, mesh=mesh)
  score = scored and evaluation.make(
    scored, config, features, kept, frozen, mesh
  )
  batches = pipeline.make_iterator(
    config,
    source=source,
    features=features,
    start_step=start.next_batch,
    held=shard.local_rows(mesh, c.batch_size).tolist(),
  )
  with contextlib.ExitStack() as stack:
    stack.callback(batches.close)
    count = flops.count(config, frozen, state.params)
    read = mixture.samples_read(config, source)
    mirror = storage.Mirror(
      workdir, metrics.FILES, writes=jax.process_index() == 0
    )
    stack.callback(mirror.close)
    log = metrics.Log(mirror.folder, config, saved, start, count, read)
    stack.callback(log.close)
    compiled = step_lib.make(config, optimizer_lib.make(c), mesh)
    stack.enter_context(jax.set_mesh(mesh))
    trace = profiling.StepTrace(
      mirror.folder / "profile", _traced(c, start.next_batch)
    )
    stack.enter_context(trace)
    return _loop(
      config,
      state,
      inputs=_on_mesh(config, batches, start.next_batch, mesh),
      step_of=lambda state, batch, k: compiled(state, batch, k, frozen),
      score=score,
      trace=trace,
      log=log,
      mirror=mirror,
      saved=saved,
    )


def _loop(
  config: config_lib.Config,
  state: state_lib.TrainState,
  *,
  inputs: Iterator[_Inputs],
  step_of: Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]],
  score: evaluation.Score | None,
  trace: profiling.StepTrace,
  log: metrics.Log,
  mirror: storage.Mirror,
  saved: checkpoint.Writer,
) -> int | None:
  """Steps, scores, logs and saves with what `_run` opened; returns as it."""
  c = config.train
  pending = collections.deque()  # dispatched, and not read yet
  for given in inputs:
    done, scores = given.step + 1, {}
    if trace.changes(given.step):
      jax.block_until_ready(state)
      with log.paused():
        trace.change(given.step)
    # What a step needs is on the mesh: an array that is not is an error here,
    # and no copy in every step.
    with (
      jax.transfer_guard("disallow"),
      jax.profiler.StepTraceAnnotation("train", step_num=done),
    ):
      digest = metrics.digest(state.step, given.ids)
      state, numbers = step_of(state, given.batch, given.k)
    numbers["sample_ids"] = digest
    if score and (done % c.eval_every == 0 or done == c.steps):
      jax.block_until_ready(numbers)
      with log.paused():
        scores = score(state)
    pending.append((done, given.indices, numbers, scores))
    # All processes ask after each step, and are told at the same one.
    stop = multihost_utils.reached_preemption_sync_point(done)
    saving = stop or done % c.save_every == 0 or done == c.steps
    # One step stays in flight, except before saving: a state is saved only
    # when its loss and gradient are known to be finite.
    while len(pending) > (0 if saving else 1):
      log.read(*pending.popleft())
    if saving:
      position = log.position(done)
      saved.save(position, state, config, loss=log.loss_since_save())
      mirror.copy()
    if stop:
      return done
  return None


def _on_mesh(
  config: config_lib.Config,
  batches: Iterator[dict[str, Any]],
  first: int,
  mesh: jax.sharding.Mesh,
) -> Iterator[_Inputs]:
  """The inputs of each step from `first` on."""
  c, rows = config.train, shard.local_rows(mesh, config.train.batch_size)
  dense, final = budgets.of_config(config)
  for step in range(first, c.steps):
    element = next(batches)
    ids = element["indices"].astype(np.uint32)
    if config.data.packing != "none":
      dense = np.zeros((c.batch_size, config.data.segments), np.int32)
      dense[rows] = budgets.of_segments(
        config.model.gaze, element["batch"], config.data.segments
      )
    k = schedule.budget(step, c.batch_size, dense=dense, final=final, train=c)
    local = (element["batch"], k[rows], ids)
    arrays = shard.put_rows(local, rows, c.batch_size, mesh)
    yield _Inputs(step, element["indices"], *arrays)


def _traced(train: config_lib.TrainConfig, first: int) -> range:
  """The steps of a run from `first` on that `train.profile_steps` names."""
  begin = train.profile_from - 1
  return range(max(begin, first), begin + train.profile_steps)


def _resume_or_create(
  config: config_lib.Config,
  saved: checkpoint.Writer,
  mesh: jax.sharding.Mesh,
) -> tuple[state_lib.TrainState, checkpoint.Position]:
  """The newest state of the workdir, or a new one."""
  optimizer = optimizer_lib.make(config.train)
  if saved.latest() is None:
    return state_lib.create(config, optimizer, mesh), checkpoint.Position()
  return saved.restore(state_lib.abstract(config, optimizer, mesh), config)


def _print_changed_steps(
  before: config_lib.Config, now: config_lib.Config, done: int
) -> None:
  """What another `train.steps` does to the schedules of a run."""
  old, new = before.train, now.train
  if old.steps == new.steps:
    return
  dense, final = budgets.of_config(now)
  at = lambda train: (
    float(optimizer_lib.learning_rate(train)(done)),
    int(schedule.budget(done, 1, dense=dense, final=final, train=train)[0]),
  )
  (rate, k), (new_rate, new_k) = at(old), at(new)
  print(
    f"train.steps: {old.steps} -> {new.steps}, and the schedules follow from"
    f" here on, as if the run had been planned so: at step {done} the learning"
    f" rate goes from {rate:.3g} to {new_rate:.3g}, K from {k} to {new_k}"
  )


def _write_config(config: config_lib.Config, workdir: storage.Path) -> None:
  """Writes `config.json`; a kill leaves the old one or the new one."""
  content = schema.stamp("run") | config_lib.to_dict(config)
  whole_file.write(workdir / "config.json", json.dumps(content, indent=2))
