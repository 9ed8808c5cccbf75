"""The dense oracle and the merge, by hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax import types
from gaze_jax.kernels import attention

# D = 4, so logits are halved. q . k = 2 ln 3 and 0: weights 3/4 and 1/4.
QUERY = np.array([2 * np.log(3.0), 0, 0, 0], np.float32).reshape(1, 1, 1, 4)
KEY = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32).reshape(1, 2, 1, 4)
VALUE = np.array([[4, 0, 0, 8], [0, 4, 0, 0]], np.float32).reshape(1, 2, 1, 4)


def test_two_keys_by_hand():
  got = attention.attend(QUERY, KEY, VALUE, np.ones((1, 1, 1, 2), bool))
  np.testing.assert_allclose(got.out[0, 0, 0], [3, 1, 0, 6], atol=1e-5)
  np.testing.assert_allclose(got.lse[0, 0, 0], np.log(4.0), atol=1e-6)


def test_a_masked_key_is_not_there():
  mask = np.array([False, True]).reshape(1, 1, 1, 2)
  got = attention.attend(QUERY, KEY, VALUE, mask)
  np.testing.assert_allclose(got.out[0, 0, 0], [0, 4, 0, 0], atol=1e-6)
  np.testing.assert_allclose(got.lse[0, 0, 0], 0.0, atol=1e-6)


def test_nothing_visible_is_zero_with_a_finite_gradient():
  mask = np.zeros((1, 1, 1, 2), bool)
  got = attention.attend(QUERY, KEY, VALUE, mask)
  np.testing.assert_array_equal(got.out, 0.0)
  assert np.isneginf(got.lse).all()
  total = lambda *qkv: attention.attend(*qkv, mask).out.sum()
  for gradient in jax.grad(total, (0, 1, 2))(QUERY, KEY, VALUE):
    np.testing.assert_array_equal(gradient, 0.0)


def test_query_head_reads_its_own_kv_head(heads):
  h = heads(2, 5, query_heads=6, kv_heads=3)
  mask = np.tril(np.ones((5, 5), bool))[None, None]
  got = attention.attend(h.q, h.k, h.v, mask).out
  for head in range(6):
    alone = attention.attend(
      h.q[:, :, head : head + 1],
      h.k[:, :, head // 2 : head // 2 + 1],
      h.v[:, :, head // 2 : head // 2 + 1],
      mask,
    ).out
    compare.close(got[:, :, head], alone[:, :, 0])


def test_softmax_is_float32_under_bfloat16(heads):
  h = heads(1, 64)
  half = [jnp.asarray(x, jnp.bfloat16) for x in (h.q, h.k, h.v)]
  got = attention.attend(*half, np.ones((1, 1, 64, 64), bool))
  assert got.lse.dtype == jnp.float32
  assert got.out.dtype == jnp.bfloat16
  exact = attention.attend(
    *[x.astype(jnp.float32) for x in half], np.ones((1, 1, 64, 64), bool)
  )
  compare.close(got.lse, exact.lse)


@pytest.mark.parametrize("cut", [0, 1, 3, 7, 8])
def test_merge_of_any_split_is_the_whole(heads, cut):
  h = heads(2, 8)
  mask = np.ones((1, 1, 8, 8), bool)
  whole = attention.attend(h.q, h.k, h.v, mask)
  parts = [
    attention.attend(h.q, h.k, h.v, mask & inside)
    for inside in (np.arange(8) < cut, np.arange(8) >= cut)
  ]
  got = attention.merge(*parts)
  compare.close(got, whole)


def test_merge_of_nothing_is_zero():
  empty = types.Attended(
    out=jnp.zeros((1, 1, 1, 4)), lse=jnp.full((1, 1, 1), -jnp.inf)
  )
  got = attention.merge(empty, empty)
  np.testing.assert_array_equal(got.out, 0.0)
  assert np.isneginf(got.lse).all()
