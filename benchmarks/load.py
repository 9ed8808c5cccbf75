"""Loads a random decoder of Qwen2.5-7B's shape: memory of the host, and time.

python benchmarks/load.py [--layers=8] [--shrink=2] [--devices=1] [--only=run]
    [--dtype=bfloat16] [--folder=/tmp] [--json=FILE]

Made in a new directory below --folder, which is deleted at the end: a
checkpoint of transformers in several files and one of ours, both bfloat16, and
a workdir whose checkpoint is float32, as runs keep it. Each is loaded as
api.load does, in a process of its own, on one device or on fake ones, over
which its weights are sharded (fsdp). Of that process are shown

  placed   bytes of the arrays on its devices, which are memory of the host here
  peak     VmHWM: the most that was resident, with libraries
  beside   peak less placed
  before   what was resident before anything was read: libraries alone

It exits with 1 if `beside` is above the bound: twice the largest tensor on disk
+ 1 GB.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import random_checkpoint
from gaze_jax import cli
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.api import directory as directory_lib
from gaze_jax.models import decoder
from gaze_jax.models import mllm
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.train import checkpoint
from gaze_jax.train import runs
from gaze_jax.train import state as state_lib
from gaze_jax.weights import hf
from gaze_jax.weights import tensors

ROOT = pathlib.Path(__file__).resolve().parent.parent
KINDS = ("transformers", "ours", "run")

_LAYERS = flags.DEFINE_integer("layers", 8, "of the decoder", 1)
_SHRINK = flags.DEFINE_enum(
  "shrink", "2", ["1", "2", "4"], "divides heads, widths and vocabulary"
)
_DEVICES = flags.DEFINE_integer("devices", 1, "fake CPU devices", 1)
_ONLY = flags.DEFINE_list("only", list(KINDS), "kinds of directories")
_DTYPE = flags.DEFINE_string("dtype", None, "as of api.load")
_FOLDER = flags.DEFINE_string("folder", tempfile.gettempdir(), "where to write")
_JSON = cli.define_file("json", "a file for the rows")
# What a process of its own is told to do.
_MAKE_RUN = flags.DEFINE_string("make_run", None, "make a workdir of this one")
_LOAD = flags.DEFINE_string("load", None, "load this, print what it took")

_SHARD = 2**28  # bytes of a file of the checkpoint


@dataclasses.dataclass(frozen=True)
class Row:
  """What loading one directory took; all but `seconds` are bytes.

  Attributes:
    kind: of the directory.
    seconds: from the call to the last array.
    placed: of the arrays on devices.
    before: resident before the call.
    peak: the most that was resident.
    largest_tensor: on disk.
  """

  kind: str
  seconds: float
  placed: int
  before: int
  peak: int
  largest_tensor: int

  @property
  def beside(self) -> int:
    return self.peak - self.placed

  @property
  def bound(self) -> int:
    return 2 * self.largest_tensor + 10**9


def main() -> None:
  if _LOAD.value:
    return print(json.dumps(_load(pathlib.Path(_LOAD.value))))
  if _MAKE_RUN.value:
    return _make_run(*map(pathlib.Path, _MAKE_RUN.value.split(",")))
  if unknown := set(_ONLY.value) - set(KINDS):
    raise errors.GazeError(
      f"--only={','.join(sorted(unknown))}: there are {', '.join(KINDS)}"
    )
  work = pathlib.Path(tempfile.mkdtemp(prefix="gaze_load_", dir=_FOLDER.value))
  try:
    rows = [_measure(work, kind) for kind in KINDS if kind in _ONLY.value]
  finally:
    shutil.rmtree(work)
  _show(rows)
  if _JSON.value:
    table = dict(
      layers=_LAYERS.value,
      shrink=int(_SHRINK.value),
      devices=_DEVICES.value,
      dtype=_DTYPE.value,
      rows=[
        dataclasses.asdict(r) | dict(beside=r.beside, bound=r.bound)
        for r in rows
      ],
    )
    pathlib.Path(_JSON.value).write_text(json.dumps(table, indent=2) + "\n")
  if any(row.beside > row.bound for row in rows):
    raise errors.GazeError("a process held more than the bound")


def _measure(work: pathlib.Path, kind: str) -> Row:
  source, made = work / "transformers", work / kind
  if not source.exists():
    config = random_checkpoint.qwen(_LAYERS.value, int(_SHRINK.value))
    specs = random_checkpoint.shapes(config)
    random_checkpoint.make(source, config, specs, shard_bytes=_SHARD)
  if kind == "ours":
    _python("launch/convert.py", f"--from={source}", f"--to={made}")
  if kind == "run":
    _python(__file__, f"--make_run={source},{made}")
  asked = [f"--dtype={_DTYPE.value}"] if _DTYPE.value else []
  found = _python(
    *(__file__, f"--load={made}", f"--devices={_DEVICES.value}", *asked)
  )
  return Row(kind, **json.loads(found.splitlines()[-1]))


def _python(*command: str) -> str:
  """What a program prints, which is run by itself."""
  flag = f"--xla_force_host_platform_device_count={_DEVICES.value}"
  done = subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag},
    stdout=subprocess.PIPE,
    text=True,
  )
  if done.returncode:
    raise errors.GazeError(f"{command} exited with {done.returncode}")
  return done.stdout


def _make_run(source: pathlib.Path, workdir: pathlib.Path) -> None:
  """A workdir whose decoder is that of a checkpoint, and all else tiny."""
  _, params = directory_lib.load(source, dtype="float32")
  tower = config_lib.VisionConfig(width=64, depth=1, heads=2, mlp_dim=64)
  _, _, model = hf.read_configs(source)
  model = dataclasses.replace(model, vision=tower)
  config = hf.config_for(model)
  shapes, _ = mllm.abstract(model)
  for part in ("vision", "projector"):
    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    params[part] = jax.tree.map(zeros, shapes[part])
  workdir.mkdir()
  writer = checkpoint.Writer(workdir, config.train)
  state = state_lib.TrainState(jnp.int32(0), params, {})
  writer.save(checkpoint.Position(), state, config)
  writer.close()


def _load(directory: pathlib.Path) -> dict[str, float]:
  """Loads a directory as api.load does; what it took."""
  mesh = mesh_lib.of(dict(fsdp=_DEVICES.value))
  largest = _largest_tensor(directory)
  jax.block_until_ready(jnp.zeros(1))
  before, start = _resident("VmRSS"), time.perf_counter()
  apart = decoder.decodes_apart(mesh)
  _, params = directory_lib.load(
    directory, mesh, dtype=_DTYPE.value, apart=apart
  )
  jax.block_until_ready(params)
  arrays = jax.tree.leaves(params)
  placed = sum(s.data.nbytes for x in arrays for s in x.addressable_shards)
  return dict(
    seconds=time.perf_counter() - start,
    placed=placed,
    before=before,
    peak=_resident("VmHWM"),
    largest_tensor=largest,
  )


def _largest_tensor(directory: pathlib.Path) -> int:
  if runs.is_run(directory):
    shapes = jax.tree.leaves(checkpoint.Checkpoints(directory).shapes())
    return max(x.size * np.dtype(x.dtype).itemsize for x in shapes)
  return max(t.bytes for t in tensors.Tensors(directory).listed.values())


def _resident(key: str) -> int:
  """Bytes, of /proc/self/status."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    name, _, value = line.partition(":")
    if name == key:
      return int(value.split()[0]) * 1024
  raise errors.GazeError(f"/proc/self/status has no {key}; this needs Linux")


def _show(rows: list[Row]) -> None:
  gb = lambda n: f"{n / 1e9:9.2f}"
  print(
    "GB          seconds   placed   before     peak   beside  largest    bound"
  )
  for row in rows:
    numbers = (row.placed, row.before, row.peak, row.beside)
    shown = "".join(map(gb, (*numbers, row.largest_tensor, row.bound)))
    print(f"{row.kind:12}{row.seconds:7.1f}{shown}")


if __name__ == "__main__":
  cli.main(main)
