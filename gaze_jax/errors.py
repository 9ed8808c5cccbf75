"""What a user can mend: one clear line, no traceback."""


class GazeError(Exception):
  """Bad input or a limit of the machine.

  The message names the thing and the remedy; the command line prints it as
  one line and exits with 1 (gaze_jax/cli.py).
  """
