"""Which pages a lookup reads: lists, counts, and that no page is copied."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attend_pages_cpu
from gaze_jax.kernels import attend_pages_tpu
from gaze_jax.kernels import target
from gaze_jax.ops import routing
from gaze_jax.ops.decode import pages

Q, H, L, D = 4, 2, 3, 16  # 1 / sqrt(D) is exact
FORMS = dict(masked=None, gather=attend_pages_cpu, pallas=attend_pages_tpu)


def _step(b, r, regions, budget, layers=1, x=1, **options):
  """`regions` of the pages of each row hold something, one of them ragged."""
  rng = np.random.default_rng(r)
  draw = lambda *shape: jnp.array(rng.normal(size=shape), jnp.float32)
  filled = np.where(np.arange(r) < np.reshape(regions, (-1, 1)), L, 0)
  filled[:, 0] -= 1
  # Few values, so that scores tie.
  descriptors = jnp.round(draw(layers, b, H, r, D))
  valid = jnp.arange(L) < filled[..., None]
  visual = types.VisualCache(
    k=draw(layers, b, H, r, L, D),
    v=draw(layers, b, H, r, L, D),
    descriptors=descriptors,
    valid=valid,
    unit=jnp.where(valid, 0, -1),
  )
  return pages.Lookup(
    query=jnp.round(draw(b, x, Q, D)),
    visual=visual,
    layer=jnp.int32(layers - 1),
    budget=jnp.array(budget, jnp.int32),
    config=config_lib.GazeConfig(**options),
  )


def _look(form, lookup, **options):
  run = lambda query, visual, budget: pages.look(
    dataclasses.replace(lookup, query=query, visual=visual, budget=budget),
    form,
    **options,
  )
  return jax.jit(run)(lookup.query, lookup.visual, lookup.budget)


def _same(got, want):
  np.testing.assert_array_equal(got[1], want[1])
  compare.close(got[0], want[0])


@pytest.mark.few(4)
@pytest.mark.parametrize("granularity", ["query_head", "kv_group", "layer"])
@pytest.mark.parametrize(
  "budget", [(0, 0), (1, 0), (16, 3), (17, 3), (16, 17), (128, 1), (999, 999)]
)
def test_a_choice_of_few_and_of_many(granularity, budget):
  """An eighth of 128 regions is 16: about the border, and rows beyond it."""
  lookup = _step(2, 128, (128, 100), budget, granularity=granularity)
  got = _look(attend_pages_cpu, lookup)
  _same(got, _look(None, lookup))
  score = routing.scores(
    lookup.query, lookup.visual.descriptors[0], lookup.config
  )
  opens = np.zeros((2, 128), np.int32)  # of no account with a fixed budget
  k = routing.allowed(lookup.budget[:, None], lookup.open, opens, lookup.config)
  want = routing.members(score, lookup.open, k)
  np.testing.assert_array_equal(got[1], routing.per_head(want, Q))
  assert (got[1].sum(-1) == np.minimum(budget, (128, 100))[:, None, None]).all()


@pytest.mark.parametrize("flag", [True, jnp.array(True)])
def test_dense_reads_no_page_behind_the_last(flag):
  """Cache with room: what lies there may be anything, and takes no time."""
  lookup = _step(2, 70, (3, 5), (1, 1))
  want = _look(None, lookup, dense=True)
  nowhere = jnp.arange(70)[:, None, None] >= 5
  poison = lambda x: jnp.where(nowhere, jnp.nan, x)
  visual = dataclasses.replace(
    lookup.visual, k=poison(lookup.visual.k), v=poison(lookup.visual.v)
  )
  lookup = dataclasses.replace(lookup, visual=visual)
  _same(_look(attend_pages_cpu, lookup, dense=flag), want)
  visits = pages._all_pages(lookup)
  np.testing.assert_array_equal(visits.count, [[3, 3], [5, 5]])


def _as_large_as_a_layer(lookup, form, **options):
  """What makes an array of as many values of the cache as a layer has."""
  with target.tracing_for("tpu" if form == "pallas" else "cpu"):
    traced = jax.make_jaxpr(
      lambda query, visual: pages.look(
        dataclasses.replace(lookup, query=query, visual=visual),
        FORMS[form],
        **options,
      )
    )(lookup.query, lookup.visual)
  least, found = lookup.visual.k[0].size, set()

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      inner = [
        getattr(x, "jaxpr", x)
        for x in jax.tree.leaves(
          list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        )
        if hasattr(getattr(x, "jaxpr", x), "eqns")
      ]
      for one in inner:
        walk(one)
      shapes = [getattr(y.aval, "shape", ()) for y in eqn.outvars]
      large = [s for s in shapes if s and s[-1] == D and math.prod(s) >= least]
      if large and not inner:
        found.add(eqn.primitive.name)

  walk(traced.jaxpr)
  return found


@pytest.mark.parametrize("dense", [True, False])
def test_a_long_chunk_of_text_copies_no_cache(dense):
  """80 rows of a KV head: by lists in every form but the oracle."""
  lookup = _step(1, 512, (512,), (100,), layers=2, x=40)
  large = functools.partial(_as_large_as_a_layer, lookup, dense=dense)
  assert large("gather") <= {"reshape"}  # of all layers, as they lie
  kernel = large("pallas", tokens=20)
  assert kernel <= {"reshape", "pad", "with_memory_space_constraint"}
  assert "transpose" in large("masked")


def test_dense_copies_no_page():
  lookup = _step(1, 512, (512,), (1,), layers=2)
  run = jax.jit(
    lambda query, visual: (
      pages.look(
        dataclasses.replace(lookup, query=query, visual=visual),
        attend_pages_cpu,
        dense=True,
      )[0].out
    )
  )
  memory = run.lower(lookup.query, lookup.visual).compile().memory_analysis()
  assert memory.temp_size_in_bytes < lookup.visual.k[0].nbytes
