"""Checkpoints: state, data position and config in one atomic step (orbax)."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.train import state as state_lib


class CheckpointError(errors.GazeError):
  """A checkpoint that is not there, or does not belong to this run."""


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
    """The newest committed step, or None."""
    return self._manager.latest_step()

  def save(
    self, step: int, state: state_lib.TrainState, config: config_lib.Config
  ) -> None:
    """Starts saving; returns once the state has been copied."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        data=ocp.args.JsonSave({"next_batch": step}),
        meta=ocp.args.JsonSave({"config": config_lib.to_dict(config)}),
      ),
    )

  def config(self) -> config_lib.Config:
    """The config that the newest checkpoint was trained with."""
    restored = self._restore(meta=ocp.args.JsonRestore())
    return config_lib.from_config_dict(restored["meta"]["config"])

  def restore(
    self, like: state_lib.TrainState, config: config_lib.Config
  ) -> tuple[state_lib.TrainState, int]:
    """The newest state and the number of the next batch.

    Raises:
      CheckpointError: it was trained with another config; names the fields.
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
    restored = self._restore(
      state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
    )
    return restored["state"], int(restored["data"]["next_batch"])

  def params(self) -> Any:
    """The newest parameters, as saved."""
    restored = self._restore(state=ocp.args.StandardRestore())
    return restored["state"]["params"]

  def close(self) -> None:
    """Waits until the last save is committed."""
    self._manager.wait_until_finished()
    self._manager.close()

  def _restore(self, **args) -> Any:
    step = self.latest()
    if step is None:
      raise CheckpointError(f"{self._path.parent}: no finished checkpoint yet")
    return self._manager.restore(step, args=ocp.args.Composite(**args))


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
