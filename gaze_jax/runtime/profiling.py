"""Traces for xprof, which shows them alone or within TensorBoard."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def trace(folder: str | os.PathLike | None) -> Iterator[None]:
  """Writes a trace of what runs within it; `None` traces nothing.

  What was dispatched before and still runs is in the trace, too. Of several
  processes process 0 alone traces, with its devices: those of one machine would
  write the same file.

  Args:
    folder: where `plugins/profile/TIME/HOST.xplane.pb` will be.

  Raises:
    OSError: the folder can't be made.
  """
  if folder is None or jax.process_index():
    yield
    return
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  with jax.profiler.trace(os.fspath(folder)):
    yield


class StepTrace(contextlib.ExitStack):
  """A trace of some steps of a loop, which ends with the loop at the latest.

  Args:
    folder: as in `trace`.
    steps: numbers of the steps, one after the other; none for no trace.
  """

  def __init__(self, folder: str | os.PathLike, steps: range):
    super().__init__()
    self._folder, self._steps = folder, steps

  def changes(self, step: int) -> bool:
    """Whether the trace begins or ends before a step: then `change`.

    What was dispatched before should have come to its end.
    """
    steps = self._steps
    return bool(steps) and step in (steps.start, steps.stop)

  def change(self, step: int) -> None:
    """Begins the trace before a step, or ends it."""
    self.close()
    if step in self._steps:
      self.enter_context(trace(self._folder))
