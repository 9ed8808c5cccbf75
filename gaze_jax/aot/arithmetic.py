"""Memory of a training step by arithmetic, where there is no compiler.

Bytes of a device on a mesh; every array is divided as it is sharded:

  parameters   4 P, of a frozen part as it is kept (matrices of a decoder in 2)
  optimizer    8 P' of AdamW, 4 P' of Muon's matrices, 4 P' of a moving mean;
               P' is what trains
  gradients    4 P'; as much again where micro-batches are added up
  activations  of the n rows of a micro-batch that a device has:
    layers     n S w N (E + kept): inputs of the N layers and what remat keeps
    at work    n S w 2 (E + dots): one layer, forward again and backward
    head       n A (12 V + w E fsdp): logits, their softmax and gradient in
               float32; rows that meet there, of all devices of an fsdp group
    tower      n M T 4 (F N' + 2 (8 F + F' + 2 T Q'')): with remat the inputs
               of the N' blocks and one at work; without it all of each block;
               nothing of a tower that does not train

`kept` of a token, in elements, by `model.decoder.remat`:

  full         0
  attention    (2 Q + 2 H) D + E      query, key, value, attention, out
  dots         the same + 2 F         gate, up
  none         twice that             norms and what is between, too

S slots, E width, w bytes of the computation's dtype, Q and H heads of D, F the
hidden width, A answer slots, V vocabulary; M pictures of T tokens. Real
programs differ: kernels and fusions decide what is there at once.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax.layout import row as row_lib
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.train import flops
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import param_groups
from gaze_jax.train import pretrained
from gaze_jax.train import state as state_lib


def estimate(
  config: config_lib.Config, sizes: dict[str, int]
) -> dict[str, int]:
  """Bytes of a training step on a device; see the top of this file.

  Args:
    config: of the run.
    sizes: of the mesh's axes.

  Returns:
    Of "parameters", "optimizer", "gradients" and "activations".

  Raises:
    mesh_lib.MeshError: the model can't be sharded so.
  """
  rules.check(config, sizes)
  state, frozen = _state(config, sizes)
  trains, _ = param_groups.split(config.train, state.params)
  gradients = bytes_a_device(trains)
  return dict(
    parameters=bytes_a_device((state.params, frozen)),
    optimizer=bytes_a_device((state.opt_state, state.ema)),
    gradients=gradients * (2 if config.train.accumulation > 1 else 1),
    activations=_activations(config, sizes, trains),
  )


def model_flops(config: config_lib.Config) -> float:
  """Of a training step on all devices; the model's alone (train/flops.py)."""
  state, frozen = _state(config, dict.fromkeys(mesh_lib.AXES, 1))
  return flops.count(config, frozen, state.params).model


def _state(
  config: config_lib.Config, sizes: dict[str, int]
) -> tuple[state_lib.TrainState, dict[str, Any]]:
  """The abstract state, and what is frozen, on a mesh of these sizes."""
  model = config.model
  # What changes no shape: so a search makes them once.
  model = dataclasses.replace(
    model,
    decoder=dataclasses.replace(model.decoder, remat="none"),
    vision=dataclasses.replace(model.vision, remat="none"),
  )
  train = dataclasses.replace(config.train, accumulation=1)
  config = dataclasses.replace(
    config, model=model, train=train, parallel=config_lib.ParallelConfig()
  )
  return _state_of(config, tuple(sizes.items()))


@functools.cache
def _state_of(
  config: config_lib.Config, sizes: tuple[tuple[str, int], ...]
) -> tuple[state_lib.TrainState, dict[str, Any]]:
  names, counts = zip(*sizes, strict=True)
  mesh = jax.sharding.AbstractMesh(counts, names)
  optimizer = optimizer_lib.make(config.train)
  return (
    state_lib.abstract(config, optimizer, mesh),
    pretrained.abstract_frozen(config, mesh),
  )


def bytes_a_device(tree: Any) -> int:
  """Of abstract arrays, without the padding of tiles.

  What has no sharding comes from the host, and is counted whole.
  """
  part = lambda x: x.sharding.shard_shape(x.shape) if x.sharding else x.shape
  return sum(
    math.prod(part(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _activations(
  config: config_lib.Config, sizes: dict[str, int], trains: Any
) -> int:
  c, data, train = config.model.decoder, config.data, config.train
  w = jnp.dtype(c.dtype).itemsize
  rows = train.batch_size / train.accumulation / rules.ways("batch", sizes)
  slots = rows * data.sequence_length / rules.ways("slots", sizes)
  tensor = rules.ways("mlp", sizes)
  heads = 2 * (c.query_heads + c.kv_heads) * c.head_dim / tensor
  dots = heads + c.width + 2 * c.mlp_dim / tensor
  kept = dict(full=0, attention=heads + c.width, dots=dots, none=2 * dots)
  layers = slots * w * c.depth * (c.width + kept[c.remat])
  work = slots * w * 2 * (c.width + dots)
  met = w * c.width * rules.ways("embed", sizes)
  head = rows * data.answer_slots * (12 * c.vocab_size / tensor + met)
  return round(layers + work + head + _tower(config, rows, trains))


def _tower(config: config_lib.Config, rows: float, trains: Any) -> float:
  v, shape = config.model.vision, row_lib.row_shape(config)
  if "vision" not in trains:
    return 0.0
  tokens = rows * (shape.tiles or shape.units) * v.tokens
  block = 8 * v.width + v.mlp_dim + 2 * v.tokens * v.heads
  blocks = v.layers_used
  kept = v.width * blocks + 2 * block
  return 4 * tokens * (kept if v.remat == "full" else block * blocks)
