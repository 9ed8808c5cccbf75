"""Samples that are stored as records in shards."""

import abc
import importlib.metadata

import numpy as np

from gaze_jax.data import media as media_lib
from gaze_jax.data import packing
from gaze_jax.data import record as record_lib
from gaze_jax.data import samples
from gaze_jax.data import shards as shards_lib
from gaze_jax.data import skipped as skipped_lib


class Stored(abc.ABC):
  """Samples of a set of shards (`samples.Source`).

  Nothing is read before it is needed, and what is held in memory is 12 bytes a
  sample, ArrayRecord's own index, and a bit. A sample that no row of the run
  can hold, or whose media turn out to be broken, is replaced by the next good
  one, always the same.

  Args:
    name: of the data, for messages.
    shards: where it is.
    reader: of the media.
    max_skipped: share of the samples that may be skipped.
    fits_only: whether samples that no row can hold are left out from the start,
      as evaluation wants it: it takes a look at each.

  Raises:
    samples.DataError: a shard is missing or broken, or too much is skipped.
  """

  def __init__(
    self,
    name: str,
    shards: shards_lib.Shards,
    *,
    reader: media_lib.Reader,
    max_skipped: float,
    fits_only: bool,
  ):
    self.name, self.shards, self.reader = name, shards, reader
    shards.check()
    self._good = bytearray(-(-len(shards) // 8))  # a bit each
    self._skipped = skipped_lib.Skipped(name, len(shards), max_skipped)
    self._left_out = np.zeros(0, np.int64)
    if fits_only:
      self._left_out = self._find_left_out()

  @abc.abstractmethod
  def record(self, content: bytes) -> record_lib.Record:
    """The record of a shard's bytes.

    Raises:
      skipped.SkipError: it can't be used.
      ValueError: it is no such record.
    """

  @abc.abstractmethod
  def fetch(self, number: int) -> record_lib.Record:
    """A record by its number among all, if a row can hold it.

    Raises:
      samples.DataError: it is none.
      skipped.SkipError: it can't be used.
    """

  def check(self, number: int) -> None:
    """Raises a `skipped.SkipError` for what no row can hold."""
    self.fetch(number)

  @abc.abstractmethod
  def digest(self) -> str:
    """A hash of the content."""

  def __len__(self) -> int:
    return len(self.shards) - len(self._left_out)

  def sample(self, index: int, epoch: int = 0) -> samples.Sample:
    """The conversation with its media; the same in every epoch."""
    return self._resolve(index, pixels=True)

  def text(self, index: int, epoch: int = 0) -> samples.Sample:
    """`sample` without pixels; decodes them once, to know they are good."""
    return self._resolve(index, pixels=False)

  def canvas(self, index: int) -> tuple[np.ndarray, ...]:
    """The pictures, uint8 [h, w, 3] each; none for text alone."""
    return packing.pictures(self.sample(index))

  def fingerprint(self) -> str:
    """Everything that decides the pictures."""
    return (
      f"{type(self).__name__} samples={len(self)} content={self.digest()}"
      f" frames={self.reader.frames}"
      f" pillow={importlib.metadata.version('pillow')}"
    )

  def content(self) -> dict[str, int | str]:
    """How many samples there are, and a hash of them."""
    return dict(samples=len(self), records=self.digest())

  @property
  def skipped(self) -> dict[str, int]:
    """How many samples were skipped so far, by reason."""
    return dict(self._skipped.reasons)

  def number(self, index: int) -> int:
    """The number of a sample among all that are stored."""
    before = self._left_out - np.arange(len(self._left_out))
    return index + int(np.searchsorted(before, index, side="right"))

  def stored(self, number: int) -> record_lib.Record:
    """A record by its number among all.

    Raises:
      samples.DataError: it is none.
      skipped.SkipError: it can't be used.
    """
    try:
      return self.record(self.shards[number])
    except (ValueError, KeyError, IndexError, StopIteration) as error:
      raise samples.DataError(
        f"{self.name}: sample {number} is no such record ({error}); prepare the"
        " data anew"
      ) from None

  def _resolve(self, index: int, *, pixels: bool) -> samples.Sample:
    if not 0 <= index < len(self):
      raise IndexError(f"index {index} of {len(self)} samples")

    def read(i: int) -> samples.Sample:
      number = self.number(i)
      byte, bit = divmod(number, 8)
      is_good = self._good[byte] >> bit & 1
      one = self.stored(number) if is_good else self.fetch(number)
      if is_good and not pixels and not one.videos:  # their frames are counted
        return one.sample
      sample = self.reader.decode(one.sample, one.images, one.videos)
      self._good[byte] |= 1 << bit
      return sample if pixels else packing.without_pixels(sample)

    name = lambda i: self._called(self.number(i))
    return self._skipped.first_usable(index, len(self), read, name)

  def _find_left_out(self) -> np.ndarray:
    found = []
    for number in range(len(self.shards)):
      try:
        self.check(number)
      except skipped_lib.SkipError as skip:
        self._skipped.add(self._called(number), skip)
        found.append(number)
    self._skipped.check()
    return np.array(found, np.int64)

  def _called(self, number: int) -> str:
    try:
      name = f"sample {number} (id {self.stored(number).id})"
    except skipped_lib.SkipError:
      name = f"sample {number}"
    return skipped_lib.one_line(name)
