"""launch/benchmark.py in two processes: the curve of one, written once."""

import json
import subprocess
import sys

import pytest

from gaze_jax.train import loop
from tests.tasks import command_test

TWO = ("launch/local.py", "--processes=2", "--devices=2", "--")


@pytest.mark.nightly
def test_two_processes_answer_as_one(gqa, tiny_config, tmp_path):
  workdir = tmp_path / "run"
  loop.train(tiny_config(train__steps=2), workdir)
  given = [f"--workdir={workdir}", f"--data={gqa[1]}", "--tasks=gqa"]
  given += ["--budgets=2", "--batch_size=2"]
  code, _, err = command_test.run(*given, f"--out={tmp_path / 'one'}")
  assert code == 0, err
  command = [sys.executable, *TWO, sys.executable, "launch/benchmark.py"]
  mesh = [
    "--parallel.data=2",
    "--parallel.tensor=2",
    f"--out={tmp_path / 'two'}",
  ]
  done = subprocess.run(
    [*command, *given, *mesh],
    cwd=command_test.ROOT,
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 0, done.stderr
  (one, said), (two, said_too) = map(read, (tmp_path / "one", tmp_path / "two"))
  assert one == two and said == said_too
  for condition in ("dense", "blind", "k2", "random_k2"):
    assert one[condition]["n"] == 6 and not one[condition]["failed"]
    assert len(said[condition]) == 6


def read(out):
  """Figures by condition; and by item what was said, a line each."""
  figures = json.loads((out / "curve.json").read_text())["tasks"]["gqa"]
  said = {}
  for path in out.glob("*/predictions/gqa/0.jsonl"):
    lines = list(map(json.loads, path.read_text().splitlines()))
    said[path.parts[-4]] = {one["id"]: one["text"] for one in lines}
    assert len(said[path.parts[-4]]) == len(lines)
  return figures, said
