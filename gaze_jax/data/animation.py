"""Frames of animated pictures, which Pillow reads and ffmpeg reads in part.

ffmpeg takes two frames of a GIF for one where no pause stands between them, of
an AVIF it takes the first alone, and it does not read an animated WebP.
"""

import itertools
import math
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from gaze_jax.data import containers
from gaze_jax.data import images
from gaze_jax.data import png

# Where the bytes are that tell, and which they are.
_MARKS = {
  "PNG": (0, (png.MAGIC,)),
  "GIF": (0, (b"GIF87a", b"GIF89a")),
  "WEBP": (8, (b"WEBP",)),
  "AVIF": (4, (b"ftypavif", b"ftypavis")),
}
_MOST_PIXELS = 2**36  # that may be decoded on the way, as whole frames


def kind_of(path: pathlib.Path) -> str:
  """The name of Pillow for what may be animated; otherwise nothing."""
  with open(path, "rb") as file:
    start = file.read(16)
  for kind, (at, marks) in _MARKS.items():
    if start.startswith(marks, at):
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
    choose: how many frames there are to the numbers of those that are wanted.
    max_pixels: of a frame.

  Raises:
    images.ImageError: the file is truncated, broken, too large or long, or a
      picture that is not animated.
  """
  name = str(path)
  images.check(path, max_pixels)
  if containers.is_cut(path, kind):
    raise images.ImageError(f"{name}: truncated: a part of it is missing")
  with open(path, "rb") as file:
    stream, most = file, math.inf
    if kind == "PNG":
      most = [chunk for chunk, _, _ in png.chunks(file)].count(b"fcTL")
      stream = png.parts(file, png.FRAMES)
    with Image.open(stream, formats=[kind]) as image:
      # A GIF of one frame is an animation of one; others are pictures.
      if kind != "GIF" and not getattr(image, "is_animated", False):
        raise images.ImageError(f"{name}: not a video, but a picture")
      # Shown by what can't play it, and no part of the animation.
      first = int(bool(image.info.get("default_image")))
      numbers = choose(_count(image, most + first, name) - first)
      return [_frame(image, i + first, max_pixels, name) for i in numbers]


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


def _frame(
  image: Image.Image, number: int, max_pixels: int, name: str
) -> np.ndarray:
  image.seek(number)
  return images.decode(image, max_pixels, name)
