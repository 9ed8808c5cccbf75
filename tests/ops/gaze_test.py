"""The properties of docs/method.md, section 7, for every implementation.

The oracle ("masked") is first checked against a row small enough for a loop
in plain numpy, then the other forms against the oracle.
"""

import contextlib
import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

import compare
import tiers
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attend_regions_tpu
from gaze_jax.kernels import attention
from gaze_jax.kernels import backends
from gaze_jax.kernels import target
from gaze_jax.layout import row as row_lib
from gaze_jax.ops import gaze
from gaze_jax.ops import masks
from gaze_jax.ops import regions
from gaze_jax.ops import routing
from gaze_jax.ops import usage
from gaze_jax.ops.decode import prompt_units
from gaze_jax.ops.parallel import kernel

FORMS = {
  "masked": dict(implementation="masked"),
  "chunked": dict(implementation="chunked", chunk=26),
  "pallas": dict(implementation="pallas", chunk=26),
  "cudnn": dict(implementation="cudnn", chunk=26),
}
# The simulated kernels take most of the time: a few of their cases are enough
# to see that they are joined to the rest, and tests/kernels has their own.
slow_pallas = pytest.param("pallas", marks=pytest.mark.nightly)
slow_cudnn = pytest.param("cudnn", marks=pytest.mark.nightly)
form = pytest.mark.parametrize(
  "form", ["masked", "chunked", slow_pallas, slow_cudnn]
)
GRANULARITIES = ("query_head", "kv_group", "layer")
DESCRIPTORS = ("mean", "submean", "minmax")
routing_options = lambda test: pytest.mark.parametrize(
  "granularity", GRANULARITIES
)(pytest.mark.parametrize("descriptor", DESCRIPTORS)(test))

# Odd grids, several units, text before, between and after, and no image.
TWO_IMAGES = (
  row_lib.Text([1, 2]),
  row_lib.Unit(4, 5),
  row_lib.Text([3]),
  row_lib.Unit(3, 3),
  row_lib.Text([4, 5, 6]),
)
ONE_IMAGE = (row_lib.Unit(5, 5), row_lib.Text([1, 2]))
TEXT_ONLY = (row_lib.Text([1, 2, 3]),)
EMPTY = ()


def _batch(shape, *samples):
  rows = [row_lib.lay_out(parts, shape) for parts in samples]
  return row_lib.make_batch(rows, np.zeros(()))


def _simulated(implementation):
  """Kernels run on a simulated TPU, and XLA in cuDNN's place."""
  if implementation == "cudnn":
    return target.tracing_for("gpu", interpret=True)
  if implementation != "pallas":
    return contextlib.nullcontext()
  return target.tracing_for("tpu", pltpu.InterpretParams())


@functools.partial(jax.jit, static_argnames="config")
def _parallel(q, k, v, batch, budget, override, config):
  plan = routing.plan(
    batch.layout,
    batch.region_slots,
    config,
    batch.answer_slots,
    batch.answer_of,
  )
  with _simulated(config.implementation):
    routed = gaze.parallel(
      q, k, v, plan, budget, config, override=override, unit_span=27
    )
  return dataclasses.asdict(routed)


def _config(form, **options):
  return config_lib.GazeConfig(**FORMS[form], **options)


def _run(h, batch, k, form, override=None, **options):
  budget = jnp.broadcast_to(jnp.asarray(k, jnp.int32), (len(h.q),))
  config = _config(form, **options)
  return gaze.Routed(
    **_parallel(h.q, h.k, h.v, batch, budget, override, config)
  )


# Of two images with 4 + 1 regions: none, one, K - 1, K, K + 1 and all.
SAMPLES = (*(TWO_IMAGES,) * 6, ONE_IMAGE, TEXT_ONLY, EMPTY)
BUDGETS = (0, 1, 3, 4, 5, 50, 2, 2, 2)


@pytest.mark.few(5)
@routing_options
def test_the_oracle_equals_a_plain_loop(
  heads, plain, small_shape, granularity, descriptor
):
  options = dict(granularity=granularity, descriptor=descriptor)
  batch = _batch(small_shape, *SAMPLES)
  h = heads(len(SAMPLES), small_shape.slots)
  got = _run(h, batch, BUDGETS, "masked", **options)
  want = plain(h, batch, BUDGETS, _config("masked", **options))
  compare.close(got.out, want)


@pytest.mark.few(5)
@pytest.mark.parametrize("form", ["chunked", slow_pallas, slow_cudnn])
@routing_options
def test_forms_agree_with_the_oracle_in_value_and_gradient(
  heads, small_shape, form, granularity, descriptor
):
  batch = _batch(small_shape, *SAMPLES)
  h = heads(len(SAMPLES), small_shape.slots)
  weight = heads(len(SAMPLES), small_shape.slots, seed=1).q
  options = dict(granularity=granularity, descriptor=descriptor)

  @functools.partial(jax.jit, static_argnames="form")
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
  def run(q, k, v, form):
    same = dataclasses.replace(h, q=q, k=k, v=v)
    routed = _run(same, batch, BUDGETS, form, **options)
    return (routed.out * weight).sum(), (routed.out, routed.members)

  (_, (out, members)), grads = run(h.q, h.k, h.v, form)
  (_, (want, want_members)), want_grads = run(h.q, h.k, h.v, "masked")
  compare.close(out, want)
  np.testing.assert_array_equal(members, want_members)
  assert all(np.isfinite(x).all() for x in grads)
  compare.close(grads, want_grads)


