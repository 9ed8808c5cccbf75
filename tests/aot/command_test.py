"""launch/aot_check.py with the TPU compiler, on models that it takes seconds
to compile."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = """
from ml_collections import ConfigDict

def get_config():
  return ConfigDict(dict(
    model=dict(
      vision=dict(image_size=28, width=64, depth=1, heads=2, mlp_dim=64,
                  class_token=False, layer_scale=False, position_grid=2),
      decoder=dict(vocab_size=256, width=64, depth=5, query_heads=2,
                   kv_heads=2, head_dim=32, mlp_dim=1024, tied=False),
      gaze=dict(region=(1, 2), context_tokens=0, implementation="masked",
                decode_implementation="masked")),
    data=dict(source="llava_json", sequence_length=1024),
    train=dict(batch_size=8),
    parallel=dict(data=2, fsdp=2),
  ))
"""


def _run(*arguments, cwd=ROOT, **environment):
  command = [sys.executable, str(ROOT / "launch/aot_check.py")]
  return subprocess.run(
    [*command, *map(str, arguments)],
    cwd=cwd,
    env=os.environ | dict(PYTHONPATH=str(ROOT)) | environment,
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  path = tmp_path_factory.mktemp("aot") / "tiny.py"
  path.write_text(CONFIG)
  return path


def test_a_run_that_fits_once_more_is_run_again(config, tmp_path):
  """On a chip that is made to look small."""
  path = tmp_path / "found.json"
  result = _run(
    f"--config={config}",
    "--topology=v5e:2x2",
    "--limit_gb=0.05",
    f"--json={path}",
  )
  assert not result.stderr
  print(result.stdout)
  found = json.loads(path.read_text())
  print(json.dumps(found["programs"]["train"], indent=1))
  assert 0


@pytest.mark.parametrize(
  "arguments, says",
  [
    (["--topology=v9:2x2"], "--topology=v9:2x2: libtpu knows no such"),
    (
      ["--topology=gpu:8x80GB", "--config.parallel.fsdp=3"],
      "parallel: data 2 x fsdp 3 x tensor 1 x sequence 1 is a mesh of 6",
    ),
  ],
)
def test_a_mistake_is_one_line(config, arguments, says):
  result = _run(f"--config={config}", *arguments)
  assert result.returncode == 1, result.stdout
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith("error: ") and says in line
