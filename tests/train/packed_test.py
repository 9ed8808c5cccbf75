"""Packed rows: each sample as if it were alone, and runs that train on them."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import types

import av
import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import compare
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.data import llava
from gaze_jax.data import mixture
from gaze_jax.data import pipeline
from gaze_jax.demo import emoji_scenes
from gaze_jax.evals import run as evals_run
from gaze_jax.layout import row as row_lib
from gaze_jax.models import mllm
from gaze_jax.parallel import rules
from gaze_jax.train import loop
from gaze_jax.train import losses

ROOT = pathlib.Path(__file__).parent.parent.parent
SIZES = dict(a=(40, 60), b=(70, 30), c=(33, 33))
# Images, videos, questions and answers of each sample.
SAMPLES = [
  (["a"], [], [("<image> What?", "A fox.")]),
  ([], [], [("Hello", "Yes, hello to you too.")]),
  (["b", "c"], [], [("<image><image> Same?", "No."), ("Sure?", "I am sure.")]),
  ([], ["v"], [("<video> What moves?", "A ball.")]),
  (["c"], [], [("And <image>", "red"), ("why?", "because it is")]),
]
VISION = dict(
  image_size=28, patch_size=7, width=16, depth=1, heads=2, mlp_dim=32
)
KINDS = {
  "plain": dict(vision=VISION),
  "anyres": dict(
    vision=VISION,
    tiling=dict(kind="anyres", pinpoints=[[28, 56], [56, 28]]),
  ),
  "naflex": dict(
    vision=VISION | dict(max_patches=16, class_token=False, position_grid=4)
  ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("packed")
  rng = np.random.default_rng(0)
  for name, size in SIZES.items():
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(out / f"{name}.png")
  with av.open(str(out / "v.mkv"), "w") as film:
    stream = film.add_stream("ffv1", rate=10)
    stream.height, stream.width, stream.pix_fmt = 30, 40, "bgr0"
    for _ in range(6):
      pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
      film.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
    film.mux(stream.encode())
  rows = []
  for images, videos, talk in SAMPLES:
    turns = []
    for question, answer in talk:
      turns.append({"from": "human", "value": question})
      turns.append({"from": "gpt", "value": answer})
    row = dict(conversations=turns)
    row |= dict(images=[f"{n}.png" for n in images]) if images else {}
    row |= dict(videos=[f"{n}.mkv" for n in videos]) if videos else {}
    rows.append(row)
  (out / "data.json").write_text(json.dumps(rows))
  return out


def settings(folder, kind, implementation="chunked", **data):
  decoder = dict(
    width=32, depth=2, query_heads=4, kv_heads=2, head_dim=8, mlp_dim=64
  )
  gaze = dict(
    region=[2, 2, 2], context_tokens=2, implementation=implementation, chunk=280
  )
  return dict(
    model=KINDS[kind] | dict(decoder=decoder, gaze=gaze),
    data=dict(
      path=str(folder / "data.json"),
      frames=2,
      max_units=10,
      sequence_length=560,
      answer_slots=80,
      workers=0,
      packing="first_fit",
      row_samples=6,
    )
    | data,
    train=dict(batch_size=4),
  )


@pytest.mark.few(1)
@pytest.mark.parametrize("implementation", ["masked", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_is_as_if_alone(folder, kind, implementation):
  c = config_lib.from_config_dict(settings(folder, kind, implementation))
  batcher = pipeline.Batcher(c, llava.SOURCE.make(c, "train"))
  chosen = [(i, 0) for i in range(len(SAMPLES))]
  together, indices = batcher.packed([chosen])
  assert indices.tolist() == [[0, 1, 2, 3, 4, -1]]
  apart = batcher.batch(chosen, rows=len(chosen)).batch
  budget = np.array([2, 1, 3, 4, 1], np.int32)
  init = jax.jit(mllm.init, static_argnums=0)
  params = nn.meta.unbox(init(c.model, jax.random.key(0)))
  rng = np.random.default_rng(1)
  draw = lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32)
  params = jax.tree.map(draw, params)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params, batch, k):
    target, scored = losses.targets(batch)
    out = mllm.apply(params, c.model, batch, k)
    loss = losses.next_token(out.logits, target, scored)
    return loss, (out.logits, out.usage, loss)

  of = lambda out: types.SimpleNamespace(
    **dict(zip(("logits", "usage", "loss"), out[0][1], strict=True)),
    gradient=out[1],
  )
  of_row = of(run(params, together, np.append(budget, 9)[None]))
  alone = of(run(params, apart, budget))
  got = np.asarray(of_row.logits)[0]
  want = [
    np.asarray(alone.logits)[i][: (apart.answer_slots[i] >= 0).sum()]
    for i in range(len(SAMPLES))
  ]
  compare.close(got[: sum(map(len, want))], np.concatenate(want))
  for name in ("chosen", "unique", "visible", "context"):
    compare.close(getattr(of_row.usage, name), getattr(alone.usage, name))
  compare.close(of_row.loss, alone.loss)
  compare.close(compare.joined(of_row.gradient), compare.joined(alone.gradient))
  # Another K of a segment changes that one alone.
  changed = np.append(budget, 9)[None].copy()
  changed[0, 2] = 1
  moved = np.asarray(of(run(params, together, changed)).logits)[0]
  differs = (moved != got).any(-1)[: sum(map(len, want))]
  edges = np.cumsum([0, *map(len, want)])
  assert differs[edges[2] : edges[3]].any()
  assert not np.delete(differs, np.s_[edges[2] : edges[3]]).any()


def test_rows_of_a_run(folder):
  c = config_lib.from_config_dict(settings(folder, "plain"))
  batches = pipeline.make_iterator(c)
  seen = [next(batches) for _ in range(3)]
  batches.close()
  assert seen[0]["indices"].shape == (4, 6)
  again = pipeline.make_iterator(c, start_step=2, held=[1, 3])
  part = next(again)
  again.close()
  np.testing.assert_array_equal(part["indices"], seen[2]["indices"][[1, 3]])
  np.testing.assert_array_equal(
    part["batch"].tokens, seen[2]["batch"].tokens[[1, 3]]
  )
  for one in seen:
    held = (one["indices"] >= 0).sum(axis=1)
    assert held.min() >= 1 and held.max() > 1
    segments = one["batch"].layout.segment.max(axis=1) + 1
    np.testing.assert_array_equal(segments, held)


def pooled(folder, kind, rows, tiles, **train):
  """16 rows of which 2 micro-batches are made, and pools of so many."""
  raw = settings(folder, kind, pool_rows=rows, pool_tiles=tiles)
  raw["train"] = dict(batch_size=16, accumulation=2) | train
  return config_lib.from_config_dict(raw)


def test_rows_of_micro_batches_share_pools(folder):
  """Of micro-batch 0 the even rows, two by two, then those of 1; again."""
  c = pooled(folder, "plain", 2, 9)
  places = pipeline._by_pools(np.arange(16), c)
  assert places.tolist() == [0, 2, 1, 3, 4, 6, 5, 7, *range(8, 16)][:8] + [
    8, 10, 9, 11, 12, 14, 13, 15,
  ]  # fmt: skip
  batches = pipeline.make_iterator(c)
  whole = next(batches)
  batches.close()
  assert whole["batch"].images.shape[:2] == (8, 9)
  # Rows 4 to 7, and 12 to 15, as another process would hold them.
  held = [4, 5, 6, 7, 12, 13, 14, 15]
  part = pipeline.make_iterator(c, held=held)
  own = next(part)
  part.close()
  np.testing.assert_array_equal(own["indices"], whole["indices"][held])
  np.testing.assert_array_equal(
    own["batch"].images, whole["batch"].images[[2, 3, 6, 7]]
  )
  np.testing.assert_array_equal(own["batch"].feed, whole["batch"].feed[held])


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_pool_are_as_if_they_had_their_own(folder, kind):
  """What a slot holds, whose pictures stand behind those of other rows."""
  chosen = [[(0, 0), (1, 0)], [(2, 0)], [(1, 1)], [(3, 0), (4, 0)]]
  room = 24 if kind == "anyres" else 7
  embedded = []
  for rows, tiles in ((1, 0), (4, room)):
    c = pooled(folder, kind, rows, tiles)
    batcher = pipeline.Batcher(c, llava.SOURCE.make(c, "train"))
    batch, indices = batcher.packed(chosen)
    assert (indices >= 0).sum(axis=1).tolist() == [2, 1, 1, 2]
    assert jax.tree.leaves(batch.images)[0].shape[0] == 4 // rows
    params = nn.meta.unbox(mllm.init(c.model, jax.random.key(0)))
    embedded.append(
      jax.jit(mllm.embed, static_argnums=1)(params, c.model, batch)
    )
  compare.close(*embedded)


def test_a_pool_that_is_full_takes_no_more(folder):
  """A stand-in with more pictures than were counted on is left out."""
  c = pooled(folder, "plain", 2, 3)
  batcher = pipeline.Batcher(c, llava.SOURCE.make(c, "train"))
  _, indices = batcher.packed([[(2, 0), (0, 0)], [(4, 0), (1, 0)]])
  assert indices[:, :2].tolist() == [[2, 0], [1, -1]]


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(rows=3), "pool_rows = 3 does not divide the 8 rows of a micro-batch"),
    (dict(kind="none"), "are of packed rows; set data.packing = 'first_fit'"),
  ],
)
def test_pools_that_can_not_be(folder, changes, says):
  raw = settings(folder, "plain", pool_rows=changes.get("rows", 2))
  raw["data"]["packing"] = changes.get("kind", "first_fit")
  raw["train"] = dict(batch_size=16, accumulation=2)
  with pytest.raises(config_lib.ConfigError, match=says):
    config_lib.from_config_dict(raw)


@pytest.mark.nightly
def test_pools_on_eight_devices(folder, tmp_path):
  """Rows of 4 shards, each with 2 of a micro-batch; and of two processes."""
  c = pooled(folder, "plain", 2, 9, steps=3, log_every=1, save_every=3)
  file = tmp_path / "config.json"
  file.write_text(json.dumps(config_lib.to_dict(c)))

  def run(name, processes, devices, **mesh):
    command = [
      *(sys.executable, "launch/local.py"),
      *(f"--processes={processes}", f"--devices={devices}", "--"),
      *(sys.executable, "launch/train.py", f"--config={file}"),
      f"--workdir={tmp_path / name}",
      *(f"--config.parallel.{axis}={n}" for axis, n in mesh.items()),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]

  alone = run("alone", 1, 1)
  for name, *where in (("eight", 1, 8), ("both", 2, 4)):
    rows = run(name, *where, data=2, fsdp=2, tensor=2)
    for key in ("loss", "grad_norm", "visual_kv_fraction"):
      of = lambda rows, key=key: np.array([row[key] for row in rows])
      compare.close(of(rows), of(alone))
    assert [r["sample_ids"] for r in rows] == [r["sample_ids"] for r in alone]
  more = pooled(folder, "plain", 4, 9)
  with pytest.raises(errors.GazeError, match="data.pool_rows = 4"):
    rules.check(more, dict(data=2, fsdp=2, sequence=1, tensor=2))


def test_a_sample_without_room_is_left_out(folder):
  c = config_lib.from_config_dict(settings(folder, "plain"))
  batcher = pipeline.Batcher(c, llava.SOURCE.make(c, "train"))
  tight = dataclasses.replace(batcher.shape, units=2)
  batcher.shape = tight
  batch, indices = batcher.packed([[(0, 0), (2, 0), (1, 0), (4, 0)]])
  assert indices.tolist() == [[0, 1, 4, -1, -1, -1]]
  assert batch.layout.segment.max() == 2


def test_a_source_that_does_not_tell_is_refused(tiny_config):
  c = tiny_config(data__packing="first_fit")
  source = emoji_scenes.SOURCE.make(c, "train")
  with pytest.raises(config_lib.ConfigError, match="EmojiScenes does not tell"):
    mixture.packed_rows(c, source)


@pytest.mark.nightly
def test_a_run_trains_and_resumes(folder, tmp_path, runs):
  raw = settings(folder, "plain")
  raw["model"]["vision"] |= dict(frozen=True)
  raw["train"] = dict(
    steps=4, batch_size=4, accumulation=2, save_every=2, log_every=1
  )
  raw["data"] |= dict(eval_path=raw["data"]["path"])
  c = config_lib.from_config_dict(raw)
  loop.train(c, tmp_path / "whole")
  with pytest.MonkeyPatch.context() as patch:
    runs.stop_before(patch, 3)
    with pytest.raises(runs.stopped):
      loop.train(c, tmp_path / "two")
  loop.train(c, tmp_path / "two")
  runs.assert_same(tmp_path / "whole", tmp_path / "two")
  lines = runs.numbers(tmp_path / "whole")
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  own = evals_run.evaluate(tmp_path / "whole")
  named = evals_run.evaluate(tmp_path / "whole", data=c.data.path)
  assert own["accuracy"] == named["accuracy"]
  assert own["accuracy"]["gaze"]["n"] == 7


def test_samples_alone_have_rows_as_short_as_they_allow(folder):
  c = config_lib.from_config_dict(settings(folder, "plain"))
  source = llava.SOURCE.make(c, "train")
  data = mixture.alone(c, source)
  assert (data.packing, data.pool_rows, data.pool_tiles) == ("none", 1, 0)
  for change in (0, 1):  # one slot less, and the longest does not fit
    short = dataclasses.replace(
      data, sequence_length=data.sequence_length - change
    )
    batcher = pipeline.Batcher(dataclasses.replace(c, data=short), source)
    rows = [(i, 0) for i in range(len(source))]
    if change:
      with pytest.raises(row_lib.LayoutError):
        batcher.batch(rows, rows=len(rows))
    else:
      batch = batcher.batch(rows, rows=len(rows)).batch
      assert batch.tokens.shape == (5, data.sequence_length)
      assert (batch.layout.unit.max() + 1) == data.max_units
  assert data.sequence_length < c.data.sequence_length
  kept = dataclasses.replace(data, sequence_length=560)
  assert mixture.alone(dataclasses.replace(c, data=kept), source) == kept


def test_the_shape_has_room_for_what_is_packed(folder):
  c = config_lib.from_config_dict(settings(folder, "anyres"))
  shape = row_lib.row_shape(c)
  batches = pipeline.make_iterator(c)
  batch = next(batches)["batch"]
  batches.close()
  assert batch.images.shape[1] == shape.tiles
