"""What a run reads in each step, on the mesh: batches and frozen parts."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.layout import budgets
from gaze_jax.parallel import shard
from gaze_jax.train import checkpoint
from gaze_jax.train import features as features_lib
from gaze_jax.train import frozen as frozen_lib
from gaze_jax.train import schedule


@dataclasses.dataclass(frozen=True)
class Feed:
  """What goes into each step beside the state.

  Attributes:
    config: of the run.
    mesh: of the run.
    frozen: parameters from outside the run.
    batches: of the rows that this process's devices hold.
    held: numbers of these rows in a batch.
  """

  config: config_lib.Config
  mesh: jax.sharding.Mesh
  frozen: dict[str, Any]
  batches: pipeline.Batches
  held: np.ndarray

  def next(
    self, step: int
  ) -> tuple[types.Batch, jax.Array, jax.Array, np.ndarray]:
    """Batch, budget [B] and sample numbers uint32 [B] on the mesh.

    The numbers of this process's own samples, on the host, come last.
    """
    rows = self.config.train.batch_size
    dense, trained = budgets.of_config(self.config)
    budget = schedule.budget(
      step, rows, dense=dense, final=trained, train=self.config.train
    )
    element = next(self.batches)
    indices = element["indices"]
    put = (element["batch"], budget[self.held], indices.astype(np.uint32))
    return *shard.put_rows(put, self.held, rows, self.mesh), indices


@contextlib.contextmanager
def open_feed(
  config: config_lib.Config,
  source: samples.Source,
  workdir: pathlib.Path,
  start: checkpoint.Position,
  mesh: jax.sharding.Mesh,
) -> Iterator[Feed]:
  """Opens the training data at the step that comes first."""
  features = _features(config, source, workdir)
  frozen = frozen_lib.load(config, pixels=features is None, mesh=mesh)
  held = shard.local_rows(mesh, config.train.batch_size)
  batches = pipeline.make_iterator(
    config,
    source=source,
    features=features,
    start_step=start.next_batch,
    held=held.tolist(),
  )
  with contextlib.closing(batches):
    yield Feed(config, mesh, frozen, batches, held)


def _features(
  config: config_lib.Config, source: samples.Source, workdir: pathlib.Path
) -> np.ndarray | None:
  """The cache of a frozen tower; process 0 fills it, the others read it."""
  if config.train.features == "none":
    return None
  several, first = jax.process_count() > 1, jax.process_index() == 0
  if several and not first:
    multihost_utils.sync_global_devices("features")
  features = features_lib.cached(config, source, workdir / "features")
  if several and first:
    multihost_utils.sync_global_devices("features")
  return features
