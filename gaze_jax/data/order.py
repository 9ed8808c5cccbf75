"""Which sample comes when: an order that is computed and not stored.

Sample number n of a run is a pure function of (seed, lengths, shares, n). So a
run resumes at any number, and it does not matter who reads which. Memory does
not grow with the number of samples.

A source alone is run through in a new permutation in every epoch. Of several,
the next sample is that of the source whose next one is due first, so that after
any n the count of each is within 1 of n times its share; a source that ends
begins an epoch of its own.
"""

import fractions
import functools
import math
from collections.abc import Sequence

import numpy as np

from gaze_jax.data import samples

_ORDER_STREAM = 3
_HELD_OUT_STREAM = 4
_ROUNDS = 8  # of the Feistel network
_LONGEST_CYCLE = 2**20  # shares are rounded to multiples of one in so many


def permuted(
  positions: np.ndarray, length: int, key: tuple[int, ...]
) -> np.ndarray:
  """A pseudo-random permutation of range(length), at some positions.

  A Feistel network over the smallest 2 b bits that hold `length`, applied until
  what comes out is below it (cycle walking; at most 4 times on average).

  Args:
    positions: int64 [n], each in range(length).
    length: at least 1.
    key: whole numbers that name the permutation.

  Returns:
    int64 [n].
  """
  half = np.uint64(max((length - 1).bit_length() + 1, 2) // 2)
  mask = np.uint64((1 << int(half)) - 1)
  keys = _round_keys(key)
  out = np.asarray(positions).astype(np.uint64)
  todo = np.arange(out.size)
  while todo.size:
    x = out[todo]
    left, right = x >> half, x & mask
    for k in keys:
      left, right = right, left ^ (_mixed(right ^ k) & mask)
    out[todo] = x = left << half | right
    todo = todo[x >= np.uint64(length)]
  return out.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _round_keys(key: tuple[int, ...]) -> np.ndarray:
  generator = samples.generator(*key)
  return generator.integers(2**64, size=_ROUNDS, dtype=np.uint64)


def _mixed(x: np.ndarray) -> np.ndarray:
  """The finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
  x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
  return x ^ x >> np.uint64(31)


class Order:
  """The order of a run over one source or several.

  Samples are numbered through all sources, one after the other.

  Args:
    lengths: samples of each source.
    shares: of the samples of a run, for each source; they sum to 1.
    seed: `data.seed`.
    held_out: share of the samples of each source that do not train
      (`train.eval_share`).

  Raises:
    samples.DataError: none is left to train on.
  """

  def __init__(
    self,
    lengths: Sequence[int],
    shares: Sequence[fractions.Fraction] = (fractions.Fraction(1),),
    *,
    seed: int,
    held_out: float = 0.0,
  ):
    self._lengths, self._seed = tuple(lengths), seed
    self._first = np.cumsum([0, *lengths])
    self._out = [max(round(held_out * n), int(held_out > 0)) for n in lengths]
    for n, out in zip(lengths, self._out, strict=True):
      if out >= n:
        raise samples.DataError(
          f"train.eval_share = {held_out} holds out {out} of {n} samples, and"
          " leaves none to train on"
        )
    self._source, self._rank = _cycle(tuple(shares))
    self._each = np.bincount(self._source, minlength=len(lengths))

  def at(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The samples of some numbers of the run.

    Args:
      numbers: int [n], from 0.

    Returns:
      int64 [n] each: the samples, and the epoch of its source that each is in.
    """
    cycle, place = np.divmod(np.asarray(numbers, np.int64), len(self._source))
    source = self._source[place]
    count = cycle * self._each[source] + self._rank[place]
    indices, epochs = np.empty_like(count), np.empty_like(count)
    for s in np.unique(source).tolist():
      mine = np.flatnonzero(source == s)
      left = self._lengths[s] - self._out[s]
      epochs[mine], position = np.divmod(count[mine], left)
      for epoch in np.unique(epochs[mine]).tolist():
        at = mine[epochs[mine] == epoch]
        indices[at] = self._train(
          s, int(epoch), position[epochs[mine] == epoch]
        )
    return indices, epochs

  def counts(self, number: int) -> np.ndarray:
    """How many of the first samples are of each source, int64 [sources]."""
    cycle, place = divmod(number, len(self._source))
    rest = np.bincount(self._source[:place], minlength=len(self._each))
    return cycle * self._each + rest

  def held_out(self) -> np.ndarray:
    """The samples that do not train, int64, in order."""
    chosen = [
      self._first[s] + self._held_out_first(s, np.arange(out))
      for s, out in enumerate(self._out)
    ]
    return np.sort(np.concatenate(chosen))

  def _train(self, s: int, epoch: int, position: np.ndarray) -> np.ndarray:
    left = self._lengths[s] - self._out[s]
    key = (_ORDER_STREAM, self._seed, s, epoch)
    own = permuted(position, left, key)
    if self._out[s]:
      own = self._held_out_first(s, own + self._out[s])
    return self._first[s] + own

  def _held_out_first(self, s: int, position: np.ndarray) -> np.ndarray:
    """A permutation of a source, of which the first are held out."""
    key = (_HELD_OUT_STREAM, self._seed, s)
    return permuted(position, self._lengths[s], key)


@functools.lru_cache(maxsize=4)
def _cycle(
  shares: tuple[fractions.Fraction, ...],
) -> tuple[np.ndarray, np.ndarray]:
  """The sources of a cycle that repeats for ever, and how many came before.

  Of the sources that are not ahead, the one whose next sample is due first:
  Tijdeman's solution of the chairman assignment problem (1980), which keeps
  every count within 1 of its share.

  Returns:
    The source at each place of the cycle, uint16 [n], and how many samples of
    that source stand before it, uint32 [n].
  """
  parts = _parts(shares)
  length, count = sum(parts), [0] * len(parts)
  source = np.empty(length, np.uint16)
  rank = np.empty(length, np.uint32)
  known = [s for s, part in enumerate(parts) if part]
  for n in range(1, length + 1):
    # Not ahead: with one more it would still be below its share of n plus 1.
    free = [s for s in known if count[s] * length < n * parts[s]]
    chosen = min(free, key=lambda s: (count[s] + 1) / parts[s])
    source[n - 1], rank[n - 1] = chosen, count[chosen]
    count[chosen] += 1
  return source, rank


def _parts(shares: tuple[fractions.Fraction, ...]) -> list[int]:
  """Whole numbers in proportion to the shares, or close to it."""
  if sum(shares) != 1:
    raise ValueError(f"shares {shares} do not sum to 1")
  length = math.lcm(*(share.denominator for share in shares))
  if length <= _LONGEST_CYCLE:
    return [int(share * length) for share in shares]
  exact = [share * _LONGEST_CYCLE for share in shares]
  out = [max(int(x), x > 0) for x in exact]
  # The largest remainders get what is left.
  by_rest = sorted(range(len(out)), key=lambda s: out[s] - exact[s])
  for s in by_rest[: _LONGEST_CYCLE - sum(out)]:
    out[s] += 1
  return out
