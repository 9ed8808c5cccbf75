"""One of the processes of a run: who it is, how it starts, how it ends.

A process learns who it is, in this order, from

1. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which
   launch/local.py sets;
2. what JAX finds by itself: Slurm, Open MPI, a TPU VM, a TPU pod of GKE;
3. nobody: then it is alone.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import sys
import time
import types
import warnings
from typing import Any, NoReturn

import jax
from jax.extend import backend

from gaze_jax import errors
from gaze_jax.runtime import ports
from gaze_jax.runtime import private

# The exit code of JAX's abort when another process is gone: start all again.
LOST = 134
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# How long a process waits for process 0 to say the same, in seconds.
_PATIENCE = 3
_MESSAGE_KEY = "gaze_jax/message"


class ProcessesError(errors.GazeError):
  """The environment does not say which of how many processes this is."""


@dataclasses.dataclass(frozen=True)
class _Place:
  """Who a process is; `coordinator` is process 0's host:port."""

  process: int
  processes: int
  coordinator: str
  local_devices: list[int] | None  # all that the machine has if None

  @property
  def one_machine(self) -> bool:
    host = self.coordinator.rsplit(":", 1)[0]
    return host in ("127.0.0.1", "localhost", "[::1]")


# What `initialize` found this process to be; None before.
_joined: _Place | None = None


def initialize(timeout: int = 300) -> None:
  """Joins the processes of a run; call it before anything touches a device.

  Called for one process as well: SIGTERM is a notice of preemption from then
  on (`multihost_utils.reached_preemption_sync_point`) and no longer an end.
  One process, and several on one machine, listen on loopback only.

  Args:
    timeout: seconds to wait for the other processes. If one is missing then,
      JAX aborts the process (exit 134), so who waits for whom is said before.

  Raises:
    ProcessesError: the environment says half of it, or contradicts itself.
  """
  global _joined
  with contextlib.ExitStack() as stack:
    place = _find(timeout)
    if place is None and private.CLUSTER is None:
      _joined = _left_to_jax(timeout)
      if _joined is not None:
        return
    if place is None or place.processes == 1:
      place = _Place(0, 1, stack.enter_context(ports.hold()), None)
    else:
      others = place.processes - 1
      _say(
        f"process {place.process} of {place.processes} waits for"
        f" {others} other{'s' * (others > 1)} at {place.coordinator}, where"
        f" process 0 listens, for up to {timeout} s"
      )
      sys.excepthook = _leave_after_a_bug
    try:
      jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",  # it is done
        initialization_timeout=timeout,
        coordinator_bind_address=place.coordinator
        if place.one_machine
        else None,
      )
    except jax.errors.JaxRuntimeError as error:
      raise ProcessesError(
        f"process 0 cannot listen at {place.coordinator}: {error}; is another"
        " run on that port? JAX_COORDINATOR_ADDRESS names one"
      ) from error
  _joined = place
  _set_collectives(place)


def leave(what: str | int) -> NoReturn:
  """`sys.exit` for one of several processes: it waits for no other.

  JAX's way out is a barrier, and those that wait for this process in the
  middle of a step never come to it. What process 0 says too, it says alone;
  what only another has to say comes with its number.

  Args:
    what: an exit code, or a message for stderr and exit code 1.
  """
  process, processes = _number()
  if processes == 1:
    sys.exit(what)
  if isinstance(what, str):
    if process == 0:
      _tell(what)
    elif not _told(what):
      _say(f"process {process}: {what}")
  sys.stdout.flush()
  sys.stderr.flush()
  for child in multiprocessing.active_children():
    child.terminate()
  os._exit(1 if isinstance(what, str) else what)


def _find(timeout: int) -> _Place | None:
  """Who this process is; None if nothing says that it has company."""
  coordinator = os.environ.get(_VARIABLES[0])
  processes, process = (_whole_number(v) for v in _VARIABLES[1:])
  devices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
  given = (coordinator, processes, process)
  place = (*given, [int(d) for d in devices.split(",")] if devices else None)
  if None in given:
    place = _detect(place, timeout)
  if not any(v is not None for v in place[:3]):
    return None
  missing = [n for n, v in zip(_VARIABLES, place, strict=False) if v is None]
  if missing:
    raise ProcessesError(
      f"which process of how many is this? {', '.join(missing)} not set; set"
      f" {', '.join(_VARIABLES)}, or none of them for a single process"
    )
  coordinator, processes, process, devices = place
  if not 0 <= process < processes:
    raise ProcessesError(
      f"JAX_PROCESS_ID is {process}: of {processes} processes"
      f" (JAX_NUM_PROCESSES) it is 0 to {processes - 1}"
    )
  return _Place(process, processes, coordinator, devices)


