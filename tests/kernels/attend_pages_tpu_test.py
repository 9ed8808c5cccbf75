"""The decode kernel, on a simulated TPU, against dense attention."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import compare
import tiers
from gaze_jax import types
from gaze_jax.kernels import attend_pages_tpu
from gaze_jax.kernels import attention

# Memory is NaN until it is written, and a copy is made when it is waited for.
SIMULATED = pltpu.InterpretParams()
# The other extreme: a copy is made when it is started.
EAGER = pltpu.InterpretParams(dma_execution_mode="eager")


def draw(b=1, x=1, h=1, g=1, r=6, l=4, d=128, counts=((3,),), dtype="float32"):
  """Ragged pages, and lists in no order that are full of traps past `counts`.

  Page 0 is empty, page 1 full; unreal entries name real pages for all rows.
  """
  rng = np.random.default_rng(b * 31 + x * 7 + h * 5 + g * 3 + l + d)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  u = max(max(row) for row in counts) + 1
  count = np.asarray(counts, np.int32)
  assert count.shape == (b, h) and u <= r
  ids = np.stack(
    [[rng.permutation(r)[:u] for _ in range(h)] for _ in range(b)]
  ).astype(np.int32)
  most = 2 ** min(x * g, 32)
  rows = rng.integers(1, most, (b, h, -(-x * g // 32), u)).astype(np.uint32)
  unreal = np.broadcast_to(
    (np.arange(u) >= count[..., None])[:, :, None], rows.shape
  )
  rows[unreal] = most - 1
  length = rng.integers(1, l + 1, (b, r)).astype(np.int32)
  length[:, 0], length[:, 1] = 0, l
  return dict(
    query=normal(b, x, h * g, d),
    k=normal(b, h, r, l, d),
    v=normal(b, h, r, l, d),
    length=jnp.asarray(length),
    ids=jnp.asarray(ids),
    rows=jnp.asarray(rows.view(np.int32)),
    count=jnp.asarray(count),
  )


def dense(query, k, v, length, ids, rows, count):
  """Attention in float32 over all tokens, under a mask made by plain loops."""
  b, x, q, d = query.shape
  h, r, l = k.shape[1:4]
  g = q // h
  mask = np.zeros((b, q, x, r, l), bool)
  for i, j in np.ndindex(b, h):
    for entry in range(int(count[i, j])):
      page = int(ids[i, j, entry])
      for row in range(x * g):
        if int(rows[i, j, row // 32, entry]) >> row % 32 & 1:
          head, token = j * g + row % g, row // g
          mask[i, head, token, page, : int(length[i, page])] = True
  flat = lambda y: jnp.asarray(y, jnp.float32).reshape(b, h, r * l, d)
  return attention.attend(
    jnp.asarray(query, jnp.float32),
    flat(k).transpose(0, 2, 1, 3),
    flat(v).transpose(0, 2, 1, 3),
    jnp.asarray(mask.reshape(b, q, x, r * l)),
  )


def attend(query, k, v, length, ids, rows, count, **options):
  """The kernel, of one layer unless it is told which of several."""
  if "layer" not in options:
    k, v, options["layer"] = k[None], v[None], 0
  return attend_pages_tpu.attend_pages(
    *(query, k, v, length, types.Visits(ids, rows, count)),
    **(dict(interpret=SIMULATED) | options),
  )


def assert_dense(got, case):
  want = dense(**case)
  assert got.out.dtype == case["v"].dtype
  compare.close(got.lse, want.lse)
  if got.out.dtype == jnp.float32:
    return compare.close(got.out, want.out)
  # Weights and the result are rounded to 8 bits once each, relative to values
  # of at most max |v|: 2 * 2^-9. Products of bfloat16 are exact in float32.
  out = np.asarray(got.out, np.float32)
  most = 2**-8 * float(jnp.abs(case["v"]).max())
  np.testing.assert_allclose(out, want.out, atol=most, rtol=0)


# Four chunks of two pages beside one, none and one and a half, so the ring
# goes round, and over heads without pages; the second row starts it anew.
RAGGED = dict(b=2, h=4, g=4, r=9, l=36, counts=((0, 7, 0, 3), (1, 4, 8, 0)))


@pytest.mark.few(1)
@pytest.mark.parametrize("interpret", [SIMULATED, EAGER])
def test_ragged_lists_in_chunks(interpret):
  case = draw(**RAGGED)
  got = attend(**case, chunk_pages=2, interpret=interpret)
  assert_dense(got, case)
  nothing = np.repeat(np.asarray(case["count"]) == 0, 4, axis=1)[:, None]
  assert nothing.any()
  assert (np.asarray(got.out)[nothing] == 0).all()
  assert (np.asarray(got.lse)[nothing] == -np.inf).all()


@pytest.mark.few(1)
@pytest.mark.parametrize(
  "shape",
  [
    dict(g=7, x=14, h=2, counts=((4, 0),)),
    *tiers.few(
      1,
      [
        dict(g=7, l=9, d=72, counts=((4,),)),
        dict(g=1, h=2, l=4, d=64, counts=((5, 2),)),
        dict(g=8, x=2, l=144, d=128, counts=((4,),)),
        dict(g=2, x=2, h=2, l=10, d=200, counts=((3, 5),)),
        dict(g=1, x=33, counts=((4,),)),
        dict(g=8, x=16, counts=((5,),)),
      ],
    ),
  ],
)
def test_shapes(shape):
  case = draw(**shape)
  assert_dense(attend(**case, chunk_pages=2), case)


@pytest.mark.few(1)
@pytest.mark.parametrize("l, d", [(36, 128), (9, 64)])
def test_bfloat16(l, d):
  case = draw(g=4, h=2, l=l, d=d, counts=((5, 3),), dtype="bfloat16")
  assert_dense(attend(**case, chunk_pages=2), case)


@pytest.mark.few(2)
@pytest.mark.parametrize("views", [True, False])
@pytest.mark.parametrize(
  "l, d, dtype",
  [
    (36, 128, "bfloat16"),
    (36, 128, "float32"),
    (36, 64, "bfloat16"),
    (9, 64, "float32"),
    (9, 128, "bfloat16"),
    (144, 64, "bfloat16"),
    (16, 128, "float32"),
  ],
)
def test_both_ways_of_loading(l, d, dtype, views):
  """What a TPU runs, views of tiles, by the one interpreter that knows them.

  It has one memory, and out-of-range indices go unnoticed; `SIMULATED` above
  notices those, and knows no views.
  """
  case = draw(g=4, h=2, l=l, d=d, counts=((5, 3),), dtype=dtype)
  got = attend(**case, chunk_pages=2, interpret=True, views=views)
  assert_dense(got, case)


@pytest.mark.few(1)
@pytest.mark.parametrize("of_query, of_cache", [(0, 1), (1, 0)])
def test_query_and_cache_of_two_dtypes(of_query, of_cache):
  dtypes = "float32", "bfloat16"
  case = draw(g=2)
  case["query"] = case["query"].astype(dtypes[of_query])
  case["k"], case["v"] = (case[n].astype(dtypes[of_cache]) for n in "kv")
  assert_dense(attend(**case), case)


def test_by_hand():
  """Keys are 0, so a row reads the mean of its pages' tokens, by their number.

  Page p has values p + 1, and 3, 1, 2 tokens of 4.
  """
  v = jnp.broadcast_to(jnp.arange(1.0, 4)[:, None, None], (3, 4, 128))
  got = attend(
    jnp.ones((1, 4, 8, 128)),
    jnp.zeros((1, 1, 3, 4, 128)),
    v[None, None],
    jnp.asarray([[3, 1, 2]], jnp.int32),
    ids=jnp.asarray([[[2, 0, 1]]], jnp.int32),
    # Row 31 is the last token's last head; the sign bit.
    rows=jnp.asarray([[[[0b0011, 0b0101, -(2**31) | 0b0001]]]], jnp.int32),
    count=jnp.asarray([[3]], jnp.int32),
  )
  out, lse = np.asarray(got.out)[0, ..., 0], np.asarray(got.lse)[0]
  np.testing.assert_allclose(out[0, 0], (2 * 3 + 3 * 1 + 1 * 2) / 6, atol=1e-6)
  np.testing.assert_allclose(out[0, 1:3], [3, 1], atol=1e-6)
  np.testing.assert_allclose(out[3, 7], 2, atol=1e-6)
  np.testing.assert_allclose(
    np.exp(lse)[[0, 0, 0, 3], [0, 1, 2, 7]], [6, 2, 3, 1], atol=1e-5
  )
  assert np.isneginf(lse).sum() == 28 and (out[np.isneginf(lse)] == 0).all()


def test_what_is_not_listed_is_not_read():
  case = draw(g=2, h=2, l=12, r=7, counts=((4, 2),))
  read = np.zeros((1, 2, 7, 12), bool)
  for h in range(2):
    for page in case["ids"][0, h, : int(case["count"][0, h])]:
      read[0, h, page, : int(case["length"][0, page])] = True
  assert 0 < read.sum() < read.size / 2
  poison = lambda y: jnp.where(read[..., None], y, jnp.nan)
  other = case | {n: poison(case[n]) for n in "kv"}
  first, second = (attend(**c, chunk_pages=3) for c in (case, other))
  np.testing.assert_array_equal(first.out, second.out)
  np.testing.assert_array_equal(first.lse, second.lse)
  assert not np.isnan(second.out).any() and not np.isnan(second.lse).any()


@pytest.mark.few(1)
@pytest.mark.parametrize("l, d", [(36, 72), (9, 128)])
def test_a_stacked_cache_in_tiles(l, d):
  case = draw(b=2, g=2, l=l, d=d, counts=((3,), (2,)))
  page = attend_pages_tpu.page_shape(l, d, "float32")

  def laid_out(pages):
    wide = jnp.pad(pages, [(0, 0)] * 4 + [(0, page[2] - d)])
    wide = wide.reshape(*pages.shape[:3], *page)
    return jnp.stack([jnp.full_like(wide, jnp.nan), wide])

  cache = case | {n: laid_out(case[n]) for n in "kv"}
  got = jax.jit(attend)(**cache, layer=jnp.int32(1))
  assert_dense(got, case)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_for_a_tpu_without_touching_the_cache(dtype):
  """Qwen3-4B over 4,608 visual tokens; the path that is not simulated."""
  n, h, r, u = 2, 8, 128, 52
  of = jax.ShapeDtypeStruct
  pages = of((n, 1, h, r, *attend_pages_tpu.page_shape(36, 128, dtype)), dtype)
  ints = lambda *shape: of(shape, jnp.int32)
  traced = jax.jit(functools.partial(attend, interpret=False)).trace(
    query=of((1, 1, 32, 128), dtype),
    k=pages,
    v=pages,
    length=ints(1, r),
    ids=ints(1, h, u),
    rows=ints(1, h, 1, u),
    count=ints(1, h),
    layer=ints(),
  )
  assert (
    "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
  )
  large = set()  # what makes an array as large as the pages that are read

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "jit":
        walk(eqn.params["jaxpr"].jaxpr)
      elif max(math.prod(y.aval.shape) for y in eqn.outvars) >= 36 * 128 * u:
        large.add(eqn.primitive.name)

  walk(traced.jaxpr.jaxpr)
  assert large == {"reshape", "with_memory_space_constraint"}


def test_no_list_at_all():
  case = draw()
  case["ids"] = jnp.zeros((1, 1, 0), jnp.int32)
  case["rows"] = jnp.zeros((1, 1, 1, 0), jnp.int32)
  case["count"] = jnp.zeros((1, 1), jnp.int32)
  got = attend(**case)
  assert (got.out == 0).all() and np.isneginf(got.lse).all()


def test_page_shape():
  assert attend_pages_tpu.page_shape(36, 128, "float32") == (9, 4, 128)
  assert attend_pages_tpu.page_shape(36, 72, "bfloat16") == (9, 4, 128)
  assert attend_pages_tpu.page_shape(144, 256, "bfloat16") == (18, 8, 256)
  assert attend_pages_tpu.page_shape(9, 128, "float32") == (9, 1, 128)
  assert attend_pages_tpu.page_shape(9, 128, "bfloat16") == (5, 2, 128)


def test_memory_bytes():
  # 65,536 tokens of Qwen3-4B, 8 rows: lists twice 8 x 768 for two rows, lengths
  # of 1,920, counts of 8 x 128; a ring of 2 x 4 x 16 pages of 36 KV rows.
  lists, ring = attend_pages_tpu.memory_bytes(
    (8, 8, 1821, 36, 128), size=728, dtype="bfloat16"
  )
  assert lists == 4 * (2 * (2 * 8 * 768 + 1920) + 8 * 128)
  assert ring == 2 * 4 * 16 * 36 * 128 * 2
  assert lists < attend_pages_tpu.MAX_SMEM_BYTES
  assert ring < attend_pages_tpu.MAX_VMEM_BYTES


def test_most_rows():
  """Four words of 32 rows, or fewer where the lists are long."""
  most = lambda regions: attend_pages_tpu.most_rows(
    (8, 8, regions, 36, 128), "bfloat16"
  )
  assert [most(r) for r in (16, 2000, 3500, 4500, 6000, 20000)] == [
    *(128, 128, 96, 64, 32, 32)
  ]
  four = attend_pages_tpu.memory_bytes(
    (8, 8, 128, 36, 128), size=128, dtype="bfloat16", rows=97
  )
  assert four[0] == 4 * (2 * (5 * 8 * 128 + 128) + 8 * 128)


def test_fetched_bytes():
  of = lambda l, d, t: attend_pages_tpu.fetched_bytes(
    np.asarray([[5, 0], [7, 1]]), tokens=l, head_dim=d, dtype=t
  )
  ideal = lambda l, d, size: 13 * 2 * l * d * size
  assert of(36, 128, "float32") == ideal(36, 128, 4)
  assert of(36, 128, "bfloat16") == ideal(36, 128, 2)
  assert of(9, 128, "float32") == ideal(9, 128, 4)
  assert of(9, 128, "bfloat16") == ideal(10, 128, 2)
  assert math.isclose(of(36, 72, "bfloat16"), ideal(36, 128, 2))


@pytest.mark.parametrize(
  "change, says",
  [
    (lambda c: c | {"v": c["v"].astype(jnp.bfloat16)}, "must be equal"),
    (lambda c: c | {n: c[n][..., :64] for n in "kv"}, "head dim is 128"),
    (lambda c: c | {"layer": 0}, "no cache has the shape"),
    (lambda c: c | {"query": c["query"].repeat(129, axis=1)}, "at most 128"),
  ],
)
def test_what_it_refuses(change, says):
  with pytest.raises(ValueError, match=says):
    attend(**change(draw()))
