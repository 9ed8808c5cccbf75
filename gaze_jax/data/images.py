"""Safe decoding of images, and preprocessing for a vision encoder."""

import contextlib
import io
import math
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from PIL import ExifTags
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import foreign
from gaze_jax.data import png

# A file, the bytes of one, an image of PIL, or uint8 [height, width, 3], RGB.
Picture = str | os.PathLike | bytes | Image.Image | np.ndarray
_PATHS = (str, os.PathLike)

# The formats that are opened, told by content. Others start programs
# (PostScript), or need files beside them.
_FORMATS = "PNG JPEG WEBP GIF BMP TIFF AVIF JPEG2000 PPM".split()
# `format` of an image of PIL that is read; None came out of no file.
_PIL_FORMATS = (*_FORMATS, "MPO", None)
# EXIF's orientation: whether rows and columns are swapped, and the steps by
# which each is then read.
_UPRIGHT = (False, 1, 1)
_ORIENTATIONS = {
  2: (False, 1, -1),
  3: (False, -1, -1),
  4: (False, -1, 1),
  5: (True, 1, 1),
  6: (True, 1, -1),
  7: (True, -1, -1),
  8: (True, -1, 1),
}
# Modes of PIL of up to 8 bits, and deeper grey ones with their largest value.
_PLAIN = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV".split()
_DEEP = {"F": 1} | dict.fromkeys("I I;16 I;16L I;16B I;16N".split(), 65535)
_GREY_SCALES = {"L;2": 85, "L;4": 17}  # from 2 and 4 bits to 8
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
# Tags of a TIFF that Pillow does not apply: bits, and whether 0 is white.
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262

_BAND_PIXELS = 2**20  # that are converted at a time
# Largest intermediate image of preprocessing. Only images whose sides differ by
# a hundred times and more would need a larger one.
MOST_PIXELS = 2**26
# A side that shrinks by more is first divided by a whole number: Pillow's
# kernels are as long as the image.
_REDUCING_GAP = 1024.0


class ImageError(errors.GazeError):
  """An image that can't be read; the message names the file and the reason."""


class TooLargeError(ImageError):
  """An image of more pixels than `data.max_pixels`."""


def decode(
  source: Picture,
  max_pixels: int | None = None,
  name: str = "",
  *,
  as_stored: bool = False,
) -> np.ndarray:
  """Decodes an image: the same pixels, whichever way it comes.

  The orientation of its EXIF is applied (a broken one is ignored), transparency
  is laid over white, and only the first frame of an animation is read. Grey
  of more than 8 bits is scaled by its type and not by its own values: 16 bits
  and mode I from 0 to 65535, float from 0 to 1.

  Args:
    source: a path, the bytes of a file, an image of PIL, or RGB pixels as
      uint8 [height, width, 3].
    max_pixels: an image of more pixels is refused before it is decoded; None
      for one that was checked before.
    name: its name in errors; a path is its own name.
    as_stored: Pillow's own `convert("RGB")` instead, which turns nothing, lays
      nothing over white and scales no grey: what benchmarks are scored on. Not
      for arrays, which are RGB already.

  Returns:
    uint8 [height, width, 3], RGB.

  Raises:
    ImageError: it is missing, too large, truncated, or no image that is read.
  """
  name = _name(source, name or "image")
  if not isinstance(source, (*_PATHS, bytes, Image.Image)):
    return _checked_array(source, max_pixels, name)
  with _opened(source, max_pixels, name, png.PIXELS) as (image, exif_of):
    size, transparent = image.size, _transparent_colour(image)
    image.load()
    if image.size != size:  # `check` believed the header
      raise ValueError(f"size {image.size}, and {size} in its header")
    if as_stored:
      return np.asarray(image.convert("RGB"))
    pixels = _rgb(image, transparent, name)
    swapped, down, across = _orientation(exif_of)
  pixels = pixels.swapaxes(0, 1) if swapped else pixels
  return np.ascontiguousarray(pixels[::down, ::across])


def check(
  source: str | os.PathLike | bytes, max_pixels: int
) -> tuple[int, int]:
  """Reads the header alone: a cheap test that an image may be decoded.

  Returns:
    Height and width of what `decode` gives.

  Raises:
    ImageError: it is missing, too large, or no image that is read.
  """
  name = _name(source, "image")
  with _opened(source, max_pixels, name, png.SIZE) as (image, exif_of):
    (width, height), (swapped, _, _) = image.size, _orientation(exif_of)
  return (width, height) if swapped else (height, width)


