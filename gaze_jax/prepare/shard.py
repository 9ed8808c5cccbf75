"""Writes a shard: records, what the index has of them, and what is skipped."""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from PIL import Image

from gaze_jax import whole_file
from gaze_jax.data import images
from gaze_jax.data import llava_record
from gaze_jax.data import media
from gaze_jax.data import record as record_lib
from gaze_jax.data import record_index
from gaze_jax.data import skipped
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import video
from gaze_jax.prepare import origins

_WRITER = "group_size:1,uncompressed"  # random access; pictures are packed
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class Options:
  """What is done with each sample.

  Attributes:
    tokenizer: as `data.tokenizer`; it is what the index counts with.
    max_pixels: larger images and frames are skipped.
    max_side: larger ones are scaled down to it; 0: all stay as they are.
    frames: that are taken of a video; 0: clips stay as they are.
  """

  tokenizer: str = ""
  max_pixels: int = 50_000_000
  max_side: int = 0
  frames: int = 0


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is known of a shard that is written.

  Attributes:
    records: that it has.
    record_bytes: of these alone.
    file_bytes: of its file.
    sha256: of its file.
    skipped: place, reason and details of each sample that it lacks.
  """

  records: int
  record_bytes: int
  file_bytes: int
  sha256: str
  skipped: list[tuple[str, str, str]]


def files(folder: pathlib.Path, number: int) -> dict[str, pathlib.Path]:
  """Where the shard of a number, and its part of the index, are kept."""
  return {
    kind: folder / f"{number:05d}.{kind}"
    for kind in ("array_record", "records", "media", "text", "json")
  }


def read(folder: pathlib.Path, number: int) -> Facts | None:
  """The facts of a shard; None if it was not finished."""
  path = files(folder, number)["json"]
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  values["skipped"] = [tuple(one) for one in values["skipped"]]
  return Facts(**values)


def write(
  folder: pathlib.Path,
  number: int,
  origin: origins.Origin,
  part: Any,
  options: Options,
) -> Facts:
  """Writes a shard; a process that is killed leaves none of its number.

  Args:
    folder: where to.
    number: of the shard.
    origin: of the data.
    part: of the origin.
    options: what is done with each sample.

  Raises:
    OSError: it can't be written.
  """
  its = files(folder, number)
  its["json"].unlink(missing_ok=True)
  index = _Index(tokenizer_lib.Tokenizer.load(options.tokenizer))
  left_out, written = [], 0
  with (
    whole_file.replacing(its["array_record"]) as partial,
    contextlib.closing(_Writer(partial)) as writer,
  ):
    for entry in origin.entries(part):
      try:
        record, shown = _record(entry, options)
      except skipped.SkipError as skip:
        why = skipped.one_line(str(skip))
        left_out.append((entry.record.place, skip.reason, why))
        continue
      content = record_lib.serialize(record)
      writer.write(content)
      index.add(record, shown)
      written += len(content)
  index.write(its)
  facts = Facts(
    records=len(index),
    record_bytes=written,
    file_bytes=its["array_record"].stat().st_size,
    sha256=_sha256(its["array_record"]),
    skipped=left_out,
  )
  whole_file.write(its["json"], json.dumps(dataclasses.asdict(facts)))
  return facts


class _Writer:
  """An ArrayRecord file; what goes wrong is an OSError."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    path.touch()  # the library's own error names no reason
    self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITER)

  def write(self, content: bytes) -> None:
    self._act(self._writer.write, content)

  def close(self) -> None:
    if self._writer.is_open():
      self._act(self._writer.close)

  def _act(self, function: Any, *args: Any) -> None:
    try:
      function(*args)
    except (ValueError, RuntimeError) as error:
      why = " ".join(str(error).split())[:200]
      raise OSError(None, why, str(self._path)) from None


class _Index:
  """The index of the records of a shard, numbered from 0."""

  def __init__(self, tokenizer: tokenizer_lib.Tokenizer):
    self._tokenizer = tokenizer
    self._records: list[tuple[int, int]] = []
    self._media: list[tuple[int, ...]] = []
    self._texts: list[tuple[int, int]] = []

  def __len__(self) -> int:
    return len(self._records)

  def add(
    self,
    record: record_lib.Record,
    media: Sequence[record_index.Medium],
  ) -> None:
    self._records.append((len(self._media), len(media)))
    self._media += [dataclasses.astuple(one) for one in media]
    self._texts.append(record_index.count(record.sample, self._tokenizer))

  def write(self, its: dict[str, pathlib.Path]) -> None:
    for kind, rows, dtype in (
      ("records", self._records, record_index.RECORD),
      ("media", self._media, record_index.MEDIUM),
      ("text", self._texts, record_index.TEXT),
    ):
      np.array(rows, dtype).tofile(its[kind])


def _record(
  entry: origins.Entry, options: Options
) -> tuple[record_lib.Record, list[record_index.Medium]]:
  """A sample to store, and what the index has of its media.

  Raises:
    skipped.SkipError: it can't be used.
  """
  sample, names = llava_record.of_record(entry.record)
  pictures, sizes = [], []
  for name in names.images:
    content, size = _picture(entry.media(name, "image"), name, options)
    pictures.append(content)
    sizes.append(size)
  videos, films = [], []
  for name in names.videos:
    one, facts = _video(entry.media(name, "video"), name, options)
    videos.append(one)
    films.append(record_index.Medium(*dataclasses.astuple(facts)))
  record = record_lib.Record(
    str(entry.record.value.get("id") or entry.record.place),
    sample,
    tuple(pictures),
    tuple(videos),
  )
  return record, record_index.media(sample, sizes, films)


def _picture(
  content: bytes, name: str, options: Options
) -> tuple[bytes, tuple[int, int]]:
  """The file of an image, and its height and width."""
  with media.skipping(name):
    size = images.check(content, options.max_pixels)
    if not options.max_side or max(size) <= options.max_side:
      return content, size
    pixels = images.decode(content, options.max_pixels)
  return _encoded(pixels, options, lossless=content[:2] != b"\xff\xd8")


def _video(
  content: bytes, name: str, options: Options
) -> tuple[bytes | tuple[bytes, ...], video.Facts]:
  """A video as it is stored, and what it is."""
  with media.skipping(name), video.as_file(content) as path:
    if not options.frames:
      return content, video.facts(path, options.max_pixels)
    taken = video.read(path, options.frames, options.max_pixels)
  encoded = [_encoded(frame, options) for frame in taken]
  _, (height, width) = encoded[0]
  facts = video.Facts(height, width, len(taken), 0)
  return tuple(frame for frame, _ in encoded), facts


def _encoded(
  pixels: np.ndarray, options: Options, lossless: bool = False
) -> tuple[bytes, tuple[int, int]]:
  """The file of a picture of at most `max_side` pixels a side, and its size."""
  picture = Image.fromarray(pixels)
  if options.max_side:
    picture.thumbnail((options.max_side,) * 2, Image.Resampling.BICUBIC)
  out = io.BytesIO()
  if lossless:
    picture.save(out, "PNG")
  else:
    picture.save(out, "JPEG", quality=_JPEG_QUALITY)
  return out.getvalue(), (picture.height, picture.width)


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
