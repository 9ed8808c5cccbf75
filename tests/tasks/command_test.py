"""launch/benchmark.py as a user runs it."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gaze_jax.train import loop

ROOT = pathlib.Path(__file__).parents[2]


def start(*arguments):
  return subprocess.Popen(
    [sys.executable, "launch/benchmark.py", *map(str, arguments)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(*arguments):
  process = start(*arguments)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def error(*arguments):
  """The one line that a command fails with."""
  code, _, err = run(*arguments)
  told = [x for x in err.splitlines() if x.startswith("error: ")]
  assert code == 1 and len(told) == 1 and "Traceback" not in err, err
  return told[0]


def written(path):
  return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.fixture(scope="module")
def workdir(tiny_config, tmp_path_factory):
  out = tmp_path_factory.mktemp("benchmark") / "run"
  loop.train(tiny_config(train__steps=2), out)
  return out


@pytest.mark.nightly
def test_a_killed_run_ends_with_the_same_results(gqa, workdir, tmp_path):
  given = ["--workdir", workdir, "--data", gqa[1], "--tasks=gqa", "--top_k=2"]
  code, out, err = run(*given, "--out", tmp_path / "whole")
  assert code == 0, err
  assert (
    "| gqa (incomplete) | " in out
    and "gqa: 6 items, and the published set" in err
  )
  answers = tmp_path / "killed" / "predictions" / "gqa" / "0.jsonl"
  for lines in (1, 3):
    process = start(*given, "--out", tmp_path / "killed")
    while process.poll() is None and written(answers) < lines:
      time.sleep(0.005)
    assert process.poll() in (None, 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert run(*given, "--out", tmp_path / "killed")[0] == 0
  found = []
  for name in ("whole", "killed"):
    result = json.loads((tmp_path / name / "results.json").read_text())
    assert result.pop("timing")["gqa"] > 0
    found.append(result)
  assert found[0] == found[1]
  figures = found[0]["tasks"]["gqa"]
  assert figures["n"] == 6 and not figures["failed"]
  kv = figures["visual_kv"]
  assert 0 < kv["per_query_head"] < kv["dense"]
  # Scored again from what is stored.
  code, table, _ = run("--score_only", tmp_path / "whole", "--data", gqa[1])
  assert code == 0 and "| gqa (incomplete) | " in table
  assert table == (tmp_path / "whole" / "results.md").read_text() + "\n"


@pytest.mark.nightly
def test_what_is_missing_is_one_line(gqa, workdir, tmp_path):
  data = ["--data", gqa[1]]
  model = ["--workdir", workdir]
  assert "--tasks is needed" in error(*model, *data)
  assert "--data is needed" in error(*model, "--tasks=gqa")
  assert "--workdir is needed" in error(*data, "--tasks=gqa")
  assert "'gqq' is none of gqa" in error(*model, *data, "--tasks=gqq")
  assert "no predictions there" in error("--score_only", tmp_path, *data)
  both = ("--tasks=gqa", "--top_k=1", "--share=0.5")
  assert "one of --top_k, --share and --budgets" in error(*model, *data, *both)
  missing = error(*model, *data, "--tasks=mmvp")
  assert "mmvp: its files are not in" in missing
  assert "no such folder" in missing and "Questions.csv" in missing
  assert not (workdir / "benchmark").exists()


def test_the_list_needs_no_model():
  code, out, _ = run("--list")
  assert code == 0 and "videomme: 2700 items, DATA/videomme/" in out
