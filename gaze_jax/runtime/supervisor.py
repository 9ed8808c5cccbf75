"""Processes on this machine: started, watched, ended, started again."""

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

from gaze_jax import errors
from gaze_jax.runtime import ports

# Exit codes of who was killed or lost a peer, as a shell gives them.
_LOST_CODES = {
  128 + number
  for number in (
    signal.SIGABRT,  # JAX: another process is gone
    signal.SIGKILL,
    signal.SIGSEGV,
    signal.SIGBUS,
  )
}
_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 0.5  # for others that end of the same cause
_GRACE_SECONDS = 10  # for others to end too, once asked to
_LONGEST_PAUSE_SECONDS = 60


class CommandError(errors.GazeError):
  """There is nothing that could be run."""


@dataclasses.dataclass(frozen=True)
class Job:
  """What to run, and what to do when it ends.

  Attributes:
    command: the program and its arguments, the same for all processes.
    processes: how many; None is one, as the environment says.
    devices: fake CPU devices of each; None leaves the real ones, of which
      several processes get one each.
    restarts: how often all are started again, at most.
    stopped_code: exit code if all end well after a SIGTERM.
  """

  command: tuple[str, ...]
  processes: int | None = None
  devices: int | None = None
  restarts: int = 3
  stopped_code: int = 0

  def __post_init__(self):
    if not self.command:
      raise CommandError(
        "nothing to run: give a command after --, such as -- python"
        " launch/train.py --config=configs/emoji_tiny.py --workdir=out/run"
      )


