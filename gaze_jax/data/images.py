"""Safe image decoding, and what a vision encoder is fed."""

import io
import os
import pathlib
import warnings
from typing import Literal

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps

from gaze_jax import config as config_lib
from gaze_jax import errors

# EXIF orientations of pictures that lie on their side.
_TURNED = (5, 6, 7, 8)


class ImageError(errors.GazeError):
  """An image that can't be read; the message names the file and says why."""


def decode(
  source: str | os.PathLike | bytes, max_pixels: int, name: str = ""
) -> np.ndarray:
  """Decodes one image file.

  The orientation of its EXIF is applied, transparency is laid over white, and
  only the first frame of an animation is read.

  Args:
    source: a path, or the bytes of a file.
    max_pixels: an image of more pixels is refused before it is decoded.
    name: what to call it in errors; the path by default.

  Returns:
    uint8 [height, width, 3], RGB.

  Raises:
    ImageError: it is missing, too large, truncated, or no image.
  """
  name = name or _name(source)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Pillow's own limit; ours is checked
      with _open(source) as image:
        _check_size(image, max_pixels, name)
        image = ImageOps.exif_transpose(image)
        return np.asarray(_rgb(image))
  except ImageError:
    raise
  except Exception as error:  # Pillow's decoders raise almost anything
    raise ImageError(f"{name}: {_reason(error, source)}") from None


def check(
  source: str | os.PathLike | bytes, max_pixels: int
) -> tuple[int, int]:
  """Reads the header alone: a cheap test that an image may be decoded.

  Returns:
    Height and width of what `decode` gives. An EXIF orientation that comes
    after the pixels, as PNG allows, is not seen.

  Raises:
    ImageError: it is missing, too large, or no image.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      with _open(source) as image:
        _check_size(image, max_pixels, _name(source))
        width, height = image.size
        # PNG's own getexif would decode the image; TIFF's size is turned.
        exif = Image.Image.getexif(image)
        turned = exif.get(ExifTags.Base.Orientation) in _TURNED
        turned = turned and image.format != "TIFF"
        return (width, height) if turned else (height, width)
  except ImageError:
    raise
  except Exception as error:
    raise ImageError(f"{_name(source)}: {_reason(error, source)}") from None


def preprocess(
  image: np.ndarray, vision: config_lib.VisionConfig
) -> np.ndarray:
  """Fits uint8 [h, w, 3] to the encoder's square and normalises it.

  With `vision.resize` = "square" the aspect ratio is not kept (METHOD.md
  section 1). With "crop" the shorter side is fitted and the middle of the
  longer one is kept (CLIP). What has the right size already is not resampled.

  Returns:
    float32 [image_size, image_size, 3].
  """
  side = vision.image_size
  if vision.resize == "square":
    image = resize(image, side, side, vision.resample)
  else:
    image = _crop(image, vision)
  return normalise(image, vision)


def resize(
  image: np.ndarray,
  height: int,
  width: int,
  resample: Literal["bicubic", "bilinear"],
) -> np.ndarray:
  """uint8 [h, w, 3] to uint8 [height, width, 3], as Pillow does it."""
  if image.shape[:2] == (height, width):
    return image
  kernel = Image.Resampling[resample.upper()]
  return np.asarray(Image.fromarray(image).resize((width, height), kernel))


def normalise(image: np.ndarray, vision: config_lib.VisionConfig) -> np.ndarray:
  """uint8 [..., 3] to float32 by the encoder's mean and std."""
  mean = np.asarray(vision.mean, np.float32) * 255
  scale = 1 / (np.asarray(vision.std, np.float32) * 255)
  return (image.astype(np.float32) - mean) * scale


def _crop(image: np.ndarray, vision: config_lib.VisionConfig) -> np.ndarray:
  """The middle square of the picture with its shorter side fitted."""
  side = vision.image_size
  fitted = vision.shorter_side or side
  height, width = image.shape[:2]
  short = min(height, width)
  height, width = (int(fitted * n / short) for n in (height, width))
  image = resize(image, height, width, vision.resample)
  top, left = (height - side) // 2, (width - side) // 2
  return image[top : top + side, left : left + side]


def _open(source: str | os.PathLike | bytes) -> Image.Image:
  if isinstance(source, bytes):
    return Image.open(io.BytesIO(source))
  if not pathlib.Path(source).is_file():
    raise FileNotFoundError("no such file")
  return Image.open(source)


def _check_size(image: Image.Image, max_pixels: int, name: str) -> None:
  width, height = image.size
  if width * height > max_pixels:
    raise ImageError(
      f"{name}: {width} x {height} = {width * height} pixels, the limit is"
      f" {max_pixels} (data.max_pixels)"
    )


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
    # 16-bit grey: Pillow's convert would clip it at 255.
    grey = np.asarray(image, np.float64)
    top = 65535.0 if grey.max(initial=0) > 255 else 255.0
    grey = np.clip(grey / top * 255 + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
  if "A" not in image.getbands() and "transparency" not in image.info:
    return image.convert("RGB")
  image = image.convert("RGBA")
  white = Image.new("RGBA", image.size, (255, 255, 255, 255))
  return Image.alpha_composite(white, image).convert("RGB")


def _name(source: str | os.PathLike | bytes) -> str:
  return "image" if isinstance(source, bytes) else str(source)


def _reason(error: Exception, source: str | os.PathLike | bytes) -> str:
  if isinstance(error, Image.UnidentifiedImageError):
    return "not an image file"
  if isinstance(error, Image.DecompressionBombError):
    return f"too many pixels ({error})"
  if isinstance(error, FileNotFoundError):
    return "no such file"
  return f"broken image ({type(error).__name__}: {error})"
