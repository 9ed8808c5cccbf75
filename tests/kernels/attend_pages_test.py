"""Attention over listed pages against dense attention under a mask."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax import types
from gaze_jax.kernels import attend_pages
from gaze_jax.kernels import attend_pages_cpu
from gaze_jax.kernels import attention

FORMS = {
  "streamed": attend_pages_cpu._streamed,
  "gathered": attend_pages._gathered,
}


@dataclasses.dataclass
class Case:
  """Random heads, ragged pages and lists that differ for each KV head."""

  query: jax.Array
  k: jax.Array  # [1, B, H, R, L, D]
  v: jax.Array
  length: np.ndarray
  visits: types.Visits

  @property
  def inputs(self):
    return self.query, self.k, self.v, self.length, self.visits

  @property
  def listed(self):
    """As the forms of few rows take it."""
    v = self.visits
    return np.int32(0), self.length, v.ids, v.rows, v.count


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
  return Case(
    query=draw(b, x, h * g, d),
    k=draw(1, b, h, r, l, d),
    v=draw(1, b, h, r, l, d),
    length=filled.astype(np.int32),
    visits=types.Visits(
      ids=np.array(lists, np.int32).reshape(b, h, u),
      rows=rng.integers(-(2**31), 2**31, (b, h, words, u)).astype(np.int32),
      count=np.broadcast_to(np.asarray(counts, np.int32), (b, h)),
    ),
  )


@jax.jit
def _paged(query, k, v, length, visits):
  form = attend_pages_cpu
  return form.attend_pages(query, k, v, length, visits, layer=0)


def _run(case: Case) -> types.Attended:
  return _paged(*case.inputs)


def _mask(case: Case) -> np.ndarray:
  """bool [B, Q, X, R * L] by loops over the lists."""
  b, x, q, _ = case.query.shape
  _, _, h, r, l, _ = case.k.shape
  mask = np.zeros((b, q, x, r, l), bool)
  g = q // h
  for at in np.ndindex(b, h):
    for u in range(case.visits.count[at]):
      for i in range(x * g):
        if case.visits.rows[at][i // 32][u] >> i % 32 & 1:
          page = case.visits.ids[at][u]
          mask[at[0], at[1] * g + i % g, i // g, page] = True
  mask &= (np.arange(l) < case.length[..., None])[:, None, None]
  return mask.reshape(b, q, x, r * l)


@jax.jit
def _oracle(query, k, v, mask):
  slots = lambda page: page[0].reshape(*page.shape[1:3], -1, page.shape[-1])
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
  want = _oracle(case.query, case.k, case.v, _mask(case))
  got = _run(case)
  compare.close(got, want)
  empty = np.isneginf(np.asarray(want.lse))
  assert (np.isneginf(np.asarray(got.lse)) == empty).all()
  assert (np.asarray(got.out)[empty] == 0).all()


def test_a_layer_of_a_stacked_cache_is_read_in_place():
  case = _case()
  other = lambda x: jnp.concatenate([jnp.full_like(x, jnp.nan), x])
  stacked = dataclasses.replace(case, k=other(case.k), v=other(case.v))
  run = jax.jit(attend_pages_cpu.attend_pages)
  want = run(*case.inputs, layer=np.int32(0))
  got = run(*stacked.inputs, layer=np.int32(1))
  np.testing.assert_array_equal(got.out, want.out)


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_of_each_platform(form):
  case = _case(u=13)
  b, _, q, d = case.query.shape
  rows = case.query.reshape(b, 2, q // 2, d)
  out, lse = jax.jit(FORMS[form])(rows, case.k, case.v, case.listed)
  want = _oracle(case.query, case.k, case.v, _mask(case))
  got = types.Attended(out.reshape(b, 1, q, d), lse.reshape(b, 1, q))
  compare.close(got, want)


@pytest.mark.parametrize("counts", ([[0, 1]], [[16, 17]], [[32, 40]]))
def test_a_long_list_takes_several_steps(monkeypatch, counts):
  monkeypatch.setattr(attend_pages, "_STEP", 16)
  case = _case(b=1, r=41, u=41, counts=counts)
  rows = case.query.reshape(1, 2, 4, 16)
  inputs = rows, case.k, case.v, case.listed
  run = jax.jit(attend_pages_cpu._streamed).lower(*inputs)
  assert "while" in run.as_text()
  out, lse = run.compile()(*inputs)
  want = _oracle(case.query, case.k, case.v, _mask(case))
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

  paged = lambda *x: _paged(*x, case.length, case.visits)
  inputs = case.query, case.k, case.v
  grad = lambda f: jax.jit(jax.grad(functools.partial(loss, f), (0, 1, 2)))
  got = grad(paged)(*inputs)
  want = grad(lambda *x: _oracle(*x, mask))(*inputs)
  compare.close(got, want)


def test_order_of_the_list_does_not_matter():
  case = _case(counts=13)
  back = np.s_[:, :, ::-1]
  visits = dataclasses.replace(
    case.visits,
    ids=case.visits.ids[back],
    rows=case.visits.rows[..., ::-1],
  )
  turned = dataclasses.replace(case, visits=visits)
  compare.close(_run(turned), _run(case))


def test_pages_not_listed_may_hold_anything():
  case = _case(counts=[[0, 5], [13, 1]], u=13)
  listed = np.zeros(case.k.shape[1:4], bool)
  for at in np.ndindex(2, 2):
    listed[at][case.visits.ids[at][: case.visits.count[at]]] = True
  assert not listed.all(-1).any()
  poison = lambda x: jnp.where(listed[..., None, None], x, jnp.nan)
  poisoned = dataclasses.replace(case, k=poison(case.k), v=poison(case.v))
  got, want = _run(poisoned), _run(case)
  np.testing.assert_array_equal(got.out, want.out)
  np.testing.assert_array_equal(got.lse, want.lse)


def test_a_row_of_the_batch_does_not_depend_on_the_others():
  case = _case(b=3, counts=[[13, 2], [0, 1], [4, 9]])
  whole = _run(case)
  one = lambda x: jax.tree.map(lambda x: x[1:2], x)
  alone = _paged(
    *(one(case.query), case.k[:, 1:2], case.v[:, 1:2]),
    *(one(case.length), one(case.visits)),
  )
  compare.close(alone, jax.tree.map(lambda x: x[1:2], whole))


def test_bfloat16_pages_with_float32_softmax():
  case = _case(dtype=jnp.bfloat16, d=128, g=4)
  wide = lambda x: x.astype(jnp.float32)
  want = _oracle(wide(case.query), wide(case.k), wide(case.v), _mask(case))
  got = _run(case)
  assert got.out.dtype == jnp.bfloat16 and got.lse.dtype == jnp.float32
  compare.close(got.lse, want.lse)
  rounded = np.asarray(want.out.astype(jnp.bfloat16), np.float32)
  # A unit in the last place, of what differs a little before it is rounded.
  off = 1e-5 * np.abs(rounded).max()
  np.testing.assert_allclose(wide(got.out), rounded, rtol=2**-7, atol=off)


def test_a_bfloat16_cache_of_many_layers_is_not_converted():
  """Neither before the loop over layers, nor before that over a long list."""
  case = _case(b=1, h=2, r=80, l=36, d=128, u=70, dtype=jnp.bfloat16)
  k, v = (jnp.concatenate([x] * 8) for x in (case.k, case.v))
  lists = case.length, case.visits

  @jax.jit
  def all_layers(query, k, v):
    def layer(query, at):
      out = attend_pages_cpu.attend_pages(query, k, v, *lists, layer=at).out
      return query + out, None

    return jax.lax.scan(layer, query, jnp.arange(8))[0]

  memory = all_layers.lower(case.query, k, v).compile().memory_analysis()
  assert memory.temp_size_in_bytes < k.nbytes / 2
  want = case.query
  for _ in range(8):
    want += _paged(want, case.k, case.v, *lists).out
  np.testing.assert_array_equal(all_layers(case.query, k, v), want)


@pytest.mark.parametrize("x", [1, 9])
def test_pages_are_not_copied(monkeypatch, x):
  """No buffer of the size of what is picked: it is read where it lies.

  Or, of 36 rows, some pages at a time: 8, which weigh a fifth of 57.
  """
  monkeypatch.setattr(attend_pages, "_STEP", 64 if x == 1 else 8)
  case = _case(b=1, x=x, h=8, g=4, r=80, l=36, d=128, u=64, counts=57)
  run = _paged.lower(*case.inputs)
  picked = 8 * 64 * 36 * 128 * 4
  memory = run.compile().memory_analysis()
  assert memory.temp_size_in_bytes < picked
