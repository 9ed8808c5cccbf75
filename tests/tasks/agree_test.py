"""Exact match by teacher forcing, and by generation: the same questions."""

import json

import pytest

from gaze_jax import api
from gaze_jax.demo import emoji_scenes
from gaze_jax.evals import run as eval_run
from gaze_jax.tasks import asking
from gaze_jax.tasks import registry
from gaze_jax.tasks import run
from gaze_jax.train import loop
from launch import scene


@pytest.mark.nightly
def test_eval_and_benchmark_give_one_score(tiny_config, tmp_path):
  config = tiny_config(train__steps=500, eval__samples=12)
  loop.train(config, tmp_path / "run")
  report = eval_run.evaluate(tmp_path / "run", others=[])
  source = emoji_scenes.SOURCE.make(config, "new")
  scene.write_all(source, tmp_path / "emoji_scenes")
  suite = run.Suite([registry.TASKS["emoji_scenes"]], str(tmp_path))
  model = api.load(tmp_path / "run")
  out = tmp_path / "out"
  found = run.run(model, suite, run.load(suite), {out: asking.Options()})
  figures = found[out]["tasks"]["emoji_scenes"]
  gaze = report["accuracy"]["gaze"]
  kinds = figures["metrics"]["by_kind"]
  assert kinds == {kind: pytest.approx(gaze[kind]) for kind in kinds}
  assert figures["n"] == gaze["n"]
  assert figures["score"] == pytest.approx(100 * gaze["overall"])
  # Some are right and some are wrong, or this would show nothing.
  assert 0.02 < gaze["overall"] < 0.98, json.dumps(gaze)
