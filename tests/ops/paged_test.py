"""Which pages a step reads: lists, counts, and that no page is copied."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.ops import gaze
from gaze_jax.ops import paged
from gaze_jax.ops import routing

Q, H, L, D = 4, 2, 3, 16  # 1 / sqrt(D) is exact


def _step(b, r, regions, budget, layers=None, **options):
  """`regions` of the pages of each row hold something, one of them ragged."""
  rng = np.random.default_rng(r)
  lead = () if layers is None else (layers,)
  draw = lambda *shape: jnp.array(rng.normal(size=shape), jnp.float32)
  filled = np.where(np.arange(r) < np.reshape(regions, (-1, 1)), L, 0)
  filled[:, 0] -= 1
  # Few values, so that scores tie.
  descriptors = jnp.round(draw(*lead, b, H, r, D))
  visual = types.VisualCache(
    k=draw(*lead, b, H, r, L, D),
    v=draw(*lead, b, H, r, L, D),
    descriptors=descriptors,
    valid=jnp.arange(L) < filled[..., None],
    unit=jnp.where(filled > 0, 0, -1),
  )
  return paged.Step(
    query=jnp.round(draw(b, 1, Q, D)),
    visual=visual,
    layer=None if layers is None else jnp.int32(layers - 1),
    budget=jnp.array(budget, jnp.int32),
    config=config_lib.GazeConfig(**options),
  )


def _look(pages, step, **options):
  run = lambda query, visual, budget: paged.look(
    dataclasses.replace(step, query=query, visual=visual, budget=budget),
    pages,
    **options,
  )
  return jax.jit(run)(step.query, step.visual, step.budget)


def _same(got, want):
  np.testing.assert_array_equal(got[1], want[1])
  compare.close(got[0], want[0])


@pytest.mark.parametrize("granularity", ["query_head", "kv_group", "layer"])
@pytest.mark.parametrize(
  "budget", [(0, 0), (1, 0), (16, 3), (17, 3), (16, 17), (128, 1), (999, 999)]
)
def test_a_choice_of_few_and_of_many(granularity, budget):
  """An eighth of 128 regions is 16: about the border, and rows beyond it."""
  step = _step(2, 128, (128, 100), budget, granularity=granularity)
  got = _look(gaze._gather_pages, step)
  _same(got, _look(None, step))
  score = routing.scores(step.query, step.visual.descriptors, step.config)
  k = routing.allowed(step.budget, step.open, step.visual.unit, step.config)
  want = routing.members(score, step.open, k)
  np.testing.assert_array_equal(got[1], routing.per_head(want, Q))
  assert (got[1].sum(-1) == np.minimum(budget, (128, 100))[:, None, None]).all()


@pytest.mark.parametrize("flag", [True, jnp.array(True)])
def test_dense_reads_no_page_behind_the_last(flag):
  """Cache with room: what lies there may be anything, and takes no time."""
  step = _step(2, 70, (3, 5), (1, 1))
  want = _look(None, step, dense=True)
  nowhere = jnp.arange(70)[:, None, None] >= 5
  poison = lambda x: jnp.where(nowhere, jnp.nan, x)
  visual = dataclasses.replace(
    step.visual, k=poison(step.visual.k), v=poison(step.visual.v)
  )
  step = dataclasses.replace(step, visual=visual)
  _same(_look(gaze._gather_pages, step, dense=flag), want)
  visits = paged._all_pages(step)
  np.testing.assert_array_equal(visits.count, [[3, 3], [5, 5]])


def test_dense_copies_no_page():
  step = _step(1, 512, (512,), (1,), layers=2)
  run = jax.jit(
    lambda query, visual: (
      paged.look(
        dataclasses.replace(step, query=query, visual=visual),
        gaze._gather_pages,
        dense=True,
      )[0].out
    )
  )
  memory = run.lower(step.query, step.visual).compile().memory_analysis()
  assert memory.temp_size_in_bytes < step.visual.k[0].nbytes
