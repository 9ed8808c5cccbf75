"""The loop: bitwise repeatable, killed and resumed, stopped by NaN."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gaze_jax.data import pipeline
from gaze_jax.data import sources
from gaze_jax.train import checkpoint
from gaze_jax.train import features
from gaze_jax.train import loop
from gaze_jax.train import meter
from gaze_jax.train import step as step_lib

ROOT = pathlib.Path(__file__).parents[2]
TIMES = ("tokens_per_second", "seconds_per_step")


def numbers(workdir):
  """metrics.jsonl without what the clock decides."""
  text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
  lines = [json.loads(line) for line in text.splitlines()]
  return [{k: v for k, v in x.items() if k not in TIMES} for x in lines]


def params(workdir):
  saved = checkpoint.Checkpoints(workdir)
  return saved.latest(), saved.params()


def assert_same_run(one, two):
  assert numbers(one) == numbers(two)
  a, b = params(one), params(two)
  assert a[0] == b[0]
  jax.tree.map(np.testing.assert_array_equal, a[1], b[1])


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp("whole")
  loop.train(tiny_config(), workdir)
  return workdir


class Stop(Exception):
  pass


def stop_at(patch, step, change=None):
  """Makes the step raise, or changes its metrics, when `step` are done."""
  make = step_lib.make

  def made(*args):
    real = make(*args)

    def step_of(state, *rest):
      done = int(state.step) + 1
      if done == step and change is None:
        raise Stop
      state, values = real(state, *rest)
      return state, (values | change) if done == step else values

    return step_of

  patch.setattr(step_lib, "make", made)


def test_what_a_run_leaves(whole, tiny_config):
  names = {p.name for p in whole.iterdir()}
  assert names >= {"checkpoints", "metrics.jsonl", "config.json", "features"}
  lines = numbers(whole)
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
  # Dense for 1.2 steps, then 9 * (2 / 9) ** ((step - 1.2) / 3.6).
  assert [line["k"] for line in lines] == [9, 9, 6, 4, 3, 2]
  assert len({line["model_tflops"] for line in lines}) == 1
  saved = [line["gaze_saved_tflops"] for line in lines]
  assert saved[0] == 0 and lines[0]["model_tflops"] > saved[-1] > saved[2] > 0
  assert not any("mfu" in line for line in lines)  # of a CPU no peak is known
  assert params(whole)[0] == 6


def test_the_same_command_gives_the_same_numbers(whole, tiny_config, tmp_path):
  loop.train(tiny_config(), tmp_path)
  assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("step", [1, 4, 5, 6])
def test_interrupted_and_resumed(
  whole, tiny_config, tmp_path, monkeypatch, step
):
  with monkeypatch.context() as patch:
    stop_at(patch, step)
    with pytest.raises(Stop):
      loop.train(tiny_config(), tmp_path)
  loop.train(tiny_config(), tmp_path)
  assert_same_run(whole, tmp_path)


def test_a_mean_that_a_checkpoint_falls_into(
  tiny_config, tmp_path, monkeypatch
):
  config = tiny_config(train__log_every=5)
  loop.train(config, tmp_path / "whole")
  assert [x["step"] for x in numbers(tmp_path / "whole")] == [5, 6]
  with monkeypatch.context() as patch:
    stop_at(patch, 4)
    with pytest.raises(Stop):
      loop.train(config, tmp_path / "parts")
  loop.train(config, tmp_path / "parts")
  assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_stays_as_it_is(whole, tiny_config):
  before = numbers(whole), params(whole)
  loop.train(tiny_config(), whole)
  assert numbers(whole) == before[0]
  jax.tree.map(np.testing.assert_array_equal, params(whole), before[1])


def test_another_config_is_refused(whole, tiny_config):
  with pytest.raises(checkpoint.CheckpointError) as error:
    loop.train(tiny_config(train__batch_size=2), whole)
  assert "train.batch_size: 4 -> 2" in str(error.value)
  loop.train(tiny_config(eval__canvases=3), whole)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_stops(tiny_config, tmp_path, monkeypatch, name, value):
  stop_at(monkeypatch, 4, {name: np.float32(value)})
  config = tiny_config()
  with pytest.raises(meter.NotFiniteError) as error:
    loop.train(config, tmp_path)
  text = str(error.value)
  assert f"the {name} of step 4 is {value}" in text
  batches = pipeline.make_iterator(config, start_step=3)
  assert f"samples {next(batches)['indices'].tolist()}" in text
  batches.close()
  assert "last good checkpoint: step 2" in text and "\n" not in text
  assert params(tmp_path)[0] == 2  # step 4 would have been saved


def test_poisoned_features_stop_before_any_checkpoint(tiny_config, tmp_path):
  config = tiny_config()
  source = sources.make(config, "train")
  features.cached(config, source, tmp_path / "features")
  (file,) = (tmp_path / "features").glob("*.npy")
  np.lib.format.open_memmap(file, "r+")[:] = np.nan
  with pytest.raises(meter.NotFiniteError, match="step 1 .*: none"):
    loop.train(config, tmp_path)
  assert not [p for p in (tmp_path / "checkpoints").iterdir()]


def run(config_file, workdir, *more):
  command = [sys.executable, "launch/train.py", f"--config={config_file}"]
  return subprocess.Popen(
    [*command, f"--workdir={workdir}", *more],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def kill_and_resume(config_file, workdir, seed, *more):
  """SIGKILL once a random number of steps are logged; then to the end."""
  wanted = random.Random(seed).randint(0, 5)
  process = run(config_file, workdir, *more)
  log = workdir / "metrics.jsonl"
  while process.poll() is None:
    if log.exists() and len(log.read_bytes().splitlines()) >= wanted:
      time.sleep(random.Random(seed).random() / 50)
      break
    time.sleep(0.002)
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  process = run(config_file, workdir, *more)
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors


def test_sigkill_and_the_same_command_again(whole, tiny_config_file, tmp_path):
  kill_and_resume(tiny_config_file, tmp_path / "run", seed=0)
  assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_sigkill_anywhere(whole, tiny_config_file, tmp_path, seed):
  workers = "--config.data.workers=1"
  kill_and_resume(tiny_config_file, tmp_path / "run", seed, workers)
  one, two = params(whole), params(tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, one, two)
  assert numbers(whole) == numbers(tmp_path / "run")
