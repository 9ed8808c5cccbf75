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
@pytest.mark.parametrize("rows", [1, 2, 32, 33])
@pytest.mark.parametrize("size", [3, 2 * 4096, 3 * 1409, 4099])
def test_a_table_in_blocks_is_the_plain_product(rows, size, dtype):
  """In value and gradient, at every count of rows, in blocks and without."""
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
  taken = lambda **sizes: backends.best(backends.TABLE_PRODUCT, **sizes).NAME
  by_rows = [taken(rows=n, entries=3 * 1409) for n in (1, 2, 32, 33)]
  assert by_rows == ["xla", "cpu", "cpu", "xla"]
  by_size = [taken(rows=2, entries=n) for n in (4096, 2 * 4096, 4099, 151936)]
  assert by_size == ["xla", "cpu", "xla", "cpu"]