@pytest.mark.parametrize(
  "options, dense",
  [
    ({}, "static"),
    ({}, "traced"),
    (dict(route_prompt=False), "none"),
    (dict(refresh="question"), "none"),
  ],
)
def test_cudnn_takes_text_that_chooses_nothing(
  heads, small_shape, options, dense
):
  """Of a trunk; a branch's and context tokens are gathered."""
  samples = (ANSWERED, BRANCHED, ONE_IMAGE, EMPTY)
  batch = _batch(small_shape, *samples)
  h = heads(len(samples), small_shape.slots)
  budget = jnp.ones(len(samples), jnp.int32)

  @functools.partial(jax.jit, static_argnums=0)
  def run(form, flag):
    config = _config(form, **options)
    plan = routing.plan(
      batch.layout,
      batch.region_slots,
      config,
      batch.answer_slots,
      batch.answer_of,
    )
    flag = {"static": True, "traced": flag, "none": False}[dense]
    with _simulated(form):
      return dataclasses.asdict(
        gaze.parallel(h.q, h.k, h.v, plan, budget, config, dense=flag)
      )

  for flag in (True, False) if dense == "traced" else (True,):
    got, want = run("cudnn", flag), run("masked", flag)
    compare.close(got, want)
    assert want["members"].any()


ANSWERED = (
  row_lib.Text([1, 2]),
  row_lib.Unit(4, 5),
  row_lib.Unit(3, 3),
  row_lib.Text([3, 4]),
  row_lib.Text([5, 6, 7], question=0),
  row_lib.Text([8]),
  row_lib.Text([9, 9], question=1),
)
BRANCHED = (
  row_lib.Unit(5, 5),
  row_lib.Text([1], 1),
  row_lib.Text([5, 6], 1, question=0),
  row_lib.Text([2], 2),
  row_lib.Text([7], 2, question=1),
)


@pytest.mark.few(7)
@pytest.mark.parametrize("form", ["masked", "chunked", slow_pallas])
@pytest.mark.parametrize(
  "options, k",
  [
    (dict(visual_attention="own_unit"), 2),
    (dict(route_prompt=False), 2),
    (dict(refresh="question"), 2),
    (dict(refresh="question", granularity="layer"), 1),
    (dict(budget="ratio"), 300),  # of 5 regions 1.5: two
    (dict(budget="per_unit"), 1),
    (dict(budget="per_unit", visual_attention="own_unit"), 2),
  ],
  ids=str,
)
def test_options_equal_a_plain_loop(
  heads, plain, small_shape, form, options, k
):
  samples = (ANSWERED, BRANCHED, TWO_IMAGES, TEXT_ONLY, EMPTY)
  batch = _batch(small_shape, *samples)
  h = heads(len(samples), small_shape.slots)
  got = _run(h, batch, k, form, **options).out
  want = plain(h, batch, k, _config(form, **options))
  compare.close(got, want)
  without = plain(h, batch, k, _config(form))
  assert np.abs(want - without).max() > 1e-2  # the option does something


# A video of 5 frames beside a picture, and one of 3 alone: 27 slots of a unit.
VIDEO = lambda rows, columns, frames: [
  row_lib.Unit(rows, columns, frame=i, frames=frames) for i in range(frames)
]
VIDEOS = (
  (
    row_lib.Text([1]),
    *VIDEO(2, 3, 5),
    row_lib.Text([2, 3]),
    row_lib.Unit(3, 4),
    row_lib.Text([4, 5]),
  ),
  (row_lib.Unit(1, 1), *VIDEO(3, 2, 3), row_lib.Text([6, 7])),
  TEXT_ONLY,
)


def _spanning(shape, frames):
  return dataclasses.replace(
    shape, slots=72, units=6, region=(2, 2, frames), region_length=4 * frames
  )


@pytest.mark.few(6)
@pytest.mark.parametrize("form", ["masked", "chunked", slow_pallas])
@pytest.mark.parametrize("frames", [2, 3])
@pytest.mark.parametrize(
  "options, k",
  [
    ({}, 2),
    (dict(budget="per_unit", descriptor="submean"), 1),
    (dict(visual_attention="own_unit", descriptor="minmax"), 1),
  ],
  ids=str,
)
def test_regions_of_several_frames_equal_a_plain_loop(
  heads, plain, small_shape, form, frames, options, k
):
  shape = _spanning(small_shape, frames)
  batch, options = _batch(shape, *VIDEOS), dict(options, region=shape.region)
  h = heads(len(VIDEOS), shape.slots)
  got = _run(h, batch, k, form, **options)
  compare.close(got.out, plain(h, batch, k, _config(form, **options)))
  # Of 5 frames of 2 x 2 tokens and the picture: parts of 2 and 3, or 1, 2, 2.
  most = 2 * (2 if frames == 3 else 3) + 4
  read = _run(h, batch, 99, form, **options).members[0].sum(-1).max()
  assert read == most


