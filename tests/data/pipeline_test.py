"""The input pipeline: order, resuming, sharding, workers, evaluation."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing import util

import jax
import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.demo import emoji_scenes


def config(*, workers=0, batch_size=4, count=10, **data):
  return config_lib.from_config_dict(
    dict(
      model=dict(vision=dict(image_size=56)),
      data=dict(
        source="emoji_scenes", workers=workers, samples=count, questions=3
      )
      | data,
      train=dict(batch_size=batch_size),
      eval=dict(samples=5, batch_size=4),
    )
  )


def take(number, c, **options):
  with contextlib.closing(pipeline.make_iterator(c, **options)) as batches:
    return list(itertools.islice(batches, number))


def assert_equal(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_batch_has_the_promised_shapes():
  (one,) = take(1, config())
  batch = one["batch"]
  assert isinstance(batch, types.Batch)
  assert batch.images.shape == (4, 1, 56, 56, 3)
  assert batch.images.dtype == np.uint8
  assert batch.tokens.shape == (4, 256) and batch.tokens.dtype == np.int32
  assert one["indices"].dtype == np.int64 and one["indices"].shape == (4,)
  for row in batch.answer_of:
    assert set(row) - {-1} == {0, 1, 2}


def test_rows_are_those_of_their_samples():
  c = config()
  (one,) = take(1, c)
  batcher = pipeline.Batcher(c, emoji_scenes.SOURCE.make(c, "train"))
  chosen = [(int(i), 0) for i in one["indices"]]
  made = batcher.batch(chosen, rows=4)
  assert_equal(made.batch, one["batch"])


def test_every_epoch_is_a_new_permutation():
  seen = np.concatenate([b["indices"] for b in take(5, config())])
  first, second = seen[:10], seen[10:]
  assert sorted(first) == sorted(second) == list(range(10))
  assert first.tolist() != second.tolist()


def test_questions_change_with_the_epoch():
  # Two samples in batches of two: each batch is an epoch.
  one, two = take(2, config(count=2, batch_size=2))
  order = np.argsort(one["indices"]), np.argsort(two["indices"])
  pixels = one["batch"].images[order[0]], two["batch"].images[order[1]]
  np.testing.assert_array_equal(*pixels)
  tokens = one["batch"].tokens[order[0]], two["batch"].tokens[order[1]]
  assert (tokens[0] != tokens[1]).any()


@pytest.mark.parametrize("start", [1, 3])
def test_resuming_at_a_step_is_bitwise_the_same(start):
  whole = take(6, config())
  rest = take(6 - start, config(), start_step=start)
  assert_equal(whole[start:], rest)


@pytest.mark.parametrize("held", [[0, 1], [1, 3], [2]])
def test_some_rows_are_those_of_the_same_batch(held):
  whole = take(3, config())
  part = take(3, config(), held=held)
  assert_equal(part, jax.tree.map(lambda x: x[np.array(held)], whole))


@pytest.mark.few(1)
@pytest.mark.parametrize("workers", [2, 1])
def test_workers_change_nothing(workers):
  assert_equal(
    take(5, config(), start_step=2),
    take(5, config(workers=workers), start_step=2),
  )


def test_features_stand_for_pixels(tmp_path):
  values = np.arange(10 * 16 * 4).reshape(10, 16, 4).astype(np.float16)
  path = tmp_path / "features.npy"
  np.save(path, values)
  mapped = np.load(path, mmap_mode="r")
  plain = take(2, config())
  for features, workers in ((values, 0), (mapped, 0), (mapped, 1)):
    cached = take(2, config(workers=workers), features=features)
    for a, b in zip(plain, cached, strict=True):
      images = b["batch"].images
      assert images.shape == (4, 1, 16, 4) and images.dtype == np.float16
      np.testing.assert_array_equal(images[:, 0], values[b["indices"]])
      assert_equal(
        dataclasses.replace(b["batch"], images=0),
        dataclasses.replace(a["batch"], images=0),
      )


def test_a_mapped_cache_is_not_copied_to_workers(tmp_path):
  path = tmp_path / "features.npy"
  np.save(path, np.zeros((10, 1000, 100), np.float16))
  c = config()
  batcher = pipeline.Batcher(
    c, emoji_scenes.SOURCE.make(c, "train"), np.load(path, mmap_mode="r")
  )
  text = pickle.dumps(batcher)
  assert len(text) < 500_000
  assert pickle.loads(text).features.shape == (10, 1000, 100)


def test_evaluation_is_ordered_and_filled_up_with_pad():
  c = config()
  one, two = pipeline.eval_batches(c, emoji_scenes.SOURCE.make(c, "new"))
  assert one.indices.tolist() == [0, 1, 2, 3] and len(one.samples) == 4
  assert two.indices.tolist() == [4, -1, -1, -1] and len(two.samples) == 1
  assert two.batch.images.shape == one.batch.images.shape
  assert not two.batch.layout.role[1:].any()
  assert (two.batch.answer_slots[1:] == -1).all()
  source = emoji_scenes.SOURCE.make(c, "new")
  assert two.samples[0].questions == source.sample(4).questions
  assert two.samples[0].things[0].mask.shape == (56, 56)


def test_what_cannot_work_is_refused():
  with pytest.raises(config_lib.ConfigError, match="sequence_length"):
    pipeline.make_iterator(config(sequence_length=40))
  with pytest.raises(samples.DataError, match="features of 9 samples"):
    pipeline.make_iterator(config(), features=np.zeros((9, 16, 4)))
  c = config()
  decoder = dataclasses.replace(c.model.decoder, vocab_size=100)
  c = dataclasses.replace(
    c, model=dataclasses.replace(c.model, decoder=decoder)
  )
  with pytest.raises(samples.DataError, match="vocab_size = 100"):
    pipeline.make_iterator(c)


CHILD = """
import multiprocessing
from gaze_jax import config as config_lib
from gaze_jax.data import pipeline

