"""Frames of animated images (GIF, PNG, WebP, AVIF), which Pillow reads.

ffmpeg joins two frames of a GIF that have no pause between them, reads only the
first of an AVIF, and no animated WebP.
"""

import itertools
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from gaze_jax.data import images
from gaze_jax.data import png
from gaze_jax.data import truncation

# Format by Pillow's name: where its signature is, and what it may be.
_SIGNATURES = {
  "PNG": (0, (png.MAGIC,)),
  "GIF": (0, (b"GIF87a", b"GIF89a")),
  "WEBP": (8, (b"WEBP",)),
  "AVIF": (4, (b"ftypavif", b"ftypavis")),
}
_USUAL_DURATION = 100  # milliseconds
_MOST_PIXELS = 2**36  # that may be decoded on the way, as whole frames


def kind_of(path: pathlib.Path) -> str:
  """Pillow's name of a format that may be animated; "" for other files."""
  with open(path, "rb") as file:
    start = file.read(16)
  for kind, (at, signatures) in _SIGNATURES.items():
    if start.startswith(signatures, at):
      return kind
  return ""


def read(
  path: pathlib.Path,
  kind: str,
  choose: Callable[[Sequence[int], float], list[int]],
  max_pixels: int,
) -> list[np.ndarray]:
  """Decodes some frames, as `images.decode` does.

  Args:
    path: the file.
    kind: from `kind_of`.
    choose: from the times of the frames, in milliseconds, and how many of these
      a second has, to the numbers of those to decode.
    max_pixels: of a frame.

  Raises:
    images.ImageError: the file is truncated, broken, too large or long, or a
      picture that is not animated.
  """
  name = str(path)
  images.check(path, max_pixels)
  if truncation.is_truncated(path, kind):
    raise images.ImageError(f"{name}: truncated: a part of it is missing")
  with open(path, "rb") as file:
    stream, most = file, math.inf
    if kind == "PNG":
      most = [chunk for chunk, _, _ in png.chunks(file)].count(b"fcTL")
      stream = png.keep(file, png.FRAMES)
    with Image.open(stream, formats=[kind]) as image:
      # A GIF of one frame is an animation of one; others are pictures.
      if kind != "GIF" and not getattr(image, "is_animated", False):
        raise images.ImageError(f"{name}: not a video, but a picture")
      # An image for viewers that can't animate is no part of the animation.
      first = int(bool(image.info.get("default_image")))
      times = _times(image, most + first, name)[first:]
      frames = []
      for number in choose(times, 1000.0):
        image.seek(first + number)
        frames.append(images.decode(image, max_pixels, name))
      return frames


def _times(image: Image.Image, most: int | float, name: str) -> list[int]:
  """When each frame is shown, in milliseconds; no more than `most` frames."""
  width, height = image.size
  limit = _MOST_PIXELS // (width * height)
  times, now = [], 0
  for number in itertools.count():
    if number == most:
      return times
    try:
      image.seek(number)
    except EOFError:
      return times
    if number == limit:
      raise images.ImageError(
        f"{name}: more than {limit} frames of {width} x {height} pixels are too"
        " much to decode: cut it"
      )
    times.append(now)
    # What has no duration is shown for that of browsers.
    now += round(image.info.get("duration") or _USUAL_DURATION)