@pytest.mark.parametrize("form", ["gather", slow_pallas])
@pytest.mark.parametrize("frames", [2, 3])
@pytest.mark.parametrize("budget", ["per_unit", "fixed"])
def test_decode_knows_regions_of_several_frames(
  heads, small_shape, form, frames, budget
):
  shape = _spanning(small_shape, frames)
  options = dict(region=shape.region, budget=budget)
  for sample in VIDEOS:
    batch, h = _batch(shape, sample), heads(1, shape.slots)
    used = int((batch.layout.role[0] != types.Role.PAD).sum())
    want = _run(h, batch, 1, "masked", **options)
    got = _decode(h, batch, 2, 1, form, **options)
    compare.close(got.out, want.out[:, used - 2 : used])
    np.testing.assert_array_equal(got.members, want.members[:, used - 2 : used])


@pytest.mark.parametrize("form", FORMS)
def test_all_regions_without_context_is_dense_attention(
  heads, small_shape, form
):
  shape = dataclasses.replace(small_shape, context_tokens=0)
  batch = _batch(shape, TWO_IMAGES, ONE_IMAGE)
  h = heads(2, shape.slots)
  causal = np.tril(np.ones((shape.slots,) * 2, bool))
  real = batch.layout.role != types.Role.PAD
  mask = (causal & real[:, None] & real[:, :, None])[:, None]
  want = attention.attend(h.q, h.k, h.v, mask).out
  got = _run(h, batch, shape.regions, form).out
  compare.close(got, want)


@form
def test_only_selected_regions_matter(heads, small_shape, form):
  batch = _batch(small_shape, ONE_IMAGE)
  h = heads(1, small_shape.slots, query_heads=1, kv_heads=1)
  last = int((batch.layout.role[0] != types.Role.PAD).sum()) - 1
  base = _run(h, batch, 2, form)
  chosen = np.asarray(base.members)[0, last, 0]
  assert chosen.sum() == 2
  for region in range(4):
    slots = batch.region_slots[0, region]
    slots = slots[slots >= 0]
    v = h.v.copy()
    v[0, slots] += 100.0
    out = _run(dataclasses.replace(h, v=v), batch, 2, form).out
    changed = np.abs(np.asarray(out - base.out))[0, last].max()
    assert (changed > 1.0) == chosen[region]
    if not chosen[region]:
      assert changed == 0.0


@form
def test_causality_by_gradient(heads, small_shape, form):
  batch = _batch(small_shape, TWO_IMAGES)
  h = heads(1, small_shape.slots)
  used = int((batch.layout.role[0] != types.Role.PAD).sum())
  for i in (1, 10, 30, used - 1):
    at = lambda k, v, i=i: (
      _run(dataclasses.replace(h, k=k, v=v), batch, 2, form).out[0, i].sum()
    )
    for gradient in jax.grad(at, (0, 1))(jnp.array(h.k), jnp.array(h.v)):
      reach = np.abs(np.asarray(gradient))[0].max((1, 2))
      assert (reach[i + 1 :] == 0).all()
    assert reach[i] > 0


@form
def test_a_row_does_not_depend_on_its_neighbours(heads, small_shape, form):
  samples = (TWO_IMAGES, ONE_IMAGE, TEXT_ONLY, EMPTY)
  h = heads(4, small_shape.slots)
  together = _run(h, _batch(small_shape, *samples), [3, 1, 2, 0], form).out
  for row, (sample, k) in enumerate(zip(samples, (3, 1, 2, 0), strict=True)):
    alone = dataclasses.replace(
      h,
      q=h.q[row : row + 1],
      k=h.k[row : row + 1],
      v=h.v[row : row + 1],
    )
    got = _run(alone, _batch(small_shape, sample), k, form).out
    compare.close(got[0], together[row])


@form
def test_packing_and_branches_change_nothing(heads, small_shape, form):
  branched = [
    row_lib.Unit(3, 3), row_lib.Text([1], 1), row_lib.Text([2, 3], 2)
  ]  # fmt: skip
  first = row_lib.lay_out(ONE_IMAGE, small_shape)
  packed = row_lib.lay_out_together([ONE_IMAGE, branched], small_shape)
  batch = row_lib.make_batch([packed], np.zeros(()))
  h = heads(1, small_shape.slots)
  got = np.asarray(_run(h, batch, 1, form).out)[0]

  def alone(row, slots):
    take = lambda x: np.pad(
      x[:, slots],
      ((0, 0), (0, small_shape.slots - len(slots)), (0, 0), (0, 0)),
    )
    part = dataclasses.replace(h, q=take(h.q), k=take(h.k), v=take(h.v))
    one = row_lib.make_batch([row], np.zeros(()))
    return np.asarray(_run(part, one, 1, form).out)[0, : len(slots)]

  a = np.arange(29)  # 25 visual, 2 context, 2 text
  compare.close(alone(first, a), got[a])
  trunk = 29 + np.arange(11)  # 9 visual, 2 context
  for text, slots in (([1], [40]), ([2, 3], [41, 42])):
    row = row_lib.lay_out([row_lib.Unit(3, 3), row_lib.Text(text)], small_shape)
    mine = np.concatenate([trunk, slots])
    compare.close(alone(row, mine)[11:], got[slots])


