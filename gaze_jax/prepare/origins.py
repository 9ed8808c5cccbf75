"""The formats that data come in, as entries in LLaVA's format with media.

Each origin divides its data into parts of so many samples, which any process
can read by themselves.
"""

import dataclasses
import fnmatch
import glob
import itertools
import json
import mimetypes
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import pyarrow
from pyarrow import parquet

from gaze_jax import errors
from gaze_jax import fingerprint
from gaze_jax import foreign
from gaze_jax import json_file
from gaze_jax.data import json_records
from gaze_jax.data import media_files
from gaze_jax.data import samples
from gaze_jax.data import skipped

_LINES = (".jsonl", ".ndjson")
_CAPTION = (".txt", ".caption")
_KINDS = ("image", "video")
# Suffixes of media that the system's own tables may lack.
_SUFFIXES = {
  ".webp": "image",
  ".avif": "image",
  ".jp2": "image",
  ".mkv": "video",
  ".webm": "video",
  ".flv": "video",
  ".ts": "video",
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A sample as it comes, or why there is none.

  Attributes:
    record: in LLaVA's format.
    media: gives the bytes of an "image" or "video" by the name that the record
      has, and its kind; raises `skipped.SkipError`.
  """

  record: json_records.Record
  media: Callable[[str, str], bytes]


@runtime_checkable
class Origin(Protocol):
  """Data in one format.

  `identity` tells the data from others; `parts` divides them; `entries` reads
  a part, in any process.
  """

  def identity(self) -> dict[str, Any]: ...

  def parts(self, size: int) -> Iterator[Any]: ...

  def entries(self, part: Any) -> Iterator[Entry]: ...


def open_origin(path: str, folder: str) -> Origin:
  """The data that a path names.

  Args:
    path: a file of JSON or JSON Lines; a Parquet file; a tar; a folder of one
      of these, or of media with a .json or .txt beside each; or a pattern, such
      as "data/*.tar".
    folder: what the names of media in JSON are relative to; "" for the folder
      of the file.

  Raises:
    samples.DataError: it is none of these.
  """
  files = _files(path)
  kinds = {_kind(file) for file in files}
  if len(kinds) > 1:
    raise samples.DataError(
      f"{path}: files of several kinds ({', '.join(sorted(kinds))}); name those"
      " of one, by a pattern"
    )
  (kind,) = kinds
  if kind == "json":
    if len(files) > 1:
      raise samples.DataError(
        f"{path}: {len(files)} files of JSON; prepare each into a directory of"
        " its own, and train on a mixture of them"
      )
    return Json(files[0], folder or os.path.dirname(files[0]) or ".")
  if folder:
    raise samples.DataError(
      f"--image_folder={folder} goes with a file of JSON; {path} has its media"
      " within"
    )
  if kind == "parquet":
    return Parquet(files)
  return Tar(files) if kind == "tar" else Folder(path)


def _files(path: str) -> list[str]:
  """The files that a path names; a folder of media is one."""
  if os.path.isdir(path):
    inside = [os.path.join(path, name) for name in sorted(os.listdir(path))]
    known = [f for f in inside if _kind(f) in ("parquet", "tar")]
    return known or [path]
  if os.path.isfile(path):
    return [path]
  found = sorted(
    f for f in glob.glob(path, recursive=True) if os.path.isfile(f)
  )
  if not found:
    raise samples.DataError(f"{path}: {foreign.no_file(path)}")
  return found


def _kind(path: str) -> str:
  name = path.lower()
  if os.path.isdir(path):
    return "folder"
  if fnmatch.fnmatch(name, "*.parquet"):
    return "parquet"
  if ".tar" in os.path.basename(name) or name.endswith(".tgz"):
    return "tar"
  return "json"


@dataclasses.dataclass(frozen=True)
class Json:
  """A file of JSON or JSON Lines, with media in a folder."""

  path: str
  folder: str

  def identity(self) -> dict[str, Any]:
    """The file, and the folder by its name."""
    folder = os.path.abspath(self.folder)
    if not os.path.isdir(folder):
      raise samples.DataError(f"{folder}: no such folder (--image_folder)")
    return dict(file=fingerprint.of_file(self.path), folder=folder)

  def parts(self, size: int) -> Iterator[list[json_records.Record]]:
    """Records that were read here: no process parses a file twice."""
    if self.path.lower().endswith(_LINES):
      records = json_records.lines(self.path)
    else:
      records = iter(json_records.read(self.path))
    while part := list(itertools.islice(records, size)):
      yield part

  def entries(self, part: list[json_records.Record]) -> Iterator[Entry]:
    """The records, with media from the folder."""
    folder = os.path.abspath(self.folder)

    def media(name: str, kind: str) -> bytes:
      return pathlib.Path(media_files.find(name, folder, kind)).read_bytes()

    for one in part:
      yield Entry(one, media)


@dataclasses.dataclass(frozen=True)
class Parquet:
  """Tables as `datasets` of Hugging Face writes them.

  A column `image` or `images`, `video` or `videos`, has `{bytes, path}`, or a
  list of it; the others are those of LLaVA's format.
  """

  files: list[str]

  def identity(self) -> dict[str, Any]:
    """The files."""
    return dict(files=[fingerprint.of_file(file) for file in self.files])

  def parts(self, size: int) -> Iterator[list[tuple[str, int, int, int]]]:
    """Rows of row groups: (file, row group, first row, rows)."""
    part, room = [], size
    for file in self.files:
      metadata = self._open(file).metadata
      for group in range(metadata.num_row_groups):
        rows, first = metadata.row_group(group).num_rows, 0
        while rows:
          taken = min(rows, room)
          part.append((file, group, first, taken))
          rows, first, room = rows - taken, first + taken, room - taken
          if not room:
            yield part
            part, room = [], size
    if part:
      yield part

  def entries(self, part: list[tuple[str, int, int, int]]) -> Iterator[Entry]:
    """The rows; of a row group at a time."""
    for file, group, first, rows in part:
      table = self._open(file).read_row_group(group).slice(first, rows)
      for i in range(rows):
        (row,) = table.slice(i, 1).to_pylist()
        place = f"{os.path.basename(file)}, row group {group}, row {first + i}"
        yield _row_entry(place, row)

  def _open(self, file: str) -> Any:
    try:
      return parquet.ParquetFile(file, memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
      why = " ".join(str(error).split())[:200]
      raise samples.DataError(f"{file}: no Parquet table ({why})") from None


def _row_entry(place: str, row: dict[str, Any]) -> Entry:
  value, found = dict(row), {}
  for kind in _KINDS:
    for key in (kind, f"{kind}s"):
      cell = value.get(key)
      cells = cell if isinstance(cell, list) else [cell]
      if any(isinstance(one, (dict, bytes)) for one in cells):
        names = []
        for one in cells:
          names.append(f"{key} {len(names)}")
          found[names[-1]] = one
        value[key] = names

  def media(name: str, kind: str) -> bytes:
    cell = found.get(name)
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not content or not isinstance(content, bytes):
      raise skipped.SkipError(
        f"missing {kind}",
        f"{foreign.short(name)!r} has no bytes in the table, but a path: write"
        " the data with the media in them, or as JSON beside a folder",
      )
    return content

  return Entry(json_records.Record(place, value), media)


# Where the bytes of a file are: a file, and a range of it.
_Range = tuple[str, int, int]
# A sample of files with one name: the name, and where each suffix is.
_Group = tuple[str, dict[str, _Range]]


@dataclasses.dataclass(frozen=True)
class Tar:
  """Tars as WebDataset has them: files of one name up to a dot are a sample.

  `.json` is a record of LLaVA's format, or `.txt` a caption; the others are its
  media, in the order of their suffixes.
  """

  files: list[str]

  def identity(self) -> dict[str, Any]:
    """The files."""
    return dict(files=[fingerprint.of_file(file) for file in self.files])

  def parts(self, size: int) -> Iterator[list[_Group]]:
    """Where the files of so many samples are."""
    groups = itertools.chain.from_iterable(map(self._groups, self.files))
    while part := list(itertools.islice(groups, size)):
      yield part

  def entries(self, part: list[_Group]) -> Iterator[Entry]:
    """The samples."""
    return map(_group_entry, part)

  def _groups(self, file: str) -> Iterator[_Group]:
    before: str | None = None
    group: dict[str, _Range] = {}
    try:
      with tarfile.open(file, "r:") as tar:
        for member in tar:
          if not member.isfile():
            continue
          key, suffix = _divided(member.name)
          if key != before and group:
            yield f"{os.path.basename(file)}: {before}", group
            group = {}
          before = key
          group[suffix] = (file, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
      with open(file, "rb") as opened:
        what = foreign.kind(opened.read(foreign.HEAD))
      raise samples.DataError(
        f"{file}: {what or f'a broken tar ({error})'}"
      ) from None
    if group:
      yield f"{os.path.basename(file)}: {before}", group


@dataclasses.dataclass(frozen=True)
class Folder:
  """Media with a .json or .txt of the same name beside them, as in `Tar`."""

  path: str

  def identity(self) -> dict[str, Any]:
    """The folder by its name."""
    return dict(folder=os.path.abspath(self.path))

  def parts(self, size: int) -> Iterator[list[_Group]]:
    """The paths of so many samples."""
    groups = self._groups()
    while part := list(itertools.islice(groups, size)):
      yield part

  def entries(self, part: list[_Group]) -> Iterator[Entry]:
    """The samples."""
    return map(_group_entry, part)

  def _groups(self) -> Iterator[_Group]:
    for root, folders, names in os.walk(self.path):
      folders.sort()
      by_key: dict[str, dict[str, _Range]] = {}
      for name in sorted(names):
        if not name.startswith("."):
          path = os.path.join(root, name)
          key, suffix = _divided(os.path.relpath(path, self.path))
          group = by_key.setdefault(key, {})
          group[suffix] = (path, 0, os.path.getsize(path))
      yield from sorted(by_key.items())


def _divided(name: str) -> tuple[str, str]:
  """A name up to the first dot of its last part, and the rest."""
  folder, base = os.path.split(name)
  key, dot, suffix = base.partition(".")
  return os.path.join(folder, key), dot + suffix


def _group_entry(group: _Group) -> Entry:
  place, files = group
  of = {kind: sorted(s for s in files if _medium(s) == kind) for kind in _KINDS}

  def media(name: str, kind: str) -> bytes:
    if name not in files:
      raise skipped.SkipError(
        f"missing {kind}", f"{foreign.short(name)!r} is not beside the .json"
      )
    return _bytes(files[name])

  try:
    value = _group_value(files, of)
  except json_file.NotJsonError as error:
    return Entry(json_records.Record(place, error=str(error)), media)
  if isinstance(value, dict):
    for kind in _KINDS:
      value = _named_by_suffix(value, kind, of[kind])
  return Entry(json_records.Record(place, value), media)


def _group_value(files: dict[str, _Range], of: dict[str, list[str]]) -> Any:
  """The value of a sample's .json, or what its caption says.

  Raises:
    json_file.NotJsonError: it has neither, or the .json is none.
  """
  if ".json" in files:
    text = json_file.decode(_bytes(files[".json"]))
    return json_file.parse(text, json_records.an_object)
  captions = [files[suffix] for suffix in _CAPTION if suffix in files]
  if not captions:
    beside = ", ".join(sorted(files))
    raise json_file.NotJsonError(f"no .json and no .txt beside {beside}")
  marks = "".join(f"<{kind}>" * len(of[kind]) for kind in _KINDS)
  caption = json_file.decode(_bytes(captions[0])).strip()
  return dict(
    conversations=[
      {"from": "human", "value": marks},
      {"from": "gpt", "value": caption},
    ]
  )


def _named_by_suffix(
  value: dict[Any, Any], kind: str, suffixes: Sequence[str]
) -> dict[Any, Any]:
  """A record whose media of a kind are named by the suffixes of its files.

  What the record itself calls them are the names that they had elsewhere; only
  their number is compared.
  """
  own = [key for key in (kind, f"{kind}s") if value.get(key)]
  for key in own:
    names = value[key] if isinstance(value[key], list) else [value[key]]
    if len(names) != len(suffixes):
      return value  # named, and not there: `media` says so
  if not suffixes:
    return value
  rest = {k: v for k, v in value.items() if k not in (kind, f"{kind}s")}
  return rest | {f"{kind}s": list(suffixes)}


def _medium(suffix: str) -> str:
  """The kind of a file: "image", "video" or something else."""
  last = suffix[suffix.rfind(".") :].lower()
  guessed = str(mimetypes.guess_type(f"x{last}")[0]).split("/")[0]
  return _SUFFIXES.get(last, guessed)


def _bytes(where: _Range) -> bytes:
  path, start, size = where
  with open(path, "rb") as file:
    file.seek(start)
    return file.read(size)


def describe(origin: Origin) -> str:
  """What tells an origin from others, as a line."""
  try:
    return json.dumps(
      {type(origin).__name__: origin.identity()}, sort_keys=True
    )
  except OSError as error:
    raise errors.GazeError(
      f"{error.filename}: {errors.system_message(error)}"
    ) from None
