"""One of the processes of a run: who it is, how it starts, how it ends.

A process learns who it is, in this order, from

1. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which
   launch/local.py sets;
2. what JAX finds by itself: Slurm, Open MPI, a TPU VM, a TPU pod of GKE;
3. nobody: then it is alone.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import time
import types
import warnings
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.extend import backend

from gaze_jax import errors
from gaze_jax.runtime import jax_private
from gaze_jax.runtime import ports

# The exit code of JAX's abort when another process is gone: start all again.
LOST_PEER = 134
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# XLA:CPU runs what a device has to do in a thread for each core. Answering has
# many small programs under way, some of which wait for other devices; with two
# cores all threads would wait, and for each other. Hence so many, and one
# program of a device at a time.
_THREADS = "32"
# Seconds without a sign of life after which JAX takes a process for dead, and
# aborts: of several, JAX's own default. One alone may be stopped and go on.
_HEARTBEAT, _HEARTBEAT_ALONE = 100, 10**8
# How long a process waits for process 0 to report the same error.
_MESSAGE_SECONDS = 3
_SHARE_SECONDS = 60  # for which a wait is not asked anew
_MESSAGE_KEY = "gaze_jax/message"


class ProcessesError(errors.GazeError):
  """The environment does not determine which of how many processes this is."""


@dataclasses.dataclass(frozen=True)
class _Member:
  """Which process of a run this is; `coordinator` is process 0's host:port."""

  process: int
  processes: int
  coordinator: str
  local_devices: list[int] | None  # all that the machine has if None

  @property
  def on_one_machine(self) -> bool:
    host = self.coordinator.rsplit(":", 1)[0]
    return host in ("127.0.0.1", "localhost", "[::1]")

  @property
  def heartbeat(self) -> int:
    return _HEARTBEAT if self.processes > 1 else _HEARTBEAT_ALONE


# What `initialize` found this process to be; None before.
_this: _Member | None = None
_shared = 0  # how often `share` was called


def initialize(timeout: int = 300, *, trains: bool = True) -> None:
  """Joins the processes of a run; call it before anything touches a device.

  Called for one process as well: SIGTERM is a notice of preemption from then
  on (`multihost_utils.reached_preemption_sync_point`) and no longer an end.
  One process, and several on one machine, listen on loopback only.

  Args:
    timeout: seconds to wait for the other processes. If one is missing then,
      JAX aborts the process (exit 134), so who waits for whom is logged before.
    trains: False is for what answers. It leaves one process as it is, which
      starts faster. Several get more threads of XLA on CPU, see `_THREADS`.

  Raises:
    ProcessesError: the environment is incomplete, or contradicts itself.
  """
  global _this
  with contextlib.ExitStack() as stack:
    this = _identify(timeout)
    if this is None and jax_private.CLUSTER is None:
      _this = _join_by_jax(timeout)
      if _this is not None:
        return
    if this is None or this.processes == 1:
      if not trains:
        _this = _Member(0, 1, "", None)
        return
      this = _Member(0, 1, stack.enter_context(ports.hold()), None)
    else:
      others = this.processes - 1
      _log(
        f"process {this.process} of {this.processes} waits for"
        f" {others} other{'s' * (others > 1)} at {this.coordinator}, where"
        f" process 0 listens, for up to {timeout} s"
      )
      sys.excepthook = _leave_after_a_bug
      if not trains:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        os.environ.setdefault("PJRT_NPROC", _THREADS)
    try:
      jax.distributed.initialize(
        this.coordinator,
        this.processes,
        this.process,
        local_device_ids=this.local_devices,
        cluster_detection_method="deactivate",  # it is done
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=this.heartbeat,
        coordinator_bind_address=this.coordinator
        if this.on_one_machine
        else None,
      )
    except jax.errors.JaxRuntimeError as error:
      raise ProcessesError(
        f"process 0 cannot listen at {this.coordinator}: {error}; is another"
        " run on that port? JAX_COORDINATOR_ADDRESS names one"
      ) from error
  _this = this
  _set_collectives(this)


def count() -> int:
  """How many processes there are; touches no device."""
  return _this_process().processes


def is_first() -> bool:
  """Whether this is process 0, which prints and writes for all."""
  return _this_process().process == 0


def share(text: str | None) -> str | None:
  """What process 0 has, for all of them; each must call it as often.

  Process 0 may take as long as it likes, such as for somebody to type.

  Args:
    text: of process 0; others' is ignored.
  """
  global _shared
  if count() == 1:
    return text
  key, _shared = f"gaze_jax/shared/{_shared}", _shared + 1
  if (client := _client()) is None:
    return _broadcast(text)
  if is_first():
    client.key_value_set(key, json.dumps(text))
    return text
  while True:
    try:
      return json.loads(
        client.blocking_key_value_get(key, _SHARE_SECONDS * 1000)
      )
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise


def _broadcast(text: str | None) -> str | None:
  """`share` by a collective, which may have a limit of time of its own."""
  sent = np.frombuffer(json.dumps(text).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(sent.size)))
  sent = sent if is_first() else np.zeros(size, np.uint8)
  return json.loads(
    bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)))
  )


def leave(what: str | int) -> NoReturn:
  """`sys.exit` for one of several processes: it waits for no other.

  JAX's way out is a barrier, and those that wait for this process in the
  middle of a step never come to it. An error that process 0 has too is printed
  by it alone; one that only another has comes with that one's number.

  Args:
    what: an exit code, or a message for stderr and exit code 1.
  """
  this = _this_process()
  if this.processes == 1:
    sys.exit(what)
  if isinstance(what, str):
    if this.process == 0:
      _log(what)
      _publish(what)
    elif not _process_0_published(what):
      _log(f"process {this.process}: {what}")
  sys.stdout.flush()
  sys.stderr.flush()
  for child in multiprocessing.active_children():
    child.terminate()
  os._exit(1 if isinstance(what, str) else what)


