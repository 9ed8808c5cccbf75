"""The benchmark of conversion runs, and its bound is checked."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.nightly
def test_a_small_one(tmp_path):
  out, folder = tmp_path / "rows.json", tmp_path / "work"
  folder.mkdir()
  ran = subprocess.run(
    [
      sys.executable,
      "benchmarks/convert.py",
      "--layers=1",
      "--shrink=4",
      f"--folder={folder}",
      f"--json={out}",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert ran.returncode == 0, ran.stderr
  assert os.listdir(folder) == []
  table = json.loads(out.read_text())
  copy, convert = table["rows"]
  assert (copy["what"], convert["what"]) == ("copy", "convert")
  weights = table["bytes"]
  assert table["largest_tensor"] == 38016 * 896 * 2
  assert weights <= copy["read"] == copy["written"] < weights * 1.01
  assert weights <= convert["read"] < weights + 2**27  # with its libraries
  assert weights * 0.9 < convert["written"] < weights * 1.01
  assert 0 < convert["anonymous"] < convert["peak"] <= table["bound"]
