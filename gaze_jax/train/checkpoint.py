"""Checkpoints: state, data position, config and code, in one atomic step.

A step is a directory of four parts and a manifest (`train/manifest.py`):

    200/params  state  data  meta  manifest.json

`params` are apart from the rest of the state: whoever wants nothing else
neither reads nor checks the optimizer's. A step that is not whole is named and
passed over for the newest that is; a run that resumes sets it aside as
`200.damaged`, and nothing here ever writes over it or deletes it.
"""

import contextlib
import dataclasses
import functools
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import schema
from gaze_jax import storage
from gaze_jax.train import compatibility
from gaze_jax.train import manifest
from gaze_jax.train import state as state_lib

_NONE, _REFUSED = -1, -2  # in place of a step
_COMMITTED = "commit_success.txt"  # orbax's, of a step in a bucket
_WIDEST = 4  # bytes of an element of a parameter on disk


class CheckpointError(errors.GazeError):
  """A checkpoint that is not there, or does not belong to this run."""


@dataclasses.dataclass(frozen=True)
class Position:
  """Where a run is in its data and its log.

  Attributes:
    next_batch: number of the batch that comes first; steps done.
    sample_ids: digest of the ids of all samples so far; see `metrics.Log`.
    unlogged: numbers of steps whose mean has not been logged yet.
  """

  next_batch: int = 0
  sample_ids: int = 0
  unlogged: list[dict[str, float]] = dataclasses.field(default_factory=list)


class Checkpoints:
  """The checkpoints of one workdir, under `checkpoints/`, to read.

  It stays with the step it has found first. With several processes all of them
  must call the same methods.

  Raises:
    CheckpointError: there are none.
  """

  # What must be whole.
  _parts: tuple[str, ...] = ("params", "meta")

  def __init__(self, workdir: storage.Path):
    self._path = storage.absolute(workdir) / "checkpoints"
    self._latest: int | None = None
    if not self._path.is_dir():
      raise CheckpointError(
        f"{workdir}: no checkpoints here; train first with"
        " `python launch/train.py --config=... --workdir=...`"
      )

  def latest(self) -> int | None:
    """The newest step that is whole; None if there is no step at all.

    Raises:
      CheckpointError: none is whole, or one is of a schema unknown here.
    """
    if self._latest is None:
      self._latest = self._find()
    return self._latest

  def config(self) -> config_lib.Config:
    """That of the newest checkpoint, but for what a run is free to change."""
    saved = config_lib.of_saved(self._json("meta")["config"])
    return compatibility.latest_config(saved, self._path.parent / "config.json")

  def check_inputs(
    self,
    inputs: compatibility.Inputs,
    config: config_lib.Config,
    saved: compatibility.Inputs | None = None,
  ) -> None:
    """Refuses other inputs than those of the newest checkpoint, by name.

    Args:
      inputs: of `compatibility.inputs`, some or all.
      config: what they are read by.
      saved: the checkpoint's, where they are at hand.

    Raises:
      CheckpointError: naming the field, what was there and what is now.
    """
    saved = self._json("meta").get("inputs", {}) if saved is None else saved
    if others := compatibility.input_differences(saved, inputs, config):
      raise CheckpointError(
        f"{self._path.parent}: trained with other contents:"
        f" {'; '.join(others)}. Put them back as they were or choose another"
        " --workdir"
      )

  def shapes(self) -> Any:
    """The tree of the newest parameters, of `jax.ShapeDtypeStruct`s."""
    handler = ocp.StandardCheckpointHandler()
    tree = handler.metadata(self._folder() / "params").tree
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

  def params(self, like: Any = None) -> Any:
    """The newest parameters; nothing else is read from disk.

    Args:
      like: their tree with `jax.ShapeDtypeStruct`s that have shardings, on
        whatever mesh; None for numpy arrays, whole on this host.
    """
    if like is not None:
      # What is on its way from disk to devices, beside what is there.
      most = max((x.size * _WIDEST for x in jax.tree.leaves(like)), default=0)
      handler = ocp.StandardCheckpointHandler(
        restore_concurrent_gb=1 + most // 10**9
      )
      return self._read("params", handler, ocp.args.StandardRestore(like))
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(self._folder() / "params").tree
    on_host = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
      restore_args=jax.tree.map(lambda _: on_host, tree)
    )
    return self._read("params", handler, args)

  def _read(self, part: str, handler: Any, args: Any) -> Any:
    with ocp.Checkpointer(handler) as reader:
      return reader.restore(self._folder() / part, args=args)

  def _json(self, part: str) -> dict[str, Any]:
    return self._read(part, ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())

  def _folder(self) -> storage.Path:
    step = self.latest()
    if step is None:
      raise CheckpointError(f"{self._path.parent}: no finished checkpoint yet")
    return self._path / str(step)

  def _steps(self) -> list[int]:
    """Steps by their names, whatever they hold; the newest first."""
    if not self._path.is_dir():
      return []
    found = [
      p for p in self._path.iterdir() if re.fullmatch("0|[1-9][0-9]*", p.name)
    ]
    if storage.is_remote(self._path):
      # Orbax writes under the final name there; the mark comes last.
      found = [p for p in found if (p / _COMMITTED).exists()]
    return sorted((int(p.name) for p in found), reverse=True)

  def _find(self) -> int | None:
    """Looks for the newest whole step; process 0 does it for all."""
    found, reason = _NONE, "process 0 has the reason"
    if jax.process_index() == 0:
      try:
        found = self._scan()
      except errors.GazeError as error:
        found, reason = _REFUSED, str(error)
    if jax.process_count() > 1:
      found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    if found == _REFUSED:
      raise CheckpointError(f"{self._path}: {reason}")
    return None if found == _NONE else found

  def _scan(self) -> int:
    """The newest whole step, or `_NONE`; raises a `GazeError` if none is."""
    damaged: dict[int, str] = {}
    for step in self._steps():
      try:
        manifest.check(self._path / str(step), self._parts)
      except manifest.DamagedError as error:
        damaged[step] = str(error)
        continue
      for bad, reason in damaged.items():
        folder = self._path / str(bad)
        outcome = self._pass_over(folder)
        print(f"{folder}: {reason}; {outcome}", file=sys.stderr)
      return step
    if damaged:
      reasons = "; ".join(f"{step}: {why}" for step, why in damaged.items())
      raise CheckpointError(
        f"no checkpoint is whole: {reasons}. Put a copy back, or move this"
        " directory away to start anew"
      )
    return _NONE

  def _pass_over(self, folder: storage.Path) -> str:
    """Deals with a step that is not whole; returns how, for the log."""
    del folder
    return "skipped"


