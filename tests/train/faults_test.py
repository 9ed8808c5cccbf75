"""What happens to runs: kills, full disks, rot, bad data, clocks that jump.

After each the same command resumes. Nothing that was committed is lost, and
losses, sample ids and final parameters are those of a run that nothing
disturbed, bit for bit.

What takes seconds in this process is in every suite; the rest is nightly.
"""

import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.train import checkpoint
from gaze_jax.train import loop
from gaze_jax.train import manifest
from gaze_jax.train import metrics

ROOT = pathlib.Path(__file__).parents[2]
PARTS = ("params", "state", "data", "meta")

# A command whose steps take so long that a signal meets them.
SLOW = """
import runpy, sys, time
from gaze_jax.train import metrics

read = metrics.Log.read

def slow(*args):
  time.sleep(0.7)
  return read(*args)

if __name__ == "__main__":
  metrics.Log.read = slow
  sys.argv = sys.argv[1:]
  runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(*command):
  return subprocess.Popen(
    [sys.executable, *map(str, command)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def train(config_file, workdir, *more):
  return [
    "launch/train.py",
    f"--config={config_file}",
    f"--workdir={workdir}",
    *more,
  ]


def wait_for(process, happened):
  """Until it happened, or the process is gone."""
  late = time.monotonic() + 300
  while process.poll() is None and not happened():
    assert time.monotonic() < late
    time.sleep(0.001)


def children(pid):
  """Processes that a process has started and that have not ended."""
  threads = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
  pids = {int(c) for path in threads for c in path.read_text().split()}
  state = lambda n: pathlib.Path(f"/proc/{n}/stat").read_text().split(") ")[1]
  return {n for n in pids if not state(n).startswith("Z")}


def logged(workdir):
  """Lines of metrics.jsonl."""
  log = workdir / "metrics.jsonl"
  return len(log.read_bytes().splitlines()) if log.exists() else 0


def committed(workdir):
  """Steps that are saved; each must be whole."""
  folder = workdir / "checkpoints"
  steps = [p.name for p in folder.iterdir()] if folder.exists() else []
  steps = [name for name in steps if name.isdigit()]
  for step in steps:
    manifest.check(folder / step, PARTS)
  return max(map(int, steps), default=0)


def resume(config, workdir, capsys):
  """The same run again, in this process; from the newest that is committed."""
  newest = committed(workdir)
  capsys.readouterr()
  loop.train(config, workdir)
  said = f"resuming {workdir} at step {newest}\n" if newest else ""
  assert capsys.readouterr().out == said


def kill(process, workdir, seed):
  """SIGKILL: early on, in between, or (the second in three) within a save."""
  rng = random.Random(seed)
  if seed % 3 == 0:
    time.sleep(rng.uniform(0, 10))
  elif seed % 3 == 1:
    begun, wanted = set(), rng.randint(1, 3)

    def saving():
      begun.update((workdir / "checkpoints").glob("*-tmp"))
      return len(begun) >= wanted

    wait_for(process, saving)
    time.sleep(rng.uniform(0, 0.03))
  else:
    wanted = rng.randint(0, 5)
    wait_for(process, lambda: logged(workdir) >= wanted)
    time.sleep(rng.uniform(0, 0.02))
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate()


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 10))
def test_sigkill_anywhere(
  runs, whole, tiny_config, tiny_config_file, tmp_path, capsys, seed
):
  workdir = tmp_path / "run"
  more = ["--config.data.workers=1"] if seed > 1 else []
  process = start(*train(tiny_config_file, workdir, *more))
  kill(process, workdir, seed)
  resume(tiny_config(), workdir, capsys)
  runs.assert_same(whole, workdir)


@pytest.mark.nightly
def test_sigterm(runs, whole, tiny_config, tiny_config_file, tmp_path, capsys):
  workdir = tmp_path / "run"
  command = train(tiny_config_file, workdir, "--config.data.workers=1")
  process = start("-c", SLOW, *command)
  wait_for(process, lambda: logged(workdir) > 0)
  # To the data's worker as well, as a scheduler does, and twice.
  workers = children(process.pid)
  for _ in range(2):
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.1)
    assert workers and children(process.pid) == workers
  said, _ = process.communicate(timeout=100)
  assert process.returncode == 0, said
  step = committed(workdir)
  assert 0 < step < 6
  line = f"preempted: saved step {step}; run the same command to resume\n"
  assert said.endswith(line)
  resume(tiny_config(), workdir, capsys)
  runs.assert_same(whole, workdir)


@pytest.mark.nightly
def test_disk_full(
  runs, whole, tiny_config, tiny_config_file, tmp_path, capsys
):
  workdir = tmp_path / "run"
  process = start("-c", SLOW, *train(tiny_config_file, workdir))
  wait_for(process, lambda: committed(workdir) == 2)
  # Room for a line of the log, and not for an array: no file may grow past.
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**14, 2**14))
  said, _ = process.communicate(timeout=100)
  assert process.returncode == 1, said
  assert said.splitlines()[-1].startswith("error: "), said
  assert "can't write a checkpoint: File too large" in said
  assert "Traceback" not in said
  assert committed(workdir) == 2
  resume(tiny_config(), workdir, capsys)
  runs.assert_same(whole, workdir)


def truncate(file):
  os.truncate(file, file.stat().st_size // 2)


def flip(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


@pytest.mark.few(1)
@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink])
def test_rot(runs, whole, tiny_config, tmp_path, capsys, damage):
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  folder = workdir / "checkpoints"
  file = max(
    (f for f in (folder / "6" / "state").rglob("*") if f.is_file()),
    key=lambda f: f.stat().st_size,
  )
  damage(file)
  loop.train(tiny_config(), workdir)
  out, err = capsys.readouterr()
  assert f"resuming {workdir} at step 4\n" in out
  assert f"state/{file.relative_to(folder / '6' / 'state')}" in err
  assert "; set aside as 6.damaged\n" in err
  assert {p.name for p in folder.iterdir()} == {"4", "6", "6.damaged"}
  runs.assert_same(whole, workdir)


@pytest.mark.nightly
def test_nan_in_a_batch(
  runs, whole, tiny_config, tmp_path, monkeypatch, capsys
):
  config = tiny_config()

  def change(value):
    (file,) = (tmp_path / "features").glob("*.npy")
    features = np.lib.format.open_memmap(file, "r+")
    old = features.copy()
    features[:] = value
    return old

  kept = []
  with monkeypatch.context() as patch:
    # Two batches are read ahead, so one of the next steps meets it.
    runs.before(patch, 3, lambda: kept.append(change(np.nan)))
    with pytest.raises(metrics.NotFiniteError) as error:
      loop.train(config, tmp_path)
  text, newest = str(error.value), committed(tmp_path)
  step = int(text.split("of step ")[1].split()[0])
  batches = pipeline.make_iterator(config, start_step=step - 1)
  assert f"samples {next(batches)['indices'].tolist()}" in text
  batches.close()
  assert f"last good checkpoint: step {newest}" in text
  assert newest == (step - 1) // 2 * 2 > 0
  change(kept[0])
  resume(config, tmp_path, capsys)
  runs.assert_same(whole, tmp_path)


@pytest.fixture
def pictures(tmp_path):
  """Eight samples of llava_json, and the config changes to train on them."""
  rng = np.random.default_rng(0)
  entries = []
  for n in range(8):
    array = rng.integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / f"{n}.png")
    said = [dict({"from": "human"}, value="<image>\nwhat?")]
    said.append(dict({"from": "gpt"}, value=f"number {n}"))
    entries.append(dict(image=f"{n}.png", conversations=said))
  (tmp_path / "data.json").write_text(json.dumps(entries))
  return dict(
    data__source="llava_json",
    data__path=str(tmp_path / "data.json"),
    data__max_skipped=0.2,
    train__features="none",
  )


@pytest.mark.nightly
def test_corrupt_image(
  runs, tiny_config, pictures, tmp_path, monkeypatch, capsys
):
  config = tiny_config(**pictures)
  good = {n: (tmp_path / f"{n}.png").read_bytes() for n in (3, 5)}
  # Its header is whole: it is found when a batch wants it.
  bad = good[3][:-1000] + bytes(1000)
  (tmp_path / "3.png").write_bytes(bad)
  loop.train(config, tmp_path / "whole")
  with monkeypatch.context() as patch:
    runs.stop_before(patch, 4)
    with pytest.raises(runs.stopped):
      loop.train(config, tmp_path / "run")
  # A file that has no header any more would be one sample fewer.
  (tmp_path / "3.png").write_bytes(b"")
  fewer = "8 samples, .* -> 7 samples"
  with pytest.raises(checkpoint.CheckpointError, match=fewer):
    loop.train(config, tmp_path / "run")
  (tmp_path / "5.png").write_bytes(b"")
  with pytest.raises(samples.DataError, match=r"sample 3: .*3\.png"):
    loop.train(config, tmp_path / "run")
  (tmp_path / "3.png").write_bytes(bad)
  (tmp_path / "5.png").write_bytes(good[5])
  resume(config, tmp_path / "run", capsys)
  runs.assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.nightly
def test_clock_jumps(runs, whole, tiny_config, tmp_path, monkeypatch, capsys):
  now, now_ns = time.time, time.time_ns
  day = 24 * 3600

  def jump(days, saved=0):
    while committed(tmp_path) < saved:
      time.sleep(0.01)
    monkeypatch.setattr(time, "time", lambda: now() + days * day)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + days * day * 10**9)

  with monkeypatch.context() as patch:
    runs.before(patch, 2, lambda: jump(3))
    runs.before(patch, 4, lambda: jump(-400, saved=2))
    runs.stop_before(patch, 6)
    with pytest.raises(runs.stopped):
      loop.train(tiny_config(), tmp_path)
  # Step 4 is older than step 2 by its own account.
  assert committed(tmp_path) == 4
  jump(800)
  resume(tiny_config(), tmp_path, capsys)
  runs.assert_same(whole, tmp_path)


def test_another_config(whole, tiny_config):
  files = lambda: {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
  before = files()
  with pytest.raises(checkpoint.CheckpointError) as error:
    loop.train(tiny_config(train__batch_size=2), whole)
  assert "train.batch_size: 4 -> 2" in str(error.value)
  assert files() == before
  loop.train(tiny_config(eval__samples=3, train__log_every=3), whole)


def two(config_file, workdir, *more):
  """A run of two processes that are started again when one is lost."""
  launcher = ["launch/local.py", "--processes=2", "--devices=1", "--"]
  command = [sys.executable, "-c", SLOW, *train(config_file, workdir, *more)]
  return start(*launcher, *command)


def second(launcher):
  """The pid of process 1."""
  for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
      parent = (path.parent / "stat").read_text().rsplit(")", 1)[1].split()[1]
      if int(parent) == launcher and b"JAX_PROCESS_ID=1" in path.read_bytes():
        return int(path.parent.name)
    except OSError:  # it has just ended
      continue
  raise AssertionError("there is no process 1")


@pytest.mark.nightly
def test_a_signal_to_one_of_two(runs, tiny_config_file, tmp_path):
  # Notices take a second or two: time for them to come before the last step.
  more = "--config.train.steps=12"
  process = two(tiny_config_file, tmp_path / "whole", more)
  said, _ = process.communicate(timeout=300)
  assert process.returncode == 0, said
  for number in (signal.SIGTERM, signal.SIGKILL):
    workdir = tmp_path / f"run_{number}"
    _signal_one(tiny_config_file, workdir, more, number)
    runs.assert_same(tmp_path / "whole", workdir)


def _signal_one(tiny_config_file, workdir, more, number):
  process = two(tiny_config_file, workdir, more)
  wait_for(process, lambda: logged(workdir) > 2)
  os.kill(second(process.pid), number)
  said, _ = process.communicate(timeout=300)
  assert process.returncode == 0, said
  if number == signal.SIGTERM:
    step = committed(workdir)
    assert f"preempted: saved step {step}; run" in said
    assert 2 < step < 12
    process = two(tiny_config_file, workdir, more)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"resuming {workdir} at step {step}\n" in said
  else:
    assert "all start again" in said
    assert f"resuming {workdir} at step 2\n" in said
  assert committed(workdir) == 12
