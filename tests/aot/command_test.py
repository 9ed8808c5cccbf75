"""launch/aot_check.py with the TPU compiler, on a model of seconds."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.nightly
ROOT = pathlib.Path(__file__).parent.parent.parent
DEPTH = 3
CONFIG = f"""
from ml_collections import ConfigDict

def get_config():
  return ConfigDict(dict(
    model=dict(
      vision=dict(image_size=28, width=64, depth=1, heads=2, mlp_dim=64,
                  class_token=False, layer_scale=False, position_grid=2,
                  frozen=True),
      decoder=dict(vocab_size=256, width=64, depth={DEPTH}, query_heads=2,
                   kv_heads=2, head_dim=32, mlp_dim=128, remat="full"),
      gaze=dict(region=(1, 2, 1), context_tokens=0, implementation="masked",
                decode_implementation="masked")),
    data=dict(source="llava_json", sequence_length=64),
    train=dict(batch_size=8),
    parallel=dict(data=2, fsdp=2),
  ))
"""


def _run(*arguments):
  return subprocess.run(
    [sys.executable, "launch/aot_check.py", *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | dict(PYTHONPATH=str(ROOT)),
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  path = tmp_path_factory.mktemp("aot") / "tiny.py"
  path.write_text(CONFIG)
  return f"--config={path}"


def test_a_run_on_two_slices(config, tmp_path):
  path = tmp_path / "found.json"
  options = ("--what=train", f"--json={path}", "--config.parallel.fsdp=4")
  result = _run(config, "--topology=2xv5e:2x2", *options)
  assert (result.returncode, result.stderr) == (0, ""), result.stdout
  train = json.loads(path.read_text())["programs"]["train"]
  assert train["mesh"] == dict(data=2, fsdp=4, tensor=1, sequence=1)
  assert train["unread"] == []
  # Gradients of matrices, each chip its quarter of them, and some numbers.
  assert train["collectives"]["between slices"]["bytes"] > 0
  whole = ("--config.parallel.data=-1", "--config.parallel.fsdp=8")
  result = _run(config, "--topology=2xv5e:2x2", *whole)
  assert result.returncode == 1
  assert "data 1 can't be laid on 2 slices" in result.stderr


def test_no_slices_are_no_topology(config):
  result = _run(config, "--topology=0xv5e:2x2")
  assert result.returncode == 1
  assert "--topology=0xv5e:2x2: libtpu knows no such" in result.stderr


def test_what_is_said_of_a_run(config, tmp_path):
  path = tmp_path / "found.json"
  result = _run(config, "--topology=v5e:2x2", "--images=3", f"--json={path}")
  assert (result.returncode, result.stderr) == (0, ""), result.stdout
  found = json.loads(path.read_text())
  assert found["fits"] and found["libtpu"] and found["device"] == "TPU v5 lite"
  programs = found["programs"]
  # Images are 2 x 2 tokens, and the prompt has 3 of them.
  names = [name.removeprefix("12 tokens: ") for name in programs]
  assert names[0] == "train" and names[-1] == "eval"
  assert {name.split(",")[0] for name in names[1:-1]} == {
    *("vision tower", "embedding of a prompt", "units of a prompt"),
    *("prompt text", "first token", "decoding step", "decoding loop"),
    "a row among others",
  }
  for name, one in programs.items():
    assert one["fits"] and 0 < one["compile_seconds"], name
    assert sum(one["hbm"].values()) == one["hbm_bytes"]
    assert 0 < one["hbm_bytes"] < one["hbm_limit_bytes"] == 15.75 * 2**30
    assert one["unread"] == [], name
    assert (one["flops"] > 0) == ("a row among others" not in name)
    assert name == "train" or not one["model_flops"]
    assert f"{name} ({one['command']}): fits" in result.stdout
  train = programs["train"]
  assert train["mesh"] == dict(data=2, fsdp=2, tensor=1, sequence=1)
  # Halves: the projector (a tower's width of 64 in, 64 out) and the decoder,
  # but for the first bias and the norms of heads.
  layer = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64
  cut = 2 * 64 * 64 + 64 + DEPTH * layer + 256 * 64 + 64
  trains = cut // 2 + 64 + DEPTH * 2 * 32
  assert 0 <= train["hbm"]["optimizer"] - 8 * trains <= 64
  # With remat a layer keeps what comes in: 2 rows of 64 slots.
  assert train["hbm"]["activations"] == DEPTH * 2 * 64 * 64 * 4
  # Each layer gathers its seven matrices at least forward and backward, and
  # scatters their gradients: loops are counted as they turn.
  kinds = train["collectives"]
  assert kinds["all-gather"]["count"] >= 2 * DEPTH
  assert kinds["all-gather"]["bytes"] > 0
  # Prompts are read with heads cut: two sums a layer, of what leaves
  # attention and of what leaves the MLP.
  decode = programs["12 tokens: decoding step, 2 rows, traced"]
  assert decode["mesh"]["tensor"] == 2
  assert decode["collectives"]["all-reduce"]["count"] >= 2 * DEPTH
  assert decode["hbm"]["cache"] > 0


def test_nothing_fits(config, tmp_path):
  """On chips of 10 KB: exit 1, and the parts of the report are there."""
  path = tmp_path / "found.json"
  result = _run(
    *(config, "--topology=v5e:2x2", "--what=train", "--limit_gb=0.00001"),
    f"--json={path}",
  )
  assert result.returncode == 1 and not result.stderr
  assert "DOES NOT FIT: parameters, optimizer and gradients" in result.stdout
  found = json.loads(path.read_text())
  assert not found["fits"] and found["programs"] == {}


@pytest.mark.parametrize(
  "arguments, says",
  [
    (["--topology=v9:2x2"], "--topology=v9:2x2: libtpu knows no such"),
    (
      ["--topology=gpu:8x80GB", "--config.train.batch_size=9"],
      "parallel: data 2 x fsdp 2 x tensor 1 x sequence 1 is a mesh of 4",
    ),
    (["--json=no/found.json"], "no/found.json: there is no folder no"),
    (["--table=found.md"], "--table is one of --recipes; --json takes any"),
  ],
)
def test_a_mistake_is_one_line(config, arguments, says):
  _is_one_line(config, *arguments, says=says)


def test_a_recipe_that_there_is_not():
  says = "--only=9b: in none of cambrian_4b-stage1-v5e-64, "
  _is_one_line("--recipes", "--only=9b", says=says)


def _is_one_line(*arguments, says):
  result = _run(*arguments)
  assert result.returncode == 1, result.stdout
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith("error: ") and says in line, line
