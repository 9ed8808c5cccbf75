"""Random access to the records of ArrayRecord files."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from gaze_jax import foreign
from gaze_jax import storage
from gaze_jax.data import samples

# Files that a process holds open; a system often allows 1,024.
_MOST_OPEN = 500
# Bytes read at a time. Records are read in random order, whole each time.
_BUFFER = 2**15
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file of records, or some of them that follow each other.

  Attributes:
    path: of the file.
    records: that are read.
    first: number of the first of these.
    total: records of the file; those that are read, by default.
    size: bytes of the file, where they are known.
  """

  path: str
  records: int
  first: int = 0
  total: int | None = None
  size: int | None = None


class Shards:
  """The records of several files, one file after the other.

  It holds what ArrayRecord keeps of a file, 12 bytes a record, and no more.
  Copies in other processes open the files anew.

  Args:
    shards: the files.
    again: how to get a file that is missing or broken, for errors.
  """

  def __init__(self, shards: Sequence[Shard], again: str):
    self._shards, self._again = tuple(shards), again
    self._ends = np.cumsum([shard.records for shard in shards], dtype=np.int64)
    self._open = functools.lru_cache(_MOST_OPEN)(self._reader)

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index: int) -> bytes:
    which = int(np.searchsorted(self._ends, index, side="right"))
    shard = self._shards[which]
    at = index - int(self._ends[which]) + shard.records + shard.first
    try:
      return self._open(shard.path).read([at])[0]
    except (ValueError, RuntimeError, IndexError) as error:
      what = f"record {at} can't be read"
      raise self._broken(shard.path, what, error) from None

  def check(self) -> None:
    """Opens every file, and compares its size and its number of records.

    Raises:
      samples.DataError: one is missing, cut short or another; names it.
    """
    # Several at a time, as those in a bucket are each asked for.
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      list(pool.map(self._check, self._shards))

  def _check(self, shard: Shard) -> None:
    path = storage.path(shard.path)
    try:
      size = storage.size(path)
    except OSError:
      remote = storage.is_remote(path)
      why = "no such file" if remote else foreign.no_file(shard.path)
      raise self._broken(shard.path, why) from None
    if shard.size not in (None, size):
      raise self._broken(
        shard.path, f"it has {size} bytes, and had {shard.size}"
      )
    total = shard.records if shard.total is None else shard.total
    if (found := self._open(shard.path).num_records()) != total:
      raise self._broken(shard.path, f"it has {found} records, and had {total}")

  def _reader(self, path: str) -> Any:
    try:
      return array_record_module.ArrayRecordReader(
        path, "readahead_buffer_size:0", file_reader_buffer_size=_BUFFER
      )
    except (ValueError, RuntimeError) as error:
      raise self._broken(path, "no ArrayRecord, or cut short", error) from None

  def _broken(
    self, path: str, what: str, error: Exception | None = None
  ) -> samples.DataError:
    why = f" ({' '.join(str(error).split())[:200]})" if error else ""
    return samples.DataError(
      f"{foreign.short(path)}: {what}{why}; {self._again}"
    )

  def __reduce__(self) -> tuple[Any, ...]:
    return Shards, (self._shards, self._again)
