"""Attention, caches and the state on eight fake devices."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from gaze_jax import config as config_lib

pytestmark = pytest.mark.nightly
HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def found(tiny_config):
  config = tiny_config(
    model__vision__frozen=False,
    train__features="none",
    train__batch_size=8,
    data__questions=1,
    data__samples=8,
  )
  environment = dict(os.environ, PYTHONPATH=str(HERE.parent.parent))
  done = subprocess.run(
    [
      *(sys.executable, HERE / "eight_devices.py"),
      json.dumps(config_lib.to_dict(config)),
    ],
    capture_output=True,
    text=True,
    env=environment,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["cube", "ulysses"])
@pytest.mark.parametrize("form", ["parallel", "decode"])
def test_attention_needs_nothing_of_other_devices(found, mesh, form):
  assert found[mesh][form]["collectives"] == []
  assert found[mesh][form]["differs"] == ""


@pytest.mark.parametrize("mesh", ["cube", "ulysses"])
def test_prompts_and_decoding_give_the_same(found, mesh):
  assert found[mesh]["growing"] == ""


@pytest.mark.parametrize("mesh", ["cube", "ulysses"])
def test_chunks_give_the_same(found, mesh):
  assert found[mesh]["in_pieces"] == ""


def test_the_state_is_born_cut(found):
  assert found["cube"]["state"] == dict(wrong=[], embedding=[1024, 16])
  assert found["ulysses"]["state"] == dict(wrong=[], embedding=[2048, 32])
