"""The paper's own baseline: a run without context tokens, all the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaze_jax import api
from gaze_jax.api import directory as directory_lib
from gaze_jax.api import saved_context
from gaze_jax.evals import run
from gaze_jax.train import checkpoint
from gaze_jax.train import loop
from gaze_jax.train import optimizer
from gaze_jax.train import state as state_lib
from gaze_jax.weights import store


@pytest.fixture(scope="module")
def dense(tiny_config):
  """The paper's baseline: every region is read, and no context token."""
  return tiny_config(
    model__gaze__context_tokens=0,
    model__gaze__budget="ratio",
    model__gaze__ratio=1.0,
    train__k_schedule__kind="constant",
    train__steps=4,
  )


def test_its_state_is_saved_and_comes_back(dense, tmp_path):
  like = state_lib.abstract(dense, optimizer.make(dense.train))
  assert "context" not in like.params["projector"]
  assert all(x.size for x in jax.tree.leaves(like))
  state = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), like)
  saved = checkpoint.Writer(tmp_path, dense.train)
  saved.save(checkpoint.Position(2), state, dense)
  back, _ = saved.restore(like, dense)
  saved.close()
  jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.fixture(scope="module")
def workdir(dense, runs, tmp_path_factory):
  """Such a run, which was stopped at step 3 and went on from its save at 2."""
  out = tmp_path_factory.mktemp("dense")
  with pytest.MonkeyPatch.context() as patch:
    runs.stop_before(patch, 3)
    with pytest.raises(runs.stopped):
      loop.train(dense, out)
  loop.train(dense, out)
  return out


@pytest.mark.nightly
def test_a_run_without_context_tokens_saves_and_resumes(
  dense, workdir, runs, tmp_path
):
  loop.train(dense, tmp_path)
  runs.assert_same(tmp_path, workdir)
  _, params = runs.params(workdir)
  assert "context" not in params["projector"]
  assert all(x.size for x in jax.tree.leaves(params))


@pytest.mark.nightly
def test_it_is_evaluated(workdir):
  report = run.evaluate(workdir)
  gaze, every = (report["accuracy"][name] for name in ("gaze", "dense"))
  assert gaze == every and gaze["visual_kv_fraction"] == 1.0
  assert gaze["n"] == 10
  larger = report["other_splits"]["larger"]["conditions"]["dense"]
  assert larger["visual_kv_fraction"] == 1.0


@pytest.mark.nightly
def test_it_answers_alike_out_of_every_directory(workdir, tmp_path):
  store.save(directory_lib.open_directory(workdir), tmp_path / "ours")
  picture = np.random.default_rng(0).integers(0, 255, (70, 70, 3), np.uint8)
  said = []
  for directory in (workdir, tmp_path / "ours"):
    model = api.load(directory)
    seen = model.encode_image(picture)
    kept = tmp_path / f"kept {directory.name}"
    saved_context.save_context(seen, model, kept)
    for after in (seen, saved_context.load_context(kept, model)):
      answer = model.generate("What is this?", after=after, max_tokens=4)
      said.append(answer.tokens)
      again = model.generate("And?", after=answer.context, max_tokens=4)
      said.append(again.tokens)
  assert said[0] and said[1] and said == said[:2] * 4
