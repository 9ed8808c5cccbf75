"""What is compiled for a mesh: a training step, and an evaluated batch.

Arguments are abstract: shapes, dtypes and shardings. Training is laid out as
`config.parallel` says. Evaluation and answers (aot/answering.py) have another
mesh of the same chips, `serving`: heads sharded as far as there are KV heads,
rows over the rest; weights in the dtype of the computation, as
launch/convert.py --dtype=bfloat16 stores them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.aot import arithmetic
from gaze_jax.evals import run as evals_run
from gaze_jax.layout import row as row_lib
from gaze_jax.models import mllm
from gaze_jax.models import vision
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import pretrained
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib
from gaze_jax.weights import dtypes


@dataclasses.dataclass(frozen=True)
class Workload:
  """One program to compile, with its arguments.

  Attributes:
    name: "train", "eval", or what `decode/` calls it and its size.
    command: what runs it.
    mesh: that it is laid out on.
    function: jitted, or a `programs.Program`.
    arguments: abstract, with shardings; the static ones as they are.
    parts: names of what is on the devices while it runs, its arguments and
      what else stays there; each with its trees.
    rows: of its batch.
    options: keyword arguments, likewise.
    config: of the run, where it trains.
    weights: whether it reads all weights among its arguments, the first of
      these; what it can't be faster than.
    one_turn: whether its FLOPs and collectives are those of one turn of its
      loop, which turns as often as its arguments say.
  """

  name: str
  command: str
  mesh: jax.sharding.Mesh
  function: Any
  arguments: tuple[Any, ...]
  parts: dict[str, Any]
  rows: int
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  config: config_lib.Config | None = None
  weights: bool = False
  one_turn: bool = False

  def bytes_by_part(self) -> dict[str, int]:
    """Bytes that each part has on a device."""
    count = arithmetic.bytes_a_device
    return {name: count(tree) for name, tree in self.parts.items()}


def train(config: config_lib.Config, mesh: jax.sharding.Mesh) -> Workload:
  """The training step.

  Raises:
    mesh_lib.MeshError: the model or its batches can't be laid out on the mesh.
  """
  rules.check(config, dict(mesh.shape))
  optimizer = optimizer_lib.make(config.train)
  state = state_lib.abstract(config, optimizer, mesh)
  frozen = pretrained.abstract_frozen(config, mesh)
  rows = config.train.batch_size
  if config.train.features == "cached":
    frozen.pop("vision", None)
  pools = rows // config.data.pool_rows, row_lib.pool_tiles(config)
  batch = _batch(config, rows, mesh, pools)
  packed = config.data.packing != "none"
  budget = _budget(rows, mesh, *[config.data.segments] * packed)
  return Workload(
    name="train",
    command="launch/train.py",
    mesh=mesh,
    function=step_lib.make(config, optimizer, mesh),
    arguments=(state, batch, budget, frozen),
    parts=dict(
      parameters=(state.params, frozen),
      optimizer=(state.opt_state, state.ema),
      batch=(batch, budget),
    ),
    config=config,
    rows=rows,
  )


def evaluate(
  config: config_lib.Config, mesh: jax.sharding.Mesh, ends: int = 1
) -> Workload:
  """A batch of questions, as `evals/run.py` asks them.

  Args:
    config: of the run.
    mesh: of `serving`.
    ends: ids that end an answer.
  """
  rows = evals_run.batch_rows(config, mesh)
  params = weights(config.model, mesh)
  if config.train.features == "cached":
    del params["vision"]
  pools = rows, row_lib.row_shape(config).room.tiles
  batch, budget = _batch(config, rows, mesh, pools), _budget(rows, mesh)
  ids = jax.ShapeDtypeStruct((ends,), jnp.int32)
  return Workload(
    name="eval",
    command="launch/eval.py",
    mesh=mesh,
    function=evals_run.forward,
    arguments=(params, config.model, ids, batch, budget, None),
    parts=dict(parameters=params, batch=(batch, budget)),
    rows=rows,
    weights=True,
  )


def serving(model: config_lib.ModelConfig, devices: Any) -> jax.sharding.Mesh:
  """The mesh of evaluation and answers: tensor as far as KV heads allow."""
  decoder, chips = model.decoder, len(devices)
  tensor = math.gcd(
    *(decoder.kv_heads, decoder.query_heads, decoder.mlp_dim),
    *(decoder.vocab_size, model.vision.heads, model.vision.mlp_dim, chips),
  )
  return mesh_lib.make_mesh(config_lib.ParallelConfig(tensor=tensor), devices)


def _batch(
  config: config_lib.Config,
  rows: int,
  mesh: jax.sharding.Mesh,
  pools: tuple[int, int],
) -> types.Batch:
  """A `Batch` as the data pipeline makes it; `pools`: how many, of M tiles."""
  shape = row_lib.row_shape(config)
  one = row_lib.make_batch([row_lib.lay_out([], shape)], None)
  v = config.model.vision
  count, tiles = pools
  images = jax.eval_shape(lambda: vision.blank(v, 1, tiles))
  if config.train.features == "cached":
    size = (1, tiles, v.tokens, v.width)
    images = jax.ShapeDtypeStruct(size, jnp.dtype(config.train.features_dtype))
  place = shard.batch_sharding(mesh)

  def many(tree: types.Leaf, n: int) -> types.Leaf:
    of = lambda x: jax.ShapeDtypeStruct(
      (n, *x.shape[1:]), x.dtype, sharding=place
    )
    return jax.tree.map(of, tree)

  return dataclasses.replace(many(one, rows), images=many(images, count))


def _budget(
  rows: int, mesh: jax.sharding.Mesh, *segments: int
) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(
    (rows, *segments), jnp.int32, sharding=shard.batch_sharding(mesh)
  )


def weights(
  model: config_lib.ModelConfig, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """All parameters, matrices in the dtype of the computation."""
  shapes, names = mllm.abstract(model)
  narrow = dict(
    vision=model.vision.dtype,
    projector=model.decoder.dtype,
    decoder=model.decoder.dtype,
  )

  def of(path, x, place):
    keys = [k.key for k in path]
    dtype = dtypes.held(keys, np.dtype(x.dtype), narrow[keys[0]])
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=place)

  places = rules.shardings(shapes, names, mesh)
  return jax.tree_util.tree_map_with_path(of, shapes, places)
