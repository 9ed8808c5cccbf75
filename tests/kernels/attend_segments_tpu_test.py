"""Splash attention within segments against the same under a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax.kernels import attend_segments
from gaze_jax.kernels import attend_segments_tpu


def inputs(rows, keys, dtype="float32"):
  """Two rows of three segments, keys that nobody sees, and a blind query."""
  rng = np.random.default_rng(0)
  draw = lambda n, heads: jnp.asarray(
    rng.normal(size=(2, n, heads, 24)), jnp.dtype(dtype)
  )
  of_query = np.sort(rng.integers(0, 3, (2, rows)), axis=1).astype(np.int32)
  of_key = rng.integers(-1, 3, (2, keys)).astype(np.int32)
  of_query[1, -1] = 7  # no key is of its segment
  return draw(rows, 4), draw(keys, 2), draw(keys, 2), of_query, of_key


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(40, 150), (40, 40)])
def test_it_is_attention_under_a_mask(sizes, causal):
  given = inputs(*sizes)
  want = attend_segments.attend_segments(*given, causal=causal)
  got = jax.jit(
    lambda *x: attend_segments_tpu.attend_segments(
      *x, causal=causal, interpret=True
    )
  )(*given)
  compare.close(got.out, want.out)
  seen = np.isfinite(want.lse)
  np.testing.assert_array_equal(np.isfinite(got.lse), seen)
  assert seen.any() and not seen[1, -1].any()
  compare.close(np.where(seen, got.lse, 0), np.where(seen, want.lse, 0))
  assert (np.asarray(got.out)[~seen] == 0).all()
