"""Metrics to a JSONL file and TensorBoard."""

import json
import os
import pathlib
import time
from typing import Any


class Writer:
  """Appends a line a step to `metrics.jsonl`, and the same to TensorBoard.

  After a resume the lines past the resumed step are cut first, so that the
  file reads as that of an uninterrupted run.

  Args:
    workdir: where both are kept.
    done: steps done; lines of later ones are cut.
  """

  def __init__(self, workdir: pathlib.Path, done: int):
    path = workdir / "metrics.jsonl"
    if path.exists():
      _cut(path, done)
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
    self._file.close()
    self._board.close()


def _cut(path: pathlib.Path, done: int) -> None:
  kept = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      if json.loads(line)["step"] <= done:
        kept.append(line + "\n")
    except (json.JSONDecodeError, KeyError, TypeError):
      continue  # the torn last line of a killed run
  whole = path.with_suffix(".partial")
  whole.write_text("".join(kept), encoding="utf-8")
  os.replace(whole, path)  # a kill leaves the old lines or the new ones
