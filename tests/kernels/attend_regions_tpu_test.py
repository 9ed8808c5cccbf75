"""The prefill kernel against attention under an explicit mask."""

import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import compare
import tiers
from gaze_jax import types
from gaze_jax.kernels import attend_regions
from gaze_jax.kernels import attend_regions_tpu
from gaze_jax.kernels import attention

oracle = attend_regions.attend_regions


def kernel(rows=8, chunk=32, interpret=None):
  return functools.partial(
    attend_regions_tpu.attend_regions,
    rows=rows,
    chunk=chunk,
    interpret=interpret or pltpu.InterpretParams(),
  )


@dataclasses.dataclass
class Case:
  """Random arrays; region R // 2 is read by nobody, row 1 reads nothing."""

  group: int = 2
  dim: int = 8
  regions: int = 7
  region_length: int = 4
  x: int = 9
  batch: int = 1
  kv_heads: int = 1
  dtype: type = jnp.float32
  density: float = 0.3

  def draw(self):
    rng = np.random.default_rng(0)
    b, x, h, r = self.batch, self.x, self.kv_heads, self.regions
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), self.dtype)
    page = (b, h, r, self.region_length, self.dim)
    query = normal(b, x, h * self.group, self.dim)
    length = rng.integers(0, self.region_length + 1, size=(b, r))
    length[:, 0] = self.region_length
    members = rng.random((b, x, h * self.group, r)) < self.density
    members[:, :, :, r // 2] = False
    if x > 1:
      members[:, 1] = False
    return (
      (query, normal(*page), normal(*page)),
      (jnp.asarray(length, jnp.int32), jnp.asarray(members)),
    )


def value_and_gradient(attend, qkv, plan):
  """`Attended`, and dq, dk, dv of a loss that reads both out and lse."""

  def loss(*qkv):
    got = attend(*qkv, *plan)
    seen = got.lse > -jnp.inf
    weigh = lambda a: jnp.cos(jnp.arange(a.size, dtype=jnp.float32) * 0.7)
    total = (got.out.ravel().astype(jnp.float32) * weigh(got.out)).sum()
    lse = jnp.where(seen, got.lse, 0).ravel()
    return total + (lse * weigh(got.lse)).sum(), got

  run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
  (_, got), gradient = run(*qkv)
  return got, gradient


@pytest.mark.few(1)
@pytest.mark.parametrize(
  "case, tile",
  tiers.few(
    2,
    [
      # Several rows, heads and tiles; chunks of 4 pages (L padded to 8).
      (
        Case(batch=2, kv_heads=2, x=5, dim=64, regions=11),
        dict(rows=8, chunk=32),
      ),
      # Lanes to spare in each tile (2 x 7 of 16), pages longer than a chunk.
      (Case(group=7, dim=128, region_length=36, x=5), dict(rows=16, chunk=8)),
      (Case(group=8, dim=72, region_length=9, x=3), dict(rows=16, chunk=32)),
      (Case(group=1, x=5, region_length=144, regions=3), dict(rows=4)),
      # Three tiles; more pages than a word has bits and than a step of dk, dv.
      (Case(group=4, regions=37, density=0.1), dict(rows=16, chunk=64)),
      (Case(group=4, regions=1, x=1, density=1.0), dict(rows=256, chunk=512)),
    ],
  ),
  ids=["tiles", "group7", "dim72", "long", "words", "one"],
)
def test_value_and_gradient(case, tile):
  qkv, plan = case.draw()
  got = value_and_gradient(kernel(**tile), qkv, plan)
  want = value_and_gradient(oracle, qkv, plan)
  compare.close(got, want)


@pytest.mark.nightly
def test_bfloat16():
  qkv, plan = Case(group=4, dim=64, x=5, dtype=jnp.bfloat16).draw()
  got = value_and_gradient(kernel(rows=16), qkv, plan)
  exact = jax.tree.map(lambda a: a.astype(jnp.float32), qkv)
  want = value_and_gradient(oracle, exact, plan)
  assert got[0].out.dtype == jnp.bfloat16
  assert all(g.dtype == jnp.bfloat16 for g in got[1])
  # lse is float32 throughout. Elsewhere the weights (or ds) and the result
  # are rounded to 8 bits, each by up to 2**-9 of itself.
  assert got[0].lse.dtype == jnp.float32
  compare.close(got[0].lse, want[0].lse)
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    seen = np.isfinite(b)
    size = lambda array, seen=seen: np.sqrt(np.mean(array[seen] ** 2))
    assert size(np.asarray(a, np.float32) - b) <= 2**-8 * size(np.asarray(b))


@pytest.mark.nightly
def test_nobody_reads():
  """NaN where nobody reads changes nothing; the gradient there is exactly 0."""
  (query, k, v), (length, members) = Case(
    region_length=9, kv_heads=2, x=5
  ).draw()
  length = length.at[:, 2].set(5)
  run = functools.partial(value_and_gradient, kernel(chunk=16))
  want = run((query, k, v), (length, members))
  spoil = lambda page: (
    page.at[:, :, 3].set(jnp.nan).at[:, :, 2, 5:].set(jnp.nan)
  )
  got = run((query, spoil(k), spoil(v)), (length, members))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  _, (dq, dk, dv) = got
  for gradient in (dk[:, :, 3], dv[:, :, 3], dk[:, :, 2, 5:], dq[:, 1]):
    np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))
  assert (np.asarray(dk[:, :, 0]) != 0).any()


