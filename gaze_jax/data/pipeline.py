"""Batches for training and evaluation.

The batch of a step is a pure function of (config, step): sample number
`step * batch + row` of an endless list, which runs through a new permutation
of the training set in every epoch. So to resume is to start at a step; there
is no state to save, and it does not matter how many hosts or workers read.
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
from gaze_jax.data import packing
from gaze_jax.data import samples
from gaze_jax.data import sources
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units as units_lib
from gaze_jax.layout import row as row_lib

_ORDER_STREAM = 3
_NO_END = 2**40  # steps; grain wants a number

# Seconds that a worker has to end. grain gives each 25, one after the other,
# and one that sends a batch when nobody reads any more takes them all. Nothing
# is lost with a worker, and Ctrl-C and SIGTERM should not wait.
process_prefetch._PROCESS_KILL_TIMEOUT_S = 1


@dataclasses.dataclass(frozen=True)
class EvalBatch:
  """Rows of samples; in an evaluation all of a split, in order.

  Attributes:
    batch: `types.Batch`; rows past `valid` are all PAD.
    indices: int64 [B], sample of each row; -1 past `valid`.
    samples: the samples of the valid rows, with questions and masks.
    units: those of each valid row, in order.
  """

  batch: types.Batch
  indices: np.ndarray
  samples: tuple[samples.Sample, ...]
  units: tuple[tuple[row_lib.Unit, ...], ...]

  @property
  def valid(self) -> int:
    """Rows that hold a sample."""
    return len(self.samples)


class Rows:
  """From samples to rows and batches, all on the host.

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
    self.tokenizer.check_rows(config.model.decoder.vocab_size)
    plugins.source(config.data.source).check_rows(config, self.tokenizer)
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
    indices = np.full(rows, -1, np.int64)
    laid, shown, taken, units = [], [], [], []
    for i, (index, epoch) in enumerate(chosen):
      sample, images, pixels = self._read(index, epoch)
      laid.append(packing.pack(sample, self.tokenizer, self.shape, images))
      indices[i] = index
      shown.append(pixels)
      taken.append(sample)
      units.append(tuple(itertools.chain(*images)))
    laid += [packing.empty(self.shape)] * (rows - len(laid))
    shown += [self._no_pixels()] * (rows - len(shown))
    pixels = units_lib.stack(shown, self.shape.tiles or self.shape.units)
    batch = row_lib.make_batch(laid, pixels)
    return EvalBatch(batch, indices, tuple(taken), tuple(units))

  def _read(
    self, index: int, epoch: int
  ) -> tuple[samples.Sample, list[tuple[row_lib.Unit, ...]], units_lib.Pixels]:
    """A sample, the units of each of its images, and pixels or features."""
    model = self.config.model
    if self.features is None:
      sample = self.source.sample(index, epoch)
      together = packing.together(sample)
      seen = units_lib.of_images(sample.images, model, together)
      pixels = units_lib.join([one.pixels for one in seen], model)
      return sample, [one.units for one in seen], pixels
    sample, cached = self.source.text(index, epoch), self.features[index]
    # The pictures may be left out; a scene has one.
    asked = [turn.question for turn in sample.conversation]
    marks = sum(text.count(tokenizer_lib.IMAGE) for text in asked)
    square = (model.vision.image_size, model.vision.image_size)
    images = units_lib.of_sizes([square] * (marks if asked else 1), model)
    return sample, images, cached[None] if cached.ndim == 2 else cached

  def _no_pixels(self) -> units_lib.Pixels:
    """What a row without images shows."""
    if self.features is None:
      return units_lib.join([], self.config.model)
    return np.zeros((0, *self.features.shape[-2:]), self.features.dtype)


