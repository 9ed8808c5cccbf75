"""Kernels state the precision of their products, whatever a process has set.

Mosaic compiles no product of bfloat16 at another precision than its own, and
float32 that is left to the default is rounded to bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from gaze_jax import types
from gaze_jax.kernels import attend_pages_tpu
from gaze_jax.kernels import attend_regions_tpu
from gaze_jax.kernels import attend_visual_tpu

PRECISIONS = (
  None,
  "default",
  "float32",
  "highest",
  "bfloat16",
  "BF16_BF16_F32",
)
ints = functools.partial(jnp.zeros, dtype=jnp.int32)


def _decode(dtype):
  page = attend_pages_tpu.page_shape(8, 128, dtype)
  pages = jnp.zeros((1, 1, 2, 4, *page), dtype)
  lists = ints((1, 2, 3)), ints((1, 2, 1, 3)), ints((1, 2))
  return lambda query: attend_pages_tpu.attend_pages(
    query, pages, pages, ints((1, 4)), types.Visits(*lists), layer=0
  )


def _prefill(dtype):
  pages = jnp.zeros((1, 2, 4, 8, 128), dtype)
  members = jnp.zeros((1, 128, 4, 4), bool)
  return jax.grad(
    lambda query: attend_regions_tpu.attend_regions(
      query, pages, pages, ints((1, 4)), members
    ).out.sum()
  )


def _visual(dtype):
  key = jnp.zeros((1, 128, 2, 128), dtype)
  layout = types.Layout(*[ints((1, 128))] * 6)
  attend = lambda query: attend_visual_tpu.attend_visual(
    query, key, key, layout
  ).sum()
  # Under remat and a jit the passes are traced after the call.
  return jax.grad(jax.checkpoint(jax.jit(attend)))


def _precisions(jaxpr, inside=False):
  """The precision of each product within a kernel."""
  for eqn in jaxpr.eqns:
    if inside and eqn.primitive.name == "dot_general":
      yield eqn.params["precision"]
    kernel = inside or eqn.primitive.name == "pallas_call"
    for inner in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from _precisions(inner, kernel)


@pytest.mark.few(12)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "make, x, products", [(_decode, 1, 2), (_prefill, 128, 9), (_visual, 128, 9)]
)
def test_precision_is_stated(make, x, products, dtype, precision):
  query = jnp.zeros((1, x, 4, 128), dtype)
  with jax.default_matmul_precision(precision):
    found = list(_precisions(jax.make_jaxpr(make(dtype))(query).jaxpr))
  exact = dtype == "float32"
  stated = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
  assert len(found) >= products  # and those that remat runs again
  assert set(found) == {(stated, stated)}
