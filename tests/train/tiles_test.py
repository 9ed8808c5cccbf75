"""Training on images that become units of several sizes: tiles and NaFlex."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import compare
import tiers
from gaze_jax import config as config_lib
from gaze_jax.data import llava
from gaze_jax.data import pipeline
from gaze_jax.data import prompts
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units
from gaze_jax.evals import run as evals_run
from gaze_jax.layout import row as row_lib
from gaze_jax.models import mllm
from gaze_jax.train import checkpoint
from gaze_jax.train import loop
from gaze_jax.train import optimizer
from gaze_jax.train import state as state_lib

TOKENIZER = tokenizer_lib.Tokenizer.load()
BOS, EOS, USER, ASSISTANT = 1, 2, 3, 4
ANSWER = "a red fox"
# Height and width: odd ones, and one whose grid is shrunk (blended tokens).
SIZES = dict(odd=(33, 91), large=(200, 190), small=(9, 5))

_apply = jax.jit(mllm.apply, static_argnames="config")


def text(words):
  return TOKENIZER.encode(words)


# Each sample: its images, what is asked, and the same row by hand, where a
# number is an image.
SAMPLES = [
  (["odd"], "<image>\nwhat?", [BOS], 0, [USER, *text("what?"), ASSISTANT]),
  (["large"], "see <image>?", [BOS, USER, *text("see")], 0)
  + ([*text("?"), ASSISTANT],),
  (["small", "odd"], "is <image> like <image>?")
  + ([BOS, USER, *text("is")], 0, text("like"), 1, [*text("?"), ASSISTANT]),
  ([], "what?", [BOS, USER, *text("what?"), ASSISTANT]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("tiles")
  rng = np.random.default_rng(0)
  for name, size in SIZES.items():
    array = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(array).save(path / f"{name}.png")
  entries = []
  for names, asked, *_ in SAMPLES:
    said = [dict({"from": "human"}, value=asked)]
    said.append(dict({"from": "gpt"}, value=ANSWER))
    images = [f"{name}.png" for name in names]
    entries.append(dict(conversations=said, images=images))
  (path / "data.json").write_text(json.dumps(entries))
  return path


@pytest.fixture(params=tiers.few(1, ["anyres", "naflex"]))
def config(request, folder):
  """A model as small as can be, in the shape of LLaVA-OneVision's."""
  vision = dict(image_size=28, patch_size=7, position_grid=4, class_token=False)
  vision |= dict(width=16, depth=1, heads=2, mlp_dim=24, layer_scale=False)
  decoder = dict(width=32, depth=2, query_heads=4, kv_heads=2, head_dim=8)
  decoder |= dict(mlp_dim=48, qk_norm=False, qkv_bias=True, tied=False)
  model = dict(vision=vision, decoder=decoder)
  model["gaze"] = dict(region=(2, 3, 1), context_tokens=1, top_k=3)
  if request.param == "anyres":
    sides = (28, 56, 84)
    pinpoints = [[i, j] for i in sides for j in sides]
    model["tiling"] = dict(kind="anyres", pinpoints=pinpoints, max_tiles=4)
  else:
    vision["max_patches"] = 15
  json_file = str(folder / "data.json")
  data = dict(source="llava_json", path=json_file, eval_path=json_file)
  data |= dict(workers=0, max_units=2, sequence_length=140, max_skipped=0.0)
  train = dict(steps=3, batch_size=4, learning_rate=1e-2, warmup_steps=1)
  return config_lib.from_config_dict(
    dict(
      model=model,
      data=data,
      train=train | dict(log_every=1, save_every=3),
      eval=dict(batch_size=4, budgets=(1,)),
    )
  )


@pytest.mark.nightly
def test_three_steps_and_an_evaluation(config, tmp_path):
  before = state_lib.create(config, optimizer.make(config.train)).params
  loop.train(config, tmp_path)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  losses = [json.loads(line)["loss"] for line in lines]
  assert len(losses) == 3 and np.isfinite(losses).all()
  assert losses[2] < losses[0]  # the first step warms up from nothing
  saved = checkpoint.Checkpoints(tmp_path)
  after = saved.params()
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
  names = {"linear_1", "linear_2", "context"}
  tiled = config.model.tiling.kind == "anyres"
  assert changed["projector"].keys() == names | (
    {"newline"} if tiled else set()
  )
  for part in ("projector", "decoder"):
    assert all(jax.tree.leaves(changed[part])), changed[part]
  assert all(jax.tree.leaves(changed["vision"]["patch"]))
  report = evals_run.evaluate(tmp_path)
  for name in ("gaze", "dense", "blind", "random_regions", "centre_regions"):
    assert report["accuracy"][name]["n_by_kind"] == {"chat": 4}


@functools.cache
def lively(config):
  """Parameters that are all of a size, so that each of them counts."""
  init = jax.jit(mllm.init, static_argnums=0)
  params = nn.meta.unbox(init(config.model, jax.random.key(0)))
  rng = np.random.default_rng(1)
  draw = lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32)
  return jax.tree.map(draw, params)


@pytest.mark.parametrize("top_k", [2, 1000])
def test_a_row_is_its_request(config, folder, top_k):
  params, budget = lively(config), np.array([top_k], np.int32)
  rows = pipeline.Batcher(config, llava.SOURCE.make(config, "train"))
  said = [*text(ANSWER), EOS]
  for i, (names, _, *pieces) in enumerate(SAMPLES):
    images = [np.asarray(Image.open(folder / f"{n}.png")) for n in names]
    seen = units.of_images(images, config.model)
    parts = []
    for piece in pieces:
      image = isinstance(piece, int)
      parts += seen[piece].units if image else [row_lib.Text(piece)]
    parts.append(row_lib.Text(said, question=0))
    pixels = units.join([one.pixels for one in seen], config.model)
    request = prompts.Prompt(tuple(parts), pixels)
    batches = (
      prompts.batch([request], config.model),
      rows.batch([(i, 0)], rows=1).batch,
    )
    want, got = (
      _apply(params, config.model, batch, budget).logits[0, : len(said)]
      for batch in batches
    )
    compare.close(got, want)
    assert np.ptp(want, axis=-1).min() > 0.1


def test_shapes_do_not_depend_on_the_sample(config):
  rows = pipeline.Batcher(config, llava.SOURCE.make(config, "train"))
  shapes = [
    jax.tree.map(np.shape, rows.batch([(i, 0)], rows=2).batch)
    for i in range(len(SAMPLES))
  ]
  assert all(
    jax.tree.leaves(one) == jax.tree.leaves(shapes[0]) for one in shapes
  )
  if config.model.tiling.kind == "anyres":
    tiles = row_lib.row_shape(config).tiles
    assert shapes[0].images == (2, tiles, 28, 28, 3) and tiles == 10


def test_units_of_the_rows(config):
  rows = pipeline.Batcher(config, llava.SOURCE.make(config, "train"))
  made = rows.batch([(i, 0) for i in range(4)], rows=5)
  assert [len(row) for row in made.units] == (
    [2, 2, 2, 0] if config.model.tiling.kind == "anyres" else [1, 1, 2, 0]
  )
  assert len(made.samples) == 4 and (made.batch.layout.unit[4] == -1).all()


def test_workers_change_nothing(config):
  two = dataclasses.replace(config.data, workers=1)
  batches = []
  for c in (config, dataclasses.replace(config, data=two)):
    iterator = pipeline.make_iterator(c)
    batches.append(next(iterator))
    iterator.close()
  jax.tree.map(np.testing.assert_array_equal, *batches)
