"""prepared: data sets that launch/prepare.py made.

A directory of ArrayRecord shards with an index beside them.
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

from gaze_jax import config as config_lib
from gaze_jax import foreign
from gaze_jax import json_file
from gaze_jax import plugins
from gaze_jax import schema
from gaze_jax import storage
from gaze_jax.data import media as media_lib
from gaze_jax.data import paths
from gaze_jax.data import record as record_lib
from gaze_jax.data import record_index
from gaze_jax.data import samples
from gaze_jax.data import shards as shards_lib
from gaze_jax.data import stored
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.layout import row as row_lib

META, INDEX, SKIPPED = "gaze_data.json", "index", "skipped.jsonl"
_AGAIN = "copy it again, or prepare the data anew"


@dataclasses.dataclass(frozen=True)
class PreparedSet:
  """A directory of prepared data.

  Attributes:
    directory: where it is.
    files: file, records, bytes and sha256 of each shard.
    identity: what decided its content.
  """

  directory: str
  files: tuple[dict[str, Any], ...]
  identity: dict[str, Any]

  def __len__(self) -> int:
    return sum(one["records"] for one in self.files)

  def shards(self) -> shards_lib.Shards:
    """Its records."""
    shards = [
      shards_lib.Shard(
        os.path.join(self.directory, one["file"]),
        one["records"],
        size=one["bytes"],
      )
      for one in self.files
    ]
    return shards_lib.Shards(shards, _AGAIN)

  def index(self, tokenizer: tokenizer_lib.Tokenizer) -> record_index.Index:
    """What its samples take of a row.

    Raises:
      samples.DataError: it was not counted by this tokenizer.
    """
    folder = storage.path(self.directory) / INDEX
    name = record_index.text_file(tokenizer)
    if not (folder / name).is_file():
      raise samples.DataError(
        f"{self.directory} was counted by another tokenizer than"
        " data.tokenizer; run launch/prepare.py"
        f" --index={self.directory} --tokenizer=... with that"
      )
    return record_index.Index(folder, len(self), name)


def open_set(directory: str) -> PreparedSet:
  """A directory that was prepared.

  Raises:
    samples.DataError: it was not, or not to its end.
  """
  path = storage.path(directory) / META
  if not path.is_file():
    what = "no such folder"
    if storage.is_remote(path):
      what = (
        f"no {META} there; prepare the data on this machine, then copy it there"
        f" with `gcloud storage cp -r DIR {directory}`"
      )
    elif os.path.isfile(directory):
      what = "a file, and a folder is needed"
    elif os.path.isdir(directory):
      what = f"no {META} in it; prepare it to its end with launch/prepare.py"
    elif foreign.no_file(directory) != "no such file":
      what = foreign.no_file(directory)
    raise samples.DataError(f"{foreign.short(directory)}: {what}")
  content = json_file.read(path, samples.DataError)
  schema.read(content, path, "data")
  try:
    return PreparedSet(directory, tuple(content["shards"]), content["identity"])
  except KeyError as error:
    raise samples.DataError(f"{path}: it has no {error}; {_AGAIN}") from None


class Prepared(stored.Stored):
  """Samples of a prepared directory.

  Args:
    data: the directory.
    reader: of the media.
    index: of the directory.
    shape: of a row.
    model: that reads it.
    max_skipped: share of the samples that may be skipped.
    fits_only: as for `stored.Stored`.

  Raises:
    samples.DataError: a shard is missing or broken, or too much is skipped.
  """

  def __init__(
    self,
    data: PreparedSet,
    *,
    reader: media_lib.Reader,
    index: record_index.Index,
    shape: row_lib.RowShape,
    model: config_lib.ModelConfig,
    max_skipped: float,
    fits_only: bool = False,
  ):
    self._data, self._index = data, index
    self._shape, self._model = shape, model
    super().__init__(
      data.directory,
      data.shards(),
      reader=reader,
      max_skipped=max_skipped,
      fits_only=fits_only,
    )

  def entry(self, index: int) -> record_index.Entry:
    """What a sample takes of a row."""
    return self._index[self.number(index)]

  def record(self, content: bytes) -> record_lib.Record:
    """What is stored."""
    return record_lib.parse(content)

  def fetch(self, number: int) -> record_lib.Record:
    """A record that a row can hold."""
    self.check(number)
    return self.stored(number)

  def check(self, number: int) -> None:
    """By the index: nothing of the sample itself is read."""
    record_index.check_fits(
      self._index[number], self._shape, self._model, self.reader.frames
    )

  def digest(self) -> str:
    """A hash of the shards' own."""
    sums = json.dumps([one["sha256"] for one in self._data.files])
    return hashlib.sha256(sums.encode()).hexdigest()[:32]


def _make(config: config_lib.Config, split: str) -> Prepared:
  """The source of `data.path` (train) or `data.eval_path` (new)."""
  what = "a directory that launch/prepare.py made"
  data = open_set(paths.of_split(config, split, what))
  tokenizer = tokenizer_lib.Tokenizer.load(config.data.tokenizer)
  return Prepared(
    data,
    reader=media_lib.reader(config),
    index=data.index(tokenizer),
    shape=row_lib.row_shape(config),
    model=config.model,
    max_skipped=config.data.max_skipped,
    fits_only=split != "train",
  )


SOURCE = plugins.SourceSpec(make=_make, splits=paths.splits)
