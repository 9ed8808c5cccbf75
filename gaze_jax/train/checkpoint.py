"""Checkpoints: state, data position and config in one atomic step (orbax)."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.train import groups
from gaze_jax.train import state as state_lib


class CheckpointError(errors.GazeError):
  """A checkpoint that is not there, or does not belong to this run."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a run goes on from.

  Attributes:
    state: the newest state.
    next_batch: number of the batch that comes first.
    unlogged: numbers of steps whose mean has not been logged yet.
  """

  state: state_lib.TrainState
  next_batch: int
  unlogged: list[dict[str, float]]


class Checkpoints:
  """The checkpoints of one workdir, under `checkpoints/`.

  Saving is asynchronous; orbax commits a step by renaming its directory, so a
  killed run leaves whole checkpoints only.
  """

  def __init__(self, workdir: pathlib.Path, *, keep: int, create: bool):
    path = workdir.absolute() / "checkpoints"
    if not create and not path.is_dir():
      raise CheckpointError(
        f"{workdir}: no checkpoints here; train first with"
        " `python launch/train.py --config=... --workdir=...`"
      )
    self._path = path
    self._manager = ocp.CheckpointManager(
      path,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=create, enable_async_checkpointing=True
      ),
      item_names=("state", "data", "meta"),
    )

  def latest(self) -> int | None:
    """The newest step, once it is committed; None if there is none."""
    with self._writing():
      self._manager.wait_until_finished()
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    state: state_lib.TrainState,
    config: config_lib.Config,
    unlogged: Sequence[dict[str, float]] = (),
  ) -> None:
    """Starts saving; returns once the state has been copied.

    Raises:
      CheckpointError: this save, or the one before it, could not be written.
    """
    data = dict(next_batch=step, unlogged=list(unlogged))
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          data=ocp.args.JsonSave(data),
          meta=ocp.args.JsonSave({"config": config_lib.to_dict(config)}),
        ),
      )

  def config(self) -> config_lib.Config:
    """The config that the newest checkpoint was trained with."""
    restored = self._restore(meta=ocp.args.JsonRestore())
    return config_lib.from_config_dict(restored["meta"]["config"])

  def restore(
    self, like: state_lib.TrainState, config: config_lib.Config
  ) -> Restored:
    """The newest state, and where the run goes on.

    Raises:
      CheckpointError: it was trained with another config, or its arrays have
        other shapes; names the fields or the arrays.
    """
    saved = self.config()
    changed = _differences(
      config_lib.to_dict(saved), config_lib.to_dict(config)
    )
    if changed:
      raise CheckpointError(
        f"{self._path.parent}: trained with another config:"
        f" {'; '.join(changed)}. Resume with the same config or choose"
        " another --workdir"
      )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    self._check_shapes(abstract)
    restored = self._restore(
      state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
    )
    data = restored["data"]
    return Restored(
      restored["state"], int(data["next_batch"]), list(data["unlogged"])
    )

  def params(self) -> Any:
    """The newest parameters, as saved; their moving means where it has any."""
    state = self._restore(state=ocp.args.StandardRestore())["state"]
    return groups.merge(state["params"], state.get("ema") or {})

  def close(self) -> None:
    """Waits until the last save is committed.

    Raises:
      CheckpointError: it could not be written.
    """
    with self._writing():
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()

  def _check_shapes(self, like: state_lib.TrainState) -> None:
    """Refuses a state of other shapes before any of it is read.

    Orbax would see it halfway, and leave the reads of the other arrays behind.
    """
    # The manager itself knows the shapes of what it has saved or read alone.
    folder = self._path / str(self.latest()) / "state"
    saved = ocp.StandardCheckpointHandler().metadata(folder).tree
    shapes = {name: tuple(x.shape) for name, x in _named(saved)}
    wrong = [
      f"{name}: {list(shapes[name])} -> {list(x.shape)}"
      for name, x in _named(like)
      if shapes.get(name, x.shape) != x.shape
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
      raise CheckpointError(
        f"{self._path}: can't write a checkpoint: {_reason(error)}"
      ) from error

  def _restore(self, **args) -> Any:
    step = self.latest()
    if step is None:
      raise CheckpointError(f"{self._path.parent}: no finished checkpoint yet")
    return self._manager.restore(step, args=ocp.args.Composite(**args))


def _named(tree: Any) -> list[tuple[str, Any]]:
  """Leaves by dotted names, which are the same of a saved and a live tree."""
  dotted = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
  return [
    (dotted(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)
  ]


def _reason(error: Exception) -> str:
  """The system's own words, if they are to be found."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = " ".join(str(error).split())
  # tensorstore has "[os_error_code='28']" somewhere among its notes.
  found = re.search(r"os_error_code='?(\d+)", text)
  if found:
    return os.strerror(int(found[1]))
  return text[:300] or type(error).__name__


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
  """Fields that differ, as `name: old -> new`; those of eval don't count."""
  if isinstance(old, dict) and isinstance(new, dict):
    out = []
    for key in sorted(old.keys() | new.keys()):
      if (path, key) == ("", "eval"):
        continue
      inner = f"{path}.{key}" if path else key
      out += _differences(old.get(key), new.get(key), inner)
    return out
  if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
    old, new = list(old), list(new)
  return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