@form
def test_renaming_regions_permutes_their_ids_alone(heads, small_shape, form):
  batch = _batch(small_shape, TWO_IMAGES)
  h = heads(1, small_shape.slots)
  rename = np.random.default_rng(0).permutation(small_shape.regions)
  old = batch.layout.region
  renamed = dataclasses.replace(
    batch,
    layout=dataclasses.replace(
      batch.layout, region=np.where(old >= 0, rename[old], -1)
    ),
    region_slots=batch.region_slots[:, np.argsort(rename)],
  )
  base, got = _run(h, batch, 2, form), _run(h, renamed, 2, form)
  compare.close(got.out, base.out)
  np.testing.assert_array_equal(
    np.asarray(got.members)[..., rename], base.members
  )


@form
def test_an_override_replaces_the_scores(heads, small_shape, form):
  batch = _batch(small_shape, ONE_IMAGE)
  h = heads(1, small_shape.slots)
  override = np.zeros((1, 4, small_shape.regions), np.float32)
  override[0, np.arange(4), [3, 0, 2, 1]] = 1.0
  got = _run(h, batch, 1, form, override=override).members
  last = int((batch.layout.role[0] != types.Role.PAD).sum()) - 1
  picked = np.asarray(got)[0, last].argmax(-1)
  np.testing.assert_array_equal(picked, [3, 0, 2, 1])


def _decode(h, batch, new, k, form="gather", choice=None, **options):
  """Decode of a row's last `new` slots, from a cache of what was before."""
  role = batch.layout.role[0]
  used = int((role != types.Role.PAD).sum())
  linear = np.isin(role, (types.Role.TEXT, types.Role.CONTEXT))
  length = np.array([linear[: used - new].sum()], np.int32)
  query = h.q[:, used - new : used]
  budget = np.array([k], np.int32)
  config = config_lib.GazeConfig(decode_implementation=form, **options)
  return gaze.Routed(
    **_decoded(query, h.k, h.v, batch, length, budget, choice, config)
  )


@functools.partial(jax.jit, static_argnames="config")
def _decoded(query, key, value, batch, length, budget, choice, config):
  plan = routing.plan(batch.layout, batch.region_slots, config)
  slots = plan.order[:, :64]
  with _simulated(config.decode_implementation):
    routed = gaze.decode(
      query,
      _stored(key, value, plan, config),
      _text(query, *(_at(x, slots) for x in (key, value)), length),
      budget,
      config,
      layer=jnp.int32(0),
      choice=choice,
    )
  return dataclasses.asdict(routed)


def _stored(key, value, plan, config):
  """The pages of one layer, as a stack of layers."""
  b, _, h, d = key.shape
  decoder = config_lib.DecoderConfig(
    depth=1, query_heads=h, kv_heads=h, head_dim=d, dtype=key.dtype.name
  )
  empty = gaze.empty(
    b,
    *plan.region_slots.shape[1:],
    config_lib.ModelConfig(decoder=decoder, gaze=config),
  )
  chunk = types.Chunk(plan.layout, plan.place)
  return prompt_units.grow(empty, key[None], value[None], chunk, config)


def _at(x, slots):
  return jnp.take_along_axis(x, slots[:, :, None, None], axis=1)


def _text(query, key, value, length):
  """Attention to a linear cache that holds the new tokens as well."""
  x = query.shape[1]
  seen = (
    jnp.arange(key.shape[1]) <= length[:, None, None] + jnp.arange(x)[:, None]
  )
  return attention.attend(query, key, value, seen[:, None])


decode_form = pytest.mark.parametrize("form", ["masked", "gather", slow_pallas])


@pytest.mark.few(6)
@decode_form
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
  "descriptor, new",
  tiers.few(2, [("minmax", 1), ("mean", 2), ("submean", 1)]),
)
def test_decode_is_the_parallel_form_under_every_option(
  heads, small_shape, form, granularity, descriptor, new
):
  options = dict(granularity=granularity, descriptor=descriptor)
  batch = _batch(small_shape, TWO_IMAGES)
  h = heads(1, small_shape.slots, query_heads=8)
  used = int((batch.layout.role[0] != types.Role.PAD).sum())
  want = _run(h, batch, 2, "masked", **options)
  got = _decode(h, batch, new, 2, form, **options)
  last = slice(used - new, used)
  compare.close(got.out, want.out[:, last])
  np.testing.assert_array_equal(got.members, want.members[:, last])


