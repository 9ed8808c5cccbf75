"""What a sample takes of a row, without reading it: the index of a data set.

Three files of fixed width beside the shards, so that any entry is read by its
number and none is held in memory:

  records.bin      `RECORD`, one a sample: where its media are in media.bin
  media.bin        `MEDIUM`, one a picture or video
  text-HASH.bin    `TEXT`, one a sample, as counted by one tokenizer
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import storage
from gaze_jax.data import packing
from gaze_jax.data import samples
from gaze_jax.data import skipped
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units as units_lib
from gaze_jax.data import video
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

RECORDS, MEDIA = "records.bin", "media.bin"
RECORD = np.dtype([("first", "<u8"), ("media", "<u4")])
# `frames` is 0 for a picture; `milliseconds` are 0 for frames that were taken
# before; `alone` is 1 for the only picture of its turn.
MEDIUM = np.dtype(
  [
    ("height", "<u4"),
    ("width", "<u4"),
    ("frames", "<u4"),
    ("milliseconds", "<u4"),
    ("alone", "<u4"),
  ]
)
# Slots that are no medium's, and those of them that are scored; -1 where the
# chat template does not take the sample.
TEXT = np.dtype([("slots", "<i4"), ("answers", "<i4")])


@dataclasses.dataclass(frozen=True)
class Medium:
  """A picture, or a video with frames and a length; as an entry of `MEDIUM`."""

  height: int
  width: int
  frames: int = 0
  milliseconds: int = 0
  alone: int = 0


@dataclasses.dataclass(frozen=True)
class Entry:
  """What the index tells of a sample.

  Attributes:
    slots: as in `TEXT`.
    answers: as in `TEXT`.
    media: pictures and videos, in the order of their marks.
  """

  slots: int
  answers: int
  media: tuple[Medium, ...]


def text_file(tokenizer: tokenizer_lib.Tokenizer) -> str:
  """The name of the file of a tokenizer's counts."""
  return f"text-{tokenizer.fingerprint()[:16]}.bin"


def count(
  sample: samples.Sample, tokenizer: tokenizer_lib.Tokenizer
) -> tuple[int, int]:
  """An entry of `TEXT` for a conversation."""
  try:
    parts = packing.parts(sample, tokenizer, [()] * len(packing.kinds(sample)))
  except samples.DataError:
    return -1, -1
  slots = sum(len(text.ids) for text in parts)
  return slots, sum(len(text.ids) for text in parts if text.question >= 0)


def media(
  sample: samples.Sample,
  images: Sequence[tiles.Size],
  videos: Sequence[Medium],
) -> list[Medium]:
  """The images and videos of a conversation, in reading order.

  Args:
    sample: the conversation.
    images: height and width of each.
    videos: what is known of each.
  """
  alone = units_lib.are_alone(len(images), packing.images_per_turn(sample))
  pictures = [
    Medium(*size, alone=int(one))
    for size, one in zip(images, alone, strict=True)
  ]
  return packing.in_reading_order(sample, pictures, videos)


def units(
  entry: Entry, model: config_lib.ModelConfig, frames: video.Sampling
) -> list[row_lib.Unit]:
  """The units that a model makes of a sample's media, in reading order.

  Args:
    entry: of the sample.
    model: that reads it.
    frames: that are taken of a video.
  """
  out: list[row_lib.Unit] = []
  for one in entry.media:
    size = (one.height, one.width)
    if one.frames:
      count = min(one.frames, frames.frames)
      if one.milliseconds:
        count = frames.parts(one.frames, one.milliseconds / 1000)
      out += units_lib.of_frames([size] * count, model)
    else:
      # A picture that is not alone is seen as one of several, however many.
      turn = [size] if one.alone else [size, size]
      out += units_lib.of_sizes(turn, model)[0]
  return out


def size(
  entry: Entry,
  shape: row_lib.RowShape,
  model: config_lib.ModelConfig,
  frames: video.Sampling,
) -> row_lib.Size:
  """What a sample takes of a row; as for `check_fits`."""
  its = units(entry, model, frames)
  slots = entry.slots + sum(u.tokens + shape.context_tokens for u in its)
  return row_lib.Size(slots, entry.answers, len(its), sum(u.tiles for u in its))


def check_fits(
  entry: Entry,
  shape: row_lib.RowShape,
  model: config_lib.ModelConfig,
  frames: video.Sampling,
) -> None:
  """Raises a `skipped.SkipError` for a sample that no row can hold.

  Args:
    entry: of the sample.
    shape: of a row.
    model: that reads it.
    frames: that are taken of a video.
  """
  if entry.slots < 0:
    raise skipped.SkipError(
      "chat template", "the chat template of data.tokenizer does not take it"
    )
  if size(entry, shape, model, frames).fits(shape.room):
    return
  # For the words that say what there is too much of.
  read = max(entry.slots - entry.answers, 1)
  text = row_lib.Text([0] * read), row_lib.Text([0] * entry.answers, 0, 0)
  try:
    row_lib.lay_out([*units(entry, model, frames), *text], shape)
  except row_lib.LayoutError as error:
    raise skipped.SkipError("too long", str(error)) from None


class Index:
  """Reads the index of a data set.

  Args:
    folder: where its files are.
    length: samples.
    text: name of the file of a tokenizer's counts, from `text_file`.

  Raises:
    samples.DataError: a file is missing or has another length.
  """

  def __init__(self, folder: storage.Path, length: int, text: str):
    self._text = text
    for name, dtype in ((RECORDS, RECORD), (text, TEXT)):
      size, wanted = _size(folder / name), length * dtype.itemsize
      if size != wanted:
        raise samples.DataError(
          f"{folder / name}: it has {size} bytes, and {length} samples need"
          f" {wanted}; copy it again, or prepare the data anew"
        )
    _size(folder / MEDIA)
    self._files = {
      name: storage.copy_here(folder / name) for name in (RECORDS, MEDIA, text)
    }

  def __getitem__(self, number: int) -> Entry:
    (text,) = self._read(self._text, TEXT, number, 1)
    (record,) = self._read(RECORDS, RECORD, number, 1)
    media = self._read(
      MEDIA, MEDIUM, int(record["first"]), int(record["media"])
    )
    of = tuple(Medium(*map(int, tuple(one))) for one in media)
    return Entry(int(text["slots"]), int(text["answers"]), of)

  def _read(
    self, name: str, dtype: np.dtype, start: int, count: int
  ) -> np.ndarray:
    offset = start * dtype.itemsize
    return np.fromfile(self._files[name], dtype, count, offset=offset)


def _size(path: storage.Path) -> int:
  try:
    return storage.size(path)
  except OSError:
    raise samples.DataError(
      f"{path}: no such file; copy it again, or prepare the data anew"
    ) from None
