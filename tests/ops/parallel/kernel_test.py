"""Gradients of the gathers of the kernels' form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.ops import regions
from gaze_jax.ops import routing
from gaze_jax.ops.parallel import inputs as inputs_lib
from gaze_jax.ops.parallel import kernel

TEXT, VISUAL, CONTEXT = types.Role.TEXT, types.Role.VISUAL, types.Role.CONTEXT
ROLE = np.array([[TEXT, VISUAL, VISUAL, VISUAL, CONTEXT, TEXT]] * 2)
REGION = np.array([[-1, 0, 1, 0, -1, -1], [-1, 1, 1, 0, -1, -1]])
SLOTS = np.array([[[1, 3, -1], [2, -1, -1]], [[3, -1, -1], [1, 2, -1]]])


@pytest.fixture
def plan():
  nothing = np.zeros_like(ROLE)
  layout = types.Layout(
    role=ROLE,
    segment=nothing,
    unit=np.where(ROLE == TEXT, -1, 0),
    region=REGION,
    position=np.arange(6)[None].repeat(2, 0),
    branch=nothing,
  )
  layout = jax.tree.map(jnp.asarray, layout)
  return routing.plan(layout, jnp.asarray(SLOTS), config_lib.GazeConfig())


def test_order_by_hand(plan):
  order = [[0, 4, 5, 1, 2, 3]] * 2
  np.testing.assert_array_equal(plan.order, order)
  np.testing.assert_array_equal(plan.rank, [[0, 3, 4, 5, 1, 2]] * 2)
  inside = np.where(REGION >= 0, plan.place, 9)
  want = [[9, 0, 0, 1, 9, 9], [9, 0, 1, 0, 9, 9]]
  np.testing.assert_array_equal(inside, want)


@pytest.mark.parametrize("room", [0, 2])
def test_gradients_are_those_of_plain_gathers_and_gathers_themselves(
  plan, room
):
  pad = ((0, 0), (0, 0), (0, room))
  plan = dataclasses.replace(
    plan, region_slots=jnp.pad(plan.region_slots, pad, constant_values=-1)
  )
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 6, 2, 4))
  into = jax.random.normal(keys[1], (2, 6, 2, 4))
  into_pages = jax.random.normal(keys[2], (2, 2, 2, 3 + room, 4))

  def loss(permute, pages):
    return lambda x: jnp.vdot(permute(x), into) + jnp.vdot(pages(x), into_pages)

  ours = loss(
    lambda x: inputs_lib.permute(x, plan.order, plan.rank),
    lambda x: kernel._pages(x, plan),
  )
  plain = loss(
    lambda x: inputs_lib.take(x, plan.order),
    lambda x: regions.pages(x, plan.region_slots),
  )
  assert ours(x) == plain(x)
  compare.close(jax.grad(ours)(x), jax.grad(plain)(x))
  assert "scatter" in str(jax.make_jaxpr(jax.grad(plain))(x))
  assert "scatter" not in str(jax.make_jaxpr(jax.grad(ours))(x))
