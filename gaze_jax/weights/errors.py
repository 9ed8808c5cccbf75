"""The error that every converter raises."""

from gaze_jax import errors


class ConversionError(errors.GazeError, ValueError):
  """Weights that do not map one to one; the message lists every difference."""
