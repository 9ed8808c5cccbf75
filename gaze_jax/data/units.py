"""Images and videos to what a model reads: pixels, and units of a layout."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.data import anyres
from gaze_jax.data import images as images_lib
from gaze_jax.data import naflex
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

# uint8 [tiles, image_size, image_size, 3], or `Patches` of [tiles].
Pixels = np.ndarray | types.Patches


@dataclasses.dataclass(frozen=True)
class Seen:
  """An image or a video as a model sees it.

  Attributes:
    pixels: those of the units, one after the other.
    units: its units, in reading order.
  """

  pixels: Pixels
  units: tuple[row_lib.Unit, ...]


def of_images(
  images: Sequence[images_lib.Picture],
  model: config_lib.ModelConfig,
  per_turn: Sequence[int] | None = None,
) -> list[Seen]:
  """The images of one sample, one for one.

  Without tiling each is a unit, with NaFlex of its own grid. With AnyRes an
  image alone in its turn is two units, the whole and the grid of its tiles;
  each of several is a square and a newline. (A later turn can't change what was
  read, so turns count apart in training too. A processor of transformers that
  gets all turns at once makes squares of them.)

  Args:
    images: what `images.decode` takes, of any size, and what it gives.
    model: the model.
    per_turn: how many of them come in each turn; all at once by default.

  Raises:
    images.ImageError: an image can't be read.
  """
  arrays = [images_lib.decode(image) for image in images]
  units = of_sizes([a.shape[:2] for a in arrays], model, per_turn)
  pixels = []
  for array, its, alone in zip(
    arrays, units, are_alone(len(arrays), per_turn), strict=True
  ):
    if model.tiling.kind == "none":
      pixels.append(_whole(array, model))
    elif alone:  # one whose tiles make no grid is the whole alone
      tiles = sum(u.tiles for u in its)
      pixels.append(anyres.squares(array, model)[:tiles])
    else:
      pixels.append(anyres.padded_square(array, model))
  return [Seen(p, us) for p, us in zip(pixels, units, strict=True)]


def are_alone(images: int, per_turn: Sequence[int] | None) -> list[bool]:
  """Whether each image is the only one of its turn."""
  turns = (images,) if per_turn is None else per_turn
  return [n == 1 for n in turns for _ in range(n)]


def of_sizes(
  sizes: Sequence[tiles.Size],
  model: config_lib.ModelConfig,
  per_turn: Sequence[int] | None = None,
) -> list[tuple[row_lib.Unit, ...]]:
  """The units of the images of one sample, one for one, as in `of_images`.

  Args:
    sizes: height and width of each image.
    model: the model.
    per_turn: as in `of_images`.
  """
  vision, side = model.vision, model.vision.grid
  whole = row_lib.Unit(side, side)
  if limit := vision.max_patches:
    grids = [naflex.grid(*s, vision.patch_size, limit) for s in sizes]
    return [(row_lib.Unit(*grid),) for grid in grids]
  if model.tiling.kind == "none":
    return [(whole,)] * len(sizes)
  out = []
  for size, alone in zip(sizes, are_alone(len(sizes), per_turn), strict=True):
    grid = anyres.grid_unit(size, model) if alone else None
    square = whole if alone else row_lib.Unit(side, side, tail=1)
    out.append((square,) if grid is None else (square, grid))
  return out


def of_video(
  frames: Sequence[images_lib.Picture], model: config_lib.ModelConfig
) -> Seen:
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
  arrays = [images_lib.decode(frame) for frame in frames]
  pixels = join([_whole(a, model) for a in arrays], model)
  return Seen(pixels, of_frames([a.shape[:2] for a in arrays], model))


def of_frames(
  sizes: Sequence[tiles.Size], model: config_lib.ModelConfig
) -> tuple[row_lib.Unit, ...]:
  """The units of a video's frames, as in `of_video`."""
  side, count = model.vision.grid, len(sizes)
  if model.tiling.kind == "none":
    units = itertools.chain(*of_sizes(sizes, model))
  else:
    units = (anyres.frame_unit(side, last=i + 1 == count) for i in range(count))
  return tuple(
    dataclasses.replace(unit, frame=i, frames=count)
    for i, unit in enumerate(units)
  )


def join(pixels: Sequence[Pixels], model: config_lib.ModelConfig) -> Pixels:
  """Pixels one after the other; of no tiles when there are none."""
  if len(pixels) == 1:
    return pixels[0]
  size, limit = model.vision.image_size, model.vision.max_patches
  none: Pixels = np.zeros((0, size, size, 3), np.uint8)
  if limit:
    numbers = 3 * model.vision.patch_size**2
    none = types.Patches(
      np.zeros((0, limit, numbers), np.uint8), np.zeros((0, 2), np.int32)
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


def _whole(image: np.ndarray, model: config_lib.ModelConfig) -> Pixels:
  """An image as it is: one tile, or with NaFlex its patches."""
  vision = model.vision
  one = naflex if vision.max_patches else images_lib
  return _map(lambda x: x[None], one.preprocess(image, vision))
