"""What saving costs a training run: time of a step, and memory of the host.

python benchmarks/checkpoint.py [--only=emoji_tiny] [--json=FILE] [--rounds=5]
    [--steps=20] [--saves=50]

Blocks of training steps without a save, and with one that begins before the
first step and is committed before the last one ends or is waited for, in turns;
what a save adds is the median of the differences within a round. It is set
against 100 steps. Then so many saves, one after the other, with the memory of
the process after each.
"""

import os
import pathlib
import shutil
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import timing
from configs import emoji_tiny
from gaze_jax import cli
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.data import pipeline
from gaze_jax.train import checkpoint
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib

_EVERY = 100
_SETTLED = 10  # saves until buffers have the size that they keep
# What a size changes in configs/emoji_tiny.py.
_SIZES = {
  "emoji_tiny": {},
  "larger": {
    "model.decoder.width": 512,
    "model.decoder.depth": 6,
    "model.decoder.query_heads": 16,
    "model.decoder.kv_heads": 8,
    "model.decoder.mlp_dim": 1536,
    "train.batch_size": 4,
  },
}

_ONLY = flags.DEFINE_list("only", None, "sizes to run, such as emoji_tiny")
_JSON = cli.define_file("json", "a file for the rows")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "of two blocks", 1)
_STEPS = flags.DEFINE_integer("steps", 20, "of a block", 1)
_SAVES = flags.DEFINE_integer("saves", 50, "for the memory", _SETTLED + 1)


def main() -> None:
  names = _ONLY.value or list(_SIZES)
  for name in names:
    if name not in _SIZES:
      raise errors.GazeError(f"--only={name}: one of {', '.join(_SIZES)}")
  rows = []
  for name in names:
    rows.append(dict(size=name, **_measure(_config(_SIZES[name]))))
    print(_text(rows[-1]), flush=True)
  timing.write_json(_JSON.value, dict(rows=rows, **_about()))


def _config(changes: dict[str, Any]) -> config_lib.Config:
  raw = emoji_tiny.get_config()
  # 32 samples of random features stand for those of the frozen tower.
  raw.update_from_flattened_dict(changes | {"data.workers": 0})
  raw.data.samples = 32
  return config_lib.from_config_dict(raw)


class _Run:
  """A run without its loop: the same batch again and again."""

  def __init__(self, config: config_lib.Config, workdir: pathlib.Path):
    self.config = config
    optimizer = optimizer_lib.make(config.train)
    self.state = state_lib.create(config, optimizer)
    self._step = step_lib.make(config, optimizer)
    vision = config.model.vision
    features = np.random.default_rng(0).normal(
      size=(config.data.samples, vision.tokens, vision.width)
    )
    batches = pipeline.make_iterator(
      config, features=features.astype(np.float16)
    )
    self._batch = jax.device_put(next(batches)["batch"])
    batches.close()
    self._budget = jax.device_put(
      np.full(config.train.batch_size, config.model.gaze.top_k, np.int32)
    )
    self.saved = checkpoint.Writer(workdir, config.train)
    self._number = 0

  def steps(self, count: int) -> None:
    for _ in range(count):
      self.state, values = self._step(self.state, self._batch, self._budget, {})
      jax.device_get(values)

  def save(self) -> None:
    self._number += 1
    position = checkpoint.Position(self._number)
    self.saved.save(position, self.state, self.config, loss=1.0)


def _measure(config: config_lib.Config) -> dict[str, Any]:
  workdir = pathlib.Path(tempfile.mkdtemp(prefix="gaze_jax_saves_"))
  try:
    run = _Run(config, workdir)
    row = _times(run) | _memory(run)
    run.saved.close()
  finally:
    shutil.rmtree(workdir)
  size = sum(x.nbytes for x in jax.tree.leaves(run.state))
  return dict(megabytes=size / 1e6, **row)


def _times(run: _Run) -> dict[str, Any]:
  run.save()
  run.steps(2)
  run.saved.latest()
  without, extra, blocked = [], [], []
  for _ in range(_ROUNDS.value):
    start = time.perf_counter()
    run.steps(_STEPS.value)
    plain = time.perf_counter()
    run.save()
    copied = time.perf_counter()
    run.steps(_STEPS.value)
    run.saved.latest()
    end = time.perf_counter()
    without.append((plain - start) / _STEPS.value)
    blocked.append(copied - plain)
    extra.append((end - plain) - (plain - start))
  step = float(np.median(without))
  return dict(
    seconds_per_step=step,
    seconds_blocked_per_save=float(np.median(blocked)),
    seconds_added_per_save=float(np.median(extra)),
    all_seconds_added=extra,
    share_added=float(np.median(extra)) / (_EVERY * step),
    every=_EVERY,
    rounds=_ROUNDS.value,
    steps_per_block=_STEPS.value,
  )


def _memory(run: _Run) -> dict[str, Any]:
  resident = []
  for _ in range(_SAVES.value):
    run.save()
    run.steps(1)
    run.saved.latest()
    resident.append(_resident_megabytes())
  half = len(resident[_SETTLED:]) // 2
  early, late = resident[_SETTLED:][:half], resident[_SETTLED:][half:]
  return dict(
    resident_megabytes=resident,
    megabytes_grown=float(np.median(late) - np.median(early)),
  )


def _resident_megabytes() -> float:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _text(row: dict[str, Any]) -> str:
  resident = row["resident_megabytes"]
  return (
    f"{row['size']}: a state of {row['megabytes']:.0f} MB, a step of"
    f" {row['seconds_per_step']:.3f} s; a save blocks for"
    f" {row['seconds_blocked_per_save']:.3f} s and adds"
    f" {row['seconds_added_per_save']:.2f} s in all,"
    f" {row['share_added']:.2%} of {row['every']} steps. Memory after"
    f" {len(resident)} saves {resident[-1]:.0f} MB, after {_SETTLED}"
    f" {resident[_SETTLED - 1]:.0f} MB"
  )


def _about() -> dict[str, Any]:
  return dict(
    statistic="medians of the rounds; megabytes_grown is the median memory of"
    f" the later half of the saves after the first {_SETTLED} less that of the"
    " earlier half",
    **timing.machine(),
  )


if __name__ == "__main__":
  cli.main(main)
