"""Layers by hand-computed numbers."""

import flax.linen as nn
import jax
import numpy as np

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
  module = layers.Linear((2, 3, 4), ("heads", "head_dim", "embed"), inputs=2)
  params = nn.meta.unbox(module.init(jax.random.key(0), x))
  got = module.apply(params, x)
  weight = np.asarray(params["params"]["weight"])
  want = x.reshape(1, 2, 6) @ weight.reshape(6, 4)
  compare.close(got, want)


def test_projections_start_at_the_scale_of_their_inputs():
  """Variance 1 / fan-in, whatever the split of the axes."""
  x = np.zeros((1, 1, 8, 32), np.float32)
  module = layers.Linear((8, 32, 64), ("heads", "head_dim", "embed"), inputs=2)
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
  module = layers.Linear((3, 2, 2), ("embed", "heads", "head_dim"), bias=True)
  x = np.ones((1, 3), np.float32)
  params = nn.meta.unbox(module.init(jax.random.key(0), x))["params"]
  assert params["bias"].shape == (2, 2) and not params["bias"].any()
  bias = np.arange(4, dtype=np.float32).reshape(2, 2)
  zero = np.zeros((3, 2, 2), np.float32)
  got = module.apply({"params": dict(weight=zero, bias=bias)}, x)
  np.testing.assert_array_equal(got, bias[None])
