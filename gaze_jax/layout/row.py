"""Sequence layout: regions of a grid, and a row's slots.

See docs/method.md, section 3. Pure numpy, on the host. The data room lays out
training rows with it and the decode room lays out requests, so that both mean
the same by a region.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import types
from gaze_jax.layout import tiles

NEWLINE = -1  # in `Unit.feed` and `Batch.feed`: the learned newline


class LayoutError(errors.GazeError):
  """A row that does not fit its static shape; the message says by how much."""


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

  A unit's tokens are those of its tile in order, then newlines, unless it says
  which projected tokens of its tiles make them up.

  Attributes:
    rows: of its grid.
    columns: of its grid.
    tail: tokens after the grid, which belong to its last region.
    tiles: squares of `Batch.images` that it takes.
    feed: int [tokens], or [tokens, 4] with `blend`: numbers into the projected
      tokens of its tiles, or NEWLINE; None for its tile's own.
    blend: float32 [tokens, 4], the weights; None for one token each.
  """

  rows: int
  columns: int
  tail: int = 0
  tiles: int = 1
  feed: np.ndarray | None = dataclasses.field(default=None, compare=False)
  blend: np.ndarray | None = dataclasses.field(default=None, compare=False)

  @property
  def tokens(self) -> int:
    """Visual tokens."""
    return self.rows * self.columns + self.tail


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
    region: rows and columns of a full region, in tokens.
    context_tokens: C, context tokens of a unit.
    tiles: squares of pixels of a row; 0 for as many as there are units.
    largest_unit: visual tokens of the largest unit; 0 for T.
    taps: projected tokens that a visual token is blended from, 1 or 4.
  """

  slots: int
  units: int
  unit_tokens: int
  regions: int
  region_length: int
  answer_slots: int
  region: tuple[int, int]
  context_tokens: int
  tiles: int = 0
  largest_unit: int = 0
  taps: int = 1


def row_shape(config: config_lib.Config) -> RowShape:
  """The shape of every row of a run: room for all that may occur."""
  model, data = config.model, config.data
  return RowShape(
    slots=data.sequence_length,
    units=data.max_units,
    unit_tokens=model.vision.tokens,
    answer_slots=data.answer_slots,
    region=model.gaze.region,
    context_tokens=model.gaze.context_tokens,
    taps=1 if model.tiling.kind == "none" else 4,
    **tiles.room(model, data.max_units),
  )


def balanced_edges(length: int, size: int) -> np.ndarray:
  """Edges that split `length` into parts of at most `size`.

  `floor(i * n / ceil(n / r))`: part sizes differ by at most one.

  Returns:
    int [parts + 1], from 0 to `length`.
  """
  parts = -(-length // size)
  return np.arange(parts + 1) * length // parts


def region_map(rows: int, columns: int, region: tuple[int, int]) -> np.ndarray:
  """Region number of each token of a grid, int32 `[rows, columns]`.

  Regions are numbered in raster order, as the tokens are.
  """
  down = balanced_edges(rows, region[0])
  across = balanced_edges(columns, region[1])
  i = np.searchsorted(down, np.arange(rows), side="right") - 1
  j = np.searchsorted(across, np.arange(columns), side="right") - 1
  return (i[:, None] * (len(across) - 1) + j[None, :]).astype(np.int32)


def lay_out(
  parts: Sequence[Text | Unit], shape: RowShape
) -> dict[str, np.ndarray]:
  """Lays the parts of one sample out as a row.

  Each unit's visual tokens are followed at once by its context tokens. Units
  belong to the trunk. A branch takes its positions up where the trunk ends,
  so every trunk part comes before the first branch.

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
  row = _Row(shape)
  for part in parts:
    if isinstance(part, Unit):
      row.add_unit(part)
    else:
      row.add_text(part)
  return row.finish()


def concatenate(
  rows: Sequence[dict[str, np.ndarray]], shape: RowShape
) -> dict[str, np.ndarray]:
  """Packs laid-out samples into one row; they never see each other.

  Unit, region and question numbers continue through the row.

  Raises:
    LayoutError: they do not fit `shape` together, or it is a shape of tiles,
      which a row does not count.
  """
  if shape.tiles:
    raise LayoutError("rows of tiled images can't be packed into one")
  out = _Row(shape)
  for row in rows:
    out.add_row(row)
  return out.finish()


def make_batch(
  rows: Sequence[dict[str, np.ndarray]], images: types.Leaf
) -> types.Batch:
  """Stacks laid-out rows into a batch, with their images (see `Batch`)."""
  stacked = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
  names = [f.name for f in dataclasses.fields(types.Layout)]
  layout = types.Layout(**{k: stacked.pop(k) for k in names})
  return types.Batch(layout=layout, images=images, **stacked)


_SLOT_FILL = dict(
  tokens=0, role=0, unit=-1, region=-1, position=0, segment=-1, branch=0, feed=0
)


