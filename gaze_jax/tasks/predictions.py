"""Predictions on disk: written as they come, taken up after a kill.

OUT/predictions/TASK/settings.json  what they were made by
OUT/predictions/TASK/SHARD.jsonl    one item a line
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from gaze_jax import errors
from gaze_jax import json_file
from gaze_jax import schema
from gaze_jax import whole_file

_SETTINGS, _SHARD = "settings.json", "0.jsonl"
# Settings that change no prediction.
_FREE = ("code",)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """An answer to an item.

  Attributes:
    id: of the item.
    place: of the item, among all of the files.
    prompt: what was asked.
    text: what was written, as it was written.
    tokens: of it, its end included.
    per_query_head: visual entries that a token's query head read, a mean,
      context tokens included.
    unique_per_kv_head: likewise, their union over the heads of a KV group.
    dense: visual entries that dense attention reads.
    frames: numbers of the frames that were shown, of a video.
    seconds: since the answer before it, or since the process began to ask.
    error: why it was not asked; "" if it was.
  """

  id: str
  place: int = -1
  prompt: str = ""
  text: str = ""
  tokens: int = 0
  per_query_head: float = 0.0
  unique_per_kv_head: float = 0.0
  dense: int = 0
  frames: Sequence[int] = ()
  seconds: float = 0.0
  error: str = ""


def folder(out: pathlib.Path, task: str) -> pathlib.Path:
  """Where the predictions of a task are."""
  return out / "predictions" / task


def stored(out: pathlib.Path) -> list[str]:
  """Names of the tasks that have predictions."""
  inside = out / "predictions"
  if not inside.is_dir():
    return []
  return sorted(p.name for p in inside.iterdir() if (p / _SETTINGS).is_file())


def settings(out: pathlib.Path, task: str) -> dict[str, Any]:
  """What the predictions of a task were made by.

  Raises:
    errors.GazeError: there are none, or of another schema.
  """
  path = folder(out, task) / _SETTINGS
  if not path.is_file():
    raise errors.GazeError(f"{path.parent}: no predictions of {task} there")
  found = json_file.read(path, errors.GazeError)
  schema.read(found, path, "predictions")
  return {k: v for k, v in found.items() if k != schema.KEY}


def read(out: pathlib.Path, task: str) -> dict[str, Prediction]:
  """The predictions of a task so far, by id.

  Of several the first counts, but one with an error gives way to one without. A
  last line that was cut off is dropped.

  Raises:
    errors.GazeError: another line is broken.
  """
  found: dict[str, Prediction] = {}
  for path in sorted(folder(out, task).glob("*.jsonl")):
    text = path.read_bytes()
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    for number, line in enumerate(lines, 1):
      if (one := _of_line(line)) is None:
        raise errors.GazeError(
          f"{path}, line {number}: no prediction; delete the line, and its item"
          " is asked again"
        )
      known = found.get(one.id)
      if known is None or (known.error and not one.error):
        found[one.id] = one
  return found


def _of_line(line: bytes) -> Prediction | None:
  """The prediction that a line holds, if it is one."""
  try:
    value = json.loads(line)
  except ValueError:
    return None
  like = dataclasses.asdict(Prediction(""))
  if not isinstance(value, dict) or value.keys() != like.keys():
    return None
  numbers = (int, float)
  for name, default in like.items():
    kind = type(default) if isinstance(default, str) else numbers
    kind = list if name == "frames" else kind
    if not isinstance(value[name], kind):
      return None
  return Prediction(**value)


def begin(out: pathlib.Path, task: str, made_by: dict[str, Any]) -> None:
  """Notes what predictions are made by, before the first.

  Args:
    out: of the run.
    task: its name.
    made_by: what those that are there must have been made by as well.

  Raises:
    errors.GazeError: they were made by something else.
  """
  where = folder(out, task)
  where.mkdir(parents=True, exist_ok=True)
  if (where / _SETTINGS).is_file():
    check_same(settings(out, task), made_by, where)
    return
  text = json.dumps(made_by | schema.stamp("predictions"), indent=2)
  whole_file.write(where / _SETTINGS, text + "\n")


class Writer:
  """Appends predictions, each line whole and with the system before the next.

  Args:
    out: of the run.
    task: its name.
  """

  def __init__(self, out: pathlib.Path, task: str):
    path = folder(out, task) / _SHARD
    self._file = open(path, "ab")
    _drop_torn_line(path)

  def write(self, one: Prediction) -> None:
    """Appends a prediction."""
    line = json.dumps(dataclasses.asdict(one), ensure_ascii=False)
    # A lone surrogate can't be encoded, and is no character of any answer.
    self._file.write(line.encode("utf-8", "replace") + b"\n")
    self._file.flush()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error: object) -> None:
    self._file.close()


def _drop_torn_line(path: pathlib.Path) -> None:
  text = path.read_bytes()
  if whole := len(text) - text.rfind(b"\n") - 1:
    os.truncate(path, len(text) - whole)


def check_same(
  old: dict[str, Any], new: dict[str, Any], where: pathlib.Path | str
) -> None:
  """Refuses what was made by something else.

  Args:
    old: what it was made by.
    new: what is given now.
    where: names it in the error.

  Raises:
    errors.GazeError: naming the first difference.
  """
  for key in old:
    if key not in _FREE and old[key] != new.get(key):
      raise errors.GazeError(
        f"{where}: predictions were made with {key} = {old[key]!r}, and now it"
        f" is {new.get(key)!r}: choose another --out, or delete them"
      )