@pytest.mark.parametrize(
  "group, form",
  tiers.few(2, [(g, f) for g in (7, 1, 4, 8) for f in ("auto", "pallas")]),
)
def test_a_long_chunk_of_text_is_read_as_its_tokens_are(
  heads, small_shape, form, group
):
  """37 tokens: more rows than a word has bits, and than the kernel takes."""
  x = 37
  shape = dataclasses.replace(small_shape, slots=36 + x)
  batch = _batch(shape, (*TWO_IMAGES[:4], row_lib.Text(range(1, x + 1))))
  h = heads(1, shape.slots, query_heads=2 * group)
  used = int((batch.layout.role[0] != types.Role.PAD).sum())
  want = _run(h, batch, 2, "masked")
  got = _decode(h, batch, x, 2, form=form)
  compare.close(got.out, want.out[:, used - x : used])
  np.testing.assert_array_equal(got.members, want.members[:, used - x : used])


@pytest.mark.parametrize("form", ["masked", "gather", "pallas"])
@pytest.mark.parametrize(
  "options, k",
  [(dict(budget="ratio"), 500), (dict(budget="per_unit"), 1)],
  ids=str,
)
def test_decode_knows_every_kind_of_budget(
  heads, small_shape, form, options, k
):
  batch = _batch(small_shape, TWO_IMAGES)
  h = heads(1, small_shape.slots)
  used = int((batch.layout.role[0] != types.Role.PAD).sum())
  want = _run(h, batch, k, "masked", **options)
  got = _decode(h, batch, 1, k, form, **options)
  compare.close(got.out, want.out[:, used - 1 : used])


@pytest.mark.parametrize("sample", [TWO_IMAGES, ONE_IMAGE, TEXT_ONLY])
@pytest.mark.parametrize("k", [0, 1, 3, 4, 5, 6, 12])
def test_decode_is_the_parallel_form(heads, small_shape, sample, k):
  batch = _batch(small_shape, sample)
  h = heads(1, small_shape.slots)
  used = int((batch.layout.role[0] != types.Role.PAD).sum())
  want = _run(h, batch, k, "masked")
  got = _decode(h, batch, 2, k)
  compare.close(got.out, want.out[:, used - 2 : used])
  np.testing.assert_array_equal(got.members, want.members[:, used - 2 : used])


@pytest.mark.nightly
# Both fixtures are pure: sharing them between examples is safe.
@hypothesis.settings(
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
  rows=st.integers(1, 5),
  columns=st.integers(1, 5),
  units=st.integers(0, 3),
  k=st.integers(0, 13),
  query_heads=st.sampled_from([2, 8]),
  seed=st.integers(0, 99),
)
def test_forms_agree_on_any_layout(
  heads, small_shape, rows, columns, units, k, query_heads, seed
):
  sample = [row_lib.Text([1]), *[row_lib.Unit(rows, columns)] * units]
  shape = dataclasses.replace(small_shape, slots=85)
  batch = _batch(shape, [*sample, row_lib.Text([2, 3, 4])])
  h = heads(1, shape.slots, query_heads=query_heads, seed=seed)
  used = int((batch.layout.role[0] != types.Role.PAD).sum())
  want = _run(h, batch, k, "masked")
  got = _run(h, batch, k, "chunked").out
  compare.close(got, want.out)
  got = _decode(h, batch, 3, k)
  compare.close(got.out, want.out[:, used - 3 : used])


# Of two samples in a row: text, a unit and text each, and padding behind them.
PACKED = (
  (row_lib.Text([1, 2]), row_lib.Unit(4, 5), row_lib.Text([3, 4])),
  (row_lib.Text([5]), row_lib.Unit(3, 3), row_lib.Text([6, 7, 8])),
)
CONFINED = dict(implementation="chunked", visual_attention="own_unit", chunk=26)
NAN_FORMS = {
  **{f: (FORMS[f], "none") for f in ("masked", "chunked")},
  "own_unit": (CONFINED, "none"),
  **{g: (FORMS["chunked"], g) for g in ("straight_through", "kl")},
}


@pytest.mark.parametrize("form", NAN_FORMS)
def test_another_segment_may_be_anything(heads, small_shape, form):
  """NaN and infinity in one segment, or padding: none reaches the other.

  Nor does it in the gradient; and what sees them is NaN.
  """
  options, gradient = NAN_FORMS[form]
  config = config_lib.GazeConfig(**options, gradient=gradient)
  row = row_lib.lay_out_together(PACKED, small_shape)
  batch = row_lib.make_batch([row], np.zeros(()))
  segment = batch.layout.segment[0]
  assert [(segment == i).sum() for i in (0, 1, -1)] == [26, 15, 7]
  weight = heads(1, small_shape.slots, seed=1).q

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(inputs, mine):
    routed = _parallel(*inputs, batch, np.array([2]), None, config)
    out = jnp.where(mine[:, None, None], routed["out"] * weight, 0.0)
    return out.sum(), (routed["out"], routed["members"])

  h = heads(1, small_shape.slots)
  inputs = tuple(map(jnp.array, (h.q, h.k, h.v)))
  for mine in (segment == 0, segment == 1):
    (_, (want, chosen)), want_gradient = run(inputs, mine)
    for bad in ((0,), (1,), (2,), (0, 1, 2)):
      odd = np.resize([np.nan, np.inf], h.q.shape[-1])
      poison = lambda x, mine=mine, odd=odd: jnp.where(
        mine[:, None, None], x, x.at[:, :, 0].set(odd)
      )
      given = (poison(x) if i in bad else x for i, x in enumerate(inputs))
      (_, (got, members)), gradient = run(tuple(given), mine)
      np.testing.assert_array_equal(got[:, mine], want[:, mine])
      np.testing.assert_array_equal(members[:, mine], chosen[:, mine])
      assert np.isnan(got[:, ~mine & (segment >= 0)]).any()
      compare.close(gradient, want_gradient)