if __name__ == "__main__":
  batches = pipeline.make_iterator(config_lib.from_config_dict(dict(
    data=dict(source="emoji_scenes", workers=2), train=dict(batch_size=1),
  )))
  next(batches), next(batches)
  print(*(p.pid for p in multiprocessing.active_children()), flush=True)
  while True:
    next(batches)
"""


@pytest.mark.few(1)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_program(tmp_path, how):
  script = tmp_path / "child.py"
  script.write_text(CHILD)
  root = pathlib.Path(__file__).parents[2]
  with subprocess.Popen(
    [sys.executable, str(script)],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
    env=os.environ | dict(PYTHONPATH=str(root)),
  ) as child:
    workers = [int(w) for w in child.stdout.readline().split()]
    assert len(workers) == 2
    if how == signal.SIGINT:
      os.killpg(child.pid, how)  # as Ctrl-C does
    else:
      child.kill()
    try:
      assert child.wait(timeout=20) == -how
    finally:
      child.kill()
  deadline = time.time() + 20
  alive = workers
  while alive and time.time() < deadline:
    alive = [w for w in workers if _runs(w)]
    time.sleep(0.1)
  assert not alive


class _Stuck(emoji_scenes.EmojiScenes):
  """Whoever reads a sample never ends by itself."""

  def sample(self, index, epoch=0):
    util.Finalize(None, time.sleep, args=(3600,), exitpriority=0)
    return super().sample(index, epoch)


@pytest.mark.nightly
def test_workers_that_do_not_end_are_not_waited_for():
  c = config(workers=2, batch_size=1)
  batches = pipeline.make_iterator(
    c, source=_Stuck("train", size=56, length=10, questions=3)
  )
  next(batches), next(batches)
  start = time.time()
  batches.close()
  assert time.time() - start < 20  # grain alone waits 25 s for each worker


def _runs(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  # Someone else's zombie does not run.
  stat = pathlib.Path(f"/proc/{pid}/stat")
  return not (stat.exists() and stat.read_text().split()[2] == "Z")


TILES = dict(
  model__tiling__kind="anyres",
  model__tiling__pinpoints=[[70, 140]],
  data__max_units=2,
)
NAFLEX = dict(
  model__vision__max_patches=16,
  model__vision__class_token=False,
)


@pytest.mark.parametrize("changes", [TILES, NAFLEX], ids=["tiles", "naflex"])
def test_scenes_are_for_models_of_one_square(tiny_config, changes):
  config = tiny_config(train__features="none", **changes)
  with pytest.raises(config_lib.ConfigError, match="paints one square"):
    pipeline.make_iterator(config)
