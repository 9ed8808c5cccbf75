"""Files that are there whole or not at all, whenever the process is killed."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from gaze_jax import storage


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Where to write what becomes the file at the end.

  After an exception, and until the end, what was there before still is.

  Args:
    path: of the file.
  """
  partial = path.with_name(f"{path.name}.partial")
  try:
    yield partial
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write(path: storage.Path, text: str) -> None:
  """Writes a text, here or in a bucket."""
  if storage.is_remote(path):  # which takes nothing but wholes
    path.write_text(text, encoding="utf-8")
    return
  with replacing(path) as partial:
    partial.write_text(text, encoding="utf-8")
