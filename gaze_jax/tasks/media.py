"""Pictures and videos of items, which are read when they are asked about."""

import dataclasses
import functools
import glob
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow
from pyarrow import parquet

from gaze_jax import foreign
from gaze_jax.data import images
from gaze_jax.data import media_files
from gaze_jax.data import samples
from gaze_jax.data import skipped

_VIDEOS = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


@runtime_checkable
class Medium(Protocol):
  """A picture or a video of an item.

  `source` gives its bytes or its path; raises `skipped.SkipError`.
  """

  def source(self) -> bytes | str: ...


@dataclasses.dataclass(frozen=True)
class Named:
  """A file that a data set names, in a folder."""

  folder: str
  name: str

  def source(self) -> str:
    folder = os.path.abspath(self.folder)
    try:
      return media_files.find(self.name, folder, "image")
    except skipped.SkipError as error:  # its remedy is one of training data
      name = foreign.short(self.name)
      raise skipped.SkipError(
        error.reason, f"{name!r} is not in {folder}"
      ) from None


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video: a name without a suffix or with one, in one of some folders."""

  folder: str
  inside: tuple[str, ...]
  name: str

  def source(self) -> str:
    base, suffix = os.path.splitext(self.name)
    names = [self.name] if suffix.lower() in map(str.lower, _VIDEOS) else []
    names += [base + x if names else self.name + x for x in _VIDEOS]
    for inside in self.inside:
      for name in names:
        path = os.path.join(self.folder, inside, name)
        if os.path.isfile(path):
          return path
    places = ", ".join(inside or "." for inside in self.inside)
    raise skipped.SkipError(
      "missing video",
      f"{self.name!r} ({', '.join(_VIDEOS)}) is in none of {places} of"
      f" {self.folder}",
    )


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a Parquet table: `{bytes, path}`, or one of a list of these."""

  file: str
  group: int
  row: int
  column: str
  index: int | None = None

  def source(self) -> bytes:
    cell = self._value()
    if self.index is not None and cell:
      cell = cell[self.index]
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes) or not content:
      raise skipped.SkipError(
        "missing image",
        f"{os.path.basename(self.file)}, row group {self.group}, row"
        f" {self.row}: column {self.column!r} has no bytes",
      )
    return content

  def is_null(self) -> bool:
    """Whether the table has nothing there; reads the column.

    Raises:
      samples.DataError: it can't be read.
    """
    try:
      cell = self._value()
    except skipped.SkipError as error:
      raise samples.DataError(str(error)) from None
    empty = isinstance(cell, dict) and not any(cell.values())
    return cell is None or empty

  def _value(self) -> Any:
    try:
      return _column(self.file, self.group, self.column)[self.row].as_py()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
      raise skipped.SkipError(
        "unreadable table",
        f"{self.file}, row group {self.group}: column {self.column!r} can't be"
        f" read ({skipped.one_line(str(error))[:200]})",
      ) from None


@functools.lru_cache(maxsize=8)  # an item of MMMU is seven columns wide
def _column(file: str, group: int, column: str) -> pyarrow.ChunkedArray:
  """A column of a row group; items are asked in the order of their rows."""
  with parquet.ParquetFile(file, memory_map=True) as table:
    return table.read_row_group(group, columns=[column]).column(column)


def fingerprint(shown: Sequence[Medium]) -> str:
  """Tells pictures from others by their files' bytes.

  Returns:
    64 hexadecimal digits; none if there is no picture, or one is missing.
  """
  digest = hashlib.sha256()
  for one in shown:
    try:
      content = one.source()
      if isinstance(content, str):
        content = pathlib.Path(content).read_bytes()
    except (skipped.SkipError, OSError):  # told when it is asked about
      return ""
    digest.update(hashlib.sha256(content).digest())
  return digest.hexdigest() if shown else ""


def picture(medium: Medium, max_pixels: int) -> np.ndarray:
  """The pixels of a picture as peers score it: as stored, and never turned.

  Args:
    medium: of an item.
    max_pixels: of a picture; a larger one is refused before it is decoded.

  Returns:
    uint8 [height, width, 3].

  Raises:
    skipped.SkipError: it is not there, or can't be read.
  """
  try:
    return images.decode(medium.source(), max_pixels, as_stored=True)
  except images.ImageError as error:
    raise skipped.SkipError("unreadable image", str(error)) from None


def files(folder: str, pattern: str) -> list[str]:
  """Files below a folder, links followed."""
  found = glob.glob(os.path.join(glob.escape(folder), pattern), recursive=True)
  return sorted(path for path in found if os.path.isfile(path))


def instead(folder: str) -> str:
  """What is in a folder in a form that is not read, and how to change it."""
  if not os.path.isdir(folder):
    return "; there is no such folder"
  if files(folder, "**/*.arrow"):
    return (
      "; the .arrow files there are of save_to_disk: write them as Parquet, by"
      " datasets.load_from_disk(DIR).to_parquet(FILE)"
    )
  if files(folder, "**/*.tsv"):
    return "; the .tsv there is VLMEvalKit's, which is not read"
  if files(folder, "**/*.zip") or files(folder, "**/*.tar*"):
    return "; archives there must be unpacked first"
  return ""
