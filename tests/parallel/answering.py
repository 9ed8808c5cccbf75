"""What tests/parallel/answering_test.py asks, on a mesh of this process's run.

  answering.py CONFIG.json OUT.json '{"data": 2, "tensor": 4}'

Text alone, an image in tiles, several, and the frames of a video are asked
about: one by one, and on one device in a batch and in many as well; with the
other granularity in many alone; and once in a chat, streamed, traced, and from
a context that is shared. Process 0 writes the ids of all answers.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from gaze_jax import api
from gaze_jax import config as config_lib
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.models import mllm
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard
from gaze_jax.runtime import processes

# Ways of asking, by granularity.
WAYS = {"query_head": ("one_by_one", "batch", "many"), "kv_group": ("many",)}
TOKENS = 6


def picture(number):
  rng = np.random.default_rng(number)
  return rng.integers(0, 255, (30, 60, 3), dtype=np.uint8)


def requests():
  """Eight of all mixes; some end early, two are drawn."""
  video = [picture(i) for i in range(3)]
  return [
    api.Request("what is it?", max_tokens=TOKENS),
    api.Request("and this?", images=[picture(0)], max_tokens=TOKENS, top_k=2),
    api.Request("how many?", images=[picture(1)], max_tokens=3, top_k=1),
    api.Request("what moves?", videos=[video], max_tokens=TOKENS, top_k=3),
    api.Request("a long one " * 5, max_tokens=4, temperature=0.8, seed=3),
    api.Request("who?", images=[picture(2)], max_tokens=TOKENS, share=0.5),
    api.Request(
      "both?", images=[picture(3), picture(4)], max_tokens=5, top_k=4
    ),
    api.Request(
      "draw", images=[picture(5)], max_tokens=5, temperature=1.1, seed=9
    ),
  ]


def load(config, parallel, granularity):
  """A random model whose answers vary, on the mesh."""
  gaze = dataclasses.replace(config.model.gaze, granularity=granularity)
  model = dataclasses.replace(config.model, gaze=gaze)
  config = dataclasses.replace(config, model=model)
  mesh = mesh_lib.one_device()
  if parallel:
    mesh = mesh_lib.make_mesh(config_lib.ParallelConfig(**parallel))
  init = jax.jit(mllm.init, static_argnums=0)
  params = jax.device_get(nn.meta.unbox(init(model, jax.random.key(0))))
  params["decoder"]["embedding"] = params["decoder"]["embedding"] * 20
  places = rules.shardings(*mllm.abstract(model), mesh)
  params = jax.tree.map(shard.put, params, places)
  return api.Model(config, params, tokenizer_lib.Tokenizer.load(), mesh=mesh)


def ids(answers):
  return [list(map(int, one.tokens)) for one in answers]


def ask(model, request, **options):
  """The answer to a request that is asked alone."""
  given = {
    f.name: getattr(request, f.name) for f in dataclasses.fields(request)
  } | options
  return model.generate(given.pop("question"), given.pop("after"), **given)


def answers(model, ways):
  """Ids of the answers to `requests`, by how they are asked for."""
  asked = requests()
  ask_by = dict(
    one_by_one=lambda: [ask(model, r) for r in asked],
    batch=lambda: model.generate_batch(asked),
    many=lambda: [*model.generate_many(asked[::-1], batch_size=4)][::-1],
  )
  return {way: ids(ask_by[way]()) for way in ways}


def more_answers(model):
  """Ids of other answers."""
  image = model.encode_image(picture(6))
  first = model.generate("what is it?", image, max_tokens=TOKENS, top_k=2)
  second = model.generate(
    "and here?", first.context, images=[picture(7)], max_tokens=TOKENS
  )
  follow = [
    api.Request("where?", image, max_tokens=TOKENS, top_k=k) for k in (1, 3)
  ]
  with tempfile.TemporaryDirectory() as folder:
    kept = processes.share(f"{folder}/kept")
    api.save_context(image, model, kept)
    again = api.load_context(kept, model)
    multihost_utils.sync_global_devices("it is read")
  loaded = model.generate("what is it?", again, max_tokens=TOKENS, top_k=2)
  stream = model.stream("what is it?", image, max_tokens=TOKENS, top_k=2)
  list(stream)
  first.accounting()
  return dict(
    chat=ids([first, second]),
    loaded=ids([loaded]),
    stream=ids([stream.answer]),
    shared=ids(model.generate_many(follow)),
    traced=ids([model.generate("why?", image, trace=True, max_tokens=3)]),
  )


def main():
  config, out, parallel = sys.argv[1:]
  raw = json.loads(pathlib.Path(config).read_text())
  parallel = json.loads(parallel)
  processes.initialize(trains=False)
  found = {}
  for granularity, ways in WAYS.items():
    run = config_lib.from_config_dict(raw)
    model = load(run, parallel, granularity)
    # On one device all ways are one, and each of them compiles for a minute.
    found[granularity] = answers(model, ways[:1] if parallel else ways)
  found["more"] = more_answers(model)
  if jax.process_index() == 0:
    pathlib.Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
  main()