class Writer(Checkpoints):
  """The checkpoints of a run: what it resumes from, and what it saves.

  Saving is asynchronous. Orbax commits a step, manifest and all, by renaming
  its directory (in a bucket, by one last file), and drops old ones after that;
  so a killed run leaves whole checkpoints only.
  """

  _parts = ("params", "state", "data", "meta")

  def __init__(
    self,
    workdir: storage.Path,
    train: config_lib.TrainConfig,
    inputs: compatibility.Inputs | None = None,
  ):
    self._inputs = inputs or {}
    self._path = storage.absolute(workdir) / "checkpoints"
    self._latest = self._find()
    self._saving: tuple[int, float | None] | None = None
    self._code = compatibility.code_versions()
    self._retention = _Retention(
      train.keep, train.keep_every, train.keep_best, self._losses()
    )
    options = ocp.CheckpointManagerOptions(
      create=True,
      cleanup_tmp_directories=True,
      preservation_policy=self._retention,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
      # What it would read of each step is not needed, or in the manifest.
      lightweight_initialize=True,
    )
    with self._writing():
      self._manager = _Manager(
        self._path, options=options, item_names=self._parts
      )

  def latest(self) -> int | None:
    """The newest whole step, once it is committed; None if there is none.

    Raises:
      CheckpointError: the last save could not be written.
    """
    self._wait()
    return self._latest

  def save(
    self,
    position: Position,
    state: state_lib.TrainState,
    config: config_lib.Config,
    *,
    loss: float | None = None,
  ) -> None:
    """Starts saving; returns once the state has been copied.

    Args:
      position: where the run resumes; the step is that of its `next_batch`.
      state: what the steps led to.
      config: of the run.
      loss: mean training loss since the save before, for `train.keep_best`.

    Raises:
      CheckpointError: this save, or the one before it, could not be written.
    """
    self._wait()
    step = position.next_batch
    meta = dict(code=self._code, inputs=self._inputs)
    meta["config"] = config_lib.to_dict(config)
    params, rest = state_lib.apart(state)
    self._saving = (step, loss)
    if loss is not None:
      self._retention.losses[step] = loss
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(params),
          state=ocp.args.StandardSave(rest),
          data=ocp.args.JsonSave(dataclasses.asdict(position)),
          meta=ocp.args.JsonSave(meta),
        ),
        force=True,  # else it may silently choose not to
      )

  def restore(
    self, like: state_lib.TrainState, config: config_lib.Config
  ) -> tuple[state_lib.TrainState, Position]:
    """The newest state, and where the run resumes.

    Args:
      like: a state of arrays, or of `jax.ShapeDtypeStruct`s with shardings;
        mesh, devices and processes may be others than when it was saved.
      config: of this run.

    Raises:
      CheckpointError: another config, other inputs, or arrays of other shapes
        than it was trained with, by name.
    """
    meta = self._json("meta")
    saved = config_lib.of_saved(meta["config"])
    changed = compatibility.config_differences(
      config_lib.to_dict(saved),
      config_lib.to_dict(config),
      by_content="inputs" in meta,
    )
    if changed:
      raise CheckpointError(
        f"{self._path.parent}: trained with another config:"
        f" {'; '.join(changed)}. Resume with the same config or choose"
        " another --workdir"
      )
    position = self._json("data")
    older = dict(data=dict(samples=position.pop("samples", None)))  # schema 1
    self.check_inputs(self._inputs, config, meta.get("inputs", older))
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    params, rest = state_lib.apart(shapes)
    self._check_shapes({"params": params, "state": rest})
    handler = ocp.StandardCheckpointHandler()
    rest = self._read("state", handler, ocp.args.StandardRestore(rest))
    state = state_lib.joined(
      self.params(params), rest, averaged=like.ema is not None
    )
    code = compatibility.code_differences(meta["code"], self._code)
    if code and jax.process_index() == 0:
      print(f"the code is another than at the checkpoint: {code}")
    return state, Position(**position)

  def close(self) -> None:
    """Waits until the last save is committed.

    Raises:
      CheckpointError: it could not be written.
    """
    try:
      self._wait()
    finally:
      with self._writing():
        self._manager.close()

  def _wait(self) -> None:
    with self._writing():
      self._manager.wait_until_finished()
    if self._saving:
      self._latest, self._saving = self._saving[0], None

  def _seal(self) -> None:
    """Orbax calls it in its thread, just before the step is committed."""
    step, loss = self._saving
    remote = storage.is_remote(self._path)
    suffix = "" if remote else ocp.utils.TMP_DIR_SUFFIX
    manifest.write(self._path / f"{step}{suffix}", step, loss)

  def _pass_over(self, folder: storage.Path) -> str:
    """Makes room: the run will come to this step again."""
    names = [".damaged", *(f".damaged.{n}" for n in range(2, 1000))]
    taken = {p.name for p in self._path.iterdir()}
    new = next(n for s in names if (n := folder.name + s) not in taken)
    folder.rename(folder.with_name(new))
    return f"set aside as {new}"

  def _losses(self) -> dict[int, float]:
    losses = {}
    for step in self._steps():
      with contextlib.suppress(manifest.DamagedError, schema.SchemaError):
        losses[step] = manifest.read(self._path / str(step)).loss
    return {step: loss for step, loss in losses.items() if loss is not None}

  def _check_shapes(self, parts: dict[str, Any]) -> None:
    """Refuses a state of other shapes before any of it is read.

    Orbax would see it halfway, and leave the reads of the other arrays behind.
    """
    wrong = []
    for part, like in parts.items():
      handler = ocp.StandardCheckpointHandler()
      saved = _shapes(handler.metadata(self._folder() / part).tree)
      prefix = "params." if part == "params" else ""
      wrong += [
        f"{prefix}{name}: {list(saved[name])} -> {list(shape)}"
        for name, shape in _shapes(like).items()
        if saved.get(name, shape) != shape
      ]
    if wrong:
      raise CheckpointError(
        f"{self._path.parent}: the state has another shape: {'; '.join(wrong)}."
        " Choose another --workdir"
      )

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns what orbax's and tensorstore's threads raise into one line."""
    try:
      yield
    except Exception as error:  # anything from OSError to ValueError
      self._saving = None
      why = errors.system_message(error)
      raise CheckpointError(
        f"{self._path}: can't write a checkpoint: {why}"
      ) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """By dotted names, which are the same for a saved and a live tree."""
  dotted = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {dotted(path): tuple(x.shape) for path, x in leaves}


class _Manager(ocp.CheckpointManager):
  """Orbax's own, but that it leaves preemption to the loop."""

  def reached_preemption(self, step: int) -> bool:
    """No. A thread of a save would ask about its own, older step.

    JAX takes each question for where the process is, and agrees with the
    others on a step to save at that may then be in the past.
    """
    del step
    return False


@dataclasses.dataclass
class _Retention:
  """Which checkpoints stay: orbax's preservation policy, for three reasons.

  The loss is the mean training loss of the steps since the save before. It is
  a noisy measure, but one that every run has.

  Attributes:
    last: how many of the newest stay.
    every: multiples of it stay for good; 0: none.
    best: how many with the lowest loss stay; of equal ones, the newer.
    losses: by step, where known.
  """

  last: int
  every: int
  best: int
  losses: dict[int, float]

  def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
    """For each checkpoint, which come in order, whether it stays."""
    del context
    steps = [info.step for info in checkpoints]
    stay = set(steps[-self.last :])
    stay |= {s for s in steps if self.every and s % self.every == 0}
    known = [s for s in steps if s in self.losses]
    known.sort(key=lambda s: (self.losses[s], -s))
    stay |= set(known[: self.best])
    return [s in stay for s in steps]
