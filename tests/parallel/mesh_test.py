"""How devices are laid out, on some that are only described."""

import dataclasses

import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax.parallel import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Device:
  id: int
  slice_index: int
  coords: tuple[int, int, int]
  platform: str = "tpu"
  device_kind: str = "TPU of a test"
  core_on_chip: int = 0
  process_index: int = 0


def two_slices(**options):
  """Of 2 x 2 chips, in no order."""
  devices = [
    Device(4 * s + 2 * x + y, s, (x, y, 0), **options)
    for s in range(2)
    for x in range(2)
    for y in range(2)
  ]
  return [devices[i] for i in (5, 0, 3, 6, 1, 7, 2, 4)]


def slices_of(devices, **sizes):
  mesh = mesh_lib.make_mesh(config_lib.ParallelConfig(**sizes), devices)
  return np.vectorize(lambda device: device.slice_index)(mesh.devices)


@pytest.mark.parametrize(
  "sizes",
  [dict(fsdp=4), dict(fsdp=2), dict(tensor=2, sequence=2), dict(data=8)],
  ids=str,
)
def test_rows_alone_go_from_slice_to_slice(sizes):
  laid = slices_of(two_slices(), **sizes)
  first, second = np.split(laid, 2)  # along data
  assert (first == 0).all() and (second == 1).all()


def test_slices_have_rows_of_their_own():
  with pytest.raises(mesh_lib.MeshError, match="data 1 can't be .* 2 slices"):
    slices_of(two_slices(), fsdp=8)


def test_hosts_of_gpus_are_no_slices():
  assert slices_of(two_slices(platform="gpu"), fsdp=8).shape == (1, 8, 1, 1)
