"""The error that every converter raises."""

from collections.abc import Mapping, Sequence
from typing import Any

from gaze_jax import errors


class ConversionError(errors.GazeError, ValueError):
  """Weights that do not map one to one; the message lists every difference."""


def refuse_unknown(
  what: str, values: Mapping[str, tuple[Any, Sequence[Any]]]
) -> None:
  """Refuses a config.json that asks for what is not computed here.

  Args:
    what: kind of the model.
    values: its value of each key, and those that are computed here.

  Raises:
    ConversionError: names the key.
  """
  for key, (value, known) in values.items():
    if value not in known:
      raise ConversionError(
        f"config.json: {key} = {value!r} of this {what} is not computed here,"
        f" {' or '.join(map(repr, known))} is; take a checkpoint with it"
      )
