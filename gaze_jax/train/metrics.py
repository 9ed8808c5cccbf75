"""Metrics to a JSONL file and TensorBoard."""

import json
import pathlib
from typing import Any

from metrax import logging as metrax_logging


class Writer:
  """Appends a line a step to `metrics.jsonl`, and the same to TensorBoard.

  After a resume the lines from the resumed step on are cut first, so that the
  file reads as that of an uninterrupted run.
  """

  def __init__(self, workdir: pathlib.Path, first_step: int):
    path = workdir / "metrics.jsonl"
    if path.exists():
      _cut(path, first_step)
    self._file = path.open("a", encoding="utf-8")
    self._board = metrax_logging.TensorboardBackend(
      str(workdir / "tensorboard")
    )

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Writes plain numbers under their names."""
    self._file.write(json.dumps(dict(step=step, **values)) + "\n")
    self._file.flush()
    for name, value in values.items():
      self._board.log_scalar(name, value, step=step)

  def close(self) -> None:
    self._file.close()
    self._board.close()


def _cut(path: pathlib.Path, first_step: int) -> None:
  kept = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      if json.loads(line)["step"] < first_step:
        kept.append(line + "\n")
    except (json.JSONDecodeError, KeyError):
      continue  # the torn last line of a killed run
  path.write_text("".join(kept), encoding="utf-8")
