"""What a user can mend: one clear line, no traceback."""

import pathlib


class GazeError(Exception):
  """Bad input or a limit of the machine.

  The message names the thing and the remedy; the command line prints it as
  one line and exits with 1 (gaze_jax/cli.py).
  """


def check_folder(path: str) -> None:
  """Refuses a file that is to be written where there is no folder, early on.

  Raises:
    GazeError: naming it.
  """
  if not (folder := pathlib.Path(path).parent).is_dir():
    raise GazeError(f"{path}: there is no folder {folder}")
