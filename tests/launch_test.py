"""The commands of launch/ as a user runs them, above all when they fail."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from gaze_jax.demo import emoji_scenes
from gaze_jax.tasks import media
from gaze_jax.tasks import registry
from gaze_jax.tasks import results
from gaze_jax.tasks import task as task_lib
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
  shots = [
    Image.fromarray(np.full((70, 80, 3), n, np.uint8)) for n in (99, 9, 200)
  ]
  shots[0].save(folder / "ok.png")
  shots[1].save(folder / "other.png")
  shots[0].save(folder / "film.gif", save_all=True, append_images=shots[1:])
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
  given = {k: v for k, v in values.items() if v is not None}
  return ["launch/generate.py", *(f"--{k}={v}" for k, v in given.items())]


def test_generate_answers_and_draws(workdir, files):
  names = dict(out="a.png", animation="a.webp", html="a.html", json="a.json")
  names = {flag: files / name for flag, name in names.items()}
  code, out, lines = run(
    *generate(workdir, files, layers="0,1", heads="3", share=0.25, **names),
    *(f"--image={files}/ok.png,{files}/other.png", f"--video={files}/film.gif"),
    *("--frames=2", "--stop=\a", "--stop=\b"),
  )
  assert code == 0, lines
  # Two images and two of the three frames, in 9 regions each.
  for words in ("visual tokens                100", "MiB", "decode step"):
    assert words in out
  for name in names.values():
    assert f"wrote {name}\n" in out
  with Image.open(names["out"]) as page:
    assert page.width >= 300
  with Image.open(names["animation"]) as page:
    assert page.format == "WEBP"
  assert "What is at the top?" in names["html"].read_text()
  told = json.loads(names["json"].read_text())
  assert (told["budget"], told["regions"]) == (9, 36)
  assert told["accounting"]["visual_tokens"] == 100
  assert out.startswith(told["answer"])


@pytest.mark.nightly
def test_generate_without_an_image_or_a_picture(workdir, files, tmp_path):
  before = sorted(files.iterdir())
  # Longer than data.sequence_length, which is training's alone.
  asked = generate(workdir, files, image=None, out="", question="what " * 90)
  code, out, lines = run(
    *(*asked, "--temperature=0.5", "--top_p=0.9", "--seed=3"),
    f"--profile={tmp_path}/trace",
  )
  assert code == 0, lines
  (file,) = (tmp_path / "trace").glob("plugins/profile/*/*.xplane.pb")
  assert file.stat().st_size > 0
  assert "visual tokens                0\n" in out and "wrote" not in out
  assert sorted(files.iterdir()) == before


def chat(trained, *more):
  return ["launch/chat.py", f"--workdir={trained}", *more]


@pytest.mark.nightly
def test_chat_talks_line_by_line(workdir, files, tmp_path):
  script = f"""
    what is it?
    /cost
    /image {files}/other.png
    and now?
    /html {tmp_path}/page.html
    /keep {tmp_path}/kept
    /new
    /cost
    /load {tmp_path}/kept
    go on
    /image {files}/no.png
    /sing
    /help
  """
  process = start(
    *chat(workdir, f"--image={files}/ok.png", "--max_tokens=3", "--top_k=1"),
    stdin=subprocess.PIPE,
  )
  out, err = process.communicate(script, timeout=300)
  assert process.returncode == 0 and "Traceback" not in err, err
  first, rest = out.split("visual tokens", 1)
  assert first.endswith("[length]\n") and rest.split()[0] == "25"
  assert out.count("[length]\n") == 3
  assert out.count("error: ") == 3
  for words in ("nothing was answered yet", "no.png: no such file", "/sing is"):
    assert words in out
  assert out.endswith("Ctrl-C ends an answer\n")
  assert "and now?" in (tmp_path / "page.html").read_text()
  assert (tmp_path / "kept" / "view-001.png").is_file()


def read_until(stream, end):
  """What a program says, up to and with `end`."""
  text = ""
  while not text.endswith(end):
    character = stream.read(1)
    assert character, text
    text += character
  return text


@pytest.mark.nightly
def test_ctrl_c_ends_an_answer_and_at_the_prompt_the_chat(workdir, tmp_path):
  # Somebody types: the answers are long, and one is waited for.
  ours, theirs = os.openpty()
  process = start(
    *chat(workdir, "--afresh", "--max_tokens=20000", "--temperature=0.7"),
    stdin=theirs,
  )
  late = threading.Timer(200, process.kill)
  late.start()
  assert read_until(process.stdout, "> ") == "> "
  os.write(ours, b"tell me all\n")
  said = process.stdout.read(1)
  process.send_signal(signal.SIGINT)
  said += read_until(process.stdout, "\n> ")
  assert said.endswith("  [interrupted]\n> ")
  # It goes on: another answer begins, and ends in the same way.
  os.write(ours, b"and then?\n")
  process.stdout.read(1)
  process.send_signal(signal.SIGINT)
  assert "[interrupted]" in read_until(process.stdout, "\n> ")
  # Its question was the first, as asked by --afresh.
  os.write(ours, f"/keep {tmp_path}/kept\n".encode())
  assert read_until(process.stdout, "> ") == "> "
  kept = json.loads((tmp_path / "kept" / "context.json").read_text())
  (role, asked), (answered, _) = kept["talk"]
  assert (role, answered) == ("user", "assistant")
  assert asked[0][1] == "and then?"
  time.sleep(1)  # python forgets a signal that comes just before it reads
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  late.cancel()
  os.close(ours), os.close(theirs)
  assert process.returncode == 130
  assert err == "interrupted\n"


@pytest.mark.nightly
def test_eval_writes_its_reports(workdir, tmp_path):
  code, out, lines = run(
    *("launch/eval.py", f"--workdir={workdir}", f"--json={tmp_path}/r.json"),
    f"--markdown={tmp_path}/r.md",
  )
  assert code == 0, lines
  assert (tmp_path / "r.json").stat().st_size > 1000
  assert "| gaze |" in (tmp_path / "r.md").read_text()
  assert "| gaze |" in out


@pytest.mark.nightly
def test_errors_of_generate_and_eval(workdir, files, tmp_path):
  empty = tmp_path / "empty"
  empty.mkdir()
  gen = lambda **k: generate(workdir, files, **k)
  cases = [
    (gen(image=files / "no.png"), "no.png: no such file"),
    (gen(image=files / "corrupt.png"), "corrupt.png: not an image file"),
    (gen(question=" "), "the question is empty"),
    (gen(max_tokens=32_768), "the limit is 32768; shorten the text"),
    (gen(layers="0,7"), "no layer 7: the model has layers 0 to 1"),
    (gen(heads="x"), "--heads=x: give whole numbers"),
    (gen(out=files / "gaze.foo"), ".foo is not a format of pictures"),
    (gen(out=files / "nowhere" / "gaze.png"), "there is no folder"),
    (gen(animation=files / "gaze.png"), ".png is not a format of animations"),
    (gen(html=files / "gaze.txt"), "gaze.txt: the viewer is a page"),
    (gen(video=files / "ok.png"), "ok.png: "),
    (gen(share=1.5), "share"),
    (gen(share=0.5, top_k=1), "give top_k or share, not both"),
    (gen(top_k=-1), "top_k"),
    (gen(max_tokens=0), "max_tokens"),
    (gen(workdir=tmp_path / "missing"), "make one with launch/train.py"),
    (gen(workdir=empty), "neither a workdir of launch/train.py"),
    (gen(quesion="?"), "quesion"),
    (["launch/generate.py", f"--workdir={workdir}"], "question"),
    (chat(empty), "neither a workdir of launch/train.py"),
    (chat(workdir, f"--image={files}/no.png"), "no.png: no such file"),
    (gen(dtype="float16"), "float16"),
    (gen(**{"parallel.tensor": 0}), "parallel.tensor = 0 is below 1"),
    (gen(**{"parallel.tensor": 2}), "2 does not divide 1; choose fsdp"),
    (chat(workdir, "--parallel.fsdp=2"), "2 does not divide 1; choose fsdp"),
    (
      ["launch/eval.py", f"--workdir={workdir}", "--parallel.fsdp=2"],
      "2 does not divide 1; choose fsdp",
    ),
    (["launch/eval.py"], "workdir"),
    (["launch/eval.py", f"--workdir={empty}"], "no checkpoints here"),
  ]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    results = list(pool.map(lambda case: run(*case[0]), cases))
  for result, (_, says) in zip(results, cases, strict=True):
    assert says in one_line(result)
  assert not list(files.glob("gaze*")) and not list(empty.iterdir())


@pytest.mark.nightly
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
  assert "give --out=FILE, or --all=DIR" in one_line(run(*command))


@pytest.mark.nightly
def test_all_scenes_are_a_task(tiny_config, tiny_config_file, tmp_path):
  command = ["launch/scene.py", f"--config={tiny_config_file}"]
  code, out, lines = run(*command, f"--all={tmp_path / 'emoji_scenes'}")
  assert code == 0, lines
  source = emoji_scenes.SOURCE.make(tiny_config(), "new")
  task = registry.TASKS["emoji_scenes"]
  items = {item.id: item for item in task_lib.items(task, str(tmp_path))}
  assert f"wrote {len(items)} questions about {len(source)} pictures" in out
  for index in range(len(source)):
    sample = source.sample(index)
    for number, question in enumerate(sample.questions):
      item = items.pop(f"{index} {number}")
      assert task.prompt(item.fields) == question.text
      assert item.fields["kind"] == question.kind
      verdict = results.verdict(task, item, question.answer, "default")
      assert verdict.value == 1
      shown = media.picture(item.images[0], 2**20)
      np.testing.assert_array_equal(shown, sample.images[0])
  assert not items


def train(config_file, workdir, *more):
  return [
    "launch/train.py",
    f"--config={config_file}",
    f"--workdir={workdir}",
    *more,
  ]


# Of launch/train.py: its flags, and what its one line says.
ERRORS = {
  "flag": ("--config={good} --workdir={new} --foo=1", "flag 'foo'"),
  "key": (
    "--config={bad} --workdir={new}",
    "'train.step'; did you mean 'train.steps'?",
  ),
  "folder": ("--config={good} --workdir={file}/x", "Not a directory"),
  "argument": (
    "--config={good} --workdir={new} steps=3",
    "unexpected argument",
  ),
  "no file": (
    "--config={new}.py --workdir={new}",
    "there is no such config file",
  ),
  "flag's key": (
    "--config={good} --workdir={new} --config.train.step=3",
    "did you mean 'train.steps'?",
  ),
  "value": (
    "--config={good} --workdir={new} --config.train.steps=x",
    "steps=x",
  ),
  "no workdir": ("--config={good}", "workdir"),
  "no config": ("--workdir={new}", "needs one --config=FILE"),
  "a file": ("--config={good} --workdir={file}", "File exists"),
  "not there": (
    "--config={good} --workdir=/proc/gaze",
    "/proc/gaze: No such file",
  ),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_train(tiny_config_file, tmp_path, name):
  bad, file, new = (tmp_path / part for part in ("bad.py", "file", "new"))
  bad.write_text("def get_config():\n  return dict(train=dict(step=3))")
  file.write_text("a file in place of a directory")
  flags, says = ERRORS[name]
  flags = flags.format(good=tiny_config_file, bad=bad, file=file, new=new)
  assert says in one_line(run("launch/train.py", *flags.split()))
  assert not new.exists()


@pytest.mark.nightly
def test_a_mistake_of_two_processes_is_told_once(tiny_config_file):
  two = ("launch/local.py", "--processes=2", "--devices=1", "--")
  code, _, lines = run(
    *two, sys.executable, *train(tiny_config_file, "/proc/x")
  )
  assert code == 1 and sum("waits for 1 other" in x for x in lines) == 2
  assert [x for x in lines if "error" in x] == [
    "error: /proc/x: No such file or directory"
  ]


# No file may grow past a size, as on a disk that is full then.
LIMITED = """
import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.nightly
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


@pytest.mark.nightly
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
