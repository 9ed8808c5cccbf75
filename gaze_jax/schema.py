"""Versions of the files that are written here and read again.

Each such file holds a number, `schema`, beside its content; files from before
there were such numbers are of schema 1. A reader takes the versions that it
knows and refuses the others by their number. (Cached features need none: theirs
is part of the file's name, see train/features.py.)
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from gaze_jax import errors

KEY = "schema"


class SchemaError(errors.GazeError):
  """A file of a version that is not read; names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class Format:
  """What is written today, and what is read.

  Attributes:
    newest: what is written.
    oldest: what is still read.
    again: how to make a file anew that is older than that.
  """

  newest: int
  oldest: int = 1
  again: str = ""


FORMATS = {
  # config.json of a workdir (train/loop.py). 2 had regions of one frame; so had
  # 3 of a checkpoint and a model, and 1 of our options. 1: `config.of_saved`.
  "run": Format(3),
  # manifest.json (train/manifest.py). 1 has the number of samples alone of what
  # the run reads; up to 2 as `config.of_saved` says.
  "checkpoint": Format(4),
  # gaze.json (weights/store.py). 1 could hold leaves without elements, the
  # context tokens of a model without any; up to 2 as `config.of_saved` says.
  "model": Format(4),
  "data": Format(1),  # gaze_data.json (data/prepared.py)
  "predictions": Format(1),  # settings.json (tasks/predictions.py)
  "results": Format(1),  # results.json (tasks/run.py)
  "wandb": Format(1),  # wandb.json of a workdir (train/wandb_run.py)
  # Our options in a config.json of transformers (weights/hf.py).
  "gaze": Format(2),
  # context.json (api/saved_context.py). 1 knew its model by every option that
  # there was, so that a new one made it another model's; 2 had no conversation;
  # 3 no regions of several frames.
  "context": Format(4, oldest=4, again="Read the images again"),
}


def stamp(kind: str) -> dict[str, int]:
  """The number that a new file of a kind in `FORMATS` holds."""
  return {KEY: FORMATS[kind].newest}


def read(
  content: Mapping[str, Any], where: str | os.PathLike, kind: str
) -> int:
  """The schema of a file.

  Args:
    content: what the file holds.
    where: names it in errors.
    kind: of `FORMATS`.

  Raises:
    SchemaError: it is older or newer than what is read, or no number.
  """
  found, form = content.get(KEY, 1), FORMATS[kind]
  if type(found) is not int or found < 1:
    raise SchemaError(f"{where}: {KEY} = {found!r} is no version; it is broken")
  if found > form.newest:
    raise SchemaError(
      f"{where}: written as schema {found} by a newer gaze_jax; this one reads"
      f" up to {form.newest}. Update gaze_jax"
    )
  if found < form.oldest:
    raise SchemaError(
      f"{where}: written as schema {found} by an older gaze_jax; this one reads"
      f" from {form.oldest} on. {form.again}"
    )
  return found
