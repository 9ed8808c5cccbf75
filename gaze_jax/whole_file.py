"""Files that are there whole or not at all, and folders of one writer."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from gaze_jax import errors
from gaze_jax import storage


@contextlib.contextmanager
def locked(lock: pathlib.Path, folder: pathlib.Path) -> Iterator[None]:
  """Within it no other process writes into a folder.

  Args:
    lock: a file, made with its folder; it is held until the process ends at the
      latest, however that ends.
    folder: what it stands for.

  Raises:
    errors.GazeError: another process holds it.
  """
  lock.parent.mkdir(parents=True, exist_ok=True)
  with open(lock, "w", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.GazeError(
        f"{folder}: another process writes into it; wait for it, or take"
        " another directory"
      ) from None
    yield


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
