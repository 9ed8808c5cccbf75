"""llava_json: the user's own conversations about images, in LLaVA's format.

  [{"id": "1", "image": "a.jpg", "conversations": [
      {"from": "human", "value": "<image>\\nWhat is this?"},
      {"from": "gpt", "value": "A fox."}]}, ...]

`image` or `images` (a name or a list) are relative to the image folder, and
each `<image>` in a question stands for one of them, in order. Neither key: text
alone. Turns alternate, the human begins; a system turn may come first. (LLaVA,
docs/Finetune_Custom_Data.md.) OpenAI's words are known too: `messages`, `role`,
`content`, user and assistant. A file of JSON Lines has one sample a line.

A sample that can't be used is skipped and counted. The first of each kind of
reason is logged, and too many of them are an error.
"""

import dataclasses
import hashlib
import importlib.metadata
import mimetypes
import os
from collections.abc import Sequence

import numpy as np
from absl import logging

from gaze_jax import config as config_lib
from gaze_jax import fingerprint
from gaze_jax import plugins
from gaze_jax.data import images
from gaze_jax.data import json_records
from gaze_jax.data import llava_record
from gaze_jax.data import media as media_lib
from gaze_jax.data import media_files
from gaze_jax.data import packing
from gaze_jax.data import paths
from gaze_jax.data import record_index
from gaze_jax.data import samples
from gaze_jax.data import skipped as skipped_lib
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.layout import tiles

# Of the frames that stand for those of a video that was not opened yet. (Only
# with NaFlex does their size matter, and there they are compared again.)
_FRAME = (448, 448)


@dataclasses.dataclass(frozen=True)
class _Record:
  """A checked record.

  Attributes:
    name: its place in the file, and its id.
    images: paths of its images.
    sizes: height and width of each, by its header.
    videos: paths of its videos.
    sample: without both.
  """

  name: str
  images: tuple[str, ...]
  sizes: tuple[tiles.Size, ...]
  videos: tuple[str, ...]
  sample: samples.Sample


