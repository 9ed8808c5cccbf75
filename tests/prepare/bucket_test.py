"""Prepared data that were copied to a bucket, by a server on loopback."""

import jax
import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax import storage
from gaze_jax.data import pipeline
from gaze_jax.data import prepared
from gaze_jax.data import samples
from gaze_jax.prepare import job
from gaze_jax.prepare import origins


@pytest.fixture
def copied(formats, bucket, tmp_path):
  """A prepared set here, and its copy in a bucket."""
  here = tmp_path / "data"
  origin = origins.open_origin(str(formats / "a.json"), str(formats / "images"))
  plan = job.Plan(shard_samples=7)
  job.prepare(origin, here, plan, max_skipped=0.0, workers=0)
  for file in storage.files(here):
    (bucket / file.relative_to(here).as_posix()).write_bytes(file.read_bytes())
  return here, bucket


def _config(directory):
  return config_lib.from_config_dict(
    dict(
      model=dict(vision=dict(image_size=28, patch_size=14)),
      data=dict(
        source="prepared",
        path=str(directory),
        max_units=3,
        sequence_length=200,
        workers=0,
      ),
      train=dict(batch_size=5),
    )
  )


def _batch(directory):
  config = _config(directory)
  source = prepared.SOURCE.make(config, "train")
  batcher = pipeline.Batcher(config, source)
  return batcher.batch([(i, 0) for i in range(24)], rows=24).batch


def test_prepared_data_are_read_there(copied):
  jax.tree.map(np.testing.assert_array_equal, *map(_batch, copied))


def test_data_that_are_not_whole_there_are_named(copied, cloud):
  _, bucket = copied
  open_source = lambda at: prepared.SOURCE.make(_config(at), "train")
  with pytest.raises(samples.DataError, match="/none: no gaze_data.json there"):
    open_source(bucket / "none")
  shard = next(p for p in storage.files(bucket) if "array_record" in p.name)
  content = shard.read_bytes()
  shard.write_bytes(content[:-1])
  with pytest.raises(samples.DataError, match=f"{shard.name}: it has .* bytes"):
    open_source(bucket)
  shard.unlink()
  with pytest.raises(samples.DataError, match=f"{shard.name}: no such file"):
    open_source(bucket)