@pytest.mark.parametrize("form", ["masked", "chunked"])
def test_a_region_that_is_not_read_may_be_anything(heads, small_shape, form):
  """Its values; NaN among its keys, it would come last."""
  batch = _batch(small_shape, TWO_IMAGES)
  h = heads(1, small_shape.slots)
  text = batch.layout.role[0] == types.Role.TEXT
  scores = np.zeros((1, 4, 12), np.float32)
  scores[..., 3] = -1.0
  want = _run(h, batch, 3, form, override=scores)
  assert not want.members[..., 3].any()
  v = np.where((batch.layout.region == 3)[..., None, None], np.nan, h.v)
  got = _run(dataclasses.replace(h, v=v), batch, 3, form, override=scores)
  np.testing.assert_array_equal(got.out[:, text], want.out[:, text])
  k = np.where((batch.layout.region == 3)[..., None, None], np.nan, h.k)
  got = _run(dataclasses.replace(h, k=k), batch, 3, form)
  last = got.members[:, text][:, -1]
  assert not last[..., 3].any() and (last.sum(-1) == 3).all()
  assert np.isfinite(got.out[:, text]).all()


@pytest.mark.parametrize("form", ["masked", "gather"])
@pytest.mark.parametrize("x", [1, 20])
def test_decode_of_what_is_not_read_is_not_read(heads, small_shape, form, x):
  """Behind the tokens of pages, in regions that a head does not choose."""
  batch = _batch(small_shape, TWO_IMAGES)
  h = heads(1, small_shape.slots)
  config = config_lib.GazeConfig(decode_implementation=form)
  plan = routing.plan(batch.layout, batch.region_slots, config)
  visual = _stored(h.k, h.v, plan, config)
  query = jnp.array(h.q[:, -x:])
  text = types.Attended(jnp.zeros_like(query), jnp.zeros(query.shape[:3]))

  # Head 0 reads regions 0 and 1, the others 1 and 2; nobody reads 3.
  override = np.zeros((1, 4, 12), np.float32)
  override[0, :1, :2], override[0, 1:, 1:3] = 1, 1
  run = jax.jit(
    lambda visual: gaze.decode(
      *(query, visual, text, np.array([2]), config),
      layer=jnp.int32(0),
      override=override,
    )
  )
  want = run(visual)
  keep = np.asarray(visual.valid)[:, None, :, :, None]
  bad = lambda x: jnp.where(keep, x, jnp.nan).at[:, :, :, (0, 3)].set(jnp.nan)
  got = run(dataclasses.replace(visual, k=bad(visual.k), v=bad(visual.v)))
  np.testing.assert_array_equal(got.members, want.members)
  compare.close(got.out[:, :, 1:], want.out[:, :, 1:])
  assert np.isnan(got.out[:, :, 0]).all()


def test_usage_by_hand(small_shape):
  """One 5 x 5 image: regions of 4, 6, 6, 9 tokens, and 2 context tokens."""
  batch = _batch(small_shape, ONE_IMAGE)
  assert (batch.region_slots[0, :4] >= 0).sum(-1).tolist() == [4, 6, 6, 9]
  members = np.zeros((1, small_shape.slots, 4, small_shape.regions), bool)
  text = [27, 28]
  members[0, text[0], :, 0] = True  # all four heads: 4 entries, 4 unique
  members[0, text[1], [0, 1, 2, 3], [0, 1, 2, 3]] = True
  # Second query: heads read 4, 6, 6, 9; KV heads read 4 + 6 and 6 + 9.
  plan = routing.plan(batch.layout, batch.region_slots, config_lib.GazeConfig())
  got = usage.count(members, plan, 2)
  np.testing.assert_allclose(got.chosen, (4 + 2) + (25 / 4 + 2))
  np.testing.assert_allclose(got.unique, (4 + 2) + (25 / 2 + 2))
  np.testing.assert_allclose(got.visible, 2 * 25)


def test_bfloat16_decode_picks_the_regions_of_teacher_forcing(
  heads, small_shape
):
  batch = _batch(small_shape, TWO_IMAGES)
  h = heads(1, small_shape.slots, dim=16)
  half = dataclasses.replace(
    h, **{n: jnp.asarray(getattr(h, n), jnp.bfloat16) for n in "qkv"}
  )
  used = int((batch.layout.role[0] != types.Role.PAD).sum())
  want = _run(half, batch, 2, "chunked").members
  got = _decode(half, batch, 3, 2).members
  np.testing.assert_array_equal(got, want[:, used - 3 : used])


