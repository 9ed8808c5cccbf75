"""A run that is watched: scored, traced, guarded, sent to W&B; and the same."""

import importlib.machinery
import json
import shutil
import sys
import types
import warnings

import jax
import numpy as np
import pytest

import compare
from gaze_jax import config as config_lib
from gaze_jax.data import mixture
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.demo import emoji_scenes
from gaze_jax.models import mllm
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.train import compatibility
from gaze_jax.train import evaluation
from gaze_jax.train import loop
from gaze_jax.train import losses
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import pretrained
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib
from gaze_jax.train import wandb_run

WATCHED = dict(
  train__eval_every=2,
  train__profile_from=3,
  train__profile_steps=2,
  train__wandb="mine",
)


class Wandb(types.ModuleType):
  """Stands for the package; keeps what it is told."""

  def __init__(self):
    super().__init__("wandb")
    self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    self.begun, self.lines, self.finished = [], [], 0

  def init(self, **given):
    self.begun.append(given)
    return self

  def log(self, values, step):
    self.lines.append(dict(values, step=step))

  def finish(self):
    self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
  stub = Wandb()
  monkeypatch.setitem(sys.modules, "wandb", stub)
  return stub


def unscored(lines):
  return [
    {k: v for k, v in line.items() if not k.startswith("eval_")}
    for line in lines
  ]


@pytest.mark.nightly
def test_a_run_that_is_watched_is_the_same_run(
  runs, whole, tiny_config, tmp_path, wandb
):
  loop.train(tiny_config(**WATCHED), tmp_path)
  lines = runs.numbers(tmp_path)
  assert unscored(lines) == runs.numbers(whole)
  same = np.testing.assert_array_equal
  jax.tree.map(same, runs.params(tmp_path), runs.params(whole))
  scores = {x["step"]: x["eval_loss"] for x in lines if "eval_loss" in x}
  assert scores.keys() == {2, 4, 6} and len(set(scores.values())) == 3
  check_trace(tmp_path / "profile", {3, 4})
  check_sent(tmp_path, wandb)


@pytest.mark.nightly
def test_and_resumes_as_the_same_run(
  runs, tiny_config, tmp_path, monkeypatch, wandb
):
  config = tiny_config(**WATCHED | dict(train__eval_share=0.3))
  loop.train(config, tmp_path / "one")
  with monkeypatch.context() as patch:
    runs.stop_before(patch, 4)
    with pytest.raises(runs.stopped):
      loop.train(config, tmp_path / "two")
  shutil.rmtree(tmp_path / "two" / "profile")
  loop.train(config, tmp_path / "two")
  runs.assert_same(tmp_path / "one", tmp_path / "two")
  check_trace(tmp_path / "one" / "profile", {3, 4})
  check_trace(tmp_path / "two" / "profile", {3, 4})
  whole, part, rest = (x["id"] for x in wandb.begun)
  assert part == rest != whole and wandb.finished == 3


def check_trace(folder, steps):
  """There is one, and it has these steps."""
  (file,) = folder.glob("plugins/profile/*/*.xplane.pb")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the reader's types, on Python 3.12
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    lines = [line for plane in planes for line in plane.lines]
    events = (event for line in lines for event in line.events)
    named = [dict(e.stats) for e in events if e.name == "train"]
  assert {stats["step_num"] for stats in named} == steps


