"""What a lookup makes of every region, against a softmax in plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attend_pages_tpu
from gaze_jax.ops import regions
from gaze_jax.ops.decode import pages
from gaze_jax.ops.decode import trace

B, X, Q, H, D, L = 2, 2, 4, 2, 3, 2
CONFIG = config_lib.GazeConfig(granularity="layer")
# Tokens of each region: two, one, none; and a row without a region.
SIZES = np.array([[2, 1, 0], [0, 0, 0]])


@dataclasses.dataclass
class Case:
  lookup: pages.Lookup
  query: np.ndarray
  keys: np.ndarray  # [B, H, R, L, D]
  text: np.ndarray  # logits of text, [B, X, Q, 3]

  def linear(self, there=True):
    """What attention to text has to say: -inf where there is none."""
    lse = np.log(np.exp(self.text).sum(-1)) if there else -np.inf
    lse = np.broadcast_to(np.float32(lse), (B, X, Q))
    return types.Attended(out=np.zeros((B, X, Q, D), np.float32), lse=lse)


@pytest.fixture
def case():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  query, keys = draw(B, X, Q, D), draw(B, H, 3, L, D)
  valid = np.arange(L) < SIZES[..., None]
  # Behind a page's end lies what must not be looked at.
  keys = np.where(valid[:, None, ..., None], keys, 100.0).astype(np.float32)
  visual = types.VisualCache(
    k=keys,
    v=keys,
    descriptors=regions.of_pages(keys, valid, CONFIG),
    valid=valid,
    unit=np.where(valid, 0, -1),
  )
  lookup = pages.Lookup(query, visual, None, np.ones(B, np.int32), CONFIG)
  return Case(lookup, query, keys, draw(B, X, Q, 3))


def share_by_hand(case, row, x, head, text):
  """Of each region: exp of its logits over all that there is."""
  logit = lambda r, i: (
    case.query[row, x, head] @ case.keys[row, head // 2, r, i] / np.sqrt(D)
  )
  mass = [
    sum(np.exp(logit(r, i)) for i in range(SIZES[row, r])) for r in range(3)
  ]
  other = np.exp(case.text[row, x, head]).sum() if text else 0.0
  total = sum(mass) + other
  return np.array(mass) / total if total else np.zeros(3)


@pytest.mark.parametrize("text", [True, False])
def test_dense_share_by_hand(case, text):
  got = np.asarray(trace.dense_share(case.lookup, case.linear(text)))
  assert got.shape == (B, X, Q, 3)
  for row, x, head in np.ndindex(B, X, Q):
    want = share_by_hand(case, row, x, head, text)
    compare.close(got[row, x, head], want)
  # Of a row with text alone, or with nothing at all, regions get nothing.
  assert not got[1].any() and not got[0, ..., 2].any()
  if not text:
    np.testing.assert_allclose(got[0].sum(-1), 1, rtol=1e-6)


def test_shares_of_huge_logits_are_finite(case):
  far = dataclasses.replace(case.lookup, query=case.query * 1e4)
  got = np.asarray(trace.dense_share(far, case.linear()))
  assert np.isfinite(got).all()
  assert np.isin(got[0].sum(-1).round(5), (0, 1)).all()


def test_scores_are_each_heads_own_whatever_is_shared(case):
  got = np.asarray(trace.scores(case.lookup))
  assert got.shape == (B, X, Q, 3)
  for row, x, head in np.ndindex(B, X, Q):
    for r in range(3):
      page = case.keys[row, head // 2, r, : SIZES[row, r]]
      mean = page.mean(0) if len(page) else np.zeros(D)
      want = case.query[row, x, head] @ mean / np.sqrt(D)
      compare.close(got[row, x, head, r], want)


def test_a_layer_of_a_stack_in_tiles(case):
  """As the pages lie on a TPU, and another layer before them."""
  visual = case.lookup.visual
  tiles, t, wide = attend_pages_tpu.page_shape(L, D, np.float32)
  room = ((0, 0),) * 3 + ((0, tiles * t - L), (0, wide - D))
  tiled = jnp.pad(visual.k, room).reshape(B, H, 3, tiles, t, wide)
  stack = lambda x: jnp.stack([jnp.full_like(x, 7.0), x])
  stacked = dataclasses.replace(
    visual,
    k=stack(tiled),
    v=stack(tiled),
    descriptors=stack(visual.descriptors),
  )
  lookup = dataclasses.replace(case.lookup, visual=stacked, layer=jnp.int32(1))
  for see in (trace.scores, lambda s: trace.dense_share(s, case.linear())):
    compare.close(see(lookup), see(case.lookup))


def test_under_jit(case):
  see = jax.jit(
    lambda query: trace.dense_share(
      dataclasses.replace(case.lookup, query=query), case.linear()
    )
  )
  want = trace.dense_share(case.lookup, case.linear())
  compare.close(see(case.query), want)
