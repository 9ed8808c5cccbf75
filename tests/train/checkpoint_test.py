"""Checkpoints: what comes back, what is refused, and what can't be written."""

import dataclasses
import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax.train import checkpoint
from gaze_jax.train import state as state_lib


def state(value=1.0):
  return state_lib.TrainState(
    step=jnp.asarray(3, jnp.int32),
    params={"layer": {"kernel": jnp.full((2, 3), value)}},
    opt_state=(jnp.asarray([1.5, 2.5]), {"count": jnp.asarray(3)}),
  )


@pytest.fixture
def saved(tmp_path):
  out = checkpoint.Checkpoints(tmp_path, keep=2, create=True)
  yield out
  out.close()


CONFIG = config_lib.Config()


def test_what_is_saved_comes_back(saved):
  saved.save(3, state(0.1), CONFIG, [dict(loss=0.1, k=3.0)])
  back = saved.restore(jax.tree.map(jnp.zeros_like, state()), CONFIG)
  jax.tree.map(np.testing.assert_array_equal, back.state, state(0.1))
  assert back.next_batch == 3
  assert back.unlogged == [dict(loss=0.1, k=3.0)]
  assert saved.config() == CONFIG
  params = saved.params()
  np.testing.assert_array_equal(
    params["layer"]["kernel"], state(0.1).params["layer"]["kernel"]
  )


def test_the_newest_is_restored_and_old_ones_are_dropped(saved, tmp_path):
  assert saved.latest() is None
  for step in (1, 2, 3):
    saved.save(step, state(float(step)), CONFIG)
  assert saved.latest() == 3
  assert saved.params()["layer"]["kernel"][0, 0] == 3.0
  names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert names == {"2", "3"}


def test_another_config_is_refused_with_the_difference(saved):
  saved.save(1, state(), CONFIG)
  other = dataclasses.replace(
    CONFIG,
    train=dataclasses.replace(CONFIG.train, learning_rate=0.5, steps=7),
    model=dataclasses.replace(
      CONFIG.model, gaze=config_lib.GazeConfig(region=(3, 3))
    ),
  )
  with pytest.raises(checkpoint.CheckpointError) as error:
    saved.restore(state(), other)
  text = str(error.value)
  assert "train.learning_rate: 0.001 -> 0.5" in text
  assert "train.steps: 1000 -> 7" in text
  assert "model.gaze.region: [6, 6] -> [3, 3]" in text
  assert "seed" not in text and "\n" not in text


def test_the_eval_section_may_differ(saved):
  saved.save(1, state(), CONFIG)
  other = dataclasses.replace(CONFIG, eval=config_lib.EvalConfig(canvases=1))
  assert saved.restore(state(), other).next_batch == 1


def test_a_state_of_another_shape_is_refused_before_it_is_read(saved, tmp_path):
  saved.save(1, state(), CONFIG)
  other = dataclasses.replace(
    state(), params={"layer": {"kernel": jnp.zeros((2, 4))}}
  )
  with pytest.raises(checkpoint.CheckpointError) as error:
    saved.restore(other, CONFIG)
  assert "params.layer.kernel: [2, 3] -> [2, 4]" in str(error.value)
  assert "opt_state" not in str(error.value)
  # By a process that has saved nothing, too.
  later = checkpoint.Checkpoints(tmp_path, keep=2, create=False)
  with pytest.raises(checkpoint.CheckpointError, match="kernel"):
    later.restore(other, CONFIG)
  assert later.restore(state(), CONFIG).next_batch == 1
  later.close()


def test_no_checkpoints_here(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match="train first"):
    checkpoint.Checkpoints(tmp_path, keep=1, create=False)
  assert not list(tmp_path.iterdir())


def test_no_finished_checkpoint_yet(saved):
  with pytest.raises(checkpoint.CheckpointError, match="no finished"):
    saved.config()


@pytest.mark.parametrize(
  "error, says",
  [
    (OSError(errno.EROFS, "Read-only file system", "/x"), "Read-only file"),
    (
      ValueError(
        "RESOURCE_EXHAUSTED: Error writing 'a.b' in OCDBT database at local"
        ' file "/x/": Failed writing: "/x/d/1": Failed to write 9 bytes to file'
        " 9: No space left on device [os_error_code='28']"
      ),
      "checkpoint: No space left on device",
    ),
    (ValueError("two\nlines"), "two lines"),
    (RuntimeError(), "RuntimeError"),
  ],
)
def test_errors_of_its_threads_become_one_line(saved, monkeypatch, error, says):
  def fail():
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(saved._manager, "wait_until_finished", fail)
    with pytest.raises(checkpoint.CheckpointError) as caught:
      saved.latest()
  assert says in str(caught.value) and "\n" not in str(caught.value)
