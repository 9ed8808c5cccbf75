"""A run whose workdir is in a bucket, by a server on loopback."""

import contextlib
import io
import json
import pathlib
import subprocess
import sys

import pytest

from gaze_jax import api
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import storage
from gaze_jax.evals import run as evals_run
from gaze_jax.train import checkpoint
from gaze_jax.train import loop

pytestmark = pytest.mark.nightly

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(cloud, tmp_path_factory):
  return storage.path(f"gs://bucket/{tmp_path_factory.mktemp('run').name}")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.fixture(scope="module")
def resumed(runs, whole, workdir, tiny_config, cloud):
  """A run that was killed within its second save, and went on."""
  with pytest.MonkeyPatch.context() as patch:
    runs.stop_before(patch, 6)
    with pytest.raises(runs.stopped):
      loop.train(tiny_config(), workdir)
  saved = workdir / "checkpoints"
  assert sorted(p.name for p in saved.iterdir()) == ["2", "4"]
  # As a kill leaves it: the mark that comes last is not there.
  (saved / "4" / "commit_success.txt").unlink()
  (saved / "4" / "manifest.json").unlink()
  with contextlib.redirect_stderr(io.StringIO()) as said:
    assert checkpoint.Checkpoints(workdir).latest() == 2
  assert said.getvalue() == ""  # it is no damaged step, but none yet
  loop.train(tiny_config(), workdir)
  return workdir


def test_it_is_the_run_of_a_folder(resumed, runs, whole):
  runs.assert_same(resumed, whole)
  names = {p.name for p in resumed.iterdir()}
  assert names == {"checkpoints", "config.json", "metrics.jsonl", "tensorboard"}
  steps = {p.name for p in (resumed / "checkpoints").iterdir()}
  assert steps == {p.name for p in (whole / "checkpoints").iterdir()}


def test_it_is_evaluated_and_asked(resumed, whole):
  want, got = map(evals_run.evaluate, (whole, resumed))
  assert got["accuracy"] == want["accuracy"] and got["step"] == 6
  said = [
    api.load(str(at)).generate("what is it?", max_tokens=5).tokens
    for at in (resumed, whole)
  ]
  assert said[0] == said[1]


def test_a_damaged_step_is_set_aside(resumed, tiny_config, capfd, cloud):
  saved = resumed / "checkpoints"
  name = next(p for p in storage.files(saved / "6" / "params" / "d"))
  name.write_bytes(name.read_bytes()[:-1] + b"!")
  loop.train(tiny_config(), resumed)
  assert "set aside as 6.damaged" in capfd.readouterr().err
  assert (saved / "6.damaged" / "manifest.json").exists()
  assert checkpoint.Checkpoints(resumed).latest() == 6


def test_what_can_not_be_written_is_said(tiny_config_file, cloud, monkeypatch):
  monkeypatch.setattr(cloud, "broken", "POST /upload.*checkpoints")
  # In another process: the rest that orbax was writing fails later, in threads.
  command = [sys.executable, "launch/train.py", "--workdir=gs://bucket/broken"]
  done = subprocess.run(
    [*command, f"--config={tiny_config_file}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 1
  last = done.stderr.splitlines()[-1]
  assert last.startswith("error: gs://bucket/broken/checkpoints: can't write a")


def test_another_directory_there_is_no_model(workdir, cloud):
  (workdir.parent / "weights" / "config.json").write_text(json.dumps({}))
  with pytest.raises(errors.GazeError, match="copy the directory"):
    api.load("gs://bucket/weights")


def test_features_of_several_processes_need_a_disk(
  tiny_config, workdir, monkeypatch
):
  monkeypatch.setattr("jax.process_count", lambda: 2)
  with pytest.raises(config_lib.ConfigError, match="train.features = 'none'"):
    loop.train(tiny_config(), workdir)
