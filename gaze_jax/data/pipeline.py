"""Batches for training and evaluation.

The batch of a step is a pure function of (config, step): row `row` is sample
number `step * batch + row` of an endless order (data/order.py). So to resume is
to start at a step; there is no state to save, and it does not matter how many
hosts or workers read.
"""

import atexit
import dataclasses
import functools
import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from grain._src.python.dataset.transformations import process_prefetch

from gaze_jax import config as config_lib
from gaze_jax import plugins
from gaze_jax import types
from gaze_jax.data import mixture
from gaze_jax.data import order as order_lib
from gaze_jax.data import packed as packed_lib
from gaze_jax.data import packing
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units as units_lib
from gaze_jax.layout import row as row_lib

_NO_END = 2**40  # steps; grain wants a number

# Seconds that a worker has to end. grain gives each 25, one after the other,
# and one that sends a batch when nobody reads any more takes them all. Nothing
# is lost with a worker, and Ctrl-C and SIGTERM should not wait.
process_prefetch._PROCESS_KILL_TIMEOUT_S = 1


@dataclasses.dataclass(frozen=True)
class EvalBatch:
  """A batch with the samples that its rows were made of.

  Attributes:
    batch: `types.Batch`; rows past the samples are all PAD.
    indices: int64 [B], sample of each row; -1 past the samples.
    samples: those of the first rows, with questions and masks.
    units: those of the same rows, in order.
  """

  batch: types.Batch
  indices: np.ndarray
  samples: tuple[samples.Sample, ...]
  units: tuple[tuple[row_lib.Unit, ...], ...]


class Batcher:
  """Makes batches of chosen samples, on the host.

  Args:
    config: the configuration of the run.
    source: where samples come from.
    features: cached features by sample, [n, T, F] or [n, M, T, F] (an array, or
      an `np.memmap`, which workers open anew); None for pixels.

  Raises:
    config_lib.ConfigError: rows do not fit data.sequence_length or
      data.answer_slots.
  """

  def __init__(
    self,
    config: config_lib.Config,
    source: samples.Source,
    features: np.ndarray | None = None,
  ):
    self.config, self.source, self.features = config, source, features
    self.tokenizer = tokenizer_lib.Tokenizer.load(config.data.tokenizer)
    self.shape = row_lib.row_shape(config)
    self.pool_tiles = row_lib.pool_tiles(config)
    self.tokenizer.check_rows(config.model.decoder.vocab_size)
    for one in mixture.apart(config):
      plugins.source(one.data.source).check_rows(one, self.tokenizer)
    if features is not None and len(features) < len(source):
      raise samples.DataError(
        f"features of {len(features)} samples for a source of {len(source)}"
      )

  def __getstate__(self) -> dict[str, Any]:
    state = dict(self.__dict__)
    if isinstance(self.features, np.memmap):  # would be pickled as its content
      f = self.features
      state["features"] = (f.filename, f.dtype, f.offset, f.shape)
    return state

  def __setstate__(self, state: dict[str, Any]) -> None:
    if isinstance(state["features"], tuple):
      name, dtype, offset, shape = state["features"]
      state["features"] = np.memmap(name, dtype, "r", offset, shape)
    self.__dict__.update(state)

  def batch(self, chosen: list[tuple[int, int]], *, rows: int) -> EvalBatch:
    """Rows of (index, epoch) pairs, filled up with PAD rows to `rows`."""
    read = [self._read(index, epoch) for index, epoch in chosen]
    padding = rows - len(chosen)
    laid_out = [
      packing.pack(sample, self.tokenizer, self.shape, images)
      for sample, images, _ in read
    ]
    laid_out += [row_lib.lay_out((), self.shape)] * padding
    pixels = units_lib.stack(
      [*(pixels for _, _, pixels in read), *[self._no_pixels()] * padding],
      self.shape.tiles or self.shape.units,
    )
    return EvalBatch(
      row_lib.make_batch(laid_out, pixels),
      np.array([index for index, _ in chosen] + [-1] * padding, np.int64),
      tuple(sample for sample, _, _ in read),
      tuple(tuple(itertools.chain(*images)) for _, images, _ in read),
    )

  def packed(
    self,
    rows: list[list[tuple[int, int]]],
    places: Sequence[int] | None = None,
  ) -> tuple[types.Batch, np.ndarray]:
    """Rows of several (index, epoch) pairs each.

    A sample that stands in for a broken one, and has no room, is left out.

    Args:
      rows: those of a pool of pictures follow each other.
      places: of the batch's rows among these; in the same order by default.

    Returns:
      The batch, and int64 [B, G], the samples of each row's segments; -1 where
      there are none.
    """
    indices = np.full((len(rows), self.config.data.segments), -1, np.int64)
    laid_out, pools = [], []
    for row, chosen in enumerate(rows):
      if row % self.config.data.pool_rows == 0:
        pools.append(_Pool(self.pool_tiles))
      read = [self._parts(index, epoch) for index, epoch in chosen]
      row_of, kept = _lay_out_what_fits(
        [p for p, _ in read], self.shape, pools[-1]
      )
      laid_out.append(row_of)
      pools[-1].pixels += [read[i][1] for i in kept]
      indices[row, : len(kept)] = [chosen[i][0] for i in kept]
    pixels = [self._joined(pool.pixels) for pool in pools]
    images = units_lib.stack(pixels, self.pool_tiles)
    places = list(range(len(rows))) if places is None else places
    batch = row_lib.make_batch([laid_out[i] for i in places], images)
    return batch, indices[places]

  def _parts(
    self, index: int, epoch: int
  ) -> tuple[list[packing.Part], units_lib.Pixels]:
    """A sample as parts of a row, and the pixels or features of its units."""
    sample, media, pixels = self._read(index, epoch)
    parts = packing.parts(sample, self.tokenizer, media)
    if self.features is not None:
      pixels = pixels[: sum(map(len, media))]
    return parts, pixels

  def _joined(self, pixels: Sequence[units_lib.Pixels]) -> units_lib.Pixels:
    """Pixels, or features, of a row."""
    if self.features is None:
      return units_lib.join(pixels, self.config.model)
    return np.concatenate([self._no_pixels(), *pixels])

  def _read(
    self, index: int, epoch: int
  ) -> tuple[samples.Sample, list[tuple[row_lib.Unit, ...]], units_lib.Pixels]:
    """A sample, the units of its images and videos, and pixels or features."""
    model = self.config.model
    if self.features is None:
      sample = self.source.sample(index, epoch)
      per_turn = packing.images_per_turn(sample)
      seen = packing.in_reading_order(
        sample,
        units_lib.of_images(sample.images, model, per_turn),
        [units_lib.of_video(frames, model) for frames in sample.videos],
      )
      pixels = units_lib.join([one.pixels for one in seen], model)
      return sample, [one.units for one in seen], pixels
    sample, cached = self.source.text(index, epoch), self.features[index]
    # Its images may be left out, so they are counted; a scene has one, or a
    # video.
    per_turn = packing.images_per_turn(sample)
    count = sum(per_turn) if per_turn is not None else not sample.videos
    square = (model.vision.image_size, model.vision.image_size)
    videos = [[square] * len(frames) for frames in sample.videos]
    media = packing.units_of(sample, [square] * count, videos, model)
    return sample, media, cached[None] if cached.ndim == 2 else cached

  def _no_pixels(self) -> units_lib.Pixels:
    """The pixels, or features, of a row without images."""
    if self.features is None:
      return units_lib.join([], self.config.model)
    return np.zeros((0, *self.features.shape[-2:]), self.features.dtype)


