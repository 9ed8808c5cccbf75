"""Records of a file: a JSON list of them, or JSON Lines, one a line."""

import dataclasses
from typing import Any

from gaze_jax import json_file
from gaze_jax.data import samples

# Under this key an object lists its keys that are repeated with another value;
# no key of a JSON file can be it.
REPEATED = object()

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


def _records(text: str, lines: bool) -> list[Record]:
  try:
    value = json_file.parse(text, _object)
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
  out = []
  # Not `splitlines`: a text may hold other separators as they are.
  for number, line in enumerate(text.split("\n"), 1):
    line = line.strip("\ufeff \t\r")  # joined files have marks within
    if not line:
      continue
    try:
      out.append(Record(f"line {number}", json_file.parse(line, _object)))
    except json_file.NotJsonError as error:
      out.append(Record(f"line {number}", error=str(error)))
  return out


def _object(pairs: list[tuple[str, Any]]) -> dict[Any, Any]:
  out: dict[Any, Any] = dict(pairs)
  if len(out) != len(pairs):
    repeated = sorted({key for key, value in pairs if value != out[key]})
    if repeated:
      out[REPEATED] = repeated
  return out
