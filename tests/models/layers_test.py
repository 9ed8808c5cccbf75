"""Layers by hand-computed numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import compare
from gaze_jax.models import layers


def test_rms_norm_by_hand():
  got = layers.rms_norm(
    np.array([[3.0, 4.0]], np.float32), np.array([1.0, 2.0]), 0.0
  )
  root = np.sqrt(12.5)
  np.testing.assert_allclose(got, [[3 / root, 8 / root]], rtol=1e-6)


def test_rms_norm_does_not_overflow_in_half_precision():
  x = jax.numpy.full((1, 4), 1e4, jax.numpy.float16)
  got = layers.rms_norm(x, np.ones(4, np.float32), 1e-6)
  assert got.dtype == x.dtype
  np.testing.assert_allclose(np.asarray(got, np.float32), 1.0, rtol=1e-3)


def test_project_contracts_the_leading_axes():
  x = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
  module = layers.Project((2, 3, 4), ("heads", "head_dim", "embed"), inputs=2)
  params = nn.meta.unbox(module.init(jax.random.key(0), x))
  got = module.apply(params, x)
  weight = np.asarray(params["params"]["weight"])
  want = x.reshape(1, 2, 6) @ weight.reshape(6, 4)
  compare.close(got, want)


def test_projections_start_at_the_scale_of_their_inputs():
  """Variance 1 / fan-in, whatever the split of the axes."""
  x = np.zeros((1, 1, 8, 32), np.float32)
  module = layers.Project((8, 32, 64), ("heads", "head_dim", "embed"), inputs=2)
  weight = nn.meta.unbox(module.init(jax.random.key(0), x))["params"]["weight"]
  np.testing.assert_allclose(weight.std(), 256**-0.5, rtol=0.05)


def test_swiglu_by_hand():
  module = layers.SwiGLU(1)
  one = np.ones((1, 1), np.float32)
  params = dict(
    gate=dict(weight=one * 2),
    up=dict(weight=one * 3),
    down=dict(weight=one * 5),
  )
  got = module.apply({"params": params}, one)
  silu = 2 / (1 + np.exp(-2.0))
  np.testing.assert_allclose(got, [[silu * 3 * 5]], rtol=1e-6)


def test_project_with_a_bias():
  module = layers.Project((3, 2, 2), ("embed", "heads", "head_dim"), bias=True)
  x = np.ones((1, 3), np.float32)
  params = nn.meta.unbox(module.init(jax.random.key(0), x))["params"]
  assert params["bias"].shape == (2, 2) and not params["bias"].any()
  bias = np.arange(4, dtype=np.float32).reshape(2, 2)
  zero = np.zeros((3, 2, 2), np.float32)
  got = module.apply({"params": dict(weight=zero, bias=bias)}, x)
  np.testing.assert_array_equal(got, bias[None])


def _operands(jaxpr, out):
  """Dtypes of the operands of every matrix product, however deep."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      out.append({str(v.aval.dtype) for v in equation.invars})
    for inner in core.jaxprs_in_params(equation.params):
      _operands(inner, out)
  return out


@pytest.mark.parametrize("inputs", [1, 2])
def test_narrow_products_have_narrow_operands_both_ways(inputs):
  """The sums are float32 all the same, and so are the gradients' sums."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.array(rng.normal(size=shape), jnp.bfloat16)
  weight = draw(4, 6, 5)
  x = draw(2, 3, *weight.shape[:inputs])
  target = draw(2, 3, *weight.shape[inputs:])

  def loss(x, weight):
    y = layers.contract(x, weight, inputs, jnp.float32)
    return (y * target.astype(jnp.float32)).sum()

  jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, weight)
  found = _operands(jaxpr.jaxpr, [])
  assert len(found) == 3 and all(f == {"bfloat16"} for f in found)
  got = jax.grad(loss, (0, 1))(x, weight)
  wide = (x.astype(jnp.float32), weight.astype(jnp.float32))
  want = jax.grad(loss, (0, 1))(*wide)
  for g, w in zip(got, want, strict=True):
    assert g.dtype == jnp.bfloat16
    np.testing.assert_array_equal(g, w.astype(jnp.bfloat16))
  product = lambda x, weight: layers.contract(x, weight, inputs, jnp.float32)
  compare.close(product(x, weight), product(*wide))


def test_a_wide_weight_gets_a_wide_gradient():
  x, weight = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4))
  loss = lambda w: layers.contract(x, w, 1, jnp.bfloat16).sum()
  assert jax.grad(loss)(weight).dtype == jnp.float32


@pytest.mark.few(8)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 16, 17])
@pytest.mark.parametrize("size", [3, 2048, 2 * 2048, 2 * 2048 + 5])
def test_a_table_in_blocks_is_the_plain_product(rows, size, dtype):
  """In value and gradient, at every count of rows, with a rest and without."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.array(rng.normal(size=shape), jnp.float32)
  x, table, target = draw(1, rows, 64), draw(size, 64), draw(1, rows, size)
  plain = lambda x, table: layers.contract(x, table.T, 1, jnp.float32)
  table_form = lambda x, table: layers.contract_table(x, table, jnp.float32)
  results = []
  for form in (plain, table_form):
    if dtype == jnp.bfloat16:  # XLA:CPU lacks the gradient's product at 16 rows
      results.append((jax.jit(form)(x.astype(dtype), table),))
      continue
    loss = lambda x, table, f=form: (f(x.astype(dtype), table) * target).sum()
    gradients = jax.jit(jax.grad(loss, (0, 1)))(x, table)
    results.append((jax.jit(form)(x.astype(dtype), table), *gradients))
  for want, got in zip(*results, strict=True):
    assert got.shape == want.shape and got.dtype == want.dtype
    compare.close(got, want)


def test_few_rows_take_the_blocks():
  """Else the test above would compare a form with itself."""
  form = lambda x, t: layers.contract_table(x, t, jnp.float32)
  loops = lambda rows: (
    "while"
    in jax.jit(form).lower(jnp.ones((rows, 8)), jnp.ones((4100, 8))).as_text()
  )
  assert [loops(n) for n in (1, 2, 16, 17)] == [False, True, True, False]