class LlavaJson:
  """Samples of a LLaVA-format JSON file (`samples.Source`).

  All samples are checked once, headers of images included, and for room for the
  longest video. A sample whose image or video turns out to be broken later is
  replaced by the next good sample, always the same.

  Args:
    path: the JSON file.
    image_folder: what image names are relative to; none may lead out of it.
    max_skipped: share of the samples that may be skipped.
    reader: of the images and videos.
    tokenizer: that `entry` counts by.

  Raises:
    samples.DataError: the file can't be read, or too much of it is skipped.
  """

  def __init__(
    self,
    path: str,
    *,
    image_folder: str,
    max_skipped: float,
    reader: media_lib.Reader,
    tokenizer: tokenizer_lib.Tokenizer | None = None,
  ):
    self._path, self._reader, self._tokenizer = path, reader, tokenizer
    self._folder = os.path.abspath(image_folder or os.path.dirname(path) or ".")
    records = json_records.read(path)
    if not os.path.isdir(self._folder):
      raise samples.DataError(
        f"{self._folder}: no such folder of images (data.image_folder)"
      )
    self._skipped = skipped_lib.Skipped(path, len(records), max_skipped)
    self._records: list[_Record] = []
    for record in records:
      try:
        self._records.append(self._checked(record))
      except skipped_lib.SkipError as skip:
        self._skipped.add(_name_of(record), skip)
    if self._skipped:
      logging.warning("%s: %s", path, self._skipped)
    self._skipped.check()
    # Those whose media are known to be good.
    self._texts: dict[int, samples.Sample] = {}
    self._digest = _digest(self._records)

  def __len__(self) -> int:
    return len(self._records)

  def sample(self, index: int, epoch: int = 0) -> samples.Sample:
    """The conversation with its images; the same in every epoch."""
    return self._resolve(index, pixels=True)

  def text(self, index: int, epoch: int = 0) -> samples.Sample:
    """`sample` without images; decodes them once, to know they are good."""
    return self._resolve(index, pixels=False)

  def canvas(self, index: int) -> tuple[np.ndarray, ...]:
    """The pictures, uint8 [h, w, 3] each; none for text alone."""
    return packing.pictures(self.sample(index))

  def fingerprint(self) -> str:
    """Everything that decides the images, whatever their names and times."""
    return (
      f"llava_json samples={len(self)} pictures={self._digest['pictures']}"
      f" pillow={importlib.metadata.version('pillow')}"
    )

  def content(self) -> dict[str, int | str]:
    """Hashes of the samples that are used: texts whole, images by file."""
    return dict(samples=len(self), **self._digest)

  def entry(self, index: int) -> record_index.Entry:
    """What a sample takes of a row; a video counts as the longest."""
    record = self._records[index]
    slots, answers = record_index.count(record.sample, self._tokenizer)
    film = record_index.Medium(*_FRAME, self._reader.frames.frames)
    media = record_index.media(
      record.sample, record.sizes, [film] * len(record.videos)
    )
    return record_index.Entry(slots, answers, tuple(media))

  @property
  def skipped(self) -> dict[str, int]:
    """How many samples were skipped so far, by reason."""
    return dict(self._skipped.reasons)

  def _resolve(self, index: int, *, pixels: bool) -> samples.Sample:
    if not 0 <= index < len(self):
      raise IndexError(f"index {index} of {len(self)} samples")

    def read(i: int) -> samples.Sample:
      record = self._records[i]
      if not pixels and i in self._texts:
        return self._texts[i]
      sample = self._reader.decode(record.sample, record.images, record.videos)
      sizes = tuple(image.shape[:2] for image in sample.images)
      if sample.videos or sizes != record.sizes:  # the file was changed since
        frames = [[f.shape[:2] for f in clip] for clip in sample.videos]
        self._reader.check(record.sample, sizes, frames)
      if pixels:
        return sample
      self._texts[i] = packing.without_pixels(sample)
      return self._texts[i]

    return self._skipped.first_usable(
      index, len(self), read, lambda i: self._records[i].name
    )

  def _checked(self, record: json_records.Record) -> _Record:
    sample, media = llava_record.of_record(record)
    found = [self._image(name) for name in media.images]
    files, sizes = zip(*found, strict=True) if found else ((), ())
    videos = tuple(
      media_files.find(name, self._folder, "video") for name in media.videos
    )
    longest = [_FRAME] * self._reader.frames.frames
    self._reader.check(sample, sizes, [longest] * len(videos))
    return _Record(_name_of(record), files, sizes, videos, sample)

  def _image(self, name: str) -> tuple[str, tiles.Size]:
    """Path of an image, and its height and width."""
    path = media_files.find(name, self._folder, "image")
    try:
      with media_lib.skipping():
        return path, images.check(path, self._reader.max_pixels)
    except skipped_lib.SkipError as skip:
      kind = str(mimetypes.guess_type(path)[0]).split("/")[0]
      if skip.reason == "corrupt image" and kind in ("video", "audio"):
        detail = f"{path} is named as an image"
        raise skipped_lib.SkipError(kind, detail) from None
      raise


def _digest(records: Sequence[_Record]) -> dict[str, str]:
  """Hashes of texts and images of the records, in order, and of both in any."""
  texts, pictures, any_order = hashlib.sha256(), hashlib.sha256(), 0
  for record in records:
    text = repr((record.sample.system, *record.sample.conversation))
    text = hashlib.sha256(text.encode()).digest()
    picture = " ".join(
      map(fingerprint.of_file, (*record.images, *record.videos))
    )
    picture = hashlib.sha256(picture.encode()).digest()
    texts.update(text)
    pictures.update(picture)
    both = hashlib.sha256(text + picture).digest()
    any_order += int.from_bytes(both[:16])
  return dict(
    texts=texts.hexdigest()[:32],
    pictures=pictures.hexdigest()[:32],
    any_order=f"{any_order % 2**128:032x}",
  )


def _make(config: config_lib.Config, split: str) -> LlavaJson:
  """The source of `data.path` (train) or `data.eval_path` (new)."""
  data = config.data
  return LlavaJson(
    paths.of_split(config, split, "the JSON file"),
    image_folder=data.image_folder,
    max_skipped=data.max_skipped,
    reader=media_lib.reader(config),
    tokenizer=tokenizer_lib.Tokenizer.load(data.tokenizer),
  )


def _name_of(record: json_records.Record) -> str:
  """The place, which is unique, and the id, which may not be."""
  place, value = record.place, record.value
  given = value.get("id") if isinstance(value, dict) else None
  return (
    place if given is None else skipped_lib.one_line(f"{place} (id {given})")
  )


SOURCE = plugins.SourceSpec(make=_make, splits=paths.splits)
