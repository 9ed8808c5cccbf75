"""What tests/parallel/eight_devices_test.py asks; prints JSON.

It runs in a process of its own: a process has as many devices as it began with.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.data import pipeline
from gaze_jax.layout import row as row_lib
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.ops import gaze
from gaze_jax.ops import routing
from gaze_jax.ops.decode import linear
from gaze_jax.ops.decode import prompt_units
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard
from gaze_jax.train import optimizer
from gaze_jax.train import state as state_lib

sys.path += [str(pathlib.Path(__file__).parents[1] / x) for x in ("", "models")]
import cached_test

import compare
import read_rows

MESHES = dict(
  cube=dict(data=2, fsdp=2, tensor=2), ulysses=dict(data=4, sequence=2)
)
B = 8


def collectives(compiled):
  kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
  return re.findall(rf" ({kinds})(?:-start)?\(", compiled.as_text())


def batch_of(config):
  batches = pipeline.make_iterator(config)
  batch = next(batches)["batch"]
  batches.close()
  return batch


def put(tree, mesh):
  return shard.put_rows(tree, np.arange(B), B, mesh)


def attention(config, mesh):
  """Parallel form, forward and backward, and decode: collectives, values."""
  c, g = config.model.decoder, config.model.gaze
  batch = batch_of(config)
  s = batch.tokens.shape[1]
  rng = np.random.default_rng(0)
  draw = lambda n: rng.normal(size=(B, s, n, c.head_dim)).astype(np.float32)
  q, k, v = draw(c.query_heads), draw(c.kv_heads), draw(c.kv_heads)
  plan = routing.plan(batch.layout, batch.region_slots, g)
  budget = np.full(B, 2, np.int32)
  one_layer = dataclasses.replace(
    config.model, decoder=dataclasses.replace(c, depth=1)
  )

  def whole(q, k, v, plan, budget):
    run = lambda q, k, v: gaze.parallel(q, k, v, plan, budget, g)
    out, back = jax.vjp(lambda *x: run(*x).out, q, k, v)
    return out, back(out), run(q, k, v).members

  def step(q, k, v, plan, budget):
    empty = gaze.empty(B, *plan.region_slots.shape[1:], one_layer)
    chunk = types.Chunk(plan.layout, plan.place)
    cache = prompt_units.grow(empty, k[None], v[None], chunk, g)
    old = k.transpose(0, 2, 1, 3)[None, :, :, :16]
    text = linear.attend(
      *(q[:, -1:], (old, old), (k[:, -1:], v[:, -1:])),
      *(jnp.full(q.shape[0], 16), jnp.int32(0)),
    )
    layer = jnp.int32(0)
    return gaze.decode(q[:, -1:], cache, text, budget, g, layer=layer).out

  found = {}
  for name, function in dict(parallel=whole, decode=step).items():
    arguments = q, k, v, plan, budget
    alone = jax.jit(function)(*arguments)
    head = jax.NamedSharding(
      mesh, shard.P(*map(rules.axes, ("batch",)), None, ("tensor", "sequence"))
    )
    placed = (
      *(jax.device_put(x, head) for x in (q, k, v)),
      *put((plan, budget), mesh),
    )
    with jax.set_mesh(mesh):
      compiled = jax.jit(function).lower(*placed).compile()
    found[name] = dict(
      collectives=collectives(compiled),
      differs=compare.difference(compiled(*placed), alone),
    )
  return found


def growing(config, mesh):
  """A prompt, two more tokens, and how they differ on one device."""
  chain = optimizer.make(config.train)
  batch = batch_of(config)
  model, budget = config.model, np.full(B, 2, np.int32)
  tokens = np.arange(2 * B, dtype=np.int32).reshape(B, 2)
  extend = jax.jit(cached.extend, static_argnames="config")

  def run(params):
    cache, first, _ = read_rows.read(params, model, batch, budget, capacity=96)
    cache, logits, _ = extend(params, model, cache, tokens, budget)
    return first, logits, cache.k

  one = lambda batch: dataclasses.replace(
    batch,
    layout=dataclasses.replace(
      batch.layout, branch=np.zeros_like(batch.layout.branch)
    ),
  )
  batch = one(batch)
  alone = run(state_lib.create(config, chain).params)
  state = state_lib.create(config, chain, mesh)
  with jax.set_mesh(mesh):
    there = run(state.params)
  return compare.difference(there, alone), born(state, config, mesh)


def in_pieces(mesh):
  """Four rows read chunk by chunk, and how they differ on one device."""
  add = lambda x: [*x, x[0]]
  pieces = [(text, add(spans)) for text, spans in cached_test.PIECES]
  budget = np.array(add(cached_test.BUDGET))
  batch = cached_test.batch_of(add(cached_test.ROWS))
  config = cached_test.CONFIG
  read = functools.partial(
    read_rows.read,
    config=config,
    batch=batch,
    budget=budget,
    pieces=pieces,
    capacity=32,
  )
  boxed = mllm.init(config, jax.random.key(0))
  params = nn.meta.unbox(boxed)
  alone = read(params)
  places = rules.shardings(*mllm.abstract(config), mesh)
  with jax.set_mesh(mesh):
    there = read(jax.device_put(params, places))
  assert not there[0].visual.k.is_fully_replicated
  return compare.difference(there[:2], alone[:2])


def born(state, config, mesh):
  """Parameters that are not as the table says, or whole on a device."""
  shapes, names = mllm.abstract(config.model)
  places = rules.shardings(shapes, names, mesh)
  wrong = []
  for (path, x), place in zip(
    jax.tree_util.tree_leaves_with_path(state.params),
    jax.tree.leaves(places),
    strict=True,
  ):
    part = x.addressable_shards[0].data.shape
    if x.sharding != place or part != place.shard_shape(x.shape):
      wrong.append(jax.tree_util.keystr(path))
  embedding = state.params["decoder"]["embedding"]
  return dict(wrong=wrong, embedding=embedding.addressable_shards[0].data.shape)


def main():
  config = config_lib.from_config_dict(json.loads(sys.argv[1]))
  found = {}
  for name, sizes in MESHES.items():
    mesh = mesh_lib.make_mesh(config_lib.ParallelConfig(**sizes))
    grown, state = growing(config, mesh)
    found[name] = attention(config, mesh) | dict(
      growing=grown, in_pieces=in_pieces(mesh), state=state
    )
  regions = row_lib.row_shape(config).regions
  print(json.dumps(dict(regions=regions, **found)))


if __name__ == "__main__":
  main()
