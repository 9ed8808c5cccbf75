"""Records of a file: a JSON list of them, or JSON Lines, one a line."""

import dataclasses
import enum
import os
from collections.abc import Iterator
from typing import Any

from gaze_jax import errors
from gaze_jax import foreign
from gaze_jax import json_file
from gaze_jax.data import samples


class _Key(enum.Enum):
  REPEATED = 0


# Under this key an object lists its keys that are repeated with another value;
# no key of a JSON file can be it.
REPEATED = _Key.REPEATED

_NEEDED = (
  "a list of samples is needed, [{...}, {...}], or JSON Lines, one sample a"
  " line"
)


@dataclasses.dataclass(frozen=True)
class Record:
  """One record, or a line that can't be read as one.

  Attributes:
    place: its place in the file: "sample 3" of a list, from 0, or "line 4".
    value: its JSON value.
    error: why the line can't be read; "" if it can.
  """

  place: str
  value: Any = None
  error: str = ""


def read(path: str) -> list[Record]:
  """The records of a file in UTF-8, with a byte-order mark or without.

  A line of JSON Lines that can't be read is a record with an error; empty lines
  are skipped. The content decides whether a file is a list or lines; of a file
  of one object the name decides: a record in .jsonl and .ndjson, else an error.

  Raises:
    samples.DataError: it can't be read, or holds no records.
  """
  try:
    data = json_file.read_bytes(path)
  except json_file.NotJsonError as error:
    raise samples.DataError(f"can't read {path}: {error}") from None
  try:
    text = json_file.decode(data)
    records = _records(text, path.lower().endswith((".jsonl", ".ndjson")))
  except json_file.NotJsonError as error:
    raise samples.DataError(f"{path} is not JSON: {error}") from None
  if not records:
    raise samples.DataError(f"{path}: the list of samples is empty")
  return records


def lines(path: str) -> Iterator[Record]:
  """As `read`, of a file of JSON Lines, a line at a time.

  Raises:
    samples.DataError: as `read`.
  """
  try:
    with open(path, "rb") as file:
      head = file.read(foreign.HEAD)
      if what := foreign.kind(head):
        raise samples.DataError(f"{path} is not JSON: {what}")
      file.seek(0)
      for number, raw in enumerate(file, 1):
        try:
          record = _line(number, raw.decode("utf-8"))
        except UnicodeDecodeError as error:
          why = f"byte {error.start} of it is not UTF-8"
          record = Record(f"line {number}", error=why)
        if record:
          yield record
  except OSError as error:
    what = foreign.no_file(path) if not os.path.isfile(path) else ""
    raise samples.DataError(
      f"can't read {path}: {what or errors.system_message(error)}"
    ) from None


def _records(text: str, lines: bool) -> list[Record]:
  try:
    value = json_file.parse(text, an_object)
  except json_file.NotJsonError as error:
    records = _lines(text) if text.lstrip().startswith("{") else []
    if all(record.error for record in records):
      raise json_file.NotJsonError(f"{error}; {_NEEDED}") from None
    return records
  if isinstance(value, list):
    return [Record(f"sample {i}", one) for i, one in enumerate(value)]
  if isinstance(value, dict) and lines:
    return [Record("line 1", value)]
  keys = ", ".join(str(key) for key in value) if isinstance(value, dict) else ""
  kind = f"one object ({keys[:60]})" if keys else type(value).__name__
  raise json_file.NotJsonError(f"{_NEEDED}, and it is {kind}")


def _lines(text: str) -> list[Record]:
  # Not `splitlines`: a text may hold other separators as they are.
  found = (_line(i, line) for i, line in enumerate(text.split("\n"), 1))
  return [record for record in found if record]


def _line(number: int, line: str) -> Record | None:
  """The record of a line; None of an empty one."""
  line = line.strip("\ufeff \t\r\n")  # joined files have marks within
  if not line:
    return None
  try:
    return Record(f"line {number}", json_file.parse(line, an_object))
  except json_file.NotJsonError as error:
    return Record(f"line {number}", error=str(error))


def an_object(pairs: json_file.Pairs) -> dict[Any, Any]:
  """The object of some pairs, and which keys are there twice (`REPEATED`)."""
  out: dict[Any, Any] = dict(pairs)
  if len(out) != len(pairs):
    repeated = sorted({key for key, value in pairs if value != out[key]})
    if repeated:
      out[REPEATED] = repeated
  return out
