"""launch/serve.py as a user runs it: it starts, serves, and ends with 0."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import httpx2
import pytest

from gaze_jax.train import loop

ROOT = pathlib.Path(__file__).parents[2]
ASK = dict(
  model="gaze",
  temperature=0,
  messages=[dict(role="user", content="what is at the top?")],
)


@pytest.fixture(scope="module")
def workdir(tiny_config, tmp_path_factory):
  out = tmp_path_factory.mktemp("serve") / "run"
  loop.train(tiny_config(train__steps=2), out)
  return out


def start(*flags, **options):
  return subprocess.Popen(
    [sys.executable, "launch/serve.py", *flags],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def test_it_finishes_what_runs_and_ends_with_0(workdir):
  process = start(f"--workdir={workdir}", "--port=0", "--most_tokens=600")
  url = process.stdout.readline().strip()
  assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url), process.stderr.read()
  got = {}

  def ask():
    body = ASK | dict(max_tokens=600, logit_bias={})
    got["answer"] = httpx2.post(
      f"{url}/v1/chat/completions", json=body, timeout=120
    )

  with httpx2.Client(base_url=url) as idle:
    assert idle.get("/health").status_code == 200
    asking = threading.Thread(target=ask)
    asking.start()
    until_live(idle)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    asking.join()
  assert got["answer"].status_code == 200
  choice = got["answer"].json()["choices"][0]
  assert choice["finish_reason"] in ("stop", "length")
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert "Traceback" not in err
  assert "POST '/v1/chat/completions' 200" in err


def until_live(client):
  end = time.monotonic() + 60
  while "gaze_live_requests 1.0" not in client.get("/metrics").text:
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.mark.parametrize(
  "flags, says",
  [
    (["--host=0.0.0.0"], "a key is needed"),
    (["--api_key_file=/nowhere"], "--api_key_file=/nowhere: there is no such"),
    (["--host=not a host", "--api_key_file=KEY"], "--host=not a host"),
  ],
)
@pytest.mark.few(1)
def test_what_cannot_be_served_is_one_line(workdir, tmp_path, flags, says):
  key = tmp_path / "key"
  key.write_text("a-key-of-some-length")
  flags = [flag.replace("KEY", str(key)) for flag in flags]
  process = start(f"--workdir={workdir}", *flags, env=os.environ | {})
  out, err = process.communicate(timeout=120)
  (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
  assert process.returncode == 1 and says in line and "Traceback" not in err
