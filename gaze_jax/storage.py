"""Directories of this machine, and of buckets of Google Cloud Storage.

A name that begins with gs:// leads to a bucket, by `etils.epath` and gcsfs.
What is there is read and written whole: nothing can be appended, mapped into
memory or renamed in one go. So a run keeps its log in a folder of this machine
and copies it (`Mirror`), and of the files that are mapped a copy is kept here
(`copy_here`). Checkpoints and records are read by libraries that open gs://
themselves.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

from etils import epath

from gaze_jax import errors

SCHEME = "gs://"
_LOG = "the log can't be kept there"

Path = pathlib.Path | epath.Path


def path(name: str | os.PathLike) -> Path:
  """Where a name leads to.

  Args:
    name: of a file or directory; one that begins with gs:// is in a bucket,
      and is asked for.

  Raises:
    errors.GazeError: what reads buckets is not installed, or the bucket can't
      be reached.
  """
  text = os.fspath(name)
  if not text.startswith(SCHEME):
    return pathlib.Path(text)
  _reach(SCHEME + text.removeprefix(SCHEME).split("/")[0])
  return epath.Path(text)


@functools.cache
def _reach(bucket: str) -> None:
  """Asks a bucket for something, once."""
  if importlib.util.find_spec("gcsfs") is None:
    raise errors.GazeError(
      f"{bucket}: needs a package that is not installed: pip install gcsfs"
    )
  import fsspec  # with gcsfs alone

  # It would go on seeing what was there before tensorstore wrote.
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  # It prints what it raises, with a traceback.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
  try:
    next(iter(epath.Path(bucket).iterdir()), None)
  except Exception as error:  # of the network, of credentials
    raise errors.GazeError(
      f"{bucket}: can't be reached: {errors.system_message(error)}; is there"
      " such a bucket, and are you logged in (`gcloud auth application-default"
      " login`)?"
    ) from error


def is_remote(path: Path) -> bool:
  """Whether a path leads to a bucket."""
  return os.fspath(path).startswith(SCHEME)


def absolute(path: Path) -> Path:
  """The same place, whatever the working directory."""
  return path if is_remote(path) else path.absolute()


def open_bytes(path: Path) -> io.IOBase:
  """Opens a file to read it in blocks of the reader's size."""
  return path.open("rb") if is_remote(path) else path.open("rb", buffering=0)


def size(path: Path) -> int:
  """Bytes of a file.

  Raises:
    OSError: there is none.
  """
  return path.stat().length if is_remote(path) else path.stat().st_size


def files(directory: Path) -> Iterator[Path]:
  """All files of a directory and of those in it, by name."""
  for one in sorted(directory.iterdir()):
    if one.is_dir():
      yield from files(one)
    else:
      yield one


def cache() -> pathlib.Path:
  """The folder for what can be made anew: `~/.cache/gaze_jax`."""
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "gaze_jax"


def near(directory: Path) -> pathlib.Path:
  """A folder of this machine that belongs to a directory: itself, if it can.

  What is there may be gone at any time, and is made anew then.
  """
  if not is_remote(directory):
    return directory
  name = hashlib.sha256(os.fspath(directory).encode()).hexdigest()[:16]
  return cache() / "buckets" / name


def copy_here(path: Path) -> pathlib.Path:
  """A file of this machine with a file's content: itself, or a copy.

  A copy is taken once, and again when the file in the bucket is another.

  Raises:
    errors.GazeError: there is no such file, or no room for it.
  """
  if not is_remote(path):
    return path
  with _reaching(path, "can't be copied here"):
    found = path.stat()
    version = f"{found.length}-{found.mtime}"
    copy = near(path.parent) / f"{path.name}-{version}"
    if not copy.exists():
      copy.parent.mkdir(parents=True, exist_ok=True)
      # Other processes may be at it, too.
      with tempfile.TemporaryDirectory(dir=copy.parent) as own:
        partial = pathlib.Path(own, copy.name)
        with path.open("rb") as source, partial.open("wb") as target:
          shutil.copyfileobj(source, target)
        os.replace(partial, copy)
  return copy


class Mirror:
  """A folder of this machine whose files end up in a directory.

  Of a directory on this machine it is the directory, and nothing is copied.

  Args:
    directory: where they end up.
    names: of files that are fetched from there first, if they are there.
    writes: whether anything is copied; of several processes that write to one
      directory only one should.

  Attributes:
    folder: where to write.

  Raises:
    errors.GazeError: nothing can be fetched.
  """

  def __init__(self, directory: Path, names: Sequence[str], *, writes: bool):
    self.folder, self._copied = directory, {}
    self._to = directory if is_remote(directory) and writes else None
    self._stack = contextlib.ExitStack()
    if not is_remote(directory):
      return
    made = self._stack.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(made, directory.name)
    self.folder.mkdir()
    with _reaching(directory, _LOG):
      for name in names:
        if (there := directory / name).exists():
          (self.folder / name).write_bytes(there.read_bytes())

  def copy(self) -> None:
    """Copies what has changed since.

    Raises:
      errors.GazeError: it can't be.
    """
    if self._to is None:
      return
    with _reaching(self._to, _LOG):
      for file in files(self.folder):
        facts = (file.stat().st_size, file.stat().st_mtime_ns)
        if self._copied.get(file) != facts:
          to = self._to / file.relative_to(self.folder).as_posix()
          to.write_bytes(file.read_bytes())
          self._copied[file] = facts

  def close(self) -> None:
    """Copies the rest, and drops the folder if it is a copy."""
    with self._stack:
      self.copy()


@contextlib.contextmanager
def _reaching(path: Path, what: str) -> Iterator[None]:
  """Turns what goes wrong on the way to a path into one line."""
  try:
    yield
  except Exception as error:  # of the network, from anywhere in gcsfs
    raise errors.GazeError(
      f"{path}: {what}: {errors.system_message(error)}"
    ) from error