def environments(job: Job, address: str) -> list[dict[str, str]]:
  """What is set for each process, beside what is set here already."""
  shared = {}
  if job.devices is not None:
    flag = f"--xla_force_host_platform_device_count={job.devices}"
    shared["JAX_PLATFORMS"] = "cpu"
    shared["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
  if job.processes is None:
    return [shared]
  shared["JAX_COORDINATOR_ADDRESS"] = address
  shared["JAX_NUM_PROCESSES"] = str(job.processes)
  out = [shared | {"JAX_PROCESS_ID": str(n)} for n in range(job.processes)]
  if job.devices is None and job.processes > 1:
    for n, environment in enumerate(out):
      environment["JAX_LOCAL_DEVICE_IDS"] = str(n)
  return out


def describe(job: Job) -> str:
  """What would be run, a line for each process, as a shell takes it."""
  with ports.hold() as address:
    lines = [
      shlex.join(["env", *(f"{k}={v}" for k, v in e.items()), *job.command])
      for e in environments(job, address)
    ]
  return "\n".join(lines)


def run(job: Job) -> int:
  """Runs all processes to their end; returns the exit code.

  When one is killed, or aborts because another is gone, all are ended and
  started again. When one fails otherwise, all are ended, and its code is
  returned. SIGTERM and SIGINT are passed on. No process is left behind,
  however this one ends.
  """
  with _Signals() as signals:
    for restart in range(job.restarts + 1):
      with _started(job) as processes:
        signals.pass_on(processes)
        code = _wait(processes, signals)
      if signals.received:
        term = signal.SIGTERM in signals.received
        return job.stopped_code if term and code == 0 else code
      if code not in _LOST_CODES:
        return code
      if restart == job.restarts:
        break
      pause = min(2**restart, _LONGEST_PAUSE_SECONDS)
      _log(
        f"a process was lost (exit {code}); all start again in {pause} s,"
        f" {restart + 1} of at most {job.restarts} times"
      )
      if signals.wait(pause):
        return 128 + signals.received[0]
  _log(f"a process was lost (exit {code}), after {job.restarts} restarts")
  return code


class _Signals:
  """Passes SIGTERM and SIGINT on to the processes instead of dying of them."""

  def __init__(self):
    self.received: list[int] = []
    self._processes: list[subprocess.Popen] = []

  def __enter__(self) -> "_Signals":
    self._before = {
      number: signal.signal(number, self._handle)
      for number in (signal.SIGINT, signal.SIGTERM)
    }
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def pass_on(self, processes: list[subprocess.Popen]) -> None:
    """From now on to these, beginning with what came while they started."""
    self._processes = processes
    for number in self.received:
      self._send(number)

  def wait(self, seconds: float) -> bool:
    """Whether a signal came within that time; returns when it does."""
    end = time.monotonic() + seconds
    while not self.received and time.monotonic() < end:
      time.sleep(_POLL_SECONDS)
    return bool(self.received)

  def _handle(self, number: int, _) -> None:
    self.received.append(number)
    self._send(number)

  def _send(self, number: int) -> None:
    for process in self._processes:
      process.send_signal(number)


@contextlib.contextmanager
def _started(job: Job) -> Iterator[list[subprocess.Popen]]:
  """All processes, and whatever they start, in one process group.

  Its leader waits at a pipe that this process alone holds open. However this
  process ends, the pipe ends with it, and the leader kills the group.
  """
  processes: list[subprocess.Popen] = []
  copiers: list[threading.Thread] = []
  with ports.hold() as address:
    leader = subprocess.Popen(
      ["sh", "-c", "read -r _; kill -KILL 0"],
      stdin=subprocess.PIPE,
      process_group=0,
    )
    try:
      for environment in environments(job, address):
        processes.append(_start(job, environment, leader, copiers))
      yield processes
    finally:
      os.killpg(leader.pid, signal.SIGKILL)
      for process in (leader, *processes):
        process.wait()
      for copier in copiers:
        copier.join(timeout=1)  # a process that left the group may hold it


def _start(
  job: Job,
  environment: dict[str, str],
  leader: subprocess.Popen,
  copiers: list[threading.Thread],
) -> subprocess.Popen:
  """Starts a process; a thread copies what any but the first prints."""
  number = environment.get("JAX_PROCESS_ID", "0")
  quiet = {}
  if number != "0":
    quiet = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  try:
    process = subprocess.Popen(
      job.command,
      env=os.environ | environment,
      stdin=subprocess.DEVNULL,
      process_group=leader.pid,
      **quiet,
    )
  except OSError as error:
    raise CommandError(f"{job.command[0]}: {error.strerror}") from None
  if quiet:
    copiers.append(
      threading.Thread(
        target=_copy_lines, args=(number, process.stdout), daemon=True
      )
    )
    copiers[-1].start()
  return process


def _copy_lines(number: str, pipe: BinaryIO) -> None:
  """Lines of a process to stderr, each after its number."""
  with pipe:
    for line in pipe:
      with contextlib.suppress(OSError):  # nobody reads: it must not block
        sys.stderr.buffer.write(b"[%s] %s" % (number.encode(), line))
        sys.stderr.buffer.flush()


def _wait(processes: list[subprocess.Popen], signals: _Signals) -> int:
  """Waits until all have ended well, or one has not; returns its exit code."""
  deadline = None
  while True:
    codes = [process.poll() for process in processes]
    failed = [c if c > 0 else 128 - c for c in codes if c]
    if None not in codes or (deadline and time.monotonic() > deadline):
      return _explaining_code(failed)
    if failed and deadline is None:
      grace = _GRACE_SECONDS if signals.received else _SETTLE_SECONDS
      deadline = time.monotonic() + grace
    time.sleep(_POLL_SECONDS)


def _explaining_code(failed: list[int]) -> int:
  """The exit code that explains the others.

  A process that was killed takes the others with it, and so does a mistake;
  an abort is how the others go then.
  """
  killed = [c for c in failed if c in _LOST_CODES and c != 128 + signal.SIGABRT]
  mistakes = [c for c in failed if c not in _LOST_CODES]
  return (killed or mistakes or failed or [0])[0]


def _log(text: str) -> None:
  sys.stderr.write(f"local.py: {text}\n")
  sys.stderr.flush()