@pytest.mark.nightly
def test_reads_nothing():
  """No member at all, X = 0, R = 0: 0 and -inf, and no NaN in a gradient."""
  qkv, (length, members) = Case().draw()
  got, gradient = value_and_gradient(
    kernel(), qkv, (length, jnp.zeros_like(members))
  )
  np.testing.assert_array_equal(got.out, jnp.zeros_like(got.out))
  np.testing.assert_array_equal(got.lse, jnp.full_like(got.lse, -jnp.inf))
  for g in gradient:
    np.testing.assert_array_equal(g, jnp.zeros_like(g))
  query, k, v = qkv
  for rows, r in ((0, 7), (9, 0)):
    got, gradient = value_and_gradient(
      kernel(),
      (query[:, :rows], k[:, :, :r], v[:, :, :r]),
      (length[:, :r], members[:, :rows, :, :r]),
    )
    assert got.out.shape == (1, rows, 2, 8)
    assert (np.asarray(got.lse) == -np.inf).all()
    assert not any(np.asarray(g).any() for g in gradient)


@pytest.mark.nightly
def test_cotangent_of_nothing():
  """NaN as cotangent of an lse of -inf goes nowhere, as in the oracle."""
  qkv, plan = Case(x=4, regions=4).draw()

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(attend, qkv):
    got, pull = jax.vjp(lambda *qkv: attend(*qkv, *plan), *qkv)
    lse = jnp.where(got.lse > -jnp.inf, 1.0, jnp.nan)
    return got.lse, pull(types.Attended(out=jnp.ones_like(got.out), lse=lse))

  got, want = gradient(kernel(), qkv), gradient(oracle, qkv)
  assert np.isinf(want[0]).any()
  assert not np.isnan(want[1][0]).any()
  compare.close(got, want)


def test_all_read_is_dense():
  (query, k, v), (length, members) = Case(kv_heads=2, group=4).draw()
  length, members = jnp.full_like(length, 4), jnp.ones_like(members)
  got = jax.jit(kernel(rows=16))(query, k, v, length, members)
  flat = lambda page: page.reshape(1, 2, -1, 8).transpose(0, 2, 1, 3)
  mask = jnp.ones((1, 1, 1, 1), bool)
  compare.close(got, attention.attend(query, flat(k), flat(v), mask))


@pytest.mark.nightly
def test_merge_with_text():
  """Merged with text by lse: value and gradient of one attention over both."""
  (query, k, v), plan = Case().draw()
  rng = np.random.default_rng(1)
  text = [jnp.asarray(rng.normal(size=(1, 3, 1, 8)), jnp.float32) for _ in "kv"]
  # Row 2 sees no text, row 1 no page, row 3 neither.
  sees = jnp.ones((1, 1, 9, 3), bool).at[:, :, 2:4].set(False)
  plan = plan[0], plan[1].at[:, 3].set(False)

  def merged(attend, query, k, v, length, members):
    page = attend(query, k, v, length, members)
    return attention.merge(page, attention.attend(query, *text, sees))

  got, want = (
    value_and_gradient(functools.partial(merged, attend), (query, k, v), plan)
    for attend in (kernel(), oracle)
  )
  compare.close(got, want)
  assert not any(np.isnan(a).any() for a in jax.tree.leaves(got))


