"""Scores of regions: the CPU's form against the plain product."""

import jax
import numpy as np
import pytest

import compare
from gaze_jax.kernels import backends
from gaze_jax.kernels import region_scores
from gaze_jax.kernels import region_scores_cpu


@pytest.mark.parametrize("m, d", ((1, 8), (4, 128), (7, 160), (12, 13)))
def test_one_token_on_cpu(m, d):
  rng = np.random.default_rng(m)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  query, table = draw(2, 1, 3, m, d), draw(2, 3, 9, d)
  got = jax.jit(region_scores_cpu.region_scores)(query, table)
  want = np.einsum("bxhmd,bhrd->bxhmr", query, table)
  compare.close(got, want)
  compare.close(region_scores.region_scores(query, table), want)


def test_more_tokens_take_a_matrix_product():
  best = lambda tokens: backends.best(backends.REGION_SCORES, tokens=tokens)
  assert best(1) is region_scores_cpu and best(2) is region_scores
