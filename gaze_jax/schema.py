"""Which form a file has that was written here and is read again.

Each such file holds a number, `schema`, beside what it says; files from before
there were such numbers are of schema 1. A reader takes the forms that it knows
how to read and refuses the others by their number.
"""

import os
from collections.abc import Mapping
from typing import Any

from gaze_jax import errors

KEY = "schema"


class SchemaError(errors.GazeError):
  """A file of a form that is not read here; names the form and the remedy."""


def read(
  said: Mapping[str, Any],
  where: str | os.PathLike,
  newest: int,
  *,
  oldest: int = 1,
  again: str = "",
) -> int:
  """The schema of a file.

  Args:
    said: what the file holds.
    where: names it in errors.
    newest: what is written today.
    oldest: what is still read.
    again: how to make a file that is older than that anew.

  Raises:
    SchemaError: it is older or newer, or no number.
  """
  found = said.get(KEY, 1)
  if type(found) is not int or found < 1:
    raise SchemaError(f"{where}: {KEY} = {found!r} is no version; it is broken")
  if found > newest:
    raise SchemaError(
      f"{where}: written as schema {found} by a newer gaze_jax; this one reads"
      f" up to {newest}. Update gaze_jax"
    )
  if found < oldest:
    raise SchemaError(
      f"{where}: written as schema {found} by an older gaze_jax; this one reads"
      f" {oldest} to {newest}. {again}"
    )
  return found
