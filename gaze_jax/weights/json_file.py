"""JSON files of a checkpoint, read as its other readers read them."""

import json
import pathlib
from typing import Any

from gaze_jax.weights import errors


def read(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object in a file, with or without a byte-order mark.

  Raises:
    ConversionError: it is not there, or no JSON object; says what it is
      instead, and the remedy.
  """
  try:
    text = path.read_bytes()
    value = json.loads(text)
  except FileNotFoundError:
    raise errors.ConversionError(
      f"{path}: no such file; a checkpoint of transformers has one"
    ) from None
  except OSError as error:
    raise errors.ConversionError(
      f"{path}: can't be read: {error.strerror or error}"
    ) from None
  except (ValueError, RecursionError) as error:
    raise errors.ConversionError(f"{path}: {_foreign(text, error)}") from None
  if not isinstance(value, dict):
    raise errors.ConversionError(f"{path}: not a JSON object")
  return value


def _foreign(text: bytes, error: Exception) -> str:
  """What a file that is no JSON is, and what to do."""
  if not text.strip(b"\0 \n"):
    return "the file is empty; download or copy it again"
  if text.startswith(b"version https://git-lfs"):
    return "a pointer of Git LFS, not the file: run `git lfs pull` there"
  if isinstance(error, RecursionError):
    return "can't be read: JSON that is nested too deep"
  return f"can't be read: {error}"
