"""The device mesh: four named axes, and what each of them spreads.

  data      rows of a batch; parameters are copied
  fsdp      rows of a batch; parameters are sharded along the model width
  tensor    heads, hidden units and vocabulary, as in Megatron
  sequence  slots of a row outside attention, heads within it (Ulysses): long
            videos in training

`parallel/rules.py` maps each logical axis to them. Over several slices of TPUs,
which a network joins, go rows alone: the slowest part of `data`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import fields

# Shardings can be made of a mesh without devices, too.
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

AXES = ("data", "fsdp", "tensor", "sequence")


class MeshError(errors.GazeError):
  """A mesh that these devices, or this model, can't be laid on."""


def axis_sizes(
  config: config_lib.ParallelConfig, devices: int
) -> dict[str, int]:
  """Size of each axis; `data = -1` takes the devices that the others leave.

  Raises:
    MeshError: the axes don't multiply to the number of devices.
  """
  sizes = {axis: getattr(config, axis) for axis in AXES}
  others = math.prod(sizes[axis] for axis in AXES[1:])
  asked = " x ".join(f"{axis} {sizes[axis]}" for axis in AXES)
  if sizes["data"] == -1:
    if devices % others:
      raise MeshError(
        f"parallel: {asked} can't be laid on {devices} devices: {others} does"
        f" not divide {devices}; choose fsdp, tensor and sequence whose product"
        " does"
      )
    sizes["data"] = devices // others
  if math.prod(sizes.values()) != devices:
    raise MeshError(
      f"parallel: {asked} is a mesh of {math.prod(sizes.values())} devices, and"
      f" there are {devices}; set parallel.data = -1 to take what there is"
    )
  return sizes


def make_mesh(
  config: config_lib.ParallelConfig, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """The mesh of a run.

  Args:
    config: sizes of the axes.
    devices: all there are by default; those of a topology that is only
      described will do.

  Raises:
    MeshError: the axes don't fit the devices, or `data` not their slices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = axis_sizes(config, len(devices))
  slices = _slices(devices)
  if sizes["data"] % slices:
    raise MeshError(
      f"parallel: data {sizes['data']} can't be laid on {slices} slices: it is"
      " all that goes over the network between them; choose fsdp, tensor and"
      f" sequence so that data is a multiple of {slices}"
    )
  within = (sizes["data"] // slices, *list(sizes.values())[1:])
  # An axis may be a part of a dimension of the torus: 32 of 8 x 8.
  options = dict(devices=devices, allow_split_physical_axes=True)
  if slices == 1:
    laid = mesh_utils.create_device_mesh(within, **options)
  else:
    laid = mesh_utils.create_hybrid_device_mesh(
      within, (slices, 1, 1, 1), **options
    )
  # Explicit axes, the default, would turn constraints into checks.
  kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.sharding.Mesh(laid, AXES, axis_types=kinds)


def _slices(devices: Sequence[Any]) -> int:
  """How many slices of TPUs there are; 1 of other devices."""
  if devices[0].platform != "tpu":
    return 1  # hosts of GPUs are slices to JAX
  return len({getattr(device, "slice_index", 0) for device in devices})


def of(
  parallel: config_lib.ParallelConfig | Mapping[str, int] | None,
) -> jax.sharding.Mesh:
  """The mesh that a user asks for: of all devices, or of one for None.

  Raises:
    errors.GazeError: axes of other names or sizes, or as `axis_sizes`.
  """
  if parallel is None:
    return one_device()
  if not isinstance(parallel, config_lib.ParallelConfig):
    parallel = fields.read(config_lib.ParallelConfig, parallel, "parallel")
  parallel.validate()
  return make_mesh(parallel)


def one_device() -> jax.sharding.Mesh:
  """The mesh of this process's first device, for what needs no more."""
  return make_mesh(config_lib.ParallelConfig(), jax.local_devices()[:1])
