"""The training samples of a run: one source, or several as a mixture."""

import dataclasses
import fractions
import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import data_config
from gaze_jax import plugins
from gaze_jax.data import media
from gaze_jax.data import order
from gaze_jax.data import packed
from gaze_jax.data import record_index
from gaze_jax.data import samples
from gaze_jax.layout import row as row_lib


class Mixture:
  """Several sources as one (`samples.Source`), numbered one after the other.

  Attributes:
    names: of the sources, for the log.
    lengths: samples of each.
    shares: of the samples of a run, for each; they sum to 1.
    sources: as below.

  Args:
    names: as above.
    sources: not one of them empty.
    shares: as above.
  """

  def __init__(
    self,
    names: Sequence[str],
    sources: Sequence[samples.Source],
    shares: Sequence[fractions.Fraction],
  ):
    self.names, self.shares = tuple(names), tuple(shares)
    self.lengths = tuple(map(len, sources))
    self.sources = tuple(sources)
    self._ends = np.cumsum(self.lengths)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def sample(self, index: int, epoch: int = 0) -> samples.Sample:
    """As of the source that has it."""
    source, own = self._at(index)
    return source.sample(own, epoch)

  def text(self, index: int, epoch: int = 0) -> samples.Sample:
    """As of the source that has it."""
    source, own = self._at(index)
    return source.text(own, epoch)

  def canvas(self, index: int) -> tuple[np.ndarray, ...]:
    """As of the source that has it."""
    source, own = self._at(index)
    return source.canvas(own)

  def entry(self, index: int) -> record_index.Entry:
    """As of the source that has it."""
    source, own = self._at(index)
    return source.entry(own)

  def fingerprint(self) -> str:
    """Those of all sources."""
    return "; ".join(source.fingerprint() for source in self.sources)

  def content(self) -> dict[str, int | str]:
    """How many samples there are, and a hash of what all sources tell."""
    told = [source.content() for source in self.sources]
    text = json.dumps(told, sort_keys=True).encode()
    return dict(
      samples=len(self), mixture=hashlib.sha256(text).hexdigest()[:32]
    )

  def _at(self, index: int) -> tuple[samples.Source, int]:
    if not 0 <= index < len(self):
      raise IndexError(f"index {index} of {len(self)} samples")
    which = int(np.searchsorted(self._ends, index, side="right"))
    first = int(self._ends[which]) - self.lengths[which]
    return self.sources[which], index - first


def apart(config: config_lib.Config) -> list[config_lib.Config]:
  """A config for each source of a mixture alone; without one, the config."""
  if not config.data.mixture:
    return [config]
  own = [field.name for field in dataclasses.fields(data_config.SourceConfig)]
  return [
    dataclasses.replace(
      config,
      data=dataclasses.replace(
        config.data, mixture=(), **{name: getattr(one, name) for name in own}
      ),
    )
    for one in config.data.mixture
  ]


def training(config: config_lib.Config) -> samples.Source:
  """The samples that a run trains on.

  Raises:
    config_lib.ConfigError: as the sources of the config.
    samples.DataError: a source can't be read, or is empty.
  """
  if not config.data.mixture:
    source = plugins.source(config.data.source).make(config, "train")
    if not len(source):
      raise samples.DataError("the training set is empty")
    return source
  entries = config.data.mixture
  _check(config.data)
  names = [one.name or f"{one.source}_{i}" for i, one in enumerate(entries)]
  if len(set(names)) < len(names):
    raise config_lib.ConfigError(
      f"config: data.mixture: two of its sources have one name: {names}"
    )
  sources = [
    plugins.source(one.data.source).make(one, "train") for one in apart(config)
  ]
  for name, source in zip(names, sources, strict=True):
    if not len(source):
      raise samples.DataError(f"data.mixture: {name} is empty")
  # As they are written: 0.1 is a tenth.
  weights = [fractions.Fraction(str(x.weight or x.epochs)) for x in entries]
  if any(one.epochs for one in entries):
    weights = [w * len(s) for w, s in zip(weights, sources, strict=True)]
  return Mixture(names, sources, [w / sum(weights) for w in weights])


