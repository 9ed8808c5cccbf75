"""What the tests of runs share: one that nothing disturbed, and comparing."""

import json
import pathlib

import jax
import numpy as np
import pytest

from gaze_jax.train import checkpoint
from gaze_jax.train import loop
from gaze_jax.train import step as step_lib

TIMES = ("tokens_per_second", "seconds_per_step")


class Stop(Exception):
  pass


class Runs:
  """Looks at workdirs, and meddles with runs."""

  stopped = Stop

  def numbers(self, workdir: pathlib.Path):
    """metrics.jsonl without what the clock decides."""
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in x.items() if k not in TIMES} for x in lines]

  def params(self, workdir: pathlib.Path):
    saved = checkpoint.Checkpoints(workdir)
    return saved.latest(), saved.params()

  def assert_same(self, one: pathlib.Path, two: pathlib.Path):
    """Same losses and sample ids in each step, and same parameters."""
    assert self.numbers(one) == self.numbers(two)
    a, b = self.params(one), self.params(two)
    assert a[0] == b[0]
    jax.tree.map(np.testing.assert_array_equal, a[1], b[1])

  def before(self, patch, step: int, act):
    """Calls `act` in the run before that step, the first being 1."""
    make = step_lib.make

    def made(*args):
      real = make(*args)

      def step_of(state, *rest):
        if int(state.step) + 1 == step:
          act()
        return real(state, *rest)

      return step_of

    patch.setattr(step_lib, "make", made)

  def stop_before(self, patch, step: int):
    def stop():
      raise Stop

    self.before(patch, step, stop)


@pytest.fixture(scope="session")
def runs():
  return Runs()


@pytest.fixture(scope="session")
def whole(tiny_config, tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp("whole")
  loop.train(tiny_config(), workdir)
  return workdir
