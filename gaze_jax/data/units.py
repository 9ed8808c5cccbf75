"""Images and videos to what a model is fed: pixels, and units of a layout."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax import layout
from gaze_jax import types
from gaze_jax.data import anyres
from gaze_jax.data import images as images_lib
from gaze_jax.data import naflex

# uint8 [height, width, 3], or a PIL image that is that.
Picture = np.ndarray | Image.Image
# float32 [tiles, image_size, image_size, 3], or `Patches` of [tiles].
Pixels = np.ndarray | types.Patches


@dataclasses.dataclass(frozen=True)
class Seen:
  """An image or a video as a model sees it.

  Attributes:
    pixels: those of the units, one after the other.
    units: its units, in reading order.
  """

  pixels: Pixels
  units: tuple[layout.Unit, ...]


def of_images(
  images: Sequence[Picture], model: config_lib.ModelConfig
) -> list[Seen]:
  """The images of one sample, one for one.

  Without tiling each is a unit, with NaFlex of its own grid. With AnyRes an
  image alone is a unit as a whole and a unit in tiles; each of several is a
  square and a newline.

  Args:
    images: uint8 [h, w, 3] each, or RGB images of PIL.
    model: the model.

  Raises:
    images.ImageError: an image is something else.
  """
  arrays = [_checked(image) for image in images]
  if model.tiling.kind == "none":
    return [_plain(image, model) for image in arrays]
  if len(arrays) == 1:
    return [_tiled(arrays[0], model)]
  side = model.vision.grid
  one = layout.Unit(side, side, tail=1)
  return [Seen(anyres.padded_square(a, model), (one,)) for a in arrays]


def of_video(frames: Sequence[Picture], model: config_lib.ModelConfig) -> Seen:
  """A video, a unit for each frame.

  With AnyRes tiling a frame has half the tokens a side (LLaVA-OneVision), and
  one newline ends the video; without, a frame is what an image is.

  Args:
    frames: as the images of `of_images`, at least one.
    model: the model.

  Raises:
    images.ImageError: there is no frame, or one is no image.
  """
  if not len(frames):
    raise images_lib.ImageError("a video without frames")
  seen = [_plain(_checked(frame), model) for frame in frames]
  pixels = join([s.pixels for s in seen], model)
  if model.tiling.kind == "none":
    return Seen(pixels, tuple(unit for s in seen for unit in s.units))
  side, last = model.vision.grid, len(seen) - 1
  units = [anyres.frame_unit(side, last=i == last) for i in range(len(seen))]
  return Seen(pixels, tuple(units))


def join(pixels: Sequence[Pixels], model: config_lib.ModelConfig) -> Pixels:
  """Pixels one after the other; of no tiles when there are none."""
  size, limit = model.vision.image_size, model.vision.max_patches
  none: Pixels = np.zeros((0, size, size, 3), np.float32)
  if limit:
    numbers = 3 * model.vision.patch_size**2
    none = types.Patches(
      np.zeros((0, limit, numbers), np.float32), np.zeros((0, 2), np.int32)
    )
  return _map(lambda *parts: np.concatenate(parts), none, *pixels)


def stack(rows: Sequence[Pixels], tiles: int) -> Pixels:
  """Rows of pixels, each filled up to so many tiles, as `Batch.images`."""

  def fill(*arrays: np.ndarray) -> np.ndarray:
    out = np.zeros((len(arrays), tiles, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
      row[: len(array)] = array
    return out

  return _map(fill, *rows)


def _map(f: Callable[..., np.ndarray], *pixels: Pixels) -> Pixels:
  if not isinstance(pixels[0], types.Patches):
    return f(*pixels)
  return types.Patches(
    f(*(p.pixels for p in pixels)), f(*(p.grid for p in pixels))
  )


def _plain(image: np.ndarray, model: config_lib.ModelConfig) -> Seen:
  if model.vision.max_patches:
    one = naflex.preprocess(image, model.vision)
    rows, columns = map(int, one.grid)
    return Seen(_map(lambda x: x[None], one), (layout.Unit(rows, columns),))
  side = model.vision.grid
  pixels = images_lib.preprocess(image, model.vision)[None]
  return Seen(pixels, (layout.Unit(side, side),))


def _tiled(image: np.ndarray, model: config_lib.ModelConfig) -> Seen:
  side = model.vision.grid
  pixels = anyres.squares(image, model)
  whole = layout.Unit(side, side)
  grid = anyres.grid_unit(image.shape[:2], model)
  if grid is None:
    return Seen(pixels[:1], (whole,))
  return Seen(pixels, (whole, grid))


def _checked(image: Picture) -> np.ndarray:
  array = np.asarray(image)
  if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
    raise images_lib.ImageError(
      f"an image of {array.dtype} {list(array.shape)}; it must be uint8"
      " [height, width, 3], such as np.asarray(image.convert('RGB'))"
    )
  if not array.size:
    raise images_lib.ImageError("an image without pixels")
  return array
