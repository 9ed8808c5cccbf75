"""What is compiled for a mesh: a training step, a prefill, a decoding step.

Arguments are abstract: shapes, dtypes and shardings. Training is laid out as
`config.parallel` says. A prompt is read, and answered, on another mesh of the
same chips, `serving`: heads sharded as far as there are KV heads, rows over the
rest; weights in the dtype of the computation, as launch/convert.py
--dtype=bfloat16 stores them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.aot import arithmetic
from gaze_jax.kernels import target
from gaze_jax.layout import row as row_lib
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.models import vision
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import pretrained
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib

# Text that a prompt brings beside its images, and slots for an answer: what is
# left of a row when its length is rounded up.
_TEXT, _ANSWER, _MULTIPLE = 128, 256, 512
_MATRICES = ("weight", "embedding", "kernel")


@dataclasses.dataclass(frozen=True)
class Workload:
  """One program to compile, with its arguments.

  Attributes:
    name: "train", or such as "prefill_4608" by the visual tokens of a row.
    mesh: that it is laid out on.
    function: jitted.
    arguments: abstract, with shardings.
    parts: names of what the arguments are, each with its trees.
    config: of the run, where it trains.
    rows: of its batch.
  """

  name: str
  mesh: jax.sharding.Mesh
  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  parts: dict[str, Any]
  config: config_lib.Config
  rows: int

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
  batch = _batch(config, rows, mesh)
  if config.train.features == "cached":
    frozen.pop("vision", None)
    v, dtype = config.model.vision, jnp.dtype(config.train.features_dtype)
    shape = (rows, config.data.max_units, v.tokens, v.width)
    images = jax.ShapeDtypeStruct(shape, dtype, sharding=batch.tokens.sharding)
    batch = dataclasses.replace(batch, images=images)
  budget = _budget(rows, mesh)
  return Workload(
    name="train",
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


def serving(model: config_lib.ModelConfig, devices: Any) -> jax.sharding.Mesh:
  """The mesh of prefill and decoding: tensor as far as KV heads allow."""
  decoder, chips = model.decoder, len(devices)
  tensor = math.gcd(
    *(decoder.kv_heads, decoder.query_heads, decoder.mlp_dim),
    *(decoder.vocab_size, model.vision.heads, model.vision.mlp_dim, chips),
  )
  return mesh_lib.make_mesh(config_lib.ParallelConfig(tensor=tensor), devices)


def prefill(
  config: config_lib.Config, mesh: jax.sharding.Mesh, units: int, rows: int
) -> Workload:
  """Whole prompts of `units` images each, into a cache (`mllm.prefill`)."""
  config = _prompts(config, units)
  model, place = config.model, shard.batch_sharding(mesh)
  params = _weights(model, mesh)
  batch, budget = _batch(config, rows, mesh), _budget(rows, mesh)
  capacity = _capacity(config)

  def function(params, batch, budget):
    cache, logits, _ = mllm.prefill(
      params, model, batch, budget, capacity=capacity
    )
    return cache, logits

  places = jax.tree.map(lambda x: x.sharding, _cache(config, rows, mesh))
  return Workload(
    name=f"prefill_{units * model.vision.tokens}",
    mesh=mesh,
    function=jax.jit(function, out_shardings=(places, place)),
    arguments=(params, batch, budget),
    parts=dict(parameters=params, batch=(batch, budget)),
    config=config,
    rows=rows,
  )


def decode(
  config: config_lib.Config, mesh: jax.sharding.Mesh, units: int, rows: int
) -> Workload:
  """One new token for each of the rows (`cached.extend`).

  The pages of their images are read in place; the linear cache is donated.
  """
  config = _prompts(config, units)
  model, place = config.model, shard.batch_sharding(mesh)
  params = {"decoder": _weights(model, mesh)["decoder"]}
  cache = _cache(config, rows, mesh)
  linear = dataclasses.replace(cache, visual=None)
  tokens = jax.ShapeDtypeStruct((rows, 1), jnp.int32, sharding=place)
  budget = _budget(rows, mesh)

  def function(params, visual, linear, tokens, budget):
    whole = dataclasses.replace(linear, visual=visual)
    grown, logits, _ = cached.extend(params, model, whole, tokens, budget)
    return dataclasses.replace(grown, visual=None), logits.argmax(-1)

  places = jax.tree.map(lambda x: x.sharding, linear)
  return Workload(
    name=f"decode_{units * model.vision.tokens}",
    mesh=mesh,
    function=jax.jit(function, donate_argnums=2, out_shardings=(places, place)),
    arguments=(params, cache.visual, linear, tokens, budget),
    parts=dict(parameters=params, cache=cache, batch=(tokens, budget)),
    config=config,
    rows=rows,
  )


def _prompts(config: config_lib.Config, units: int) -> config_lib.Config:
  """The run's config with rows of so many images, one question and no more."""
  v, g = config.model.vision, config.model.gaze
  slots = units * (v.tokens + g.context_tokens) + _TEXT
  data = dataclasses.replace(
    config.data,
    max_units=units,
    sequence_length=-(-slots // _MULTIPLE) * _MULTIPLE,
    answer_slots=1,
  )
  return dataclasses.replace(config, data=data)


def _capacity(config: config_lib.Config) -> int:
  context = config.data.max_units * config.model.gaze.context_tokens
  return -(-(context + _TEXT + _ANSWER) // 128) * 128


def _batch(
  config: config_lib.Config, rows: int, mesh: jax.sharding.Mesh
) -> types.Batch:
  """A `Batch` as the data pipeline makes it."""
  shape = row_lib.row_shape(config)
  one = row_lib.make_batch([row_lib.lay_out([], shape)], None)
  images = jax.eval_shape(
    lambda: vision.blank(config.model.vision, 1, shape.tiles or shape.units)
  )
  place = shard.batch_sharding(mesh)
  many = lambda x: jax.ShapeDtypeStruct(
    (rows, *x.shape[1:]), x.dtype, sharding=place
  )
  return jax.tree.map(many, dataclasses.replace(one, images=images))


def _budget(rows: int, mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(
    (rows,), jnp.int32, sharding=shard.batch_sharding(mesh)
  )


def _weights(
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
    dtype = narrow[keys[0]] if keys[-1] in _MATRICES else np.float32
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=place)

  places = rules.shardings(shapes, names, mesh)
  return jax.tree_util.tree_map_with_path(of, shapes, places)


def _cache(
  config: config_lib.Config, rows: int, mesh: jax.sharding.Mesh
) -> types.DecodeCache:
  """The abstract cache of all layers; rows and heads are sharded.

  Its pages are shaped for the TPU's kernel.
  """
  shape = row_lib.row_shape(config)
  empty = functools.partial(
    cached.empty,
    config.model,
    rows,
    regions=shape.regions,
    region_length=shape.region_length,
    capacity=_capacity(config),
  )
  with target.tracing_for("tpu"):
    cache = jax.eval_shape(empty)
  heads, rows_ = (None, "batch", "attention_heads"), ("batch",)

  def put(x, names):
    if x is None:
      return None
    names = [*names, *[None] * (x.ndim - len(names))]
    place = jax.sharding.NamedSharding(mesh, rules.spec(names, x.shape, mesh))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  visual = cache.visual
  pages = {k: put(getattr(visual, k), heads) for k in ("k", "v", "descriptors")}
  return types.DecodeCache(
    visual=types.VisualCache(
      **pages, valid=put(visual.valid, rows_), unit=put(visual.unit, rows_)
    ),
    k=put(cache.k, heads),
    v=put(cache.v, heads),
    length=put(cache.length, rows_),
    position=put(cache.position, rows_),
    choice=put(cache.choice, heads),
  )
