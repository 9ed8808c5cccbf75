"""JSON values of a request: each is checked, and an error names its path."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gaze_jax.serve import failure

# Takes a value and its path; gives what is meant, or raises a `Failure`.
Check = Callable[[Any, str], Any]

_SHOWN = 100  # characters of a client's own name in an error
_MOST_ITEMS = 200_000  # each takes many times the bytes that it has in a body


def parse(body: bytes) -> dict[str, Any]:
  """The object that a body holds.

  Raises:
    failure.Failure: it holds none.
  """

  if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_ITEMS:
    raise _no_json(f"it has more than {_MOST_ITEMS:,} items")

  def refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")

  try:
    out = json.loads(body, parse_constant=refuse)
  except RecursionError:
    raise _no_json("it is nested too deep") from None
  except ValueError as error:
    raise _no_json(str(error)[:_SHOWN]) from None
  if not isinstance(out, dict):
    raise _no_json(f"it is {kind(out)}, and an object is needed")
  return out


def _no_json(reason: str) -> failure.Failure:
  return failure.Failure(
    400, f"the body is no JSON object: {reason}", code="invalid_json"
  )


def kind(value: Any) -> str:
  """What JSON calls a value."""
  names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}
  return names.get(type(value), "null" if value is None else "a number")


def of_object(
  value: Any, path: str, checks: Mapping[str, Check], required: Sequence[str]
) -> dict[str, Any]:
  """The fields of an object that are not null, each checked.

  Args:
    value: of JSON.
    path: of the object, "" for the whole body.
    checks: of all fields that there may be.
    required: fields that must be there.

  Raises:
    failure.Failure: it is no object, has other fields, or one is wrong.
  """
  if not isinstance(value, dict):
    raise wrong_type(value, path, "an object")
  out = {}
  for name, one in value.items():
    where = f"{path}.{name}" if path else name
    if one is None:
      continue
    if name not in checks:
      where = where.encode("utf-8", "replace").decode()[:_SHOWN]
      known = ", ".join(checks)
      raise failure.of_field(
        where, f"there is no such field; known: {known}", "unknown_parameter"
      )
    out[name] = checks[name](one, where)
  for name in required:
    if name not in out:
      where = f"{path}.{name}" if path else name
      raise failure.of_field(where, "is missing", "missing_required_parameter")
  return out


def wrong_type(value: Any, path: str, wanted: str) -> failure.Failure:
  """That a value is of another type than what is wanted."""
  return failure.of_field(
    path, f"it is {kind(value)}, and {wanted} is needed", "invalid_type"
  )


def number(
  low: int | float, high: int | float, *, whole: bool = False
) -> Check:
  """A number from `low` to `high`."""
  wanted = "a whole number" if whole else "a number"

  def check(value: Any, path: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise wrong_type(value, path, wanted)
    if isinstance(value, float) and not math.isfinite(value):
      raise failure.of_field(path, f"give a number from {low} to {high}")
    if whole and value != int(value):
      raise wrong_type(value, path, wanted)
    if not low <= value <= high:
      raise failure.of_field(path, f"give {wanted} from {low} to {high}")
    return int(value) if whole else float(value)

  return check


def boolean(value: Any, path: str) -> bool:
  """true or false."""
  if not isinstance(value, bool):
    raise wrong_type(value, path, "true or false")
  return value


def text(value: Any, path: str) -> str:
  """A text of whole characters."""
  if not isinstance(value, str):
    raise wrong_type(value, path, "a text")
  if not value.isascii():
    try:
      value.encode("utf-8")
    except UnicodeEncodeError:
      raise failure.of_field(path, "it has half of a character") from None
  return value


def items(value: Any, path: str, one: Check) -> list[Any]:
  """A list, each item checked."""
  if not isinstance(value, list):
    raise wrong_type(value, path, "a list")
  return [one(item, f"{path}[{i}]") for i, item in enumerate(value)]


def choice(*values: str) -> Check:
  """One of some texts."""

  def check(value: Any, path: str) -> str:
    if text(value, path) not in values:
      raise failure.of_field(path, f"give {' or '.join(map(repr, values))}")
    return value

  return check


def nothing(*values: Any) -> Check:
  """Of a field that is not served: only values that are as good as none."""

  def check(value: Any, path: str) -> None:
    if not any(type(value) is type(x) and value == x for x in values):
      written = " or ".join(map(json.dumps, values))
      raise failure.of_field(
        path,
        f"is not served here; leave it out, or give {written}",
        "unsupported_value",
      )

  return check
