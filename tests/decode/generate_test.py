"""Greedy generation against repeated parallel passes; the accounting."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaze_jax import layout
from gaze_jax import types
from gaze_jax.decode import generate
from gaze_jax.decode import trace
from gaze_jax.models import mllm

STOP = 2


@pytest.fixture(scope="module")
def config(tiny_config):
  return tiny_config()


@pytest.fixture(scope="module")
def params(config):
  """Random, and large enough for answers and regions to vary."""
  init = jax.jit(mllm.init, static_argnums=0)
  plain = nn.meta.unbox(init(config.model, jax.random.key(1)))
  plain["decoder"]["embedding"] *= 20
  return plain


def request(config, parts, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.normal(size=(1, 1, 25, 16)).astype(np.float32)
  row = layout.lay_out(parts, layout.row_shape(config))
  return layout.make_batch([row], images)


WITH_IMAGE = [
  layout.Text([1]),
  layout.Unit(5, 5),
  layout.Text([3, 70, 81, 9, 4]),
]
TEXT_ONLY = [layout.Text([1, 3, 70, 81, 9, 4])]


@functools.partial(jax.jit, static_argnames="config")
def forward(params, config, batch, budget):
  return mllm.apply(params, config, batch, budget)


def by_parallel_form(params, config, parts, *, top_k, count):
  """Tokens and regions, each from a whole pass over what came before."""
  tokens, chosen = [], []
  for _ in range(count):
    # A dummy answer asks for the logits after the last token.
    row = [*parts, layout.Text(tokens)] if tokens else parts
    batch = request(config, [*row, layout.Text([0], question=0)])
    out = forward(params, config.model, batch, np.full(1, top_k, np.int32))
    tokens.append(int(out.logits[0, 0].argmax()))
    chosen.append(np.asarray(out.chosen[:, 0, 0]))
  return tokens, chosen


def said(params, config, parts, *, top_k, max_tokens=6, stop=-1):
  return list(
    generate.stream(
      params,
      config.model,
      request(config, parts),
      top_k=top_k,
      max_tokens=max_tokens,
      stop=stop,
    )
  )


@pytest.mark.parametrize("top_k", [0, 1, 2, 9, 20])
@pytest.mark.parametrize("parts", [WITH_IMAGE, TEXT_ONLY], ids=["image", ""])
def test_streaming_equals_repeated_parallel_passes(
  params, config, parts, top_k
):
  steps = said(params, config, parts, top_k=top_k)
  tokens, chosen = by_parallel_form(params, config, parts, top_k=top_k, count=6)
  assert [s.token for s in steps] == tokens
  for step, regions in zip(steps, chosen, strict=True):
    np.testing.assert_array_equal(step.chosen, regions)
    seen = 9 if parts is WITH_IMAGE else 0
    assert (step.chosen.sum(-1) == min(top_k, seen)).all()


def test_the_image_and_the_budget_matter(params, config):
  tokens = lambda parts, k: [
    s.token for s in said(params, config, parts, top_k=k)
  ]
  assert tokens(WITH_IMAGE, 9) != tokens(TEXT_ONLY, 9)
  regions = [s.chosen for s in said(params, config, WITH_IMAGE, top_k=2)]
  assert any((r != regions[0]).any() for r in regions[1:])


def test_the_stop_token_ends_the_answer(params, config):
  free = [s.token for s in said(params, config, WITH_IMAGE, top_k=2)]
  stop = free[2]
  first = free.index(stop)
  steps = said(params, config, WITH_IMAGE, top_k=2, stop=stop)
  assert [s.token for s in steps] == free[: first + 1]


@pytest.mark.parametrize("count", [1, 3])
def test_max_tokens(params, config, count):
  steps = said(params, config, WITH_IMAGE, top_k=2, max_tokens=count)
  assert len(steps) == count


# A row of 5 x 5 tokens in 3 x 3 regions of 1 to 4 tokens: sizes by raster
# order 1 2 2 / 2 4 4 / 2 4 4.
SIZES = [1, 2, 2, 2, 4, 4, 2, 4, 4]


def made(config, *heads):
  """A step whose every layer reads the given regions by head."""
  chosen = np.zeros((config.model.decoder.depth, 4, 9), bool)
  for head, picked in enumerate(heads):
    chosen[:, head, list(picked)] = True
  return trace.Step(5, chosen)


def count(params, config, steps, parts=WITH_IMAGE):
  return generate.account(
    params, config.model, request(config, parts), steps, top_k=2
  )


def test_the_regions_are_as_drawn_above(config):
  pages = request(config, WITH_IMAGE).region_slots[0] >= 0
  assert pages.sum(-1).tolist() == SIZES


def test_accounting_by_hand(params, config):
  # Heads 0 and 1 share a KV head, and so do 2 and 3.
  one = made(config, [0, 4], [0, 5], [8], [8])
  two = made(config, [], [3], [1, 2], [1, 2])
  out = count(params, config, [one, two])
  assert out.visual_tokens == 25
  # Entries: 5 + 5 + 4 + 4 = 18 and 0 + 2 + 4 + 4 = 10; a mean over 8 heads
  # of 3.5, and 2 context tokens.
  assert out.entries_per_query_head == 5.5
  # Unions: 1 + 4 + 4 = 9 and 4; 2 and 4; a mean over 4 groups of 4.75.
  assert out.unique_entries_per_kv_head == 6.75
  assert out.visual_kv_fraction == 5.5 / 25
  assert out.unique_visual_kv_fraction == 6.75 / 25
  # float32 keys and values of 2 layers, 2 KV heads, 9 pages of 4, 8 dims.
  assert out.kv_bytes == 2 * 4 * 2 * 2 * 9 * 4 * 8
  assert out.descriptor_bytes == 4 * 2 * 2 * 9 * 8
  assert out.gaze_milliseconds > 0 and out.dense_milliseconds > 0
  for figure in ("25", "5.5  (22.0%)", "6.8  (27.0%)", "MiB", "ms"):
    assert figure in out.text()


def test_dense_reads_every_token_and_the_context_tokens(params, config):
  steps = [made(config, *[range(9)] * 4)]
  out = count(params, config, steps)
  assert out.entries_per_query_head == out.unique_entries_per_kv_head == 27


def test_unique_is_at_least_per_head(params, config):
  out = count(params, config, said(params, config, WITH_IMAGE, top_k=2))
  per_head = out.entries_per_query_head
  assert per_head <= out.unique_entries_per_kv_head <= 2 * per_head


def test_accounting_without_an_image(params, config):
  steps = said(params, config, TEXT_ONLY, top_k=2)
  out = count(params, config, steps, TEXT_ONLY)
  assert out.visual_tokens == out.entries_per_query_head == 0
  assert out.visual_kv_fraction == 0
  assert "0.0%" in out.text()


def test_capacity_holds_prompt_and_answer(params, config):
  batch = request(config, WITH_IMAGE)
  for room in (1, 56, 57):  # 1 + 2 + 5 slots of text and context
    cache, _, _ = generate.prefill(
      params, config.model, batch, jnp.ones(1, jnp.int32), max_tokens=room
    )
    assert cache.k.shape[3] == (64 if room <= 56 else 128)
    assert int(cache.length[0]) == 8
  role = batch.layout.role[0]
  assert (role == types.Role.CONTEXT).sum() == 2
