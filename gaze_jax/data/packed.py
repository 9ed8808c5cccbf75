"""Which samples share a row: packing by the index alone.

The samples of a run come in its order (data/order.py), and each window of them
is packed by first fit, the longest first. Rows that share a pool of pictures
are chosen so that theirs fit, and such groups stand in a random order within
the window. What a row holds is a pure function of the config and its number: to
start at a row, the windows before it are packed again, which takes some
microseconds a sample and reads no picture.
"""

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from gaze_jax.data import order as order_lib
from gaze_jax.data import samples
from gaze_jax.layout import row as row_lib

_ROW_STREAM = 7
# Windows whose rows are kept.
_KEPT = 4
_EMPTY = 100  # windows without a row: there will be none


def first_fit(
  sizes: Sequence[row_lib.Size], room: row_lib.Size, most: int
) -> list[list[int]]:
  """Rows of items: each goes to the first row with room, the longest first.

  Args:
    sizes: of the items. One that is larger than a row gets no place.
    room: of a row.
    most: items of a row.

  Returns:
    The items of each row, in their own order.
  """
  rows: list[list[int]] = []
  left: list[row_lib.Size] = []
  by_length = sorted(range(len(sizes)), key=lambda i: -sizes[i].slots)
  for item in by_length:
    size = sizes[item]
    if not size.fits(room):
      continue
    for row, rest in enumerate(left):
      # Slots first: they decide nearly always.
      if size.slots <= rest.slots and len(rows[row]) < most:
        if size.fits(rest):
          break
    else:
      row = len(rows)
      rows.append([])
      left.append(room)
    rows[row].append(item)
    rest = (a - b for a, b in zip(left[row], size, strict=True))
    left[row] = row_lib.Size(*rest)
  return [sorted(row) for row in rows]


def pooled(
  tiles: Sequence[int], rows: int, room: int
) -> list[list[int | None]]:
  """Groups of rows whose pictures fit a pool: the fullest rows first.

  Each goes to the group with the most room left, and to a new one where none
  has enough.

  Args:
    tiles: of each row; not more than `room`.
    rows: of a group.
    room: tiles of a pool.

  Returns:
    The rows of each group, with None for an empty one behind them; the group
    with the lowest row first.
  """
  groups: list[list[int]] = [[] for _ in range(-(-len(tiles) // rows))]
  open_ = [(-room, group) for group in range(len(groups))]  # a heap
  for row in sorted(range(len(tiles)), key=lambda i: -tiles[i]):
    if open_ and -open_[0][0] >= tiles[row]:
      taken, group = heapq.heappop(open_)
    else:
      taken, group = -room, len(groups)
      groups.append([])
    groups[group].append(row)
    if len(groups[group]) < rows:
      heapq.heappush(open_, (taken + tiles[row], group))
  return [[*g, *[None] * (rows - len(g))] for g in sorted(groups, key=min)]


class PackedRows:
  """The samples of each row of a run.

  Rows are numbered by pools: those of a pool follow each other.

  Args:
    order: of its samples.
    size_of: what a sample takes of a row.
    room: of a row.
    most: samples of a row.
    window: samples that are packed together.
    seed: of the order of rows.
    pool_rows: rows that share a pool of pictures.
    pool_tiles: tiles of a pool.
  """

  def __init__(
    self,
    order: order_lib.Order,
    size_of: Callable[[int], row_lib.Size],
    *,
    room: row_lib.Size,
    most: int,
    window: int,
    seed: int,
    pool_rows: int,
    pool_tiles: int,
  ):
    self._order, self._size_of, self._seed = order, size_of, seed
    self._room, self._most, self._window = room, most, window
    self._pool = pool_rows, pool_tiles
    self._ends: list[int] = []  # rows up to the end of each window
    self._kept: dict[int, list[list[int]]] = {}  # numbers of the run, by window

  def at(self, row: int) -> list[tuple[int, int]]:
    """The samples of a row and the epoch of each, in order; it may be empty."""
    window, own = self._find(row)
    numbers = self._rows_of(window)[own]
    indices, epochs = self._order.at(np.array(numbers, np.int64))
    return list(zip(indices.tolist(), epochs.tolist(), strict=True))

  def counts(self, rows: int) -> np.ndarray:
    """How many samples of each source the first rows hold, int64 [sources]."""
    if not rows:
      return self._order.counts(0)
    window, own = self._find(rows - 1)
    total = self._order.counts(window * self._window)
    for numbers in self._rows_of(window)[: own + 1]:
      for n in numbers:
        total = total + self._order.counts(n + 1) - self._order.counts(n)
    return total

  def _find(self, row: int) -> tuple[int, int]:
    """The window of a row, and its number within."""
    while not self._ends or self._ends[-1] <= row:
      before = self._ends[-1] if self._ends else 0
      self._ends.append(before + len(self._rows_of(len(self._ends))))
      if self._ends[-1] == 0 and len(self._ends) == _EMPTY:
        raise samples.DataError(
          "no sample of the training set fits a row (data.sequence_length)"
        )
    window = int(np.searchsorted(self._ends, row, side="right"))
    return window, row - (self._ends[window - 1] if window else 0)

  def _rows_of(self, window: int) -> list[list[int]]:
    """The numbers in the run of each row's samples."""
    if window not in self._kept:
      while len(self._kept) >= _KEPT:
        del self._kept[next(iter(self._kept))]
      self._kept[window] = self._pack(window)
    return self._kept[window]

  def _pack(self, window: int) -> list[list[int]]:
    first = window * self._window
    indices, _ = self._order.at(np.arange(first, first + self._window))
    sizes = [self._size_of(i) for i in indices.tolist()]
    rows = first_fit(sizes, self._room, self._most)
    if not rows:
      return []
    tiles = [sum(sizes[item].tiles for item in row) for row in rows]
    groups = pooled(tiles, *self._pool)
    key = (_ROW_STREAM, self._seed, window)
    mixed = order_lib.permuted(np.arange(len(groups)), len(groups), key)
    chosen = [row for g in mixed.tolist() for row in groups[g]]
    return [
      [first + item for item in rows[r]] if r is not None else []
      for r in chosen
    ]
