"""A run of Weights & Biases that gets the log of ours (`train.wandb`).

The package is an option: nothing imports it unless a run asks for it.
"""

import importlib.util
import json
import pathlib
import secrets
from typing import Any

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import json_file
from gaze_jax import schema
from gaze_jax import whole_file

IDENTITY = "wandb.json"


class WandbError(errors.GazeError):
  """Weights & Biases is not there, or can't be used; names the remedy."""


def check(train: config_lib.TrainConfig) -> None:
  """Sees to it, before anything is done, that the package is there if needed.

  Raises:
    WandbError: it is not.
  """
  if train.wandb and importlib.util.find_spec("wandb") is None:
    raise WandbError(
      f"train.wandb = {train.wandb!r} needs a package that is not installed:"
      " pip install wandb, or leave train.wandb empty"
    )


class WandbRun:
  """The run of a workdir; a resumed one goes on in the same.

  Its id is in `wandb.json`. The package's own settings hold: WANDB_MODE=offline
  keeps the run in `wandb/` of the workdir, for `wandb sync`.

  Args:
    workdir: where ours is kept.
    config: of ours.

  Raises:
    WandbError: the run can't be started.
  """

  def __init__(self, workdir: pathlib.Path, config: config_lib.Config):
    import wandb  # seconds, and not always installed

    identity = _identity(workdir / IDENTITY)
    try:
      self._run = wandb.init(
        project=config.train.wandb,
        id=identity,
        resume="allow",
        name=workdir.absolute().name,
        dir=str(workdir),
        config=config_lib.to_dict(config),
      )
    except Exception as error:  # of the package, and of the network
      raise WandbError(
        f"train.wandb = {config.train.wandb!r}: {errors.system_message(error)};"
        " set WANDB_MODE=offline to keep the run in the workdir"
      ) from error

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Sends the numbers of a step; those of a step that it has are ignored."""
    numbers = {k: v for k, v in values.items() if not isinstance(v, str)}
    self._run.log(numbers, step=step)

  def close(self) -> None:
    """Ends the run, once what it was sent is sent on."""
    self._run.finish()


def _identity(path: pathlib.Path) -> str:
  """The id of the run of a workdir, from now on."""
  if path.exists():
    content = json_file.read(path, WandbError)
    schema.read(content, path, "wandb")
    return content["id"]
  identity = secrets.token_hex(8)
  content = schema.stamp("wandb") | dict(id=identity)
  whole_file.write(path, json.dumps(content))
  return identity