def make_iterator(
  config: config_lib.Config,
  *,
  source: samples.Source | None = None,
  features: np.ndarray | None = None,
  start_step: int = 0,
  held: Sequence[int] | None = None,
) -> grain.DatasetIterator:
  """Endless training batches from `start_step` on.

  Equal for any number of `config.data.workers`, and whoever reads some rows of
  a batch reads those of the same global batch. With workers, the calling
  program must guard its entry with `if __name__ == "__main__"` (they are
  spawned). Close the iterator to end the workers; they also end by themselves
  when this process is gone, however it went.

  Args:
    config: the configuration.
    source: the training source; by default the one that the config names.
    features: as in `Batcher`.
    start_step: the step whose batch comes first.
    held: numbers of the rows of each batch that are wanted, such as those that
      this process's devices hold; all `train.batch_size` by default.

  Returns:
    An iterator of dicts: `batch` a `types.Batch` of numpy arrays, `indices`
    int64 [B], or [B, G] of packed rows, -1 past the samples of a row.

  Raises:
    config_lib.ConfigError: rows do not fit.
    samples.DataError: the data can't be used.
  """
  source = source or mixture.training(config)
  held = range(config.train.batch_size) if held is None else held
  batch_of_step = functools.partial(
    _train_batch,
    Batcher(config, source, features),
    mixture.rows_of(config, source),
    tuple(map(int, held)),
  )
  dataset = grain.MapDataset.range(start_step, _NO_END).map(batch_of_step)
  reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  dataset = dataset.to_iter_dataset(reading)
  if config.data.workers:
    dataset = _in_workers(dataset, config.data.workers)
  iterator = iter(dataset)
  # Before multiprocessing's own exit handler, which runs after this one and
  # would at times wait for ever for workers that nobody told to stop.
  atexit.register(_close, weakref.ref(iterator))
  return iterator


