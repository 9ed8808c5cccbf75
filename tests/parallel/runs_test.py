"""A run is the same run on any mesh, and goes on on any other."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import compare
from gaze_jax import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent.parent
CUBE = dict(data=2, fsdp=2, tensor=2)
STEPS = 20


@pytest.fixture(scope="module")
def train(tiny_config, tmp_path_factory):
  """Runs launch/train.py; returns its losses, step by step."""
  folder = tmp_path_factory.mktemp("runs")
  config = tiny_config(
    model__vision__frozen=False,
    data__samples=24,
    train__features="none",
    train__batch_size=8,
    train__steps=STEPS,
    train__save_every=4,
    train__keep=10,
    train__eval_every=10,
    train__eval_share=0.2,
    # Rounding grows with the steps; this slow it stays where it was.
    train__learning_rate=1e-4,
  )
  file = folder / "config.json"
  file.write_text(json.dumps(config_lib.to_dict(config)))

  def run(name, processes, devices, go_on_from=(), **mesh):
    workdir = folder / name
    if go_on_from:
      before, step = go_on_from
      shutil.copytree(folder / before, workdir)
      for kept in (workdir / "checkpoints").iterdir():
        if kept.name.isdigit() and int(kept.name) > step:
          shutil.rmtree(kept)
    command = [
      *(sys.executable, "launch/local.py"),
      *(f"--processes={processes}", f"--devices={devices}", "--"),
      *(sys.executable, "launch/train.py", f"--config={file}"),
      f"--workdir={workdir}",
      *(f"--config.parallel.{axis}={size}" for axis, size in mesh.items()),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("resuming" in done.stdout) == bool(go_on_from)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return rows

  return run


@pytest.fixture(scope="module")
def alone(train):
  return train("alone", 1, 1)


def same(rows, alone):
  loss = lambda rows: np.array([row["loss"] for row in rows])
  compare.close(loss(rows), loss(alone))
  for name in ("eval_loss", "eval_accuracy"):
    scores = [np.array([x[name] for x in r[9::10]]) for r in (rows, alone)]
    compare.close(*scores)
  ids = lambda rows: [row["sample_ids"] for row in rows]
  assert ids(rows) == ids(alone)


@pytest.mark.nightly
def test_eight_devices_then_two(train, alone):
  same(train("eight", 1, 8, **CUBE), alone)
  same(train("two", 1, 2, ("eight", 8), fsdp=2), alone)


@pytest.mark.nightly
def test_two_processes_then_one(train, alone):
  same(train("both", 2, 2, fsdp=2), alone)
  same(train("left", 1, 1, ("both", 12)), alone)
