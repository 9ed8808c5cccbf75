"""What tests/api/load_test.py asks of several devices; prints JSON.

  python on_meshes.py '{"directories": {...}, "meshes": [...]}'

Each directory is loaded on one device and on each mesh. It runs in processes of
its own: a process has as many devices as it began with.
"""

import functools
import json
import math
import pathlib
import sys

import jax
import numpy as np
from flax import traverse_util

from gaze_jax import errors
from gaze_jax.api import directory as directory_lib
from gaze_jax.data import prompts
from gaze_jax.data import units
from gaze_jax.layout import row as row_lib
from gaze_jax.models import mllm
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import shard
from gaze_jax.runtime import processes
from gaze_jax.weights import tensors

sys.path.append(str(pathlib.Path(__file__).parents[1]))
import compare

ROWS = 8
_read, _asked = tensors.Tensors.read, []


def counted(self, name, index=()):
  part = _read(self, name, index)
  if "patch" not in name:  # which transformers has turned round: read whole
    _asked.append(part.size)
  return part


def batch_of(model, parts):
  """Rows of a picture and text, or of text alone."""
  rng = np.random.default_rng(0)
  side, rows = model.vision.image_size, []
  for _ in range(ROWS):
    ids = rng.integers(0, 200, 12).tolist()
    picture = rng.integers(0, 256, (side, side, 3), np.uint8)
    seen = units.of_images([picture], model)[0]
    if "vision" not in parts:
      nothing = np.zeros((0, 1, 1, 3), np.float32)
      seen = units.Seen((), nothing)
    said = row_lib.Text(ids[4:], question=0)
    one = (row_lib.Text(ids[:4]), *seen.units, said)
    rows.append(prompts.Prompt(one, seen.pixels))
  return prompts.batch(rows, model)


@functools.partial(jax.jit, static_argnums=1)
def logits(params, config, batch, budget):
  out = mllm.apply(params, config, batch, budget).logits
  return shard.constrain(out, None, None, None)


def wrong(got, want):
  """Parameters that have other bits than on one device, or are not sharded."""
  out = []
  for path, x in traverse_util.flatten_dict(got).items():
    whole = np.asarray(traverse_util.flatten_dict(want)[path])
    if x.dtype != whole.dtype or not all(
      np.array_equal(np.asarray(s.data), whole[s.index])
      and s.data.shape == x.sharding.shard_shape(x.shape)
      for s in x.addressable_shards
    ):
      out.append("/".join(path))
  return out


def compared(config, mesh, params, alone) -> str:
  """How logits differ from those of one device."""
  batch = batch_of(config, params)
  budget = np.full(ROWS, 2, np.int32)
  want = np.asarray(logits(alone, config, batch, budget))
  place = shard.batch_sharding(mesh)
  put = lambda x: shard.put(x, place)
  with jax.set_mesh(mesh):
    got = logits(params, config, *jax.tree.map(put, (batch, budget)))
  return compare.difference(np.asarray(got.addressable_data(0)), want)


def load(directory, sizes):
  mesh = mesh_lib.of(sizes)
  config, alone = directory_lib.load(directory)
  _asked.clear()
  _, params = directory_lib.load(directory, mesh)
  read = sum(_asked)
  embedding = params["decoder"]["embedding"]
  # In bfloat16 meshes differ by its rounding, and the bits say enough.
  wide = embedding.dtype == np.float32
  return dict(
    wrong=wrong(params, alone),
    read=read,
    size=sum(
      math.prod(x.shape)
      for path, x in traverse_util.flatten_dict(alone).items()
      if "patch" not in path
    ),
    dtypes=[config.model.decoder.dtype, config.model.vision.dtype],
    embedding=[
      embedding.dtype.name,
      embedding.addressable_shards[0].data.shape,
    ],
    differs=compared(config.model, mesh, params, alone) if wide else "",
  )


def main():
  processes.initialize(trains=False)
  tensors.Tensors.read = counted
  asked = json.loads(sys.argv[1])
  found = {}
  for name, directory in asked["directories"].items():
    for mesh in asked["meshes"]:
      try:
        found[f"{name} {mesh}"] = load(pathlib.Path(directory), mesh)
      except errors.GazeError as error:
        found[f"{name} {mesh}"] = dict(error=str(error), read=sum(_asked))
  if jax.process_index() == 0:
    print(json.dumps(found))


if __name__ == "__main__":
  main()
