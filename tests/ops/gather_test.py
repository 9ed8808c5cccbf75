"""Attention over listed pages against dense attention under a mask."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax import types
from gaze_jax.ops import attention
from gaze_jax.ops import gather

FORMS = {"streamed": gather._streamed, "gathered": gather._gathered}


@dataclasses.dataclass
class Case:
  """Random heads, ragged pages and lists that differ for each KV head."""

  query: jax.Array
  cache: types.VisualCache
  ids: np.ndarray
  rows: np.ndarray
  count: np.ndarray


def _case(
  b=2, x=1, h=2, g=4, r=19, l=6, d=16, u=13, dtype=np.float32, counts=None
) -> Case:
  rng = np.random.default_rng(b + 3 * x + 5 * g + 7 * r + 11 * u)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  filled = rng.integers(0, l + 1, (b, r))
  filled[:, 0] = l
  counts = rng.integers(0, u + 1, (b, h)) if counts is None else counts
  words = -(-x * g // 32)
  lists = [rng.permutation(r)[:u] for _ in range(b * h)]
  cache = types.VisualCache(
    k=draw(b, h, r, l, d),
    v=draw(b, h, r, l, d),
    descriptors=None,
    valid=jnp.asarray(np.arange(l) < filled[..., None]),
    unit=None,
  )
  return Case(
    query=draw(b, x, h * g, d),
    cache=cache,
    ids=np.array(lists, np.int32).reshape(b, h, u),
    rows=rng.integers(-(2**31), 2**31, (b, h, words, u)).astype(np.int32),
    count=np.broadcast_to(np.asarray(counts, np.int32), (b, h)),
  )


@jax.jit
def _paged(query, cache, ids, rows, count):
  return gather.attend_pages(query, cache, ids, rows, count)


def _run(case: Case) -> types.Attended:
  return _paged(case.query, case.cache, case.ids, case.rows, case.count)


def _mask(case: Case) -> np.ndarray:
  """bool [B, Q, X, R * L] by loops over the lists."""
  b, x, q, _ = case.query.shape
  _, h, r, l, _ = case.cache.k.shape
  mask = np.zeros((b, q, x, r, l), bool)
  g = q // h
  for at in np.ndindex(b, h):
    for u in range(case.count[at]):
      for i in range(x * g):
        if case.rows[at][i // 32][u] >> i % 32 & 1:
          page = case.ids[at][u]
          mask[at[0], at[1] * g + i % g, i // g, page] = True
  mask &= np.asarray(case.cache.valid)[:, None, None]
  return mask.reshape(b, q, x, r * l)


@jax.jit
def _oracle(query, k, v, mask):
  slots = lambda page: page.reshape(*page.shape[:2], -1, page.shape[-1])
  turned = lambda page: slots(page).transpose(0, 2, 1, 3)
  return attention.attend(query, turned(k), turned(v), mask)


SIZES = {
  "one_head": dict(g=1),
  "group_4": dict(g=4),
  "group_7": dict(g=7),
  "group_8": dict(g=8),
  "two_tokens": dict(g=4, x=2),
  "all_32_rows": dict(g=8, x=4, b=1),
  "33_rows": dict(g=1, x=33, b=1),
  "36_rows": dict(g=4, x=9),
  "all_64_rows": dict(g=8, x=8, b=1),
  "98_rows": dict(g=7, x=14, counts=[[13, 2], [0, 5]]),
  "many_rows_of_nothing": dict(g=4, x=9, counts=0),
  "one_page": dict(u=1, r=1),
  "eight_pages": dict(u=8),
  "nine_pages": dict(u=9),
  "all_pages": dict(u=19, counts=19),
  "odd_dims": dict(d=13, l=5),
  "wide_head": dict(d=160, u=5),
  "nothing": dict(counts=0),
}


@pytest.mark.few(8)
@pytest.mark.parametrize("size", SIZES)
def test_equals_attention_under_a_mask(size):
  case = _case(**SIZES[size])
  want = _oracle(case.query, case.cache.k, case.cache.v, _mask(case))
  got = _run(case)
  compare.close(got, want)
  empty = np.isneginf(np.asarray(want.lse))
  assert (np.isneginf(np.asarray(got.lse)) == empty).all()
  assert (np.asarray(got.out)[empty] == 0).all()


def _list(case):
  return case.ids, case.rows, case.count


def test_a_layer_of_a_stacked_cache_is_read_in_place():
  case = _case()
  other = lambda x: jnp.stack([jnp.full_like(x, jnp.nan), x])
  stacked = dataclasses.replace(
    case.cache, k=other(case.cache.k), v=other(case.cache.v)
  )
  run = jax.jit(gather.attend_pages)
  want = run(case.query, case.cache, *_list(case))
  got = run(case.query, stacked, *_list(case), layer=np.int32(1))
  np.testing.assert_array_equal(got.out, want.out)


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_of_each_platform(form):
  case = _case(u=13)
  listed = np.int32(0), case.cache.valid.sum(-1), *_list(case)
  b, _, q, d = case.query.shape
  rows = case.query.reshape(b, 2, q // 2, d)
  k, v = case.cache.k[None], case.cache.v[None]  # of one layer
  out, lse = jax.jit(FORMS[form])(rows, k, v, listed)
  want = _oracle(case.query, case.cache.k, case.cache.v, _mask(case))
  got = types.Attended(out.reshape(b, 1, q, d), lse.reshape(b, 1, q))
  compare.close(got, want)


@pytest.mark.parametrize("counts", ([[0, 1]], [[16, 17]], [[32, 40]]))
def test_a_long_list_takes_several_steps(monkeypatch, counts):
  monkeypatch.setattr(gather, "_STEP", 16)
  case = _case(b=1, r=41, u=41, counts=counts)
  listed = np.int32(0), case.cache.valid.sum(-1), *_list(case)
  rows = case.query.reshape(1, 2, 4, 16)
  k, v = case.cache.k[None], case.cache.v[None]  # of one layer
  run = jax.jit(gather._streamed).lower(rows, k, v, listed)
  assert "while" in run.as_text()
  out, lse = run.compile()(rows, k, v, listed)
  want = _oracle(case.query, case.cache.k, case.cache.v, _mask(case))
  got = types.Attended(out.reshape(1, 1, 8, 16), lse.reshape(1, 1, 8))
  compare.close(got, want)


@pytest.mark.parametrize(
  "size", ("group_4", "two_tokens", "36_rows", "nothing")
)
def test_gradient(size):
  case = _case(**SIZES[size])
  mask = _mask(case)
  weigh = np.random.default_rng(0).normal(size=case.query.shape)

  def loss(attend, *inputs):
    got = attend(*inputs)
    lse = jnp.where(jnp.isfinite(got.lse), got.lse, 0.0)
    return (got.out * weigh).sum() + (lse * weigh[..., 0]).sum()

  def paged(query, k, v):
    cache = dataclasses.replace(case.cache, k=k, v=v)
    return _paged(query, cache, case.ids, case.rows, case.count)

  inputs = case.query, case.cache.k, case.cache.v
  grad = lambda f: jax.jit(jax.grad(functools.partial(loss, f), (0, 1, 2)))
  got = grad(paged)(*inputs)
  want = grad(lambda *x: _oracle(*x, mask))(*inputs)
  compare.close(got, want)


def test_order_of_the_list_does_not_matter():
  case = _case(counts=13)
  back = np.s_[:, :, ::-1]
  turned = dataclasses.replace(
    case, ids=case.ids[back], rows=case.rows[..., ::-1]
  )
  compare.close(_run(turned), _run(case))


def test_pages_not_listed_may_hold_anything():
  case = _case(counts=[[0, 5], [13, 1]], u=13)
  listed = np.zeros(case.cache.k.shape[:3], bool)
  for at in np.ndindex(2, 2):
    listed[at][case.ids[at][: case.count[at]]] = True
  assert not listed.all(-1).any()
  poison = lambda x: jnp.where(listed[..., None, None], x, jnp.nan)
  cache = dataclasses.replace(
    case.cache, k=poison(case.cache.k), v=poison(case.cache.v)
  )
  got, want = _run(dataclasses.replace(case, cache=cache)), _run(case)
  np.testing.assert_array_equal(got.out, want.out)
  np.testing.assert_array_equal(got.lse, want.lse)


def test_a_row_of_the_batch_does_not_depend_on_the_others():
  case = _case(b=3, counts=[[13, 2], [0, 1], [4, 9]])
  whole = _run(case)
  one = jax.tree.map(lambda x: x[1:2], case.cache)
  alone = _paged(
    case.query[1:2], one, case.ids[1:2], case.rows[1:2], case.count[1:2]
  )
  compare.close(alone, jax.tree.map(lambda x: x[1:2], whole))


def test_bfloat16_pages_with_float32_softmax():
  case = _case(dtype=jnp.bfloat16, d=128, g=4)
  wide = lambda x: x.astype(jnp.float32)
  want = _oracle(
    wide(case.query), wide(case.cache.k), wide(case.cache.v), _mask(case)
  )
  got = _run(case)
  assert got.out.dtype == jnp.bfloat16 and got.lse.dtype == jnp.float32
  compare.close(got.lse, want.lse)
  rounded = np.asarray(want.out.astype(jnp.bfloat16), np.float32)
  # A unit in the last place, of what differs a little before it is rounded.
  off = 1e-5 * np.abs(rounded).max()
  np.testing.assert_allclose(wide(got.out), rounded, rtol=2**-7, atol=off)


@pytest.mark.parametrize("m, d", ((1, 8), (4, 128), (7, 160), (12, 13)))
def test_dots(m, d):
  rng = np.random.default_rng(m)
  query, table = rng.normal(size=(2, 3, m, d)), rng.normal(size=(2, 3, 9, d))
  got = jax.jit(gather.dots)(query.astype(np.float32), table.astype(np.float32))
  want = np.einsum("bhmd,bhrd->bhmr", query, table)
  compare.close(got, want)


def test_a_bfloat16_cache_of_many_layers_is_not_converted():
  """Neither before the loop over layers, nor before that over a long list."""
  case = _case(b=1, h=2, r=80, l=36, d=128, u=70, dtype=jnp.bfloat16)
  stacked = jax.tree.map(lambda x: jnp.stack([x] * 8), case.cache)
  stacked = dataclasses.replace(stacked, valid=case.cache.valid)

  @jax.jit
  def all_layers(query, cache):
    def layer(query, at):
      out = gather.attend_pages(query, cache, *_list(case), layer=at).out
      return query + out, None

    return jax.lax.scan(layer, query, jnp.arange(8))[0]

  memory = all_layers.lower(case.query, stacked).compile().memory_analysis()
  assert memory.temp_size_in_bytes < stacked.k.nbytes / 2
  want = case.query
  for _ in range(8):
    want += _paged(want, case.cache, *_list(case)).out
  np.testing.assert_array_equal(all_layers(case.query, stacked), want)


@pytest.mark.parametrize("x", [1, 9])
def test_pages_are_not_copied(monkeypatch, x):
  """No buffer of the size of what is picked: it is read where it lies.

  Or, of 36 rows, some pages at a time: 8, which weigh a fifth of 57.
  """
  monkeypatch.setattr(gather, "_STEP", 64 if x == 1 else 8)
  case = _case(b=1, x=x, h=8, g=4, r=80, l=36, d=128, u=64, counts=57)
  run = _paged.lower(case.query, case.cache, case.ids, case.rows, case.count)
  picked = 8 * 64 * 36 * 128 * 4
  memory = run.compile().memory_analysis()
  assert memory.temp_size_in_bytes < picked
