"""Decodes the media of samples, and tells which no row can hold."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import data_config
from gaze_jax.data import images as images_lib
from gaze_jax.data import packing
from gaze_jax.data import samples
from gaze_jax.data import skipped
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import video
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

# Raises `row_lib.LayoutError` for a sample that is too long. It gets the sample
# without its pictures, the height and width of each image, and those of the
# frames of each video.
CheckFits = Callable[
  [samples.Sample, Sequence[tiles.Size], Sequence[Sequence[tiles.Size]]], None
]
# A file, its bytes, or the files of its frames as bytes.
Video = str | os.PathLike | bytes | Sequence[bytes]


@contextlib.contextmanager
def skipping(name: str = "") -> Iterator[None]:
  """Within it what is wrong with an image or video is a `skipped.SkipError`.

  Args:
    name: of it, if its errors don't tell.
  """
  reasons = (
    (images_lib.TooLargeError, "image too large"),
    (images_lib.ImageError, "corrupt image"),
    (video.VideoError, "corrupt video"),
  )
  try:
    yield
  except (images_lib.ImageError, video.VideoError) as error:
    reason = next(why for kind, why in reasons if isinstance(error, kind))
    detail = f"{name}: {error}" if name else str(error)
    raise skipped.SkipError(reason, detail) from None


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads the media of samples as a run does.

  Attributes:
    max_pixels: of an image or a frame.
    frames: that are taken of a video.
    check_fits: refuses what is too long.
  """

  max_pixels: int
  frames: video.Sampling
  check_fits: CheckFits

  def check(
    self,
    sample: samples.Sample,
    images: Sequence[tiles.Size],
    videos: Sequence[Sequence[tiles.Size]],
  ) -> None:
    """Raises a `skipped.SkipError` for a sample that no row can hold."""
    try:
      self.check_fits(sample, images, videos)
    except row_lib.LayoutError as error:
      raise skipped.SkipError("too long", str(error)) from None
    except samples.DataError as error:
      raise skipped.SkipError("'system' turn", str(error)) from None

  def decode(
    self,
    sample: samples.Sample,
    images: Sequence[images_lib.Picture],
    videos: Sequence[Video],
  ) -> samples.Sample:
    """A sample with its pictures, which may be too many for a row.

    Args:
      sample: the conversation.
      images: in the order of their marks.
      videos: likewise.

    Raises:
      skipped.SkipError: one of them is broken.
    """
    with skipping():
      pictures = tuple(images_lib.decode(x, self.max_pixels) for x in images)
      clips = tuple(self._frames(one) for one in videos)
    return dataclasses.replace(sample, images=pictures, videos=clips)

  def _frames(self, one: Video) -> tuple[np.ndarray, ...]:
    if isinstance(one, bytes):
      with video.as_file(one) as path:
        return self._frames(path)
    if isinstance(one, (str, os.PathLike)):
      return tuple(video.read(one, self.frames, self.max_pixels))
    # Frames that were taken before, at even times.
    chosen = video.Sampling(self.frames.frames).choose(range(len(one)), 1.0)
    try:
      return tuple(images_lib.decode(one[i], self.max_pixels) for i in chosen)
    except images_lib.ImageError as error:
      raise video.VideoError(f"a frame: {error}") from None


def sampling(data: data_config.DataConfig) -> video.Sampling:
  """The frames that a run takes of a video."""
  return video.Sampling(data.frames, data.fps)


def reader(config: config_lib.Config) -> Reader:
  """The reader of a run, whose rows have one shape."""
  check_fits = functools.partial(
    _check_row,
    tokenizer_lib.Tokenizer.load(config.data.tokenizer),
    row_lib.row_shape(config),
    config.model,
  )
  return Reader(config.data.max_pixels, sampling(config.data), check_fits)


def _check_row(
  tokenizer: tokenizer_lib.Tokenizer,
  shape: row_lib.RowShape,
  model: config_lib.ModelConfig,
  sample: samples.Sample,
  images: Sequence[tiles.Size],
  videos: Sequence[Sequence[tiles.Size]],
) -> None:
  """As `CheckFits`, for rows of one shape."""
  units = packing.units_of(sample, images, videos, model)
  packing.pack(sample, tokenizer, shape, units)