def test_masks_and_descriptors_agree_on_where_regions_end(small_shape):
  batch = _batch(small_shape, TWO_IMAGES)
  slots = np.arange(small_shape.slots)[None]
  seen = masks.visible(batch.layout, batch.layout, slots, slots)
  ends = np.asarray(regions.ends(batch.region_slots))[0]
  for i, role in enumerate(batch.layout.role[0]):
    if role != types.Role.TEXT:
      continue
    for page, end in zip(batch.region_slots[0], ends, strict=True):
      if end and end <= i:
        assert np.asarray(seen)[0, i, page[page >= 0]].all()


def _by_hand():
  """One image of two regions of one token, then one text row; one head.

  Keys 1 and 3, values 0 and 1; D = 1, so that scores are the logits.
  """
  shape = row_lib.RowShape(
    slots=3,
    units=1,
    unit_tokens=2,
    regions=2,
    region_length=1,
    answer_slots=1,
    region=(1, 1, 1),
    context_tokens=0,
  )
  batch = _batch(shape, [row_lib.Unit(1, 2), row_lib.Text([1])])
  row = lambda *x: jnp.array(x, jnp.float32).reshape(1, 3, 1, 1)
  return batch, row(0, 0, 1), row(1, 3, 0), row(0, 1, 0)


def _grad_of_query(implementation, k, wanted, **options):
  batch, query, key, value = _by_hand()
  config = config_lib.GazeConfig(implementation=implementation, **options)
  budget = np.array([k], np.int32)

  def loss(query):
    routed = _parallel(query, key, value, batch, budget, None, config)
    wants = routed[wanted]
    return wants[0, 2].sum() if wanted == "out" else wants.sum()

  value, grad = jax.value_and_grad(loss)(query)
  return float(value), float(grad[0, 2, 0, 0])


@pytest.mark.parametrize("implementation", ["masked", "chunked"])
def test_straight_through_by_hand(implementation):
  """The text row reads the key 3 (value 1) and itself (key 0, value 0).

  p = e^3 / (e^3 + 1), out = p; d out / d logit = p (1 - p). The logit's own
  gradient is its key, 3, and the score of the one-token region is that logit,
  so that w = 2 adds twice as much.
  """
  p = np.exp(3) / (np.exp(3) + 1)
  run = lambda **options: _grad_of_query(implementation, 1, "out", **options)
  np.testing.assert_allclose(run(), (p, 3 * p * (1 - p)), rtol=1e-5)
  learned = run(gradient="straight_through", gradient_weight=2.0)
  np.testing.assert_allclose(learned, (p, 9 * p * (1 - p)), rtol=1e-5)


@pytest.mark.parametrize("implementation", ["masked", "chunked"])
def test_distillation_by_hand(implementation):
  """Teacher and student agree on two regions of one token, whatever K is.

  Dense attention gives them e^1 and e^3 of mass, softmax of the scores too:
  the loss is 0 and so is its gradient. With scores summed with those of a
  second, equal head the student is sharper: softmax(2, 6).
  """
  kl = dict(gradient="kl")
  run = lambda **o: _grad_of_query(implementation, 1, "router_loss", **o)
  np.testing.assert_allclose(run(**kl), (0, 0), atol=1e-6)
  assert run() == (0, 0)

  batch, query, key, value = _by_hand()
  config = config_lib.GazeConfig(
    implementation=implementation, granularity="layer", **kl
  )
  two = jnp.repeat(query, 2, axis=2)
  budget = np.array([1], np.int32)

  def loss(query):
    routed = _parallel(query, key, value, batch, budget, None, config)
    assert routed["router_loss"].shape == (1, 1)  # one layer chooses as one
    return routed["router_loss"].sum()

  got, grad = jax.value_and_grad(loss)(two)
  teacher = np.exp([1, 3]) / np.exp([1, 3]).sum()
  student = np.exp([2, 6]) / np.exp([2, 6]).sum()
  want = (teacher * np.log(teacher / student)).sum()
  np.testing.assert_allclose(got, want, rtol=1e-5)
  # d KL / d score = student - teacher; d score / d query head = its key.
  slope = ((student - teacher) * [1, 3]).sum()
  np.testing.assert_allclose(grad[0, 2, :, 0], [slope, slope], rtol=1e-4)


@pytest.mark.parametrize(
  "call, says",
  [
    (dict(implementation="pallas"), "'pallas' can't serve: the backend is"),
    (dict(implementation="pallas", gradient="kl"), "the backend is 'cpu'"),
  ],
  ids=str,
)
def test_an_explicit_choice_that_can_not_serve(call, says):
  batch, query, key, value = _by_hand()
  config = config_lib.GazeConfig(**call)
  plan = routing.plan(batch.layout, batch.region_slots, config)
  with pytest.raises(backends.ImplementationError, match=says):
    gaze.parallel(query, key, value, plan, np.array([1], np.int32), config)
  if "gradient" in call:
    with target.tracing_for("tpu"):
      with pytest.raises(backends.ImplementationError, match="into the scores"):
        gaze.parallel(query, key, value, plan, np.array([1], np.int32), config)


