"""Rows that grow from a cache: any cut gives what the whole row gives."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

import compare
import read_rows
import tiers
from gaze_jax import config as config_lib
from gaze_jax.kernels import attend_segments
from gaze_jax.kernels import backends
from gaze_jax.layout import row as row_lib
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.ops.decode import prompt_units

CONFIG = config_lib.ModelConfig(
  vision=config_lib.VisionConfig(
    image_size=70,
    patch_size=14,
    width=16,
    depth=1,
    heads=2,
    mlp_dim=16,
    position_grid=5,
  ),
  decoder=config_lib.DecoderConfig(
    vocab_size=64,
    width=32,
    depth=2,
    query_heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    embedding_std=1.0,  # tokens that differ
  ),
  gaze=config_lib.GazeConfig(region=(2, 2, 1), context_tokens=3, top_k=2),
)
SHAPE = row_lib.RowShape(
  slots=64,
  units=2,
  unit_tokens=25,
  regions=12,
  region_length=4,
  answer_slots=5,
  region=(2, 2, 1),
  context_tokens=3,
)
# Rows of other lengths and grids; the last has no image.
ROWS = [
  [
    row_lib.Text([1, 2]),
    *(row_lib.Unit(3, 5), row_lib.Unit(5, 2)),
    row_lib.Text([3, 4, 5]),
  ],
  [row_lib.Text([6]), row_lib.Unit(1, 1), row_lib.Text([7])],
  [row_lib.Text([8]), row_lib.Text([9, 10])],
]
# Slots of each row that are read together, text and units by turns; the first
# unit's context tokens end a chunk.
PIECES = [
  (True, [(0, 2), (0, 1), (0, 1)]),
  (False, [(2, 12), (1, 5), (1, 1)]),
  (False, [(12, 20), (5, 5), (1, 1)]),
  (False, [(20, 33), (5, 5), (1, 1)]),
  (True, [(33, 36), (5, 6), (1, 3)]),
]
ANSWERS = [[20, 21, 22, 28], [23, 24, 29], [25, 26, 27]]
BUDGET = np.array([2, 1, 3], np.int32)


@pytest.fixture(scope="module")
def params():
  make = jax.jit(mllm.init, static_argnums=0)
  return nn.meta.unbox(make(CONFIG, jax.random.key(0)))


def batch_of(rows):
  pixels = np.random.default_rng(0).normal(size=(len(rows), 2, 70, 70, 3))
  laid = [row_lib.lay_out(parts, SHAPE) for parts in rows]
  return row_lib.make_batch(laid, pixels.astype(np.float32))


_embed = jax.jit(mllm.embed, static_argnames="config")
_apply = jax.jit(mllm.apply, static_argnames="config")
_extend = jax.jit(cached.extend, static_argnames="config")
read = functools.partial(
  read_rows.read, budget=BUDGET, pieces=PIECES, capacity=32
)


OPTIONS = {
  "causal": {},
  "own unit, answer alone": dict(
    visual_attention="own_unit", route_prompt=False, descriptor="submean"
  ),
  "question": dict(refresh="question", descriptor="minmax"),
}


@pytest.fixture(params=tiers.few(1, OPTIONS))
def config(request):
  gaze = dataclasses.replace(CONFIG.gaze, **OPTIONS[request.param])
  return dataclasses.replace(CONFIG, gaze=gaze)


def same_text(got, want, length):
  """Filled slots of two linear caches are the same."""
  for row, n in enumerate(length):
    for a, b in ((got.k, want.k), (got.v, want.v)):
      compare.close(a[:, row, :, :n], b[:, row, :, :n])


@pytest.mark.nightly
def test_rows_read_in_pieces_are_rows_read_in_whole_runs(params, config):
  batch = batch_of(ROWS)
  want, logits, whole = read(params, config, batch, pieces=None)
  got, last, traced = read(params, config, batch)
  compare.close(last, logits)
  np.testing.assert_array_equal(traced.chosen, whole.chosen)
  assert traced.scores is None is traced.dense
  # Text and context; 36 slots with 25 visual ones, and so on.
  assert got.length.tolist() == [11, 5, 3] == want.length.tolist()
  assert got.position.tolist() == [36, 6, 3] == want.position.tolist()
  same_text(got, want, got.length)
  np.testing.assert_array_equal(got.visual.valid, want.visual.valid)
  np.testing.assert_array_equal(got.visual.unit, want.visual.unit)
  for name in ("k", "v", "descriptors"):
    a, b = getattr(got.visual, name), getattr(want.visual, name)
    compare.close(a, b)
  if config.gaze.refresh == "question":
    np.testing.assert_array_equal(got.choice, want.choice)


def test_answers_go_on_as_in_the_parallel_form(params, config):
  whole = [
    [*parts, row_lib.Text(answer, question=0)]
    for parts, answer in zip(ROWS, ANSWERS, strict=True)
  ]
  want = _apply(params, config, batch_of(whole), BUDGET)
  cache, first, _ = read(params, config, batch_of(ROWS))
  compare.close(first, want.logits[:, 0])
  # Row 1 says its one token while the others say two, and row 0 waits once.
  said = np.zeros(3, int)
  for counts in ([1, 0, 1], [0, 1, 1], [1, 0, 0]):
    counts = np.array(counts, np.int32)
    tokens = np.full((3, 1), 63, np.int32)
    for row in np.flatnonzero(counts):
      tokens[row] = ANSWERS[row][said[row]]
    before = cache
    cache, logits, traced = _extend(
      params, config, cache, tokens, BUDGET, count=counts
    )
    said += counts
    for row in np.flatnonzero(counts):
      at = said[row]
      compare.close(logits[row, 0], want.logits[row, at])
      np.testing.assert_array_equal(
        traced.chosen[:, row, 0], want.chosen[:, row, at]
      )
    # A row without a token stays as it is.
    np.testing.assert_array_equal(cache.length, before.length + counts)
    np.testing.assert_array_equal(cache.position, before.position + counts)
    same_text(cache, before, before.length)
  assert said.tolist() == [2, 1, 2]


def _take_segments(monkeypatch):
  """Units by segments, with the oracle in the kernel's place; its calls."""
  monkeypatch.setattr(backends, "ATTEND_SEGMENTS", (attend_segments,))
  monkeypatch.setattr(
    attend_segments, "supported", lambda **_: None, raising=False
  )
  called = []
  plain = attend_segments.attend_segments
  monkeypatch.setattr(
    attend_segments,
    "attend_segments",
    lambda *args, **kwargs: called.append(1) or plain(*args, **kwargs),
  )
  # Blocks that overlap.
  monkeypatch.setattr(prompt_units, "_SEGMENTED", (256, 5))
  jax.clear_caches()
  return called


