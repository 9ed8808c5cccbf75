"""Lays out a row: the slots of one sequence. See docs/method.md, section 3.

Pure numpy, on the host, for training rows and for requests alike.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import types
from gaze_jax.layout import grid
from gaze_jax.layout import tiles

NEWLINE = -1  # in `Unit.feed` and `Batch.feed`: the learned newline


class LayoutError(errors.GazeError):
  """A row does not fit its static shape; the message names the limit."""


@dataclasses.dataclass(frozen=True)
class Text:
  """A run of token ids.

  Attributes:
    ids: the token ids.
    branch: 0 for the trunk; a branch sees the trunk and itself alone.
    question: number of the question that these ids answer; -1 when they are
      read and not scored.
  """

  ids: Sequence[int]
  branch: int = 0
  question: int = -1


@dataclasses.dataclass(frozen=True)
class Unit:
  """An image, tile or frame of `rows` x `columns` visual tokens.

  Without `feed` its tokens are those of its tile in order, then newlines.

  Attributes:
    rows: of its grid.
    columns: of its grid.
    tail: tokens after the grid, which belong to its last region.
    frame: its number in its video.
    frames: how many units its video has, which follow each other; 1 for an
      image.
    tiles: tiles of `Batch.images` that it is made of.
    feed: int [tokens], or [tokens, 4] with `blend`: numbers into the projected
      tokens of its tiles, or NEWLINE; None for its tile's own.
    blend: float32 [tokens, 4], the weights; None for one token each.
  """

  rows: int
  columns: int
  tail: int = 0
  frame: int = 0
  frames: int = 1
  tiles: int = 1
  feed: np.ndarray | None = dataclasses.field(default=None, compare=False)
  blend: np.ndarray | None = dataclasses.field(default=None, compare=False)

  @property
  def tokens(self) -> int:
    """Visual tokens."""
    return self.rows * self.columns + self.tail

  def completes(self, region: grid.Region) -> int:
    """How many regions are complete with it: none if another frame follows."""
    together = grid.frames_together(self.frame, self.frames, region)
    last = self.frame == together[-1]
    return grid.region_count(self.rows, self.columns, region) if last else 0

  def largest_region(self, region: grid.Region) -> int:
    """Tokens of its largest region, with those of other frames."""
    return grid.largest_region(
      self.rows, self.columns, self.tail, region, self.frames
    )


class Size(NamedTuple):
  """What a sample takes of a row, or what a row has room for."""

  slots: int
  answers: int
  units: int
  tiles: int

  def fits(self, room: "Size") -> bool:
    """Whether there is room for it."""
    return all(a <= b for a, b in zip(self, room, strict=True))


@dataclasses.dataclass(frozen=True)
class RowShape:
  """The static shape of a row.

  Attributes:
    slots: S, sequence length.
    units: M, units of a row; further ones are refused, fewer are fine.
    unit_tokens: T, visual tokens of a tile.
    regions: R, regions of a row.
    region_length: L, tokens of the largest region.
    answer_slots: A, scored tokens of a row.
    region: rows, columns and frames of a full region, in tokens.
    context_tokens: C, context tokens of a unit.
    tiles: tiles of a row at most; 0 for one a unit.
    largest_unit: visual tokens of the largest unit; 0 for T.
    taps: projected tokens that a visual token is blended from, 1 or 4.
  """

  slots: int
  units: int
  unit_tokens: int
  regions: int
  region_length: int
  answer_slots: int
  region: grid.Region
  context_tokens: int
  tiles: int = 0
  largest_unit: int = 0
  taps: int = 1

  @property
  def room(self) -> Size:
    """What its samples may take together."""
    return Size(
      self.slots, self.answer_slots, self.units, self.tiles or self.units
    )


def row_shape(config: config_lib.Config) -> RowShape:
  """The shape of every row of a run: room for all that may occur."""
  model, data = config.model, config.data
  most = tiles.row_tiles(model, data.max_units)
  if data.pool_tiles:
    most = min(most or data.max_units, data.pool_tiles)
  return RowShape(
    slots=data.sequence_length,
    units=data.max_units,
    unit_tokens=model.vision.tokens,
    answer_slots=data.answer_slots,
    region=model.gaze.region,
    context_tokens=model.gaze.context_tokens,
    taps=1 if model.tiling.kind == "none" else 4,
    regions=sum(tiles.unit_regions(model, data.max_units)),
    region_length=tiles.largest_region(model),
    tiles=most,
    largest_unit=tiles.largest_unit(model),
  )


def pool_tiles(config: config_lib.Config) -> int:
  """Tiles of a pool of pictures, which `data.pool_rows` training rows share."""
  room = row_shape(config).room.tiles
  return config.data.pool_tiles or config.data.pool_rows * room


def lay_out(
  parts: Sequence[Text | Unit], shape: RowShape
) -> dict[str, np.ndarray]:
  """Lays the parts of one sample out as a row.

  Each unit's visual tokens are followed at once by its context tokens. Units
  belong to the trunk. Positions of a branch continue those of the trunk, so
  every trunk part comes before the first branch.

  Args:
    parts: text and units in reading order.
    shape: the static shape to fill.

  Returns:
    The fields of `types.Batch` for one row but `images`, keyed by the name of
    the field (those of `layout` directly), each padded to the shape. `feed`
    is [S, taps], and there is a `blend`, in a shape of several taps alone.

  Raises:
    LayoutError: something does not fit, or a trunk part follows a branch.
  """
  return lay_out_together([parts], shape)


def lay_out_together(
  samples: Sequence[Sequence[Text | Unit]],
  shape: RowShape,
  first_tile: int = 0,
) -> dict[str, np.ndarray]:
  """Lays several samples out as one row; they never see each other.

  Each is a segment, whose positions and branches begin anew. Unit, region and
  question numbers continue through the row.

  Args:
    samples: the parts of each, as for `lay_out`.
    shape: the static shape to fill.
    first_tile: tiles that stand before this row's in the pool that it shares.

  Returns:
    As `lay_out`.

  Raises:
    LayoutError: they do not fit `shape` together, or as for `lay_out`.
  """
  row = _Row(shape, first_tile)
  for parts in samples:
    row.begin()
    for part in parts:
      if isinstance(part, Unit):
        row.add_unit(part)
      else:
        row.add_text(part)
  return row.finish()


def make_batch(
  rows: Sequence[dict[str, np.ndarray]], images: types.Leaf
) -> types.Batch:
  """Stacks laid-out rows into a batch, with their images (see `Batch`)."""
  stacked = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
  names = [f.name for f in dataclasses.fields(types.Layout)]
  layout = types.Layout(**{k: stacked.pop(k) for k in names})
  return types.Batch(layout=layout, images=images, **stacked)


_EMPTY_SLOT = dict(
  tokens=0, role=0, unit=-1, region=-1, position=0, segment=-1, branch=0, feed=0
)


class _Row:
  """A row that is filled from the left.

  `slots`, `units`, `tiles`, `regions`, `answers` and `questions`
  count what it holds so far.
  """

  def __init__(self, shape: RowShape, first_tile: int = 0):
    self.shape, self.first_tile = shape, first_tile
    self.arrays = {
      k: np.full(shape.slots, v, np.int32) for k, v in _EMPTY_SLOT.items()
    }
    if shape.taps > 1:
      taps = (shape.slots, shape.taps)
      self.arrays["feed"] = np.zeros(taps, np.int32)
      self.arrays["blend"] = np.zeros(taps, np.float32)
    self.region_slots = np.full(
      (shape.regions, shape.region_length), -1, np.int32
    )
    self.region_sizes = [0] * shape.regions  # tokens so far
    self.answer_slots = np.full(shape.answer_slots, -1, np.int32)
    self.answer_of = np.full(shape.answer_slots, -1, np.int32)
    self.slots = self.units = self.tiles = self.regions = 0
    self.answers = self.questions = 0
    self.segment, self.first_question = -1, 0
    self.branch = self.trunk_end = self.position = 0
    self.first_region, self.grid = 0, (0, 0)  # of the video that goes on

  def begin(self) -> None:
    """Begins a segment."""
    self.segment += 1
    self.first_question = self.questions
    self.branch = self.trunk_end = self.position = 0

  def add_text(self, text: Text) -> None:
    n = len(text.ids)
    if text.branch != self.branch:
      if text.branch == 0:
        raise LayoutError("a trunk part follows a branch")
      if self.branch == 0:
        self.trunk_end = self.position
      self.branch, self.position = text.branch, self.trunk_end
    if text.question >= 0:
      if self.position == (self.trunk_end if self.branch else 0):
        raise LayoutError("an answer needs a token of its branch before it")
      before = self.slots - 1  # its logits predict the answer's first token
      question = self.first_question + text.question
      self._add_answers(before + np.arange(n), question)
      self.questions = max(self.questions, question + 1)
    self._fill(n, tokens=text.ids, role=types.Role.TEXT)

  def add_unit(self, unit: Unit) -> None:
    shape = self.shape
    if self.branch:
      raise LayoutError("a trunk part follows a branch")
    if self.units == shape.units:
      raise LayoutError(
        f"more than {shape.units} units of images in one row (data.max_units)"
      )
    if self.tiles + unit.tiles > (limit := shape.tiles or shape.units):
      raise LayoutError(
        f"{self.tiles + unit.tiles} squares of images, the row takes {limit}"
      )
    if unit.tokens > (limit := shape.largest_unit or shape.unit_tokens):
      raise LayoutError(
        f"an image of {unit.tokens} visual tokens, the row takes {limit}"
      )
    self._fill(
      unit.tokens,
      role=types.Role.VISUAL,
      unit=self.units,
      region=self._add_to_regions(unit),
      **self._feed(unit),
    )
    context = np.arange(shape.context_tokens)
    self._fill(
      shape.context_tokens,
      role=types.Role.CONTEXT,
      unit=self.units,
      feed=context[:, None] if shape.taps > 1 else context,
    )
    self.units += 1
    self.tiles += unit.tiles

  def _feed(self, unit: Unit) -> dict[str, np.ndarray]:
    """A unit's `feed`, and `blend` in a shape of taps, numbered by the row."""
    taps, tile_tokens = self.shape.taps, self.shape.unit_tokens
    feed = unit.feed
    if feed is None:
      feed = np.arange(unit.tokens)
      feed[unit.tokens - unit.tail :] = NEWLINE
    if (most := int(feed.max())) >= unit.tiles * tile_tokens:
      raise LayoutError(
        f"an image that feeds on token {most} of {unit.tiles} tiles of"
        f" {tile_tokens}"
      )
    first = (self.first_tile + self.tiles) * tile_tokens
    feed = np.where(feed == NEWLINE, NEWLINE, feed + first)
    if taps == 1:
      if unit.blend is not None:
        raise LayoutError("a blended image, and the row takes plain tokens")
      return dict(feed=feed)
    if unit.blend is not None:
      return dict(feed=feed, blend=unit.blend)
    feed = np.pad(feed[:, None], ((0, 0), (0, taps - 1)))
    return dict(feed=feed, blend=np.eye(1, taps))

  def finish(self) -> dict[str, np.ndarray]:
    return dict(
      self.arrays,
      region_slots=self.region_slots,
      answer_slots=self.answer_slots,
      answer_of=self.answer_of,
    )

  def _add_to_regions(self, unit: Unit) -> np.ndarray:
    """Lists the slots of a unit in their regions: new ones, or a video's.

    Args:
      unit: that comes next.

    Returns:
      int [tokens], the region of each, numbered within the row.
    """
    most, length = self.region_slots.shape
    regions, tokens = grid.region_tokens(
      unit.rows, unit.columns, unit.tail, self.shape.region
    )
    together = grid.frames_together(unit.frame, unit.frames, self.shape.region)
    if unit.frame == together[0]:
      self.first_region, self.grid = self.regions, (unit.rows, unit.columns)
      self.regions += len(tokens)
    if self.regions > most:
      raise LayoutError(f"more than {most} regions in one row")
    if self.grid != (unit.rows, unit.columns):
      raise LayoutError(
        f"frames of {self.grid[0]} x {self.grid[1]} and of {unit.rows} x"
        f" {unit.columns} visual tokens in one video, whose regions span"
        f" {self.shape.region[2]} frames (model.gaze.region); give frames of"
        " one size"
      )
    for number, own in enumerate(tokens, self.first_region):
      start = self.region_sizes[number]
      if (stop := start + len(own)) > length:
        raise LayoutError(f"a region of {stop} tokens, the row takes {length}")
      self.region_slots[number, start:stop] = self.slots + own
      self.region_sizes[number] = stop
    return self.first_region + regions

  def _add_answers(self, slots: np.ndarray, question: int) -> None:
    """Lists the slots whose logits are scored, and for which question."""
    stop = self.answers + len(slots)
    if stop > (limit := len(self.answer_slots)):
      raise LayoutError(
        f"more than {limit} answer tokens in one row (data.answer_slots)"
      )
    self.answer_slots[self.answers : stop] = slots
    self.answer_of[self.answers : stop] = question
    self.answers = stop

  def _fill(self, n: int, **arrays) -> None:
    stop = self.slots + n
    if stop > self.shape.slots:
      raise LayoutError(
        f"a row of at least {stop} slots, the limit is {self.shape.slots}"
        " (data.sequence_length)"
      )
    own = dict(segment=self.segment, branch=self.branch)
    own["position"] = self.position + np.arange(n)
    for name, values in (own | arrays).items():
      self.arrays[name][self.slots : stop] = values
    self.slots = stop
    self.position += n
