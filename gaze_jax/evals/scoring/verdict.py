"""What a scorer returns, and what it raises."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from gaze_jax import errors


class ScoringError(errors.GazeError):
  """A metric, a protocol or a field that is not there."""


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A prediction's score.

  Attributes:
    value: 0..1.
    parsed: the answer that was read out of the prediction: a label, a letter,
      or the text or number that was compared. None where none was found, and
      then `value` is 0.
  """

  value: float
  parsed: Any


def one_of(what: str, name: Any, choices: Collection[str]) -> None:
  """Refuses a name that is none of `choices`."""
  if name not in choices:
    raise ScoringError(f"{what} {name!r} is none of {', '.join(choices)}")


def field(row: Mapping[str, Any], key: str, owner: str) -> Any:
  """A field of a data set's row, which has to be there."""
  if key not in row:
    raise ScoringError(f"{owner}: {key!r} is missing; there is {list(row)}")
  return row[key]