def _video_rows(frames):
  """Five frames beside a picture, and one of a single frame."""
  video = lambda n: [row_lib.Unit(2, 3, frame=i, frames=n) for i in range(n)]
  shape = dataclasses.replace(
    SHAPE,
    slots=72,
    units=6,
    region=(2, 2, frames),
    region_length=4 * frames,
    tiles=6,
  )
  rows = [
    [row_lib.Text([1]), *video(5), row_lib.Unit(3, 3), row_lib.Text([3, 4])],
    [row_lib.Text([6]), *video(1), row_lib.Text([7])],
  ]
  pixels = np.random.default_rng(0).normal(size=(2, 6, 70, 70, 3))

  def batch(tails):
    laid = [
      row_lib.lay_out([*row, *tail], shape)
      for row, tail in zip(rows, tails, strict=True)
    ]
    return row_lib.make_batch(laid, pixels.astype(np.float32))

  return batch


# The first cut is within the second frame, the next within its context tokens'
# unit; the third in the last frame, before its last token.
VIDEO_PIECES = [
  (True, [(0, 1), (0, 1)]),
  (False, [(1, 13), (1, 1)]),
  (False, [(13, 28), (1, 1)]),
  (False, [(28, 42), (1, 4)]),
  (False, [(42, 58), (4, 10)]),
  (True, [(58, 60), (10, 11)]),
]


@pytest.mark.few(1)
@pytest.mark.parametrize("by_segments", [False, True])
@pytest.mark.parametrize("frames", [2, 3])
@pytest.mark.parametrize(
  "options", [dict(budget="per_unit"), dict(visual_attention="own_unit")]
)
def test_a_chunk_may_end_inside_a_region_of_several_frames(
  params, monkeypatch, options, frames, by_segments
):
  gaze = dataclasses.replace(CONFIG.gaze, region=(2, 2, frames), **options)
  config = dataclasses.replace(CONFIG, gaze=gaze)
  batch = _video_rows(frames)
  budget = np.array([1, 1], np.int32)
  answers = [[row_lib.Text([20, 21], question=0)]] * 2
  want = _apply(params, config, batch(answers), budget)
  if by_segments:
    _take_segments(monkeypatch)
  cache, first, traced = read_rows.read(
    params,
    config,
    batch([[], []]),
    budget,
    pieces=VIDEO_PIECES,
    capacity=32,
  )
  _, logits, _ = _extend(
    params, config, cache, np.full((2, 1), 20, np.int32), budget
  )
  if by_segments:
    jax.clear_caches()
  compare.close(first, want.logits[:, 0])
  compare.close(logits[:, 0], want.logits[:, 1])
  np.testing.assert_array_equal(traced.chosen[:, :, 0], want.chosen[:, :, 0])
  if options.get("budget") == "per_unit":  # frames count, and the picture
    assert traced.chosen[:, :, 0].sum(-1).max((0, 2)).tolist() == [6, 1]


