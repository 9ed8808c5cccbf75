"""Fixtures that every room's tests share: small layouts and random heads."""

import dataclasses
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import numpy as np
import pytest

from gaze_jax import layout

hypothesis.settings.register_profile(
  "gaze", deadline=None, derandomize=True, max_examples=20
)
hypothesis.settings.load_profile("gaze")


@dataclasses.dataclass
class Heads:
  """Random heads for a row: q [B, S, Q, D], k and v [B, S, H, D]."""

  q: np.ndarray
  k: np.ndarray
  v: np.ndarray


@pytest.fixture
def heads():
  def make(batch, slots, query_heads=4, kv_heads=2, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.normal(size=(batch, slots, n, dim)).astype(np.float32)
    return Heads(draw(query_heads), draw(kv_heads), draw(kv_heads))

  return make


@pytest.fixture
def small_shape():
  """64 slots, up to 3 units of up to 25 tokens, 3 x 3 regions, 2 context."""
  return layout.RowShape(
    slots=80,
    units=3,
    unit_tokens=25,
    regions=12,
    region_length=9,
    answer_slots=12,
    region=(3, 3),
    context_tokens=2,
  )


@pytest.fixture(autouse=True)
def _float32_matmuls():
  with jax.default_matmul_precision("float32"):
    yield
