"""Described devices: the TPU compiler on a machine without TPUs.

libtpu compiles for any slice that it knows by name, such as v5e:16x16. It can
be installed beside the environment, in `sys.prefix`/aot (launch/test.sh): JAX
would look for a TPU wherever it finds libtpu.
"""

import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from gaze_jax import errors

# Names that were seen to work; there are more.
KNOWN = (
  "v5e:1x1",
  "v5e:8x8",
  "v5e:16x16",
  "2xv5e:8x8",
  "v5p:4x4x4",
  "v6e:8x8",
  "tpu7x:2x2x1",
)

LEVELS = ("O0", "O1", "O2", "O3", "UNKNOWN")

_ONE = re.compile(r":1(x1)+$")
_SLICES = re.compile(r"(?:([1-9]\d*)x)?(.*)")

# The vendor's FLOP a second of bfloat16, and bytes a second of HBM, of a
# device by its kind.
PEAKS = {
  "TPU v5 lite": (197e12, 819e9),
  "TPU v5": (459e12, 2_765e9),
  "TPU v6 lite": (918e12, 1_640e9),
}

# Read when libtpu is loaded.
_ENVIRONMENT = dict(
  TPU_SKIP_MDS_QUERY="1",  # asks no metadata server what machine this is
  TPU_ACCELERATOR_TYPE="v5litepod-4",  # or it warns that it does not know
  TPU_WORKER_HOSTNAMES="localhost",
  TPU_LOG_DIR="disabled",
  TPU_STDERR_LOG_LEVEL="3",
  ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # two commands side by side
)
# Of a program whose temporaries alone are too many, and of any other.
_EXHAUSTED = re.compile(
  r"RESOURCE_EXHAUSTED.*?"
  r"(?:\(([\d.]+\w?)\) exceeds available HBM \(([\d.]+\w?)\)"
  r"|Used ([\d.]+\w?) of ([\d.]+\w?) hbm)",
  re.DOTALL,
)


class TopologyError(errors.GazeError):
  """A topology that can't be compiled for."""


def prepare(level: str = "UNKNOWN") -> None:
  """Makes this a process that compiles for TPUs and runs on the CPU.

  To be called before anything is computed.

  Args:
    level: JAX's `jax_optimization_level`, one of LEVELS; a run has "UNKNOWN".
      With "O0" a training step of cambrian_4b compiles in a quarter of the
      time, and takes less memory.

  Raises:
    TopologyError: libtpu is not installed.
  """
  os.environ.update(_ENVIRONMENT)
  beside = os.path.join(sys.prefix, "aot")
  if beside not in sys.path:
    sys.path.append(beside)
  if importlib.util.find_spec("libtpu") is None:
    raise TopologyError(
      "the TPU compiler, libtpu, is not installed: pip install"
      f" 'jax[tpu]=={jax.__version__}', or run bash launch/test.sh once"
    )
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_optimization_level", level)
  # Compile times are reported, and nothing of this is run again.
  jax.config.update("jax_enable_compilation_cache", False)


def devices(name: str, flag: str = "--topology") -> tuple[Any, ...]:
  """The devices of a topology: each a chip, but on TPU7x half of one.

  Args:
    name: such as "v5e:16x16"; "2xv5e:16x16" are two slices.
    flag: what it was given by; named in errors.

  Raises:
    TopologyError: there is no such topology.
  """
  slices, one_slice = _SLICES.fullmatch(name).groups()
  options = dict(num_slices=int(slices)) if slices else {}
  try:
    # A host has four chips or more, unless there is but one.
    if _ONE.search(name):
      options |= dict(chips_per_host_bounds=(1, 1, 1))
    with contextlib.redirect_stderr(io.StringIO()):
      found = topologies.get_topology_desc(one_slice, platform="tpu", **options)
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    raise TopologyError(
      f"{flag}={name}: libtpu knows no such topology; such as"
      f" {', '.join(KNOWN)}: {' '.join(str(error).split())[:300]}"
    ) from error
  return tuple(found.devices)


def hbm_limit(device: Any) -> int:
  """Bytes of HBM that the compiler lets a program have on a described device.

  Less than the memory of the chip. It is in the error that a program meets
  which wants too much: so one is made that wants 16 TiB.
  """
  place = jax.sharding.SingleDeviceSharding(device)
  huge = jax.ShapeDtypeStruct((2**21, 2**21), jnp.float32, sharding=place)
  try:
    jax.jit(lambda x: x * 2).lower(huge).compile()
  except jax.errors.JaxRuntimeError as error:
    return exhausted(error).limit
  raise AssertionError("16 TiB fit")


@dataclasses.dataclass(frozen=True)
class Exhausted:
  """Bytes that a program needs, and that there are."""

  needed: int
  limit: int


def exhausted(error: Exception) -> Exhausted | None:
  """Memory of a program that does not fit, of its error; None for others."""
  found = _EXHAUSTED.search(str(error))
  if found is None:
    return None
  return Exhausted(*map(_bytes, filter(None, found.groups())))


def _bytes(text: str) -> int:
  """Such as 15.75G, of 2**30."""
  number = text.rstrip("KMGTP")
  unit = text[len(number) :] or " "
  return round(float(number) * 2 ** (10 * " KMGTP".index(unit)))
