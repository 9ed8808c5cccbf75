"""Products with a large table: the CPU's form against the plain product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax.kernels import backends
from gaze_jax.kernels import table_product


def _best(x, table):
  form = backends.best(
    backends.TABLE_PRODUCT, rows=x.size // x.shape[-1], entries=len(table)
  )
  return form.table_product(x, table, jnp.float32)


@pytest.mark.few(8)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 16, 17])
@pytest.mark.parametrize("size", [3, 2048, 2 * 2048, 2 * 2048 + 5])
def test_a_table_in_blocks_is_the_plain_product(rows, size, dtype):
  """In value and gradient, at every count of rows, with a rest and without."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.array(rng.normal(size=shape), jnp.float32)
  x, table, target = draw(1, rows, 64), draw(size, 64), draw(1, rows, size)
  plain = lambda x, table: table_product.table_product(x, table, jnp.float32)
  results = []
  for form in (plain, _best):
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
  loops = lambda rows: (
    "while"
    in jax.jit(_best).lower(jnp.ones((rows, 8)), jnp.ones((4100, 8))).as_text()
  )
  assert [loops(n) for n in (1, 2, 16, 17)] == [False, True, True, False]