def _check(data: data_config.DataConfig) -> None:
  weighted = any(one.weight for one in data.mixture)
  by_epochs = any(one.epochs for one in data.mixture)
  wrong = ""
  if data.path:
    wrong = f"data.path = {data.path!r} is beside it; name the file within"
  elif weighted and by_epochs:
    wrong = "give a weight to its sources, or epochs to them, not both"
  elif not (weighted or by_epochs):
    wrong = (
      "the weights of its sources sum to nothing; give each one, or epochs"
    )
  if wrong:
    raise config_lib.ConfigError(f"config: data.mixture: {wrong}")


def order_of(config: config_lib.Config, source: samples.Source) -> order.Order:
  """The order in which a run reads its training samples.

  Args:
    config: its seed, and the share that is held out (`train.eval_share`).
    source: as `training` gives it.

  Raises:
    samples.DataError: none is left to train on.
  """
  lengths, shares = (len(source),), (fractions.Fraction(1),)
  if isinstance(source, Mixture):
    lengths, shares = source.lengths, source.shares
  return order.Order(
    lengths,
    shares,
    seed=config.data.seed,
    held_out=config.train.eval_share,
  )


def alone(
  config: config_lib.Config, source: samples.Source
) -> data_config.DataConfig:
  """The data section by which each of a source's samples has its own row.

  The rows of a run that packs have room for several; these are as short as the
  samples allow. Those of other runs stay as they are, and of cached features,
  which are as many for each sample.

  Args:
    config: of the run.
    source: as for `packed_rows`; all of it, as a broken sample's place is taken
      by any other.
  """
  data = config.data
  if data.packing == "none" or config.train.features == "cached":
    return data
  shape, frames = row_lib.row_shape(config), media.sampling(data)
  most = row_lib.Size(1, 1, 1, 1)
  for index in range(len(source)):
    entry = source.entry(index)
    size = record_index.size(entry, shape, config.model, frames)
    most = row_lib.Size(*map(max, most, size))
  return dataclasses.replace(
    data,
    sequence_length=min(most.slots, data.sequence_length),
    answer_slots=min(most.answers, data.answer_slots),
    max_units=min(most.units, data.max_units),
    packing="none",
    pool_rows=1,
    pool_tiles=0,
  )


def packed_rows(
  config: config_lib.Config, source: samples.Source
) -> packed.PackedRows:
  """The rows of a run whose samples share them.

  Raises:
    config_lib.ConfigError: a source does not tell what its samples take of a
      row.
    samples.DataError: as `order_of`.
  """
  for one in getattr(source, "sources", (source,)):
    if not hasattr(one, "entry"):
      raise config_lib.ConfigError(
        f"config: data.packing = {config.data.packing!r} needs to know what a"
        f" sample takes of a row, which {type(one).__name__} does not tell;"
        " llava_json and prepared do"
      )
  shape, frames = row_lib.row_shape(config), media.sampling(config.data)
  told: set[int] = set()

  def size_of(index: int) -> row_lib.Size:
    entry = source.entry(index)
    size = record_index.size(entry, shape, config.model, frames)
    if entry.slots < 0:  # the chat template does not take it
      size = size._replace(slots=shape.slots + 1)
    if not size.fits(shape.room) and index not in told:
      told.add(index)
      source.sample(index)  # counts it as skipped
    return size

  return packed.PackedRows(
    order_of(config, source),
    size_of,
    room=shape.room,
    most=config.data.row_samples,
    window=config.data.packing_window,
    seed=config.data.seed,
    pool_rows=config.data.pool_rows,
    pool_tiles=row_lib.pool_tiles(config),
  )


def rows_of(
  config: config_lib.Config, source: samples.Source
) -> order.Order | packed.PackedRows:
  """What is in each row of a run: a sample, or several that share it.

  Raises:
    config_lib.ConfigError: as `packed_rows`.
    samples.DataError: as `order_of`.
  """
  of = order_of if config.data.packing == "none" else packed_rows
  return of(config, source)


def samples_read(
  config: config_lib.Config, source: samples.Source
) -> Callable[[int], dict[str, int]]:
  """A function of steps done: the samples read of each source of a mixture."""
  if not isinstance(source, Mixture):
    return lambda done: {}
  counts = rows_of(config, source).counts
  names = [f"samples/{name}" for name in source.names]

  def read(done: int) -> dict[str, int]:
    each = counts(done * config.train.batch_size).tolist()
    return dict(zip(names, each, strict=True))

  return read