def two_layers(attend, query, k, v, length, members):
  """A scan over layers, each rematerialised."""

  @jax.checkpoint
  def layer(query, scale):
    got = attend(query * scale, k, v * scale, length, members)
    return query + got.out, got.lse

  out, lse = jax.lax.scan(layer, query, jnp.array([1.0, 0.5]))
  return types.Attended(out=out, lse=lse[-1])


@pytest.mark.nightly
def test_scan_and_remat():
  # Kernels under InterpretParams are effects, which remat refuses; run as plain
  # JAX, as when compiled (test_lowers), they are none.
  plain = kernel(interpret=True)
  qkv, plan = Case(x=5).draw()
  got, want = (
    value_and_gradient(functools.partial(two_layers, attend), qkv, plan)
    for attend in (plain, oracle)
  )
  compare.close(got, want)


def test_remat_can_keep_what_the_backward_pass_reads(capsys):
  """Else `remat = "attention"` would run the kernel again.

  JAX leaves the dead call in the program; the TPU compiler drops it.
  """
  qkv, plan = Case(x=5).draw()
  keep = jax.checkpoint_policies.save_only_these_names("attention")
  run = lambda *qkv: attend_regions_tpu.attend_regions(*qkv, *plan).out.sum()
  for policy, kept in ((None, 0), (keep, 2)):  # out and lse
    jax.ad_checkpoint.print_saved_residuals(
      jax.checkpoint(run, policy=policy), *qkv
    )
    assert capsys.readouterr().out.count("named 'attention'") == kept


def test_lowers():
  """Mosaic takes the kernels as they are, under scan and remat."""
  qkv, plan = Case(dim=128, group=4, x=40, region_length=36).draw()

  def loss(*qkv):
    got = two_layers(attend_regions_tpu.attend_regions, *qkv, *plan)
    return got.out.sum() + got.lse.sum()

  traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*qkv)
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  calls = re.findall(r'kernel_name = "attend_regions_(\w+)"', text)
  # Forward, and forward again in the backward pass.
  assert sorted(calls) == ["dkdv", "dq", "forward", "forward"]


_TWO_DEVICES = """
import compare
import jax
from jax.sharding import AxisType, PartitionSpec as P
import attend_regions_tpu_test as t

mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
(query, k, v), plan = t.Case(batch=2, x=5).draw()
k, v = k[:1], v[:1]

# Rows are split over devices; all rows read one set of pages, whose gradient
# is the sum over devices.
def shared(attend, query, k, v, *plan):
  wide = lambda a: jax.numpy.broadcast_to(a, (len(query), *a.shape[1:]))
  return attend(query, wide(k), wide(v), *plan)

split = jax.shard_map(
  lambda *a: shared(t.kernel(), *a),
  mesh=mesh,
  in_specs=(P("data"), P(), P(), P("data"), P("data")),
  out_specs=P("data"),
  check_vma=False,  # as the product does: kernels do not say how they vary
)
got = t.value_and_gradient(split, (query, k, v), plan)
want = t.value_and_gradient(
  lambda *a: shared(t.oracle, *a), (query, k, v), plan
)
compare.close(got, want)
assert got[0].out.sharding.spec[0] == "data", got[0].out.sharding
"""


@pytest.mark.nightly
def test_shard_map():
  """Split over two devices, in a process that has two."""
  here = pathlib.Path(__file__).parent
  code = f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]"
  flags = os.environ.get("XLA_FLAGS", "")
  flags += " --xla_force_host_platform_device_count=2"
  subprocess.run(
    [sys.executable, "-W", "error", "-c", code + _TWO_DEVICES],
    env=os.environ | {"XLA_FLAGS": flags},
    check=True,
    timeout=300,
  )


def test_refuses():
  (query, k, v), plan = Case(group=3).draw()
  attend = attend_regions_tpu.attend_regions
  with pytest.raises(ValueError, match="one dtype"):
    attend(query, k.astype(jnp.bfloat16), v, *plan)
  with pytest.raises(ValueError, match="not float16"):
    attend(*(a.astype(jnp.float16) for a in (query, k, v)), *plan)
  with pytest.raises(ValueError, match="group of 3"):
    attend(query, k, v, *plan, rows=2)
  with pytest.raises(ValueError, match="no multiple"):
    two = [jnp.concatenate([a, a], axis=1) for a in (k, v)]
    attend(query, *two, *plan)