def _close(iterator: "weakref.ref[grain.DatasetIterator]") -> None:
  if (alive := iterator()) is not None:
    alive.close()


def _in_workers(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
  """The same elements, made by so many processes."""
  if not flags.FLAGS.is_parsed():  # grain reads its flags in any program
    flags.FLAGS.mark_as_parsed()
  # Through pipes, not shared memory: containers have little of that, and a
  # program that is interrupted leaves its blocks behind.
  dataset = grain.experimental.WithOptionsIterDataset(
    dataset, grain.experimental.DatasetOptions(min_shm_size=_NO_END)
  )
  options = grain.MultiprocessingOptions(
    num_workers=workers, per_worker_buffer_size=2
  )
  return dataset.mp_prefetch(options, worker_init_fn=_start_worker)


@dataclasses.dataclass
class _Pool:
  """The pictures that rows share, as they are filled.

  Attributes:
    room: tiles that there may be.
    tiles: tiles that there are.
    pixels: of the samples so far, or their features.
  """

  room: int
  tiles: int = 0
  pixels: list[units_lib.Pixels] = dataclasses.field(default_factory=list)


def _lay_out_what_fits(
  samples_: Sequence[Sequence[packing.Part]],
  shape: row_lib.RowShape,
  pool: _Pool,
) -> tuple[dict[str, np.ndarray], list[int]]:
  """A row of samples, and which of them it holds; their tiles are counted."""
  left = pool.room - pool.tiles
  shape = dataclasses.replace(
    shape, units=min(shape.units, left), tiles=min(shape.room.tiles, left)
  )

  def lay_out(numbers: Sequence[int]) -> dict[str, np.ndarray]:
    chosen = [samples_[i] for i in numbers]
    return row_lib.lay_out_together(chosen, shape, pool.tiles)

  kept = list(range(len(samples_)))
  try:
    row = lay_out(kept)
  except row_lib.LayoutError:
    kept = []
    for i in range(len(samples_)):
      try:
        lay_out([*kept, i])
      except row_lib.LayoutError:
        continue
      kept.append(i)
    row = lay_out(kept)
  parts = [part for i in kept for part in samples_[i]]
  pool.tiles += sum(p.tiles for p in parts if isinstance(p, row_lib.Unit))
  return row, kept


def _train_batch(
  batcher: Batcher,
  order: order_lib.Order | packed_lib.PackedRows,
  held: tuple[int, ...],
  step: int,
) -> dict[str, Any]:
  """The held rows of a step's batch; worker processes run this."""
  first = step * batcher.config.train.batch_size
  if isinstance(order, packed_lib.PackedRows):
    numbers = first + _by_pools(np.array(held), batcher.config)
    rows = [order.at(number) for number in np.sort(numbers).tolist()]
    places = np.argsort(np.argsort(numbers))
    batch, indices = batcher.packed(rows, places.tolist())
    return dict(batch=batch, indices=indices)
  indices, epochs = order.at(first + np.array(held))
  chosen = list(zip(indices.tolist(), epochs.tolist(), strict=True))
  made = batcher.batch(chosen, rows=len(chosen))
  return dict(batch=made.batch, indices=made.indices)


def _by_pools(rows: np.ndarray, config: config_lib.Config) -> np.ndarray:
  """Rows of a step's batch, numbered so that those of a pool follow each other.

  Micro-batch a of n is rows a, a + n, ... (train/step.py), and so of pools.
  """
  n, size = config.train.accumulation, config.data.pool_rows
  micro, place = rows % n, rows // n
  pool = micro + n * (place // size)
  return pool * size + place % size


def eval_batches(
  config: config_lib.Config,
  source: samples.Source,
  features: np.ndarray | None = None,
) -> Iterator[EvalBatch]:
  """All samples of a source once, in order, in batches of one shape.

  Args:
    config: the configuration, of `eval.batch_size` rows a batch.
    source: the samples of a split.
    features: as in `Batcher`; samples come without pictures and masks then.
  """
  batcher, size = Batcher(config, source, features), config.eval.batch_size
  for start in range(0, len(source), size):
    stop = min(start + size, len(source))
    yield batcher.batch([(i, 0) for i in range(start, stop)], rows=size)


def _start_worker(worker: int, count: int) -> None:
  """Signals are the parent's to handle, and no worker outlives its parent.

  A scheduler that takes the machine back sends SIGTERM to every process, and
  the parent needs more batches until all processes save.
  """
  del worker, count
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  parent = os.getppid()

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
