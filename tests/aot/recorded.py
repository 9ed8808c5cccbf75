"""What tests/aot/answering_test.py compares; prints JSON.

  recorded.py WORKDIR

A model lies on eight fake devices, and is asked as users ask it, but no program
runs: each call is lowered for eight TPUs of the same mesh, from what it is
given, and compiled for how its results are sharded; these are zeros.
"""

import json
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import numpy as np

from gaze_jax import api
from gaze_jax import config as config_lib
from gaze_jax.aot import answering
from gaze_jax.aot import topology as topology_lib
from gaze_jax.aot import workloads
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import loop
from gaze_jax.decode import programs
from gaze_jax.evals import run as evals_run
from gaze_jax.kernels import target
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.train import checkpoint

TOKENS = 6
POOL = 2  # rows of each shard
CONFIG = dict(
  model=dict(
    vision=dict(
      image_size=28, width=32, depth=1, heads=4, mlp_dim=32, position_grid=2
    ),
    decoder=dict(
      vocab_size=2048,
      width=64,
      depth=2,
      query_heads=8,
      kv_heads=4,
      head_dim=32,
      mlp_dim=64,
      dtype="bfloat16",
    ),
    gaze=dict(region=(1, 2, 1), context_tokens=2, top_k=1),
  ),
)


def canonical(sharding, mesh):
  """The same on another mesh, without axes of one device and the last Nones."""
  if not isinstance(sharding, jax.sharding.NamedSharding):
    return None
  large = lambda axes: tuple(a for a in axes if mesh.shape[a] > 1)
  spec = [large((x,) if isinstance(x, str) else x or ()) for x in sharding.spec]
  while spec and not spec[-1]:
    spec.pop()
  spec = jax.sharding.PartitionSpec(*(x or None for x in spec))
  return jax.sharding.NamedSharding(mesh, spec)


def lowered(function, mesh, arguments, options):
  """A program for the mesh, of arrays or abstract ones."""

  def of(x):
    if not hasattr(x, "dtype"):
      return x  # static
    place = canonical(getattr(x, "sharding", None), mesh)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  arguments, options = jax.tree.map(of, (arguments, options))
  jax.clear_caches()  # programs of other spellings of the same sharding
  with jax.set_mesh(mesh), target.tracing_for("tpu"):
    traced = function.trace(*arguments, **options)
    return traced.lower(lowering_platforms=("tpu",))


class Recorder:
  """Takes the place of `Program.__call__`.

  `places` are the shardings of what a lowered program returns.
  """

  def __init__(self, here, there, places):
    self.here, self.there, self.places = here, there, places
    self.texts = {}

  def __call__(self, program, *args, **kwargs):
    one = lowered(program, self.there, args, kwargs)
    texts = self.texts.setdefault(program.name, [])
    if (text := one.as_text()) not in texts:
      texts.append(text)

    def nothing(path, x, place):
      # Answers end with the first step.
      steps = program in (loop.step_program, loop.run_program)
      ended = steps and "done" in jax.tree_util.keystr(path)
      return jax.device_put(
        np.full(x.shape, ended, x.dtype), canonical(place, self.here)
      )

    return jax.tree_util.tree_map_with_path(
      nothing, one.out_info, self.places(one)
    )


def ask(model, picture):
  """As launch/generate.py asks, `generate`, and `generate_many`."""
  asked = dict(images=[picture], max_tokens=TOKENS)
  for _ in model.stream("what is it?", trace=True, **asked):
    pass
  yield "launch/generate.py"
  model.generate("what is it?", **asked)
  yield "Model.generate"
  requests = [api.Request("what is it?", **asked)]
  rows = POOL * model.mesh.shape["data"]
  list(model.generate_many(requests, batch_size=rows))
  yield "Model.generate_many"


class Called:
  """Within it, calls of programs go to a recorder."""

  def __init__(self, recorder):
    self.recorder = recorder

  def __enter__(self):
    self.call = programs.Program.__call__
    programs.Program.__call__ = lambda *args, **kwargs: self.recorder(
      *args, **kwargs
    )

  def __exit__(self, *_):
    programs.Program.__call__ = self.call


def evaluated(workdir, devices):
  """Texts of what evaluation ran, and of what is compiled."""
  sizes = config_lib.ParallelConfig(data=4, tensor=2)
  there = mesh_lib.make_mesh(sizes, devices)
  whole = jax.sharding.NamedSharding(there, jax.sharding.PartitionSpec())
  everywhere = lambda one: jax.tree.map(lambda x: whole, one.out_info)
  recorder = Recorder(mesh_lib.make_mesh(sizes), there, everywhere)
  with target.tracing_for("tpu"), Called(recorder):
    evals_run.evaluate(workdir, parallel=sizes)
  config = checkpoint.Checkpoints(workdir).config()
  ends = tokenizer_lib.Tokenizer.load(config.data.tokenizer).ends
  one = workloads.evaluate(config, there, len(ends))
  text = lowered(one.function, there, one.arguments, one.options).as_text()
  return recorder.texts, {one.function.name: [text]}


def main():
  topology_lib.prepare("O0")
  sizes = config_lib.ParallelConfig(data=2, tensor=4)
  here = mesh_lib.make_mesh(sizes)
  devices = topology_lib.devices("v5e:2x4")
  there = mesh_lib.make_mesh(sizes, devices)
  config = config_lib.from_config_dict(CONFIG)
  params = jax.tree.map(
    lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding),
    workloads.weights(config.model, here),
  )
  tokenizer = tokenizer_lib.Tokenizer.load()
  model = api.Model(config, params, tokenizer, mesh=here)
  picture = np.zeros((28, 28, 3), np.uint8)
  compiled = lambda one: one.compile().output_shardings
  recorder, ran = Recorder(here, there, compiled), {}
  with target.tracing_for("tpu"), Called(recorder):
    for command in ask(model, picture):
      ran[command], recorder.texts = recorder.texts, {}
    batch = model.prepare(
      api.Request("what is it?", images=[picture], max_tokens=TOKENS)
    ).prompt.batch
  compiled = {}
  for one in answering.of_request(
    *(config.model, there, batch),
    max_tokens=TOKENS,
    ends=len(tokenizer.ends),
    pool=POOL,
  ):
    text = lowered(one.function, there, one.arguments, one.options).as_text()
    for command in one.command.split(", "):
      texts = compiled.setdefault(command, {})
      texts.setdefault(one.function.name, []).append(text)
  ran["launch/eval.py"], compiled["launch/eval.py"] = evaluated(
    pathlib.Path(sys.argv[1]), devices
  )
  json.dump(dict(ran=ran, compiled=compiled), sys.stdout)


if __name__ == "__main__":
  main()
