"""Products with weights, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import compare
from gaze_jax.kernels import products


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
    y = products.contract(x, weight, inputs, jnp.float32)
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
  product = lambda x, weight: products.contract(x, weight, inputs, jnp.float32)
  compare.close(product(x, weight), product(*wide))


def test_a_wide_weight_gets_a_wide_gradient():
  x, weight = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4))
  loss = lambda w: products.contract(x, w, 1, jnp.bfloat16).sum()
  assert jax.grad(loss)(weight).dtype == jnp.float32


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("outputs", [2, 40])
def test_wide_products_have_the_gradients_of_a_plain_one(inputs, outputs):
  """With outputs that are fewer than the inputs, and more."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.array(rng.normal(size=shape), jnp.float32)
  weight = draw(*(4, 6)[:inputs], outputs, 3)
  x = draw(2, 5, *weight.shape[:inputs])
  wanted = draw(2, 5, outputs, 3)
  ours = lambda x, w: (products.contract(x, w, inputs, x.dtype) * wanted).sum()
  plain = lambda x, w: (jnp.tensordot(x, w, inputs) * wanted).sum()
  got = jax.jit(jax.grad(ours, (0, 1)))(x, weight)
  want = jax.jit(jax.grad(plain, (0, 1)))(x, weight)
  compare.close(got, want)


def test_nothing_joins_the_transposed_copy_of_a_wide_gradient():
  loss = lambda w: products.contract(jnp.ones((4, 3)), w, 1, jnp.float32).sum()
  text = jax.jit(jax.grad(loss)).lower(jnp.ones((3, 5))).as_text()
  assert text.count("optimization_barrier") == 1


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_of_several_transposes_gives_the_product_of_its_weight(
  dtype, rows, inputs
):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.array(rng.normal(size=shape), dtype)
  weights = [draw(4, 6, 5) for _ in range(3)]
  x = draw(1, rows, *weights[0].shape[:inputs])
  turned = tuple(w.T for w in weights)

  @jax.jit
  def product(number, x):
    one = products.OneOf(turned, number)
    assert one.shape == (4, 6, 5)
    return products.contract(x, one, inputs, jnp.float32)

  for i, weight in enumerate(weights):
    want = products.contract(x, weight, inputs, jnp.float32)
    got = product(i, x)
    assert got.dtype == jnp.float32
    compare.close(got, want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2])
def test_no_transpose_is_copied(rows, dtype):
  """Neither of a weight of two inputs nor of one of two outputs."""
  weights = [(jnp.zeros(s, dtype),) * 2 for s in ((256, 4, 64), (64, 4, 256))]

  def run(number, x, weights):
    for inputs, turned in zip((2, 1), weights, strict=True):
      one = products.OneOf(turned, number)
      x = products.contract(x, one, inputs, dtype)
    return x

  lowered = jax.jit(run).lower(0, jnp.ones((rows, 64, 4), dtype), weights)
  temporaries = lowered.compile().memory_analysis().temp_size_in_bytes
  assert temporaries < weights[0][0].nbytes / 4
