"""Rows of a file: a JSON list of them, or JSON Lines, one a line."""

import dataclasses
import pathlib
from typing import Any

from gaze_jax import json_file
from gaze_jax.data import samples

# Under this key an object has the names that stand in it twice, with different
# values; no JSON key can be it.
TWICE = object()

_NEEDED = (
  "a list of samples is needed, [{...}, {...}], or JSON Lines, one sample a"
  " line"
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One row, or a line that is none.

  Attributes:
    place: where it stands: "sample 3" of a list, from 0, or "line 4".
    value: what it holds.
    error: why the line can't be read; "" if it can.
  """

  place: str
  value: Any = None
  error: str = ""


def read(path: str) -> list[Row]:
  """The rows of a file in UTF-8, with a byte-order mark or without.

  A line of JSON Lines that can't be read is a row with an error; empty lines
  are none. Which of the two a file is, its content says; its name says what one
  object is, a line or a mistake.

  Raises:
    samples.DataError: it can't be read, or holds no rows.
  """
  try:
    text = json_file.decode(pathlib.Path(path).read_bytes())
    rows = _rows(text, path.lower().endswith((".jsonl", ".ndjson")))
  except OSError as error:
    raise samples.DataError(f"can't read {path}: {error.strerror}") from None
  except json_file.NotJsonError as error:
    raise samples.DataError(f"{path} is not JSON: {error}") from None
  if not rows:
    raise samples.DataError(f"{path}: the list of samples is empty")
  return rows


def _rows(text: str, lines: bool) -> list[Row]:
  try:
    value = json_file.parse(text, _object)
  except json_file.NotJsonError as error:
    rows = _lines(text) if text.lstrip().startswith("{") else []
    if all(row.error for row in rows):
      raise json_file.NotJsonError(f"{error}; {_NEEDED}") from None
    return rows
  if isinstance(value, list):
    return [Row(f"sample {i}", one) for i, one in enumerate(value)]
  if isinstance(value, dict) and lines:
    return [Row("line 1", value)]
  keys = ", ".join(str(key) for key in value) if isinstance(value, dict) else ""
  kind = f"one object ({keys[:60]})" if keys else type(value).__name__
  raise json_file.NotJsonError(f"{_NEEDED}, and it is {kind}")


def _lines(text: str) -> list[Row]:
  out = []
  # Not `splitlines`: a text may hold other separators as they are.
  for number, line in enumerate(text.split("\n"), 1):
    line = line.strip("\ufeff \t\r")  # files laid together have marks within
    if not line:
      continue
    try:
      out.append(Row(f"line {number}", json_file.parse(line, _object)))
    except json_file.NotJsonError as error:
      out.append(Row(f"line {number}", error=str(error)))
  return out


def _object(pairs: list[tuple[str, Any]]) -> dict[Any, Any]:
  out: dict[Any, Any] = dict(pairs)
  if len(out) != len(pairs):
    twice = sorted({key for key, value in pairs if value != out[key]})
    if twice:
      out[TWICE] = twice
  return out
