"""launch/eval.py gives the same report on any mesh."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from gaze_jax.train import loop

pytestmark = pytest.mark.nightly
ROOT = pathlib.Path(__file__).parents[2]
LOCAL = (sys.executable, "launch/local.py")
TWO = (*LOCAL, "--processes=2", "--devices=2", "--")
EIGHT = (*LOCAL, "--devices=8", "--")


@pytest.fixture(scope="module")
def workdir(tiny_config, tmp_path_factory):
  """Pixels, as features would leave the tower out."""
  out = tmp_path_factory.mktemp("run")
  config = tiny_config(
    model__vision__heads=4,
    model__decoder__query_heads=8,
    model__decoder__kv_heads=4,
    train__steps=2,
    train__features="none",
  )
  loop.train(config, out)
  return out


def evaluate(workdir, *flags, launcher=()):
  out = workdir / "report.json"
  out.unlink(missing_ok=True)
  done = subprocess.run(
    [
      *launcher,
      sys.executable,
      "launch/eval.py",
      f"--workdir={workdir}",
      *flags,
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=dict(os.environ, PYTHONPATH=str(ROOT)),
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("# Evaluation at step 2") == 1
  report = json.loads(out.read_text())
  del report["seconds"]
  return report


@pytest.fixture(scope="module")
def alone(workdir):
  return evaluate(workdir)


@pytest.mark.parametrize(
  "launcher, flags",
  [
    (EIGHT, ["--parallel.fsdp=8"]),
    (TWO, ["--parallel.tensor=2"]),  # data 2
  ],
  ids=["fsdp", "two processes, tensor"],
)
def test_the_report_is_that_of_one_device(workdir, alone, launcher, flags):
  assert evaluate(workdir, *flags, launcher=launcher) == alone


def test_bfloat16_is_said_in_the_report(workdir):
  report = evaluate(workdir, "--dtype=bfloat16")
  assert report["config"]["model"]["decoder"]["dtype"] == "bfloat16"