def _this_process() -> _Member:
  """Which process this is, before `initialize` as well."""
  found = _this
  if found is None:
    with contextlib.suppress(ProcessesError):  # it is about to be raised
      found = _identify(timeout=1)
  return found or _Member(0, 1, "", None)


def _identify(timeout: int) -> _Member | None:
  """Which process this is; None if nothing names others."""
  coordinator = os.environ.get(_VARIABLES[0])
  processes, process = (_integer(v) for v in _VARIABLES[1:])
  text = os.environ.get("JAX_LOCAL_DEVICE_IDS")
  devices = [int(d) for d in text.split(",")] if text else None
  found = (coordinator, processes, process)
  if None in found:
    *found, devices = _ask_cluster((*found, devices), timeout)
  if not any(v is not None for v in found):
    return None
  missing = [n for n, v in zip(_VARIABLES, found, strict=True) if v is None]
  if missing:
    raise ProcessesError(
      f"which process of how many is this? {', '.join(missing)} not set; set"
      f" {', '.join(_VARIABLES)}, or none of them for a single process"
    )
  coordinator, processes, process = found
  if not 0 <= process < processes:
    raise ProcessesError(
      f"JAX_PROCESS_ID is {process}: of {processes} processes"
      f" (JAX_NUM_PROCESSES) it is 0 to {processes - 1}"
    )
  return _Member(process, processes, coordinator, devices)


def _integer(name: str) -> int | None:
  text = os.environ.get(name)
  if text is None or text.isdecimal():
    return text and int(text)
  raise ProcessesError(f"{name} is {text!r}: give a whole number")


def _ask_cluster(known: tuple, timeout: int) -> tuple:
  """Completes what is known by the cluster, if this is one that JAX knows."""
  if jax_private.CLUSTER is None:
    return known
  with warnings.catch_warnings():
    # In Kubernetes JAX asks for a package; what it would find is checked below.
    warnings.simplefilter("ignore")
    try:
      found = jax_private.CLUSTER.auto_detect_unset_distributed_params(
        *known, None, timeout
      )
    except Exception as error:  # whatever a cluster's services answer
      raise ProcessesError(
        f"cannot tell which process this is: {error}; set"
        f" {', '.join(_VARIABLES)}"
      ) from error
  if None in found[:3]:
    _refuse_a_pod()
  return found


def _join_by_jax(timeout: int) -> _Member | None:
  """JAX finds and joins the others itself, and nothing is logged before."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # as above
      jax.distributed.initialize(initialization_timeout=timeout)
  except ValueError:  # it knows no such cluster
    _refuse_a_pod()
    return None
  sys.excepthook = _leave_after_a_bug
  return _Member(jax.process_index(), jax.process_count(), "", None)


def _refuse_a_pod() -> None:
  if "JOB_COMPLETION_INDEX" in os.environ:
    raise ProcessesError(
      "a pod of an indexed Job: which process of how many? set"
      f" {', '.join(_VARIABLES)}"
    )


def _set_collectives(this: _Member) -> None:
  """Keeps what carries data between processes on CPU off the network.

  JAX has it listen wherever the machine's name leads, and fails if it leads
  nowhere; nobody else is there if all processes are on one machine. A JAX whose
  private names are others is left to that.
  """
  make_client, make_gloo = jax_private.MAKE_CPU_CLIENT, jax_private.MAKE_GLOO
  if this.processes == 1:
    jax.config.update("jax_cpu_collectives_implementation", None)
  elif this.on_one_machine and None not in (_client(), make_client, make_gloo):
    make = lambda: make_client(
      make_gloo(distributed_client=_client(), hostname="127.0.0.1")
    )
    backend.register_backend_factory("cpu", make, fail_quietly=False)


def _client() -> Any | None:
  """JAX's client of process 0's table; None before it, or out of reach."""
  return getattr(jax_private.STATE, "client", None)


def _publish(message: str) -> None:
  """Shares what process 0 has logged, and gives the others time to ask."""
  if client := _client():
    client.key_value_set(_MESSAGE_KEY, message)
  if jax.distributed.is_initialized():
    time.sleep(_MESSAGE_SECONDS)  # they abort when process 0 goes


def _process_0_published(message: str) -> bool:
  """Whether process 0 has logged the same."""
  client = _client()
  if client is None:
    if not jax.distributed.is_initialized():
      time.sleep(_MESSAGE_SECONDS)  # a launcher ends it if process 0 fails too
    return False
  try:
    found = client.blocking_key_value_get(_MESSAGE_KEY, _MESSAGE_SECONDS * 1000)
  except jax.errors.JaxRuntimeError:  # it has logged nothing
    return False
  return found == message


def _leave_after_a_bug(
  kind: type[BaseException],
  error: BaseException,
  trace: types.TracebackType | None,
) -> None:
  """Python's hook for what nobody caught, in one of several processes."""
  if _is_lost_peer(error):
    _log(f"process {_this_process().process}: another process is gone: {error}")
    leave(LOST_PEER)
  sys.__excepthook__(kind, error, trace)
  leave(1)


def _is_lost_peer(error: BaseException) -> bool:
  """Whether a collective failed; that has no exception of its own."""
  words = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
  return isinstance(error, RuntimeError | ValueError) and any(
    word in str(error) for word in words
  )


def _log(line: str) -> None:
  """A line to stderr in one piece: other processes write there too."""
  sys.stderr.write(f"{line}\n")
  sys.stderr.flush()
