"""The loop: bitwise repeatable, interrupted and resumed, stopped by NaN."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from gaze_jax import plugins
from gaze_jax.data import pipeline
from gaze_jax.train import features
from gaze_jax.train import loop
from gaze_jax.train import metrics
from gaze_jax.train import step as step_lib


def change_at(patch, step, change):
  """Changes the metrics of a step."""
  make = step_lib.make

  def made(*args):
    real = make(*args)

    def step_of(state, *rest):
      done = int(state.step) + 1
      state, values = real(state, *rest)
      return state, (values | change) if done == step else values

    return step_of

  patch.setattr(step_lib, "make", made)


def test_what_a_run_leaves(runs, whole, tiny_config):
  names = {p.name for p in whole.iterdir()}
  assert names >= {"checkpoints", "metrics.jsonl", "config.json", "features"}
  lines = runs.numbers(whole)
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
  # Dense for 1.2 steps, then 9 * (2 / 9) ** ((step - 1.2) / 3.6).
  assert [line["k"] for line in lines] == [9, 9, 6, 4, 3, 2]
  assert len({line["model_tflops"] for line in lines}) == 1
  saved = [line["gaze_saved_tflops"] for line in lines]
  assert saved[0] == 0 and lines[0]["model_tflops"] > saved[-1] > saved[2] > 0
  assert not any("mfu" in line for line in lines)  # of a CPU no peak is known
  assert runs.params(whole)[0] == 6


def test_the_same_command_gives_the_same_numbers(
  runs, whole, tiny_config, tmp_path
):
  loop.train(tiny_config(), tmp_path)
  runs.assert_same(whole, tmp_path)


@pytest.mark.few(1)
@pytest.mark.parametrize("step", [1, 4, 5, 6])
def test_interrupted_and_resumed(
  runs, whole, tiny_config, tmp_path, monkeypatch, step
):
  with monkeypatch.context() as patch:
    runs.stop_before(patch, step)
    with pytest.raises(runs.stopped):
      loop.train(tiny_config(), tmp_path)
  loop.train(tiny_config(), tmp_path)
  runs.assert_same(whole, tmp_path)


@pytest.mark.nightly
def test_preempted(runs, whole, tiny_config, tmp_path, monkeypatch, capsys):
  asked = []

  def ask(step):
    asked.append(step)
    return step == 3

  with monkeypatch.context() as patch:
    patch.setattr(multihost_utils, "reached_preemption_sync_point", ask)
    loop.train(tiny_config(), tmp_path)
  # Once a step and in order, or the processes would not agree on one.
  assert asked == [1, 2, 3]
  assert runs.params(tmp_path)[0] == 3
  said = "preempted: saved step 3; run the same command to resume\n"
  assert capsys.readouterr().out == said
  loop.train(tiny_config(), tmp_path)
  runs.assert_same(whole, tmp_path)


@pytest.mark.nightly
def test_a_mean_that_a_checkpoint_falls_into(
  runs, tiny_config, tmp_path, monkeypatch
):
  config = tiny_config(train__log_every=5)
  loop.train(config, tmp_path / "whole")
  assert [x["step"] for x in runs.numbers(tmp_path / "whole")] == [5, 6]
  with monkeypatch.context() as patch:
    runs.stop_before(patch, 4)
    with pytest.raises(runs.stopped):
      loop.train(config, tmp_path / "parts")
  loop.train(config, tmp_path / "parts")
  runs.assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_stays_as_it_is(runs, whole, tiny_config):
  before = runs.numbers(whole), runs.params(whole)
  loop.train(tiny_config(), whole)
  assert runs.numbers(whole) == before[0]
  jax.tree.map(np.testing.assert_array_equal, runs.params(whole), before[1])


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_stops(
  runs, tiny_config, tmp_path, monkeypatch, name, value
):
  change_at(monkeypatch, 4, {name: np.float32(value)})
  config = tiny_config()
  with pytest.raises(metrics.NotFiniteError) as error:
    loop.train(config, tmp_path)
  text = str(error.value)
  assert f"the {name} of step 4 is {value}" in text
  batches = pipeline.make_iterator(config, start_step=3)
  assert f"samples {next(batches)['indices'].tolist()}" in text
  batches.close()
  assert "last good checkpoint: step 2" in text and "\n" not in text
  assert runs.params(tmp_path)[0] == 2  # step 4 would have been saved


def test_poisoned_features_stop_before_any_checkpoint(tiny_config, tmp_path):
  config = tiny_config()
  source = plugins.source(config.data.source).make(config, "train")
  features.cached(config, source, tmp_path / "features")
  (file,) = (tmp_path / "features").glob("*.npy")
  np.lib.format.open_memmap(file, "r+")[:] = np.nan
  with pytest.raises(metrics.NotFiniteError, match="step 1 .*: none"):
    loop.train(config, tmp_path)
  assert not [p for p in (tmp_path / "checkpoints").iterdir()]
