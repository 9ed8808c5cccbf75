"""Answers are the same on every mesh, and from several processes."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from parallel import answering

from gaze_jax import config as config_lib
from gaze_jax.decode import reading
from gaze_jax.models import cached

pytestmark = pytest.mark.nightly
HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
EIGHT = "--xla_force_host_platform_device_count=8"
# Two numbers this close, relative to the largest, may change places when sums
# are added up in another order.
TIE = 1e-5


@pytest.fixture(scope="module")
def config(tiny_config):
  return tiny_config(
    model__vision__heads=4,
    model__vision__width=32,
    model__vision__position_grid=5,
    model__decoder__query_heads=8,
    model__decoder__kv_heads=4,
    model__decoder__width=64,
    model__tiling__kind="anyres",
    model__tiling__pinpoints=[[70, 70], [70, 140]],
    data__sequence_length=256,
    data__max_units=4,
    train__features="none",
  )


@pytest.fixture(scope="module")
def answers(config, tmp_path_factory):
  """What `answering.py` writes on a mesh, by name."""
  folder = tmp_path_factory.mktemp("answering")
  (folder / "config.json").write_text(json.dumps(config_lib.to_dict(config)))
  made = {}

  def run(name, parallel, *launcher, flags=""):
    if name not in made:
      out = folder / f"{name}.json"
      paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
      env = dict(os.environ, PYTHONPATH=paths)
      # XLA takes a blank for the name of a file.
      env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flags}".strip()
      # Or XLA's threads, one a core or device, may all wait for each other.
      env["PJRT_NPROC"] = "32"
      done = subprocess.run(
        [
          *(sys.executable, *launcher, str(HERE / "answering.py")),
          *(str(folder / "config.json"), str(out), json.dumps(parallel)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=env,
      )
      assert done.returncode == 0, done.stderr
      made[name] = json.loads(out.read_text())
    return made[name]

  return run


@pytest.fixture(scope="module")
def alone(answers):
  return answers("alone", None)


TWO = ("launch/local.py", "--processes=2", "--devices=2", "--", sys.executable)
MESHES = {
  "data 2, tensor 4": (dict(data=2, tensor=4), (), EIGHT),
  "fsdp 8": (dict(fsdp=8), (), EIGHT),
  "2 processes": (dict(data=2, tensor=2), TWO, ""),
}


def test_ways_of_asking_are_one(alone):
  found = alone["query_head"]
  assert found["batch"] == found["many"] == found["one_by_one"]
  more = alone["more"]
  assert more["stream"] == more["loaded"] == more["chat"][:1]
  said = [tuple(x) for x in alone["query_head"]["one_by_one"]]
  assert len(set(said)) > 5


@pytest.mark.parametrize("mesh", MESHES)
def test_tokens_are_those_of_one_device(answers, alone, config, mesh):
  parallel, launcher, flags = MESHES[mesh]
  got = answers(mesh, parallel, *launcher, flags=flags)
  rows = ties = 0
  for kind in (*answering.WAYS, "more"):
    for way, said in got[kind].items():
      for number, (row, other) in enumerate(
        zip(alone[kind][way], said, strict=True)
      ):
        rows += 1
        if row != other:
          assert kind != "more", (way, number)
          model = answering.load(config, None, kind)
          assert at_a_tie(model, answering.requests()[number], row, other)
          ties += 1
  assert rows > 20 and ties <= rows / 100


def at_a_tie(model, request, want, got) -> bool:
  """Whether two rows part where two numbers are too close to tell apart."""
  same = next(
    i for i, (a, b) in enumerate(zip(want, got, strict=True)) if a != b
  )
  traced = answering.ask(model, request, trace=True, max_tokens=same + 1)
  gaps = []
  for step in traced.steps:
    kept = np.where(step.chosen, step.scores, np.inf).min(-1)
    left = np.where(step.chosen, -np.inf, step.scores).max(-1)
    largest = np.abs(step.scores).max() if step.scores.size else 1.0
    gaps.append(((kept - left) / largest).min(initial=np.inf))
  prompt, config = model.prepare(request).prompt, model.config.model
  read = reading.read(
    model.params, config, *prompt, room=same + 1, limits=model.limits
  )
  best = read.logits[0]
  if same:
    tokens, budget = np.array([want[:same]]), np.array([prompt.budget])
    _, logits, _ = cached.extend(
      model.params, config, read.cache, tokens, budget
    )
    best = logits[0, -1]
  best = np.sort(np.asarray(best))
  gaps.append((best[-1] - best[-2]) / np.abs(best).max())
  return min(gaps) < TIE