class _Steps:
  """Step number to training batch; what a worker process runs."""

  def __init__(self, rows: Rows, held: Sequence[int]):
    self._rows, self._held = rows, held
    self._order = functools.lru_cache(maxsize=2)(self._permutation)

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != "_order"}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._order = functools.lru_cache(maxsize=2)(self._permutation)

  def _permutation(self, epoch: int) -> np.ndarray:
    seed = self._rows.config.data.seed
    return samples.generator(_ORDER_STREAM, seed, epoch).permutation(
      len(self._rows.source)
    )

  def __call__(self, step: int) -> dict[str, Any]:
    first = step * self._rows.config.train.batch_size
    chosen = []
    for row in self._held:
      epoch, position = divmod(first + row, len(self._rows.source))
      chosen.append((int(self._order(epoch)[position]), epoch))
    rows = self._rows.batch(chosen, rows=len(chosen))
    return dict(batch=rows.batch, indices=rows.indices)


class Batches(Iterator[dict[str, Any]]):
  """An endless iterator of training batches; see `make_iterator`."""

  def __init__(self, iterator: grain.DatasetIterator):
    self._iterator = iterator
    # Before multiprocessing's own exit handler, which runs after this one and
    # would at times wait for ever for workers that nobody told to stop.
    atexit.register(_close, weakref.ref(self))

  def __next__(self) -> dict[str, Any]:
    return next(self._iterator)

  def close(self) -> None:
    """Ends threads and workers; the iterator can't be used any more."""
    self._iterator.close()


def _close(batches: "weakref.ref[Batches]") -> None:
  if (alive := batches()) is not None:
    alive.close()


def make_iterator(
  config: config_lib.Config,
  *,
  source: samples.Source | None = None,
  features: np.ndarray | None = None,
  start_step: int = 0,
  held: Sequence[int] | None = None,
) -> Batches:
  """Endless training batches from `start_step` on.

  Equal for any number of `config.data.workers`, and whoever reads some rows of
  a batch reads those of the same global batch. With workers, the calling
  program must guard its entry with `if __name__ == "__main__"` (they are
  spawned). Close the iterator to end the workers; they also end by themselves
  when this process is gone, however it went.

  Args:
    config: the configuration.
    source: the training source, `sources.make(config, "train")` by default.
    features: as in `Rows`.
    start_step: the step whose batch comes first.
    held: numbers of the rows of each batch that are wanted, such as those that
      this process's devices hold; all `train.batch_size` by default.

  Returns:
    An iterator of dicts: `batch` a `types.Batch` of numpy
    arrays, `indices` int64 [B], `kinds` int8 [B, questions].

  Raises:
    config_lib.ConfigError: rows do not fit.
    samples.DataError: the data can't be used.
  """
  source = source or sources.make(config, "train")
  if not len(source):
    raise samples.DataError("the training set is empty")
  held = range(config.train.batch_size) if held is None else held
  steps = _Steps(Rows(config, source, features), [int(row) for row in held])
  dataset = grain.MapDataset.range(start_step, _NO_END).map(steps)
  reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  dataset = dataset.to_iter_dataset(reading)
  if config.data.workers:
    if not flags.FLAGS.is_parsed():  # grain reads its flags in any program
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(
      num_workers=config.data.workers, per_worker_buffer_size=2
    )
    # Through pipes, not shared memory: containers have little of that, and a
    # program that is interrupted leaves its blocks behind.
    dataset = grain.experimental.WithOptionsIterDataset(
      dataset, grain.experimental.DatasetOptions(min_shm_size=_NO_END)
    )
    dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
  return Batches(iter(dataset))


def eval_batches(
  config: config_lib.Config,
  split: str,
  *,
  source: samples.Source | None = None,
  features: np.ndarray | None = None,
  batch_size: int = 0,
) -> Iterator[EvalBatch]:
  """All samples of a split once, in order, in batches of one shape.

  Args:
    config: the configuration; see `sources.make` for the split `larger`.
    split: a split of the source.
    source: `sources.make(config, split)` by default.
    features: as in `Rows`; samples come without pictures and masks then.
    batch_size: rows; `config.eval.batch_size` by default.
  """
  source = source or sources.make(config, split)
  rows = Rows(config, source, features)
  size = batch_size or config.eval.batch_size
  for start in range(0, len(source), size):
    stop = min(start + size, len(source))
    chosen = [(i, 0) for i in range(start, stop)]
    yield rows.batch(chosen, rows=size)


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