def test_several_tokens_at_once_and_some_of_them_padding(params):
  whole = [
    [*parts, row_lib.Text(answer, question=0)]
    for parts, answer in zip(ROWS, ANSWERS, strict=True)
  ]
  want = _apply(params, CONFIG, batch_of(whole), BUDGET)
  cache, _, _ = read(params, CONFIG, batch_of(ROWS))
  counts = np.array([2, 1, 0], np.int32)
  tokens = np.array([[20, 21], [23, 63], [63, 63]], np.int32)
  grown, logits, _ = _extend(
    params, CONFIG, cache, tokens, BUDGET, count=counts
  )
  compare.close(logits[0], want.logits[0, 1:3])
  compare.close(logits[1, 0], want.logits[1, 1])
  assert (grown.length - cache.length).tolist() == [2, 1, 0]
  # What was padding is written over by what comes next.
  _, logits, _ = _extend(
    params, CONFIG, grown, np.array([[22], [24], [25]], np.int32), BUDGET
  )
  compare.close(logits[0, 0], want.logits[0, 3])
  compare.close(logits[1, 0], want.logits[1, 2])
  compare.close(logits[2, 0], want.logits[2, 1])


def test_a_trace_of_a_prompt_is_of_its_last_token(params):
  _, _, traced = read(params, CONFIG, batch_of(ROWS), trace=True)
  assert traced.scores.shape == traced.dense.shape == (2, 3, 1, 4, 12)
  assert traced.chosen[:, 0, 0].sum(-1).tolist() == [[2] * 4] * 2
  best = np.asarray(traced.scores)[:, 0, 0, :, :9].max(-1)
  picked = np.where(traced.chosen, traced.scores, -np.inf)[:, 0, 0].max(-1)
  np.testing.assert_array_equal(picked, best)
  share = np.asarray(traced.dense).sum(-1)
  assert ((share[:, :2] > 0) & (share[:, :2] < 1)).all()
  assert not share[:, 2].any()  # no image


def buffers(tree):
  return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)]


def test_donated_caches_come_back_in_their_buffers(params):
  batch = batch_of(ROWS)
  cache = cached.empty(CONFIG, 3, regions=12, region_length=4, capacity=32)
  large = lambda c: (c.k, c.v, c.visual.k, c.visual.v)
  before, places_before = cache, buffers(large(cache))
  spans = PIECES[1][1]
  x = read_rows.taken(_embed(params, CONFIG, batch), spans, 18)
  chunk = read_rows.chunk_of(batch, spans, 18)
  grown = read_rows.read_units(params, CONFIG, cache, x, chunk)
  assert buffers(large(grown)) == places_before
  assert before.visual.k.is_deleted() and before.k.is_deleted()
  count = np.array([2, 1, 1], np.int32)
  tokens = read_rows.taken(batch.tokens, PIECES[0][1], 4)
  again, _, _ = read_rows.read_text(
    params, CONFIG, grown, tokens, BUDGET, count=count, trace=False
  )
  assert buffers(large(again)) == places_before


@pytest.mark.few(1)
@pytest.mark.parametrize("visual_attention", ["causal", "own_unit"])
def test_units_by_segments_are_units_under_a_mask(
  params, monkeypatch, visual_attention
):
  """As a TPU's kernel takes them, with the oracle in the kernel's place."""
  gaze = dataclasses.replace(CONFIG.gaze, visual_attention=visual_attention)
  config = dataclasses.replace(CONFIG, gaze=gaze)
  batch = batch_of(ROWS)
  want, logits, _ = read(params, config, batch)
  called = _take_segments(monkeypatch)
  got, last, _ = read(params, config, batch)
  assert called
  compare.close(last, logits)
  same_text(got, want, got.length)
  compare.close(got.visual.k, want.visual.k)
  compare.close(got.visual.v, want.visual.v)
  jax.clear_caches()
