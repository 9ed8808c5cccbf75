"""What answers and evaluates is what launch/aot_check.py compiles."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from gaze_jax.train import loop

pytestmark = pytest.mark.nightly
HERE = pathlib.Path(__file__).parent
READ = {
  *("vision tower", "embedding of a prompt", "units of a prompt"),
  *("prompt text", "first token"),
}


@pytest.fixture(scope="module")
def found(tiny_config, tmp_path_factory):
  """Texts of programs, by command and program: of those ran, and compiled."""
  workdir = tmp_path_factory.mktemp("run")
  loop.train(tiny_config(train__steps=1), workdir)
  done = subprocess.run(
    [sys.executable, HERE / "recorded.py", workdir],
    capture_output=True,
    text=True,
    env=os.environ | dict(PYTHONPATH=str(HERE.parent.parent)),
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
  "command, more",
  [
    ("launch/generate.py", {"decoding step"}),
    ("Model.generate", {"decoding loop"}),
    ("Model.generate_many", {"a row among others", "decoding loop"}),
  ],
)
def test_what_answers_is_what_is_compiled(found, command, more):
  """On a mesh of eight TPUs, to the text."""
  ran, compiled = found["ran"][command], found["compiled"][command]
  assert ran.keys() == compiled.keys() == READ | more
  for name in ran:
    assert ran[name] == compiled[name], name
    assert "tpu_custom_call" in ran[name][0] or name not in (
      *("units of a prompt", "prompt text", *more - {"a row among others"}),
    )


def test_what_evaluates_is_what_is_compiled(found):
  """Other rows, and scores that are given, are programs of their own."""
  (ran,) = found["ran"]["launch/eval.py"].values()
  (compiled,) = found["compiled"]["launch/eval.py"].values()
  assert compiled[0] in ran
