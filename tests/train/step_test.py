"""The compiled step."""

import jax
import numpy as np
import pytest

from gaze_jax import layout
from gaze_jax.data import pipeline
from gaze_jax.train import optimizer
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib


class Run:
  """A state and a compiled step of the tiny model, on made-up features."""

  def __init__(self, config):
    self.config = config
    chain = optimizer.make(config.train)
    self.regions = layout.row_shape(config).regions
    self.step = step_lib.make(config, chain)
    self.new = lambda: state_lib.create(config, chain)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(config.data.samples, 25, 16))
    features = features.astype(np.float32)
    self.batches = pipeline.make_iterator(config, features=features)

  def budget(self, k):
    return np.full(self.config.train.batch_size, k, np.int32)


@pytest.fixture(scope="module")
def run(tiny_config):
  out = Run(tiny_config())
  yield out
  out.batches.close()


def test_k_changes_recompile_nothing(run):
  state = run.new()
  for k in (9, 4, 1, 0, 20):
    batch = next(run.batches)["batch"]
    budget = run.budget(k)
    budget[0] = 3  # and rows need not agree
    state, values = run.step(state, batch, budget, {})
    assert np.isfinite(values["loss"])
  assert run.step._cache_size() == 1  # over all tests of this module, too
  assert int(state.step) == 5


def test_metrics_of_the_first_step(run):
  batch = next(run.batches)["batch"]
  _, values = run.step(run.new(), batch, run.budget(run.regions), {})
  values = {k: float(v) for k, v in values.items()}
  assert values.keys() == {
    *("loss", "accuracy", "grad_norm", "k", "tokens"),
    *("visual_kv_fraction", "unique_visual_kv_fraction", "visual_kv_saved"),
  }
  # An untrained model knows nothing: about log V.
  assert abs(values["loss"] - np.log(2048)) < 0.3
  assert values["k"] == 9
  # Dense: 25 visual and 2 context entries over 25 visible ones.
  np.testing.assert_allclose(values["visual_kv_fraction"], 27 / 25, rtol=1e-6)
  np.testing.assert_allclose(
    values["unique_visual_kv_fraction"], 27 / 25, rtol=1e-6
  )
  assert values["tokens"] == (np.asarray(batch.layout.role) != 0).sum()


def test_unique_is_at_least_per_head(run):
  state = run.new()
  for k in range(1, 9):
    batch = next(run.batches)["batch"]
    state, values = run.step(state, batch, run.budget(k), {})
    head, unique = (
      float(values[n])
      for n in ("visual_kv_fraction", "unique_visual_kv_fraction")
    )
    assert head <= unique <= min(2 * head, 27 / 25) + 1e-6


def test_no_budget_reads_the_context_tokens_alone(run):
  batch = next(run.batches)["batch"]
  _, values = run.step(run.new(), batch, run.budget(0), {})
  np.testing.assert_allclose(values["visual_kv_fraction"], 2 / 25, rtol=1e-6)


def test_loss_falls_on_one_batch(run):
  state, batch = run.new(), next(run.batches)["batch"]
  losses = []
  for _ in range(6):
    state, values = run.step(state, batch, run.budget(4), {})
    losses.append(float(values["loss"]))
  assert losses[-1] < losses[1] - 0.005  # the first step's rate is 0


def test_state_is_donated(run):
  state = run.new()
  leaf = jax.tree.leaves(state.params)[0]
  run.step(state, next(run.batches)["batch"], run.budget(4), {})
  assert leaf.is_deleted()


def test_a_frozen_tower_is_no_part_of_the_state(run):
  assert "vision" not in run.new().params


def test_a_trained_tower_gets_gradients(tiny_config):
  config = tiny_config(train__features="none", model__vision__frozen=False)
  chain = optimizer.make(config.train)
  state = state_lib.create(config, chain)
  before = np.asarray(state.params["vision"]["patch"]["kernel"])
  batches = pipeline.make_iterator(config)
  step = step_lib.make(config, chain)
  for _ in range(2):
    batch = next(batches)["batch"]
    state, _ = step(state, batch, np.full(4, 9, np.int32), {})
  batches.close()
  assert (np.asarray(state.params["vision"]["patch"]["kernel"]) != before).any()
