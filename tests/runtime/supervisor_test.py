"""Processes on one machine, as launch/local.py starts and watches them."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
LOCAL = ["launch/local.py", "--processes=2"]


def start(*arguments, **variables):
  return subprocess.Popen(
    [sys.executable, *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | variables,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(*arguments, **variables):
  process = start(*arguments, **variables)
  out, err = process.communicate(timeout=60)
  return process.returncode, out, err


def shell(script, log):
  """A command for each process; $log is a file and $n the process."""
  return ["--", "sh", "-c", f"log={log} n=$JAX_PROCESS_ID; {script}"]


def until(done):
  deadline = time.time() + 20
  while not done():
    assert time.time() < deadline
    time.sleep(0.02)


def lines(path):
  return path.read_text().splitlines() if path.exists() else []


def gone(pid):
  """Whether a process has ended, or is only a name that nobody asked for."""
  try:
    return " Z " in pathlib.Path(f"/proc/{pid}/stat").read_text()
  except FileNotFoundError:
    return True


def test_dry_run_prints_what_a_shell_takes_and_starts_nothing(tmp_path):
  made = tmp_path / "made"
  code, out, err = run(
    *LOCAL,
    *("--devices=2", "--dry-run", "--", "touch", made, "it's two words"),
    XLA_FLAGS="--xla_one=1",
  )
  assert (code, err) == (0, "") and not made.exists()
  shown = out.replace(str(made), "FILE")
  shown = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", shown)
  golden = ROOT / "tests" / "golden" / "local.txt"
  assert shown == golden.read_text()
  # Without fake devices each process gets one of the real ones.
  code, out, _ = run(*LOCAL, "--dry-run", "--", "true")
  assert [x.split()[-2] for x in out.splitlines()] == [
    "JAX_LOCAL_DEVICE_IDS=0",
    "JAX_LOCAL_DEVICE_IDS=1",
  ]
  assert run("launch/local.py", "--dry-run", "--", "true")[1] == "env true\n"


def test_what_they_say_and_how_all_end_well(tmp_path):
  code, out, err = run(
    *LOCAL, *shell('echo "out $n"; echo "err $n" >&2', tmp_path)
  )
  assert (code, out) == (0, "out 0\n")
  assert sorted(err.splitlines()) == ["[1] err 1", "[1] out 1", "err 0"]


@pytest.mark.parametrize(
  "script, expected",
  [
    ("[ $n = 0 ] || exit 2; sleep 60", 2),
    # A mistake, and the other one's abort for want of a peer.
    ("[ $n = 1 ] || exit 1; kill -ABRT $$", 1),
    ("kill -TERM $$", 143),
  ],
)
def test_a_mistake_ends_all_and_is_not_repeated(tmp_path, script, expected):
  log = tmp_path / "log"
  code, _, err = run(*LOCAL, *shell(f"echo $n >> $log; {script}", log))
  assert (code, sorted(lines(log))) == (expected, ["0", "1"])
  assert err == ""


@pytest.mark.few(1)
@pytest.mark.parametrize("how", ["kill -KILL $$", "exit 134"])
def test_a_lost_process_starts_all_again(tmp_path, how):
  log = tmp_path / "log"
  once = f'[ $n = 0 ] || [ "$(grep -c ^1 $log)" = 2 ] || {how}'
  code, _, err = run(
    *LOCAL,
    *shell(f"echo $n >> $log; sleep 0.3; {once}", log),
  )
  assert code == 0
  assert sorted(lines(log)) == ["0", "0", "1", "1"]
  assert re.fullmatch(
    r"local.py: a process was lost \(exit 13[47]\); all start again in 1 s,"
    r" 1 of at most 3 times\n",
    err,
  )


def test_no_more_restarts_than_allowed(tmp_path):
  log = tmp_path / "log"
  # The other one fails as a consequence: a kill is the cause of it.
  script = "echo $n >> $log; [ $n = 0 ] || kill -KILL $$; sleep 0.2; exit 1"
  code, _, err = run(*LOCAL, "--restarts=1", *shell(script, log))
  assert (code, sorted(lines(log))) == (137, ["0", "0", "1", "1"])
  assert err.count("local.py: ") == 2 and err.endswith("after 1 restarts\n")


WAITS = """
  trap 'echo $n told >> $log; exit 0' TERM
  trap 'exit 130' INT
  echo $n >> $log
  while :; do sleep 0.02; done
"""


@pytest.mark.few(1)
@pytest.mark.parametrize(
  "number, stopped_code, expected",
  [
    (signal.SIGTERM, 0, 0),
    (signal.SIGTERM, 143, 143),
    (signal.SIGINT, 143, 130),
  ],
)
def test_signals_reach_all(tmp_path, number, stopped_code, expected):
  log = tmp_path / "log"
  process = start(*LOCAL, f"--stopped_code={stopped_code}", *shell(WAITS, log))
  until(lambda: len(lines(log)) == 2)
  process.send_signal(number)
  _, err = process.communicate(timeout=30)
  assert (process.returncode, err) == (expected, "")
  told = ["0 told", "1 told"] if number == signal.SIGTERM else []
  assert sorted(lines(log)) == sorted(["0", "1", *told])


@pytest.mark.few(1)
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_no_process_is_left_behind(tmp_path, how):
  log = tmp_path / "log"
  script = "trap '' TERM INT; sleep 1000 & echo $$ $! >> $log; wait; wait"
  process = start(
    *LOCAL, *shell(f"[ -e {tmp_path}/fail ] && exit 3; {script}", log)
  )
  until(lambda: len(lines(log)) == 2)
  pids = [pid for line in lines(log) for pid in line.split()]
  assert len(pids) == 4 and not any(gone(p) for p in pids)
  if how == "killed":
    process.kill()
  else:  # a child, from outside; and none of them listens to anybody
    os.kill(int(pids[0]), signal.SIGKILL)
    (tmp_path / "fail").touch()
  process.communicate(timeout=30)
  until(lambda: all(gone(p) for p in pids))


def test_mistakes_in_the_command():
  code, _, err = run("launch/local.py")
  assert code == 1 and err.startswith("error: nothing to run: give a command")
  code, _, err = run(*LOCAL, "--", "no-such-program")
  assert (code, err) == (
    1,
    "error: no-such-program: No such file or directory\n",
  )
  code, _, err = run("launch/local.py", "--processes=0", "--", "true")
  assert code == 1 and "processes" in err and err.count("\n") == 1