class _Row:
  """A row being filled from the left."""

  def __init__(self, shape: RowShape):
    self.shape = shape
    self.columns = {
      k: np.full(shape.slots, v, np.int32) for k, v in _SLOT_FILL.items()
    }
    if shape.taps > 1:
      taps = (shape.slots, shape.taps)
      self.columns["feed"] = np.zeros(taps, np.int32)
      self.columns["blend"] = np.zeros(taps, np.float32)
    self.region_slots = np.full(
      (shape.regions, shape.region_length), -1, np.int32
    )
    self.answer_slots = np.full(shape.answer_slots, -1, np.int32)
    self.answer_of = np.full(shape.answer_slots, -1, np.int32)
    self.slots = self.units = self.regions = self.answers = self.tiles = 0
    self.segments = self.questions = 0
    self.branch = 0
    self.trunk_end = self.position = 0

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
      self._answer(np.arange(self.slots - 1, self.slots + n - 1), text.question)
    self._fill(n, tokens=text.ids, role=types.Role.TEXT)

  def add_unit(self, unit: Unit) -> None:
    shape, tokens = self.shape, unit.tokens
    if self.branch:
      raise LayoutError("a trunk part follows a branch")
    if self.units == shape.units:
      raise LayoutError(
        f"more than {shape.units} units of images in one row (data.max_units)"
      )
    if self.tiles + unit.tiles > (shape.tiles or shape.units):
      raise LayoutError(
        f"{self.tiles + unit.tiles} squares of images, the row takes"
        f" {shape.tiles or shape.units}"
      )
    if tokens > (limit := shape.largest_unit or shape.unit_tokens):
      raise LayoutError(
        f"an image of {tokens} visual tokens, the row takes {limit}"
      )
    regions = region_map(unit.rows, unit.columns, shape.region).ravel()
    regions = np.append(regions, np.repeat(regions[-1], unit.tail))
    self._pages(regions, self.slots)
    self._fill(
      tokens,
      role=types.Role.VISUAL,
      unit=self.units,
      region=self.regions + regions,
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
    self.regions += int(regions[-1]) + 1

  def _feed(self, unit: Unit) -> dict[str, np.ndarray]:
    """Where a unit's tokens come from, in the row's numbers."""
    feed = unit.feed
    if feed is None:
      feed = np.arange(unit.tokens)
      feed[unit.tokens - unit.tail :] = NEWLINE
    if (most := int(feed.max())) >= unit.tiles * self.shape.unit_tokens:
      raise LayoutError(
        f"an image that feeds on token {most} of {unit.tiles} tiles of"
        f" {self.shape.unit_tokens}"
      )
    first = self.tiles * self.shape.unit_tokens
    feed = np.where(feed == NEWLINE, NEWLINE, feed + first)
    if self.shape.taps == 1:
      if unit.blend is not None:
        raise LayoutError("a blended image, and the row takes plain tokens")
      return dict(feed=feed)
    if unit.blend is not None:
      return dict(feed=feed, blend=unit.blend)
    taps = np.zeros((len(feed), self.shape.taps), np.int32)
    taps[:, 0] = feed
    return dict(feed=taps, blend=np.eye(1, self.shape.taps))

  def add_row(self, row: dict[str, np.ndarray]) -> None:
    used = int((row["role"] != types.Role.PAD).sum())
    start = self.slots
    shift = lambda x, by: np.where(x >= 0, x + by, -1)
    pages = row["region_slots"][(row["region_slots"] >= 0).any(1)]
    if self.regions + len(pages) > len(self.region_slots):
      raise LayoutError(f"more than {self.shape.regions} regions in one row")
    self.region_slots[self.regions : self.regions + len(pages)] = shift(
      pages, start
    )
    units = int(row["unit"].max()) + 1
    if self.units + units > self.shape.units:
      raise LayoutError(f"more than {self.shape.units} images in one row")
    scored = row["answer_slots"] >= 0
    for slot, question in zip(
      row["answer_slots"][scored], row["answer_of"][scored], strict=True
    ):
      self._answer(np.array([slot + start]), self.questions + int(question))
    visual = ((row["role"] == types.Role.VISUAL) & (row["feed"] >= 0))[:used]
    columns = {k: row[k][:used].copy() for k in _SLOT_FILL}
    columns["unit"] = shift(columns["unit"], self.units)
    columns["region"] = shift(columns["region"], self.regions)
    columns["feed"] += visual * (self.units * self.shape.unit_tokens)
    columns["segment"][:] = self.segments
    self._fill(used, **columns)
    self.units += units
    self.regions += len(pages)
    self.questions += int(row["answer_of"].max(initial=-1)) + 1
    self.segments += 1

  def finish(self) -> dict[str, np.ndarray]:
    return dict(
      self.columns,
      region_slots=self.region_slots,
      answer_slots=self.answer_slots,
      answer_of=self.answer_of,
    )

  def _pages(self, regions: np.ndarray, start: int) -> None:
    for region in range(int(regions.max()) + 1):
      members = start + np.flatnonzero(regions == region)
      if self.regions + region >= len(self.region_slots):
        raise LayoutError(f"more than {self.shape.regions} regions in one row")
      if len(members) > self.region_slots.shape[1]:
        raise LayoutError(
          f"a region of {len(members)} tokens, the row takes"
          f" {self.region_slots.shape[1]}"
        )
      self.region_slots[self.regions + region, : len(members)] = members

  def _answer(self, slots: np.ndarray, question: int) -> None:
    stop = self.answers + len(slots)
    if stop > len(self.answer_slots):
      raise LayoutError(
        f"more than {len(self.answer_slots)} answer tokens in one row"
        " (data.answer_slots)"
      )
    self.answer_slots[self.answers : stop] = slots
    self.answer_of[self.answers : stop] = question
    self.answers = stop

  def _fill(self, n: int, **columns) -> None:
    stop = self.slots + n
    if stop > self.shape.slots:
      raise LayoutError(
        f"a row of at least {stop} slots, the limit is {self.shape.slots}"
        " (data.sequence_length)"
      )
    columns = (
      dict(
        segment=self.segments,
        branch=self.branch,
        position=self.position + np.arange(n),
      )
      | columns
    )
    for name, values in columns.items():
      self.columns[name][self.slots : stop] = values
    self.slots = stop
    self.position += n
