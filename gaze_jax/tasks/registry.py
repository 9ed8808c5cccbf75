"""Every task by name."""

from collections.abc import Sequence

from gaze_jax import errors
from gaze_jax.tasks import answers
from gaze_jax.tasks import mathvista
from gaze_jax.tasks import options
from gaze_jax.tasks import task as task_lib
from gaze_jax.tasks import videos
from gaze_jax.tasks import yes_no

TASKS: dict[str, task_lib.Task] = {
  task.name: task
  for some in (answers, options, mathvista, yes_no, videos)
  for task in some.TASKS
}


def named(names: Sequence[str]) -> list[task_lib.Task]:
  """Tasks by their names.

  Raises:
    errors.GazeError: one is none, or stands there twice.
  """
  for name in names:
    if name not in TASKS:
      raise errors.GazeError(f"--tasks: {name!r} is none of {', '.join(TASKS)}")
  if len(set(names)) < len(names) or not names:
    raise errors.GazeError("--tasks: name each task once")
  return [TASKS[name] for name in names]


def listing() -> str:
  """What each task wants and where that comes from, as text."""
  lines = []
  for task in TASKS.values():
    lines += [f"{task.name}: {task.items} items, DATA/{task.folder}/"]
    lines += [f"    {', '.join(form.patterns)}" for form in task.forms]
    lines += [f"    from {task.source}"]
    lines += [f"    {task.note}"] if task.note else []
  return "\n".join(lines)
