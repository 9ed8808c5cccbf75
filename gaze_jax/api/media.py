"""Images and videos of a request: what a model and a person see of them."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.data import images as images_lib
from gaze_jax.data import units as units_lib
from gaze_jax.data import video as video_lib
from gaze_jax.layout import grid
from gaze_jax.layout import row as row_lib
from gaze_jax.view import words

Picture = images_lib.Picture
_ONE = (str, os.PathLike, bytes, Image.Image)  # and no list of pictures
# A file, or its frames; an array of them is uint8 [frames, height, width, 3].
Video = str | os.PathLike | Sequence[Picture] | np.ndarray

_SHOWN = 768  # pixels a side of what pictures of the gaze are made from

# What a model sees of an image or video, and what a person is shown of it: a
# view a unit, whose regions are numbered from 0.
Seen = tuple[units_lib.Seen, tuple[words.View, ...]]


class MediaError(errors.GazeError):
  """Something that is no image or video; the message names it."""


def see(
  config: config_lib.Config,
  images: Sequence[Picture] = (),
  videos: Sequence[Video] = (),
  frames: int = 8,
) -> list[Seen]:
  """Images, then videos, one for one.

  Args:
    config: of the model.
    images: files, bytes, uint8 [height, width, 3], or images of PIL.
    videos: files, or the frames of each.
    frames: how many are taken of a file, at most: as many a second as of the
      videos that the model was trained on, if these were taken so.

  Raises:
    MediaError: something is neither.
    images.ImageError: an image can't be used.
    video.VideoError: a video can't be used.
  """
  limit, model = config.data.max_pixels, config.model
  for name, some in dict(images=images, videos=videos).items():
    if isinstance(some, _ONE):
      raise MediaError(f"{name}: {type(some).__name__}; give a list of them")
  arrays = [
    _array(picture, limit, f"image {i}") for i, picture in enumerate(images, 1)
  ]
  alone, out = len(arrays) == 1, []
  for array, seen in zip(
    arrays, units_lib.of_images(arrays, model), strict=True
  ):
    out.append((seen, _views([array] * len(seen.units), seen, model, alone)))
  for i, video in enumerate(videos, 1):
    taken = video_lib.Sampling(frames, config.data.fps)
    shots = _frames(video, taken, limit, f"video {i}")
    seen = units_lib.of_video(shots, model)
    out.append((seen, _views(shots, seen, model, True)))
  return out


def shown_part(
  size: tuple[int, int], model: config_lib.ModelConfig, *, alone: bool
) -> tuple[float, float, float, float]:
  """The part of a picture that its views show.

  Args:
    size: its height and width.
    model: the model.
    alone: whether it is the only image of its message, or a frame.

  Returns:
    Left, top, right and bottom as fractions of the picture; below 0 or above 1
    where it was padded.
  """
  vision, (height, width) = model.vision, size
  if model.tiling.kind == "anyres" and not alone:
    side = max(height, width)
    x, y = (side - width) / 2 / width, (side - height) / 2 / height
    return -x, -y, 1 + x, 1 + y
  if vision.resize != "crop":
    return 0.0, 0.0, 1.0, 1.0
  fitted = vision.shorter_side or vision.image_size
  across, down = (fitted * n / min(size) for n in (width, height))
  x, y = (max(1 - vision.image_size / n, 0) / 2 for n in (across, down))
  return x, y, 1 - x, 1 - y


def _array(picture: Picture, max_pixels: int, name: str) -> np.ndarray:
  """uint8 [height, width, 3] of a picture; `name` is what errors call it."""
  if not isinstance(picture, Picture):
    raise MediaError(
      f"{name}: {type(picture).__name__}; give a file, its bytes, an image of"
      " PIL, or a numpy array of uint8 [height, width, 3]"
    )
  return images_lib.decode(picture, max_pixels, name)


def _frames(
  video: Video, taken: video_lib.Sampling, max_pixels: int, name: str
) -> list[np.ndarray]:
  """Frames of a video, as `_array` gives them."""
  if isinstance(video, (str, os.PathLike)):
    return video_lib.read(video, taken, max_pixels)
  if isinstance(video, _ONE) or not isinstance(video, Iterable):
    raise MediaError(
      f"{name}: {type(video).__name__}; give a file, or a list of frames"
    )
  return [
    _array(frame, max_pixels, f"{name}, frame {i}")
    for i, frame in enumerate(video, 1)
  ]


def _views(
  pictures: Sequence[np.ndarray],
  seen: units_lib.Seen,
  model: config_lib.ModelConfig,
  whole: bool,
) -> tuple[words.View, ...]:
  """What each unit shows: the picture, or the square that was made of it."""
  vision, out = model.vision, []
  tiled = model.tiling.kind == "anyres"
  for number, (picture, unit) in enumerate(
    zip(pictures, seen.units, strict=True)
  ):
    if vision.resize == "crop" or (tiled and not whole):
      picture = seen.pixels[number]
    regions = grid.region_map(unit.rows, unit.columns, model.gaze.region)
    if unit.feed is not None:  # newlines end the rows of tiles
      first = unit.feed.reshape(unit.tokens, -1)[: regions.size, 0]
      newline = first.reshape(regions.shape) == row_lib.NEWLINE
      regions = regions[:, ~newline.all(axis=0)]
    small = Image.fromarray(picture)
    small.thumbnail((_SHOWN, _SHOWN))
    out.append(words.View(np.asarray(small), regions))
  return tuple(out)
