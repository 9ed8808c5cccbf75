"""Frames of animated images (GIF, PNG, WebP, AVIF), which Pillow reads.

ffmpeg joins two frames of a GIF that have no pause between them, reads only the
first of an AVIF, and no animated WebP.
"""

import itertools
import math
import pathlib
from collections.abc import Callable

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
  choose: Callable[[int], list[int]],
  max_pixels: int,
) -> list[np.ndarray]:
  """Decodes some frames, as `images.decode` does.

  Args:
    path: the file.
    kind: from `kind_of`.
    choose: from the number of frames to the numbers of those to decode.
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
      numbers = choose(_count(image, most + first, name) - first)
      frames = []
      for number in numbers:
        image.seek(first + number)
        frames.append(images.decode(image, max_pixels, name))
      return frames


def _count(image: Image.Image, most: int | float, name: str) -> int:
  """How many frames there are, and no more than `most`."""
  width, height = image.size
  limit = _MOST_PIXELS // (width * height)
  for number in itertools.count(1):
    if number > limit:
      raise images.ImageError(
        f"{name}: more than {limit} frames of {width} x {height} pixels are too"
        " much to decode: cut it"
      )
    if number == most:
      return number
    try:
      image.seek(number)
    except EOFError:
      return number
