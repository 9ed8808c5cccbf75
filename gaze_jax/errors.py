"""What a user can mend: one clear line, no traceback."""

import os
import pathlib
import re


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


def system_message(error: Exception) -> str:
  """The system's own words, if they are to be found."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = " ".join(str(error).split())
  # tensorstore has "[os_error_code='28']" somewhere among its notes.
  found = re.search(r"os_error_code='?(\d+)", text)
  if found:
    return os.strerror(int(found[1]))
  return text[:300] or type(error).__name__
