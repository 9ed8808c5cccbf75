"""Records that can't be used: why, how many, and what stands in for them."""

import collections
import itertools
from collections.abc import Callable
from typing import TypeVar

from absl import logging

from gaze_jax.data import samples

_EXAMPLES = 5  # that an error names
_LONGEST_REASON = 1000  # characters

T = TypeVar("T")


class SkipError(Exception):
  """A record that can't be used.

  Attributes:
    reason: the kind of reason, in a word or two.
  """

  def __init__(self, reason: str, detail: str):
    super().__init__(detail)
    self.reason = reason


class Skipped:
  """The records of a source that can't be used.

  The first of each kind of reason is logged as a warning, and too many of them
  are an error.

  Attributes:
    reasons: how many there are so far, by reason.

  Args:
    source: names the source in messages.
    total: records of it.
    share: of them that may be skipped (`data.max_skipped`).
  """

  def __init__(self, source: str, total: int, share: float):
    self.reasons: collections.Counter[str] = collections.Counter()
    self._source, self._total, self._share = source, total, share
    self._examples: list[str] = []
    self._broken: set[int] = set()  # found when they were read

  def add(self, name: str, skip: SkipError) -> None:
    """Counts a record, and logs it by its name."""
    first = not self.reasons[skip.reason]
    self.reasons[skip.reason] += 1
    text = one_line(f"{skip.reason}: {skip}")
    if len(self._examples) < _EXAMPLES:
      self._examples.append(f"{name}: {text}")
    log = logging.warning if first else logging.info
    log("%s: skipped %s: %s", self._source, name, text)

  def check(self) -> None:
    """Raises a `DataError` if they are more than may be, or all."""
    if (bad := self.reasons.total()) <= self._share * self._total:
      if bad < self._total:
        return
    raise samples.DataError(
      f"{self._source}: {self}, more than data.max_skipped = {self._share}"
      f" allows; first: {'; '.join(self._examples)}"
    )

  def first_usable(
    self,
    index: int,
    length: int,
    read: Callable[[int], T],
    name: Callable[[int], str],
  ) -> T:
    """What is read of a record, or of the next one that can be read.

    Args:
      index: of the record.
      length: of the records, the first of which follows the last.
      read: reads one; raises `SkipError` if that can't be used.
      name: names one in messages.

    Raises:
      samples.DataError: too many can't be used, or none is left.
    """
    for i in itertools.chain(range(index, length), range(index)):
      if i in self._broken:
        continue
      try:
        return read(i)
      except SkipError as skip:
        self._broken.add(i)
        self.add(name(i), skip)
        self.check()
    raise samples.DataError(f"{self._source}: no usable sample is left")

  def __bool__(self) -> bool:
    return bool(self.reasons)

  def __str__(self) -> str:
    counts = ", ".join(f"{n} {why}" for why, n in self.reasons.items())
    return (
      f"{self.reasons.total()} of {self._total} samples can't be used"
      f" ({counts})"
    )


def one_line(text: str) -> str:
  """A text of a file as one line that can be printed."""
  text = " ".join(text[:_LONGEST_REASON].split())
  return text.encode("utf-8", "backslashreplace").decode()
