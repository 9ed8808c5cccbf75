"""The commands of launch/ as a user runs them, above all when they fail."""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from gaze_jax.train import loop

ROOT = pathlib.Path(__file__).parent.parent


def start(*command, **options):
  return subprocess.Popen(
    [sys.executable, *map(str, command)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def run(*command, **options):
  """Exit code, stdout, and stderr without progress bars."""
  process = start(*command, **options)
  out, err = process.communicate(timeout=300)
  lines = [x.split("\r")[-1] for x in err.split("\n")]
  return process.returncode, out, [x for x in lines if x and "it/s" not in x]


def one_line(result):
  """The one line on stderr that begins with error:, of a failed command."""
  code, _, lines = result
  text = "\n".join(lines)
  assert code == 1, text
  assert "Traceback" not in text
  told = [x for x in lines if not x.startswith(("train:", "features:", "eval"))]
  assert len(told) == 1 and told[0].startswith("error: "), text
  return told[0]


@pytest.fixture(scope="module")
def workdir(tiny_config, tmp_path_factory):
  out = tmp_path_factory.mktemp("launch") / "run"
  loop.train(tiny_config(train__steps=2), out)
  return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """An image, and what looks like one."""
  folder = tmp_path_factory.mktemp("files")
  Image.fromarray(np.full((70, 80, 3), 99, np.uint8)).save(folder / "ok.png")
  (folder / "corrupt.png").write_text("this is no image")
  return folder


def generate(trained, files, **changes):
  values = dict(
    workdir=trained,
    image=files / "ok.png",
    question="What is at the top?",
    out=files / "gaze.png",
    max_tokens=3,
  )
  values |= changes
  return ["launch/generate.py", *(f"--{k}={v}" for k, v in values.items())]


def test_generate_answers_and_draws(workdir, files):
  out_file = files / "answer.png"
  code, out, lines = run(
    *generate(workdir, files, out=out_file, layers="0,1", heads="3", top_k=1)
  )
  assert code == 0, lines
  for words in ("visual tokens                25", "MiB", "decode step"):
    assert words in out
  with Image.open(out_file) as page:
    assert page.width >= 300


def test_eval_writes_its_reports(workdir, tmp_path):
  code, out, lines = run(
    *("launch/eval.py", f"--workdir={workdir}", f"--json={tmp_path}/r.json"),
    f"--markdown={tmp_path}/r.md",
  )
  assert code == 0, lines
  assert (tmp_path / "r.json").stat().st_size > 1000
  assert "| gaze |" in (tmp_path / "r.md").read_text()
  assert "| gaze |" in out


def test_errors_of_generate_and_eval(workdir, files, tmp_path):
  empty = tmp_path / "empty"
  empty.mkdir()
  gen = lambda **k: generate(workdir, files, **k)
  cases = [
    (gen(image=files / "no.png"), "no.png: no such file"),
    (gen(image=files / "corrupt.png"), "corrupt.png: not an image file"),
    (gen(question=" "), "the question is empty"),
    (gen(question="what " * 90), "data.sequence_length"),
    (gen(layers="0,7"), "no layer 7: the model has layers 0 to 1"),
    (gen(heads="x"), "--heads=x: give whole numbers"),
    (gen(out=files / "gaze.foo"), ".foo is not a format of pictures"),
    (gen(out=files / "nowhere" / "gaze.png"), "there is no folder"),
    (gen(top_k=-1), "top_k"),
    (gen(max_tokens=0), "max_tokens"),
    (gen(workdir=tmp_path / "missing"), "make one with launch/train.py"),
    (gen(workdir=empty), "neither a workdir of launch/train.py"),
    (gen(quesion="?"), "quesion"),
    (["launch/generate.py", f"--workdir={workdir}"], "image"),
    (["launch/eval.py"], "workdir"),
    (["launch/eval.py", f"--workdir={empty}"], "no checkpoints here"),
  ]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    results = list(pool.map(lambda case: run(*case[0]), cases))
  for result, (_, says) in zip(results, cases, strict=True):
    assert says in one_line(result)
  assert not list(files.glob("gaze*")) and not list(empty.iterdir())


def test_scene_draws_a_canvas_and_asks_about_it(tiny_config_file, tmp_path):
  command = ["launch/scene.py", f"--config={tiny_config_file}"]
  picture = tmp_path / "scene.png"
  code, out, lines = run(*command, f"--out={picture}", "--kind=count")
  assert code == 0, lines
  assert out.startswith("how many ")
  with Image.open(picture) as image:
    assert image.mode == "RGB"
  gone = tmp_path / "gone.png"
  for flag, says in (("--index=999", "has"), ("--kind=who", "questions of")):
    result = run(*command, f"--out={gone}", flag)
    assert says in one_line(result)
  assert not gone.exists()


def train(config_file, workdir, *more):
  return [
    "launch/train.py",
    f"--config={config_file}",
    f"--workdir={workdir}",
    *more,
  ]


def test_errors_of_train(tiny_config_file, tmp_path):
  (tmp_path / "file").write_text("a file in place of a directory")
  bad = tmp_path / "bad.py"
  bad.write_text("def get_config():\n  return dict(train=dict(step=3))")
  new = tmp_path / "new"
  cases = [
    (train(tiny_config_file, new, "--foo=1"), "flag 'foo'"),
    (train(tiny_config_file, new, "steps=3"), "unexpected argument"),
    (train(tmp_path / "no.py", new), "there is no such config file"),
    (train(bad, new), "'train.step'; did you mean 'train.steps'?"),
    (
      train(tiny_config_file, new, "--config.train.step=3"),
      "did you mean 'train.steps'?",
    ),
    (train(tiny_config_file, new, "--config.train.steps=x"), "steps=x"),
    (["launch/train.py", f"--config={tiny_config_file}"], "workdir"),
    (["launch/train.py", f"--workdir={new}"], "needs one --config=FILE"),
    (train(tiny_config_file, tmp_path / "file"), "File exists"),
    (train(tiny_config_file, tmp_path / "file" / "x"), "Not a directory"),
    (train(tiny_config_file, "/proc/gaze"), "/proc/gaze: No such file"),
  ]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    results = list(pool.map(lambda case: run(*case[0]), cases))
  for result, (_, says) in zip(results, cases, strict=True):
    assert says in one_line(result)
  assert not new.exists()


# No file may grow past a size, as on a disk that is full then.
LIMITED = """
import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.parametrize("size", [2_000, 60_000])
def test_a_full_disk(tiny_config_file, tmp_path, size):
  # The features of 12 pictures are 9.7 kB, a checkpoint is past 60 kB.
  workdir = tmp_path / "run"
  # The compilation cache would be limited, too.
  environment = {
    k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k
  }
  text = one_line(
    run("-c", LIMITED, size, *train(tiny_config_file, workdir), env=environment)
  )
  assert "File too large" in text
  assert not list((workdir / "features").glob("*.partial"))
  assert bool(list((workdir / "features").glob("*.npy"))) == (size > 9_700)
  assert not [
    p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()
  ]


def children(pid):
  threads = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
  return [int(c) for path in threads for c in path.read_text().split()]


def test_ctrl_c(tiny_config_file, tmp_path):
  process = start(
    *train(
      tiny_config_file,
      tmp_path,
      "--config.data.workers=1",
      "--config.train.steps=100000",
      "--config.train.save_every=100000",
    )
  )
  log = tmp_path / "metrics.jsonl"
  deadline = time.time() + 200
  while not (log.exists() and log.stat().st_size > 0):
    assert process.poll() is None, process.communicate()
    assert time.time() < deadline
    time.sleep(0.05)
  workers = children(process.pid)
  assert workers
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 130, err
  assert "Traceback" not in err and err.endswith("interrupted\n")
  deadline = time.time() + 10
  while any(pathlib.Path(f"/proc/{w}").exists() for w in workers):
    assert time.time() < deadline
    time.sleep(0.1)