def check_sent(workdir, wandb):
  """All numbers of the log, and where the run is."""
  text = (workdir / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  for line in lines:
    del line["sample_ids"]
  assert wandb.lines == lines
  (begun,) = wandb.begun
  assert (begun["project"], begun["resume"]) == ("mine", "allow")
  assert begun["config"]["train"]["wandb"] == "mine"
  assert begun["dir"] == str(workdir) and begun["name"] == workdir.name


def test_wandb_that_is_missing_is_said_before_anything(
  tiny_config, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(wandb_run.WandbError, match="'p' needs .* pip install"):
    loop.train(tiny_config(train__wandb="p"), tmp_path / "run")
  assert not (tmp_path / "run").exists()
  wandb_run.check(tiny_config().train)


def test_wandb_that_fails_is_one_line(tiny_config, tmp_path, wandb):
  def init(**given):
    raise RuntimeError("no\nAPI key")

  wandb.init = init
  with pytest.raises(wandb_run.WandbError) as error:
    wandb_run.WandbRun(tmp_path, tiny_config(train__wandb="p"))
  text = str(error.value)
  assert "no API key; set WANDB_MODE=offline" in text and "\n" not in text


def test_a_transfer_within_the_loop_is_an_error(
  runs, tiny_config, tmp_path, monkeypatch
):
  make = step_lib.make

  def made(*args):
    real = make(*args)
    return lambda state, batch, k, frozen: real(
      state, batch, np.full(len(k), 2, np.int32), frozen
    )

  monkeypatch.setattr(step_lib, "make", made)
  with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
    loop.train(tiny_config(), tmp_path)


@pytest.mark.parametrize("share, held_out", [(0.0, 0), (0.01, 1), (0.25, 3)])
def test_what_is_held_out_does_not_train(tiny_config, share, held_out):
  config = tiny_config(
    train__eval_share=share, train__eval_every=1, train__features="none"
  )
  source = mixture.training(config)
  out = mixture.order_of(config, source).held_out()
  trains = np.setdiff1d(np.arange(12), out)
  assert len(out) == held_out and len(trains) == 12 - held_out
  other = tiny_config(train__eval_share=share, data__seed=1)
  others = mixture.order_of(other, source).held_out()
  assert held_out != 3 or list(others) != list(out)
  batches = pipeline.make_iterator(config)
  read = np.concatenate([next(batches)["indices"] for _ in range(9)])
  batches.close()
  # Whole epochs: each as often as the others.
  counts = np.bincount(read[: len(trains) * 3], minlength=12)
  assert set(counts[trains]) == {3} and not counts[out].any()
  if held_out:
    chosen = open_set(config)
    assert chosen.held_out and list(chosen.indices) == list(out)


def open_set(config):
  source = emoji_scenes.SOURCE.make(config, "train")
  return evaluation.open_set(config, source, mesh_lib.one_device())


def test_what_can_not_be_scored_is_refused(tiny_config):
  assert open_set(tiny_config()) is None
  with pytest.raises(samples.DataError, match="out 12 of 12 .* none to train"):
    open_set(tiny_config(train__eval_share=1.0))
  own = tiny_config(data__source="llava_json", train__eval_every=2)
  source = emoji_scenes.SOURCE.make(tiny_config(), "train")
  with pytest.raises(config_lib.ConfigError, match="set data.eval_path, or"):
    evaluation.open_set(own, source, mesh_lib.one_device())


def test_another_share_is_another_run(tiny_config):
  values = lambda **changes: config_lib.to_dict(tiny_config(**changes))
  differ = compatibility.config_differences
  assert differ(values(), values(**WATCHED)) == []
  assert differ(values(), values(train__eval_share=0.5)) == [
    "train.eval_share: 0.0 -> 0.5"
  ]


def test_scores_are_means_over_slots_and_answers(
  tiny_config, tmp_path, monkeypatch
):
  """Of five samples in batches of four: the last has three rows of padding."""
  config = tiny_config(
    train__eval_every=1, train__features="none", train__accumulation=2
  )
  mesh, optimizer = mesh_lib.one_device(), optimizer_lib.make(config.train)
  state = state_lib.create(config, optimizer, mesh)
  frozen = pretrained.load_frozen(config)
  # Every answer counts, and padding does not.
  fine = lambda predicted, target, ends: target >= 0
  monkeypatch.setattr(losses, "right", fine)
  score = evaluation.make(
    open_set(config), config, None, tmp_path, frozen, mesh
  )
  with jax.set_mesh(mesh):
    got = score(state)
  assert got["eval_accuracy"] == 1.0
  source = emoji_scenes.SOURCE.make(config, "new")
  chosen = [(i, 0) for i in range(5)]
  batch = pipeline.Batcher(config, source).batch(chosen, rows=5).batch
  target, slots = losses.targets(batch)
  apply = jax.jit(mllm.apply, static_argnums=1)
  budget = np.full(5, config.model.gaze.top_k, np.int32)
  out = apply(frozen | state.params, config.model, batch, budget)
  total = losses.next_token(out.logits, target, slots)
  compare.close(got["eval_loss"], total / slots.sum())


def test_wandb_of_a_broken_workdir(tiny_config, tmp_path, wandb):
  (tmp_path / "wandb.json").write_text("{")
  with pytest.raises(wandb_run.WandbError, match="wandb.json is not JSON"):
    wandb_run.WandbRun(tmp_path, tiny_config(train__wandb="p"))