def preprocess(
  image: np.ndarray, vision: config_lib.VisionConfig
) -> np.ndarray:
  """Fits uint8 [h, w, 3] to the encoder's square; the tower normalises it.

  With `vision.resize` = "square" the aspect ratio is not kept (docs/method.md,
  section 1). With "crop" the shorter side is fitted and the middle of the
  longer one is kept (CLIP). What has the right size already is not resampled.

  Returns:
    uint8 [image_size, image_size, 3].
  """
  side = vision.image_size
  if vision.resize == "square":
    return resize(image, side, side, vision.resample)
  return _crop(image, vision)


def resize(
  image: np.ndarray,
  height: int,
  width: int,
  resample: Literal["bicubic", "bilinear"],
  box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
  """Pillow's resize of uint8 [h, w, 3] to uint8 [height, width, 3].

  Args:
    image: the image.
    height: in pixels.
    width: in pixels.
    resample: the kernel.
    box: left, top, right and bottom of the part that is resized; None for all.
  """
  if box is None and image.shape[:2] == (height, width):
    return image
  kernel = Image.Resampling[resample.upper()]
  resized = Image.fromarray(image).resize(
    (width, height), kernel, box, reducing_gap=_REDUCING_GAP
  )
  return np.asarray(resized)


def _crop(image: np.ndarray, vision: config_lib.VisionConfig) -> np.ndarray:
  """The middle square of the image with its shorter side fitted."""
  side = vision.image_size
  fitted = vision.shorter_side or side
  old = image.shape[:2]
  new = [int(fitted * n / min(old)) for n in old]
  start = [(n - side) // 2 for n in new]
  if math.prod(new) <= MOST_PIXELS:
    top, left = start
    image = resize(image, *new, vision.resample)
    return image[top : top + side, left : left + side]
  # Only the pixels that the square is made of, and its edges among them.
  parts, edges = [], []
  for n, m, at in zip(old, new, start, strict=True):
    scale = n / m
    reach = math.ceil(2 * max(scale, 1)) + 1  # of the bicubic kernel
    begin = max(int(at * scale) - reach, 0)
    parts.append(slice(begin, math.ceil((at + side) * scale) + reach))
    edges.append((at * scale - begin, (at + side) * scale - begin))
  (top, bottom), (left, right) = edges
  box = (left, top, right, bottom)
  return resize(image[tuple(parts)], side, side, vision.resample, box)


@contextlib.contextmanager
def _opened(
  source: str | os.PathLike | bytes | Image.Image,
  max_pixels: int | None,
  name: str,
  chunks: Collection[bytes],
) -> Iterator[tuple[Image.Image, Image.Image | None]]:
  """An image before it is decoded, and one that has its EXIF, or None.

  Args:
    source: as in `decode`.
    max_pixels: likewise.
    name: its name in errors.
    chunks: the kinds of chunks of a PNG that are read, of `png`.

  Raises:
    ImageError: for whatever goes wrong, here or in the block.
  """
  try:
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
      warnings.simplefilter("ignore")  # Pillow's own limit; ours is checked
      if isinstance(source, Image.Image):
        image = exif_of = source
        if image.format not in _PIL_FORMATS:
          raise ImageError(
            f"{name}: {image.format} is not read; give it as image.copy()"
          )
      else:
        file = stack.enter_context(_open_file(source))
        image, exif_of = _open_image(file, chunks)
      _check_size(image.size, max_pixels, name)
      yield image, exif_of
  except ImageError:
    raise
  except Image.UnidentifiedImageError:
    raise ImageError(f"{name}: {_foreign(source)}") from None
  except Exception as error:  # Pillow's decoders raise almost anything
    raise ImageError(f"{name}: {_reason(error)}") from None


def _open_file(source: str | os.PathLike | bytes) -> io.BufferedIOBase:
  if isinstance(source, bytes):
    return io.BytesIO(source)
  if not os.path.isfile(source):
    raise ImageError(f"{_name(source)}: {foreign.no_file(source)}")
  return open(source, "rb")


def _open_image(
  file: io.BufferedIOBase, chunks: Collection[bytes]
) -> tuple[Image.Image, Image.Image | None]:
  """What `_opened` yields, of a file."""
  start = file.read(len(png.MAGIC))
  file.seek(0)
  if start[4:] == b"ftyp":
    # An AVIF has an orientation of its own, and is refused for broken EXIF.
    head, mark, rest = file.read().partition(b"mdat")
    file = io.BytesIO(head.replace(b"Exif", b"none") + mark + rest)
  if start != png.MAGIC:
    image = Image.open(file, formats=_FORMATS)
    return image, image
  exif_of = None
  with contextlib.suppress(Exception):  # a broken text is as good as none
    exif_of = Image.open(png.keep(file, png.EXIF), formats=["PNG"])
  return Image.open(png.keep(file, chunks), formats=["PNG"]), exif_of


def _orientation(image: Image.Image | None) -> tuple[bool, int, int]:
  """The entry of `_ORIENTATIONS` that an image's EXIF names."""
  value = 1
  if image is not None and image.format != "TIFF":  # Pillow turns a TIFF itself
    with contextlib.suppress(Exception):  # EXIF may hold anything
      # PNG's own getexif would decode the image.
      value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
  return _ORIENTATIONS.get(value if isinstance(value, int) else 1, _UPRIGHT)


def _check_size(
  size: tuple[int, ...], max_pixels: int | None, name: str
) -> None:
  width, height = size
  if not width * height:
    raise ImageError(f"{name}: an image without pixels")
  if max_pixels is not None and width * height > max_pixels:
    raise TooLargeError(
      f"{name}: {width} x {height} = {width * height} pixels, the limit is"
      f" {max_pixels} (data.max_pixels)"
    )


def _transparent_colour(image: Image.Image) -> dict[str, Any]:
  """The colour that is transparent in 8 bits, as an entry of Pillow's `info`.

  Pillow leaves it in the depth of the file, which is known only until the image
  is decoded. Empty where that is right.
  """
  colour = image.info.get("transparency")
  for tile in getattr(image, "tile", ()):
    if image.format == "PNG" and colour is not None:
      if tile.args in _GREY_SCALES:
        return {"transparency": colour * _GREY_SCALES[tile.args]}
      if tile.args == "RGB;16B":
        return {"transparency": tuple(value >> 8 for value in colour)}
  return {}


def _checked_array(
  pixels: np.ndarray, max_pixels: int | None, name: str
) -> np.ndarray:
  """Pixels as they are, which must be uint8 [height, width, 3]."""
  what = type(pixels).__name__
  if isinstance(pixels, np.ndarray):
    what = f"{pixels.dtype} {list(pixels.shape)}"
    if pixels.dtype == np.uint8 and pixels.shape[2:] == (3,):
      _check_size(pixels.shape[1::-1], max_pixels, name)
      return pixels
  raise ImageError(
    f"{name}: {what}; an array must be uint8 [height, width, 3] in RGB. What is"
    " grey, transparent or float can be given as a file or an image of PIL"
  )


def _rgb(
  image: Image.Image, transparent: dict[str, Any], name: str
) -> np.ndarray:
  """uint8 [height, width, 3] of an image of any mode, over white."""
  if image.mode not in (*_PLAIN, *_DEEP):
    raise ImageError(
      f"{name}: a picture of mode {image.mode} is not read; convert it to RGB"
    )
  if image.mode == "RGB" and not image.has_transparency_data:
    return np.asarray(image)
  (width, height), tags = image.size, getattr(image, "tag_v2", {})
  out = np.empty((height, width, 3), np.uint8)
  step = max(1, _BAND_PIXELS // width)
  for top in range(0, height, step):
    rows = slice(top, min(top + step, height))
    part = image.crop((0, top, width, rows.stop))
    if image.mode in _DEEP:
      out[rows] = _grey(part, tags, name)[..., None]
      continue
    part.info |= transparent
    part = part.convert(_PREMULTIPLIED.get(part.mode, part.mode))
    if part.has_transparency_data:
      white = Image.new("RGBA", part.size, "white")
      part = Image.alpha_composite(white, part.convert("RGBA"))
    out[rows] = np.asarray(part.convert("RGB"))
  return out


def _grey(image: Image.Image, tags: Mapping[int, Any], name: str) -> np.ndarray:
  """uint8 [height, width] of grey of more than 8 bits.

  Args:
    image: of a mode in `_DEEP`.
    tags: of a TIFF.
    name: its name in errors.
  """
  values, top = np.asarray(image), _DEEP[image.mode]
  if tags.get(_TIFF_BITS) == (12,):
    top = 4095
  if not ((values >= 0) & (values <= top)).all():
    raise ImageError(
      f"{name}: grey from {values.min():g} to {values.max():g}, where mode"
      f" {image.mode} is read from 0 to {top}; scale it to that"
    )
  grey = (values.astype(np.float64) * (255 / top) + 0.5).astype(np.uint8)
  if tags.get(_TIFF_PHOTOMETRIC) == 0:
    grey = 255 - grey
  if "transparency" in image.info:
    grey[values == image.info["transparency"]] = 255
  return grey


def _name(source: Picture, other: str = "") -> str:
  """What errors call an image."""
  return foreign.short(source) if isinstance(source, _PATHS) else other


def _foreign(source: str | os.PathLike | bytes) -> str:
  """What a file is that Pillow does not know, and what to do."""
  with _open_file(source) as file:
    what = foreign.kind(file.read(foreign.HEAD))
  return what or (
    "not an image file that is read, or broken at its start; convert it to one"
    f" of {', '.join(_FORMATS)}"
  )


def _reason(error: Exception) -> str:
  if isinstance(error, Image.DecompressionBombError):
    return f"too many pixels ({error})"
  return f"broken image ({type(error).__name__}: {error})"
