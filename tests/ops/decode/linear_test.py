"""Attention to cached text and new tokens, against one mask over all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax.kernels import attention
from gaze_jax.ops.decode import linear

N, B, H, D = 3, 3, 2, 8


def draw(y, x, group, seed=0):
  rng = np.random.default_rng(seed)
  make = lambda *shape: rng.normal(size=shape).astype(np.float32)
  old = make(N, B, H, y, D), make(N, B, H, y, D)
  new = make(B, x, H, D), make(B, x, H, D)
  return make(B, x, H * group, D), old, new


def plain(query, old, new, length, layer):
  """Old keys and new ones in one array, under one mask."""
  y, x = old[0].shape[3], query.shape[1]
  both = [
    np.concatenate([o[layer].transpose(0, 2, 1, 3), n], axis=1)
    for o, n in zip(old, new, strict=True)
  ]
  cached = np.broadcast_to(np.arange(y) < length[:, None, None], (B, x, y))
  causal = np.broadcast_to(np.tril(np.ones((x, x), bool)), (B, x, x))
  mask = np.concatenate([cached, causal], axis=2)
  return attention.attend(query, *both, jnp.asarray(mask[:, None]))


@pytest.mark.few(2)
# Pages of 16 in place, those of more than 32 rows some at a time; a cache of
# another size as a copy.
@pytest.mark.parametrize(
  "y, x, group", [(48, 1, 2), (48, 3, 4), (16, 1, 1), (40, 1, 2), (48, 17, 2)]
)
def test_it_is_one_softmax_over_what_is_filled_and_what_is_new(y, x, group):
  query, old, new = draw(y, x, group)
  attend = jax.jit(linear.attend)
  for length in ([0, 1, 15], [16, 17, y], [y, y - 1, 0]):
    length = np.minimum(length, y).astype(np.int32)
    for layer in (0, 2):
      got = attend(query, old, new, length, jnp.int32(layer))
      want = plain(query, old, new, length, layer)
      compare.close(got, want)


def test_by_hand():
  """Keys of 0 weigh the same: a mean of two cached values and the new one."""
  old = jnp.zeros((1, 1, 1, 16, 1)), jnp.arange(16.0).reshape(1, 1, 1, 16, 1)
  new = jnp.zeros((1, 1, 1, 1)), jnp.full((1, 1, 1, 1), 8.0)
  query = jnp.ones((1, 1, 1, 1))
  got = linear.attend(query, old, new, jnp.array([2]), jnp.int32(0))
  np.testing.assert_allclose(got.out.ravel(), [(0 + 1 + 8) / 3], rtol=1e-6)
  np.testing.assert_allclose(got.lse.ravel(), [np.log(3)], rtol=1e-6)


def test_what_lies_behind_the_filled_slots_is_not_read():
  query, old, new = draw(48, 1, 2)
  length = np.array([5, 16, 33], np.int32)
  changed = tuple(o.copy() for o in old)
  for row, n in enumerate(length):
    for c in changed:
      c[:, row, :, n:] = 1e6
  attend = jax.jit(linear.attend)
  want = attend(query, old, new, length, jnp.int32(1))
  got = attend(query, changed, new, length, jnp.int32(1))
  np.testing.assert_array_equal(got.out, want.out)
