"""JSON and text files of others: UTF-8, with a byte-order mark or without.

`read` and `read_text` raise the error that the caller names, a subclass of
`errors.GazeError`; the others give the reason alone.
"""

import json
import os
from collections.abc import Callable
from typing import Any

from gaze_jax import errors
from gaze_jax import foreign
from gaze_jax import storage

Pairs = list[tuple[str, Any]]  # of an object, in the order of the file


class NotJsonError(ValueError):
  """Why something is no JSON or no text, in a few words, and the remedy."""


def read(path: storage.Path, error: type[errors.GazeError]) -> dict[str, Any]:
  """The JSON object in a file.

  Raises:
    error: it can't be read or holds something else; names file and remedy.
  """
  text = read_text(path, error)
  try:
    value = parse(text)
  except NotJsonError as reason:
    raise error(f"{path} is not JSON: {reason}") from None
  if not isinstance(value, dict):
    raise error(f"{path}: an object is needed, got {type(value).__name__}")
  return value


def read_text(path: storage.Path, error: type[errors.GazeError]) -> str:
  """The text in a file, without its byte-order mark.

  Raises:
    error: it can't be read, or is not UTF-8; names file and remedy.
  """
  try:
    return decode(read_bytes(path))
  except NotJsonError as reason:
    raise error(f"can't read {path}: {reason}") from None


def read_bytes(path: str | os.PathLike) -> bytes:
  """The bytes of a file.

  Raises:
    NotJsonError: it can't be read.
  """
  try:
    return storage.path(path).read_bytes()
  except OSError as reason:
    what = foreign.no_file(path) if not os.path.isfile(path) else ""
    raise NotJsonError(what or reason.strerror or str(reason)) from None


def decode(data: bytes) -> str:
  """The text of a file's bytes, without its byte-order mark.

  Raises:
    NotJsonError: it is not UTF-8, or is a file of another kind.
  """
  if what := foreign.kind(data[: foreign.HEAD]):
    raise NotJsonError(what)
  encoding = json.detect_encoding(data)
  if not encoding.startswith("utf-8"):
    raise NotJsonError(
      f"it is {encoding.upper()} text, which PowerShell's > writes; save it as"
      " UTF-8"
    )
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise NotJsonError(
      f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; save it as"
      " UTF-8"
    ) from None


def parse(text: str, pairs: Callable[[Pairs], Any] | None = None) -> Any:
  """The value that a text writes.

  Args:
    text: JSON.
    pairs: makes the value of an object; a dict by default.

  Raises:
    NotJsonError: it is none, or nested too deep.
  """
  try:
    return json.loads(text, object_pairs_hook=pairs)
  except json.JSONDecodeError as error:
    if not text.strip():
      raise NotJsonError(foreign.kind(b"")) from None
    raise NotJsonError(str(error)) from None
  except NotJsonError:
    raise
  except ValueError:  # Python's limit on the digits of a whole number
    raise NotJsonError("a number in it has thousands of digits") from None
  except RecursionError:
    raise NotJsonError("it is nested too deep") from None


def unique(pairs: Pairs) -> dict[str, Any]:
  """For `parse`: an object whose keys are all different."""
  table = dict(pairs)
  if len(table) < len(pairs):
    names = [key for key, _ in pairs]
    twice = sorted({n for n in names if names.count(n) > 1})
    raise NotJsonError(f"{', '.join(twice[:3])} is there twice")
  return table