def _decode_by_hand(form, query):
  batch, _, key, value = _by_hand()
  config = config_lib.GazeConfig(decode_implementation=form)
  plan = routing.plan(batch.layout, batch.region_slots, config)
  visual = _stored(key, value, plan, config)
  linear = jnp.zeros((1, 40, 1, 1))
  zero = np.array([0], np.int32)
  text = _text(query, linear, linear, zero)
  layer = jnp.int32(0)
  return gaze.decode(query, visual, text, zero + 1, config, layer=layer).out


@pytest.mark.nightly
def test_more_rows_than_a_list_has_bits_for():
  query = jnp.linspace(-1, 1, 33).reshape(1, 33, 1, 1)
  want = _decode_by_hand("masked", query)
  compare.close(_decode_by_hand("auto", query), want)
  compare.close(_decode_by_hand("gather", query), want)


@pytest.fixture
def logged(monkeypatch):
  """(level, message) of what is logged, as if nothing had been logged yet."""
  out = []
  monkeypatch.setattr(logging, "log", lambda *x: out.append(x))
  monkeypatch.setattr(backends, "_logged", set())
  return out


def test_auto_logs_once_what_it_took(logged):
  for _ in range(2):
    _decode_by_hand("auto", jnp.ones((1, 1, 1, 1)))
  assert logged == [
    (
      logging.INFO,
      "model.gaze.decode_implementation: auto takes 'gather': the backend is"
      " 'cpu', the form is for 'tpu'",
    )
  ]


def test_a_kernel_that_can_not_serve_on_tpu_is_a_warning(logged):
  """Once for each reason, whatever the sizes in it are; and once it serves."""
  take = lambda *shape, dtype=np.float32: _pages_form(shape, dtype)
  with target.tracing_for("tpu"):
    for regions in (9000, 9001, 12000):
      assert take(8, 8, regions, 36, 128) == "gather"
    assert take(1, 8, 16, 36, 128, dtype=np.float16) == "gather"
    assert take(1, 8, 16, 36, 128) == take(1, 8, 17, 36, 128) == "pallas"
    batch, query, key, value = _by_hand()
    config = config_lib.GazeConfig(gradient="kl")
    plan = routing.plan(batch.layout, batch.region_slots, config)
    for _ in range(2):
      gaze.parallel(query, key, value, plan, np.array([1], np.int32), config)
  decode = "model.gaze.decode_implementation: auto takes "
  assert [x for x in logged if "gradient" not in x[1]] == [
    (
      logging.WARNING,
      decode + "'gather': lists of 9000 regions take 1240064 bytes of SMEM",
    ),
    (
      logging.WARNING,
      decode + "'gather': dtype float16 is neither float32 nor bfloat16",
    ),
    (logging.INFO, decode + "'pallas'"),
  ]
  assert [x for x in logged if "gradient" in x[1]] == [
    (
      logging.WARNING,
      "model.gaze.implementation: auto takes 'chunked': gradient = 'kl' needs a"
      " gradient into the scores",
    )
  ]


@pytest.mark.nightly
def test_routed_rows_come_in_slabs(monkeypatch, heads, small_shape):
  monkeypatch.setattr(kernel, "SLAB", 12)
  slots = 83  # of its own, as this is traced anew
  batch = _batch(dataclasses.replace(small_shape, slots=slots), TWO_IMAGES)
  h = heads(1, slots, seed=5)
  weight = heads(1, slots, seed=6).q
  run = lambda form: jax.value_and_grad(
    lambda q: (
      _run(dataclasses.replace(h, q=q), batch, 2, form).out * weight
    ).sum()
  )(jnp.array(h.q))
  compare.close(run("pallas"), run("masked"))


def _pages_form(shape, dtype):
  """The name of what reads pages of a cache of this shape."""
  return gaze._pages_form(config_lib.GazeConfig(), 4, shape, dtype).NAME


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_auto_takes_xla_forms_off_tpu(platform):
  def regions_form(rows, dim=128, dtypes=frozenset({np.float32}), kind="none"):
    return attend_regions_tpu.supported(
      rows=rows, group=7, length=36, dim=dim, dtypes=set(dtypes), gradient=kind
    )

  shape = (1, 8, 16, 36, 128)
  with target.tracing_for(platform):
    assert _pages_form(shape, np.float32) == "gather"
    assert platform in regions_form(8)
  with target.tracing_for("tpu"):
    assert _pages_form(shape, np.float32) == "pallas"
    for big in ((8, 8, 9000, 36, 128), (1, 8, 16, 5000, 128)):
      assert _pages_form(big, np.float32) == "gather"
    assert _pages_form(shape, np.float16) == "gather"
    assert regions_form(2048) is None
    assert "VMEM" in regions_form(8192)
    assert "dtypes" in regions_form(8, 64, {"float32", "bfloat16"})
    assert "float16" in regions_form(8, 64, {np.float16})
    assert "scores" in regions_form(8, 64, kind="kl")
