"""Scenes of EmojiScenes: what a canvas shows, in numbers, and its painting.

A canvas is a grid of 3 x 3 cells. A thing stands in a cell, so its place has
one of nine names; a distractor, which has no name, may stand in another.

  top left     top     top right
  left         center  right
  bottom left  bottom  bottom right
"""

import dataclasses

import numpy as np
from PIL import Image

from gaze_jax.data import samples
from gaze_jax.demo import emoji

VERSION = 1  # raise it whenever the same index would give another picture

PLACES = (
  *("top left", "top", "top right"),
  *("left", "center", "right"),
  *("bottom left", "bottom", "bottom right"),
)
SPLITS = ("train", "new", "held_out_pairs", "larger")
MIN_SIZE = 42  # a canvas below this many pixels a side shows nothing legible

MAX_THINGS = 5
_COPIES = 0.65  # share of canvases of three or more where a thing has copies
_CANVAS_STREAM = 1

# (thing, place) pairs that train, new and larger never show: one place of each
# thing, every place for two or three things.
HELD_OUT = tuple((7 * i + i // 9) % 9 for i in range(len(emoji.NAMED)))


@dataclasses.dataclass(frozen=True)
class Placed:
  """A picture on the canvas.

  Attributes:
    thing: index into `emoji.NAMED`; -1 for a distractor.
    code: code point of its picture.
    cell: 0 to 8 in raster order, as in `PLACES`.
    size: pixels a side.
    x, y: pixels, its left upper corner.
  """

  thing: int
  code: str
  cell: int
  size: int
  x: int
  y: int


@dataclasses.dataclass(frozen=True)
class Scene:
  """What a canvas shows.

  Attributes:
    size: pixels a side.
    photo: index into `emoji.PHOTOS`.
    crop: the part of the photo, as shares of its shorter side and of the room
      left beside it: (side, across, down).
    flip: the photo is mirrored.
    placed: distractors first, then things; the later cover the earlier.
  """

  size: int
  photo: int
  crop: tuple[float, float, float]
  flip: bool
  placed: tuple[Placed, ...]

  @property
  def things(self) -> tuple[Placed, ...]:
    """The named things, in the order of `paint`'s masks."""
    return tuple(p for p in self.placed if p.thing >= 0)


def scene(
  seed: int, split: str, index: int, *, size: int, curriculum: float = 0.0
) -> Scene:
  """The scene of an index: a pure function of its arguments.

  Args:
    seed: seed of the data.
    split: one of `SPLITS`.
    index: number of the canvas.
    size: pixels a side; things keep their size in pixels on a larger canvas.
    curriculum: share of the canvases that hold a single thing.
  """
  rng = samples.generator(_CANVAS_STREAM, seed, SPLITS.index(split), index)
  number = (
    1 if rng.random() < curriculum else int(rng.integers(2, MAX_THINGS + 1))
  )
  cells = _fill_cells(rng, number, split == "held_out_pairs")
  free = [c for c in rng.permutation(9).tolist() if c not in cells.keys()]
  others = rng.choice(len(emoji.DISTRACTORS), int(rng.integers(1, 3)), False)
  placed = [
    _place(rng, -1, emoji.DISTRACTORS[d], c, size)
    for d, c in zip(others.tolist(), free, strict=False)
  ]
  for cell, thing in cells.items():
    placed.append(_place(rng, thing, emoji.NAMED[thing].code, cell, size))
  crop = (rng.uniform(0.4, 1.0), rng.random(), rng.random())
  photo = int(rng.integers(len(emoji.PHOTOS)))
  return Scene(size, photo, crop, bool(rng.integers(2)), tuple(placed))


def paint(what: Scene) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
  """Paints a scene.

  Returns:
    The canvas, uint8 [size, size, 3], and for each thing a mask, bool
    [size, size], of its pixels that nothing covers.
  """
  canvas = _background(what)
  owner = np.full(canvas.shape[:2], -1, np.int8)  # a number of `placed`
  for number, p in enumerate(what.placed):
    emoji.stick(canvas, owner, number, p.code, p.size, (p.x, p.y))
  things = [i for i, p in enumerate(what.placed) if p.thing >= 0]
  return canvas, tuple(owner == i for i in things)


def _fill_cells(
  rng: np.random.Generator, number: int, held_out: bool
) -> dict[int, int]:
  """Draws things for cells, {cell: thing}, in drawing order."""
  copies = 0
  if rng.random() < _COPIES:
    copies = int(rng.integers(1, 3))
  copies = max(0, min(copies, number - 2))
  order = rng.permutation(9).tolist()
  cells: dict[int, int] = {}
  distinct: list[int] = []
  for thing in rng.permutation(len(emoji.NAMED)).tolist():
    if len(distinct) == number - copies:
      break
    free = [
      c for c in order if c not in cells and (c == HELD_OUT[thing]) == held_out
    ]
    if free:
      cells[free[0]] = thing
      distinct.append(thing)
  for cell in order:
    if len(cells) == number:
      break
    if cell not in cells and (held_out or cell != HELD_OUT[distinct[0]]):
      cells[cell] = distinct[0]
  return cells


def _place(
  rng: np.random.Generator, thing: int, code: str, cell: int, size: int
) -> Placed:
  """Puts a picture near the middle of its cell; it may reach over the edge."""
  side = size / 3
  small, large = min(40, int(side * 5 / 7)), min(60, int(side) + 4)
  pixels = int(rng.integers(small, large + 1))
  reach = max(0.0, (side - pixels) / 2) + side / 19  # 3 px beyond, at 168
  dx, dy = rng.uniform(-reach, reach, 2)
  # The outline stays on the canvas too.
  low, high = emoji.OUTLINE, size - pixels - emoji.OUTLINE
  x = round(float((cell % 3 + 0.5) * side - pixels / 2 + dx))
  y = round(float((cell // 3 + 0.5) * side - pixels / 2 + dy))
  return Placed(
    thing, code, cell, pixels, min(max(x, low), high), min(max(y, low), high)
  )


def _background(what: Scene) -> np.ndarray:
  photo = emoji.photo(what.photo)
  side = int(min(photo.size) * what.crop[0])
  x = int((photo.size[0] - side) * what.crop[1])
  y = int((photo.size[1] - side) * what.crop[2])
  image = photo.resize(
    (what.size, what.size),
    Image.Resampling.BILINEAR,
    (x, y, x + side, y + side),
  )
  pixels = np.asarray(image)
  return np.array(pixels[:, ::-1] if what.flip else pixels)