def _whole_number(name: str) -> int | None:
  text = os.environ.get(name)
  if text is None or text.isdecimal():
    return text and int(text)
  raise ProcessesError(f"{name} is {text!r}: give a whole number")


def _detect(place: tuple, timeout: int) -> tuple:
  """Fills in what the cluster says, if this is one that JAX knows."""
  if private.CLUSTER is None:
    return place
  with warnings.catch_warnings():
    # In Kubernetes JAX asks for a package; what it would find is checked below.
    warnings.simplefilter("ignore")
    try:
      found = private.CLUSTER.auto_detect_unset_distributed_params(
        *place, None, timeout
      )
    except Exception as error:  # whatever a cluster's services answer
      raise ProcessesError(
        f"cannot tell which process this is: {error}; set"
        f" {', '.join(_VARIABLES)}"
      ) from error
  if None in found[:3]:
    _refuse_a_pod()
  return found


def _left_to_jax(timeout: int) -> _Place | None:
  """JAX finds and joins the others itself, and nothing is said before."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # as above
      jax.distributed.initialize(initialization_timeout=timeout)
  except ValueError:  # it knows no such cluster
    _refuse_a_pod()
    return None
  sys.excepthook = _leave_after_a_bug
  return _Place(jax.process_index(), jax.process_count(), "", None)


def _refuse_a_pod() -> None:
  if "JOB_COMPLETION_INDEX" in os.environ:
    raise ProcessesError(
      "a pod of an indexed Job: which process of how many? set"
      f" {', '.join(_VARIABLES)}"
    )


def _set_collectives(place: _Place) -> None:
  """Keeps what carries data between processes on CPU off the network.

  JAX has it listen wherever the machine's name leads, and fails if it leads
  nowhere; nobody else is there if all processes are on one machine. A JAX whose
  private names are others is left to that.
  """
  made_of = private.STATE, private.MAKE_CPU_CLIENT, private.MAKE_GLOO
  if place.processes == 1:
    jax.config.update("jax_cpu_collectives_implementation", None)
  elif place.one_machine and None not in made_of:
    make = lambda: private.MAKE_CPU_CLIENT(
      private.MAKE_GLOO(distributed_client=_client(), hostname="127.0.0.1")
    )
    backend.register_backend_factory("cpu", make, fail_quietly=False)


def _number() -> tuple[int, int]:
  """This process and how many there are, before `initialize` as well."""
  place = _joined
  if place is None:
    with contextlib.suppress(ProcessesError):  # it is about to say that
      place = _find(timeout=1)
  return (0, 1) if place is None else (place.process, place.processes)


def _client() -> Any | None:
  """JAX's client of process 0's table; None before it, or out of reach."""
  return getattr(private.STATE, "client", None)


def _say(line: str) -> None:
  """A line to stderr in one piece: other processes write there too."""
  sys.stderr.write(f"{line}\n")
  sys.stderr.flush()


def _tell(message: str) -> None:
  """Says it as process 0, and gives the others time to hear it."""
  _say(message)
  if client := _client():
    client.key_value_set(_MESSAGE_KEY, message)
  if jax.distributed.is_initialized():
    time.sleep(_PATIENCE)  # they abort when process 0 goes


def _told(message: str) -> bool:
  """Whether process 0 says the same."""
  client = _client()
  if client is None:
    if not jax.distributed.is_initialized():
      time.sleep(_PATIENCE)  # a launcher ends it if process 0 fails too
    return False
  try:
    said = client.blocking_key_value_get(_MESSAGE_KEY, _PATIENCE * 1000)
  except jax.errors.JaxRuntimeError:  # it says nothing
    return False
  return said == message


def _leave_after_a_bug(
  kind: type[BaseException],
  error: BaseException,
  trace: types.TracebackType | None,
) -> None:
  """Python's hook for what nobody caught, in one of several processes."""
  if _is_loss(error):
    _say(f"process {_number()[0]}: another process is gone: {error}")
    leave(LOST)
  sys.__excepthook__(kind, error, trace)
  leave(1)


def _is_loss(error: BaseException) -> bool:
  """Whether a collective failed; that has no exception of its own."""
  words = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
  return isinstance(error, RuntimeError | ValueError) and any(
    word in str(error) for word in words
  )
