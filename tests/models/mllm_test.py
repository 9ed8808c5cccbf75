"""The model's two forms are one function, and its parameters are named."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
import read_rows
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.layout import row as row_lib
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.models import projector

CONFIG = config_lib.ModelConfig(
  vision=config_lib.VisionConfig(
    image_size=70,
    patch_size=14,
    width=16,
    depth=1,
    heads=2,
    mlp_dim=16,
    position_grid=5,
  ),
  projector=config_lib.ProjectorConfig(positions="row_column"),
  decoder=config_lib.DecoderConfig(
    vocab_size=64,
    width=32,
    depth=3,
    query_heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    embedding_std=1.0,  # tokens that differ
  ),
  gaze=config_lib.GazeConfig(region=(2, 2, 1), context_tokens=3, top_k=2),
)
SHAPE = row_lib.RowShape(
  slots=96,
  units=3,
  unit_tokens=25,
  regions=27,
  region_length=4,
  answer_slots=8,
  region=(2, 2, 1),
  context_tokens=3,
)
# Prompts of every mix; each is asked to go on with ANSWER.
PROMPTS = {
  "one image": [row_lib.Text([1]), row_lib.Unit(5, 5), row_lib.Text([2, 3])],
  "odd grids": [
    row_lib.Unit(3, 5),
    row_lib.Text([4]),
    row_lib.Unit(5, 2),
    row_lib.Unit(1, 1),
    row_lib.Text([5, 6, 7]),
  ],
  "text only": [row_lib.Text([8, 9, 10])],
  "late image": [
    row_lib.Text([11, 12]),
    row_lib.Unit(4, 4),
    row_lib.Text([13]),
  ],
}
ANSWER = [20, 21, 22, 23, 24]


@pytest.fixture(scope="module")
def params():
  make = jax.jit(mllm.init, static_argnums=0)
  return nn.meta.unbox(make(CONFIG, jax.random.key(0)))


def _batch(samples, seed=0, features=False):
  rng = np.random.default_rng(seed)
  tail = (25, 16) if features else (70, 70, 3)
  images = rng.normal(size=(len(samples), 3, *tail)).astype(np.float32)
  rows = [row_lib.lay_out(parts, SHAPE) for parts in samples]
  return row_lib.make_batch(rows, images)


def _take(batch, row):
  return jax.tree.map(lambda x: x[row : row + 1], batch)


_apply = jax.jit(mllm.apply, static_argnames="config")
_extend = jax.jit(cached.extend, static_argnames="config")
_read = functools.partial(read_rows.read, capacity=64)


def _teacher(params, prompts, k, config=CONFIG):
  """Logits float32 [B, 5, V] for each answer token, and regions read."""
  samples = [[*p, row_lib.Text(ANSWER, question=0)] for p in prompts]
  batch = _batch(samples)
  budget = np.full(len(prompts), k, np.int32)
  out = _apply(params, config, batch, budget)
  return np.asarray(out.logits)[:, :5], np.asarray(out.chosen)[:, :, :5]


@pytest.mark.parametrize("k", [0, 1, 2, 5, 27])
def test_decode_is_teacher_forcing_on_every_mix(params, k):
  prompts = list(PROMPTS.values())
  want, want_chosen = _teacher(params, prompts, k)
  budget = np.full(len(prompts), k, np.int32)
  cache, logits, traced = _read(params, CONFIG, _batch(prompts), budget)
  compare.close(logits, want[:, 0])
  np.testing.assert_array_equal(traced.chosen[:, :, 0], want_chosen[:, :, 0])
  for i, token in enumerate(ANSWER[:-1]):
    tokens = np.full((len(prompts), 1), token, np.int32)
    cache, logits, traced = _extend(params, CONFIG, cache, tokens, budget)
    chosen = traced.chosen
    compare.close(logits[:, 0], want[:, i + 1])
    np.testing.assert_array_equal(chosen[:, :, 0], want_chosen[:, :, i + 1])


OPTIONS = {
  "layer, submean": dict(
    granularity="layer", descriptor="submean", sub_cells=2
  ),
  "question": dict(refresh="question"),
  "copied": dict(decode_implementation="gather"),
  "kv_group": dict(granularity="kv_group"),
  "own unit, chunked": dict(visual_attention="own_unit", chunk=16),
  "minmax": dict(descriptor="minmax"),
  "ratio": dict(budget="ratio"),
  "per unit": dict(budget="per_unit"),
  "answer alone": dict(route_prompt=False),
  "own unit": dict(visual_attention="own_unit"),
  "a dense layer": dict(dense_layers=(1,)),
  "dense": dict(dense_layers=(0, 1, 2)),
  "in place": dict(decode_implementation="masked"),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", OPTIONS)
def test_decode_is_teacher_forcing_under_every_option(params, name):
  gaze = dataclasses.replace(CONFIG.gaze, **OPTIONS[name])
  config = dataclasses.replace(CONFIG, gaze=gaze)
  prompts, k = list(PROMPTS.values()), 300 if name == "ratio" else 2
  want, want_chosen = _teacher(params, prompts, k, config)
  budget = np.full(len(prompts), k, np.int32)
  cache, logits, traced = _read(params, config, _batch(prompts), budget)
  compare.close(logits, want[:, 0])
  for i, token in enumerate(ANSWER[:-1]):
    tokens = np.full((len(prompts), 1), token, np.int32)
    cache, logits, traced = _extend(params, config, cache, tokens, budget)
    chosen = traced.chosen
    compare.close(logits[:, 0], want[:, i + 1])
    np.testing.assert_array_equal(chosen[:, :, 0], want_chosen[:, :, i + 1])
  # From the first token of the answer on.
  answer = want_chosen[:, :, 1:]
  frozen = (answer == answer[:, :, :1]).all()
  assert frozen == (name in ("question", "dense"))
  if name in ("a dense layer", "dense"):
    seen = np.array([9, 6 + 3 + 1, 0, 4])  # regions of each prompt
    read = answer[1].sum(-1)
    np.testing.assert_array_equal(read.max((1, 2)), seen)
    np.testing.assert_array_equal(read.min((1, 2)), seen)


def test_budgets_recompile_nothing(params):
  prompts = list(PROMPTS.values())
  batch = _batch(prompts)
  run = jax.jit(lambda *args: cached.extend(params, CONFIG, *args))
  for k in (0, 1, 2, 5, 27):
    budget = np.full(len(prompts), k, np.int32)
    cache, _, _ = _read(params, CONFIG, batch, budget)
    tokens = np.zeros((len(prompts), 1), np.int32)
    _, _, traced = run(cache, tokens, budget)
    assert traced.chosen[:, 0].sum(-1).max() == min(k, 9)
  assert run._cache_size() == 1


def test_several_new_tokens_at_once_are_one_after_the_other(params):
  prompts = list(PROMPTS.values())
  want, _ = _teacher(params, prompts, 2)
  budget = np.full(len(prompts), 2, np.int32)
  cache, _, _ = _read(params, CONFIG, _batch(prompts), budget)
  tokens = np.tile(np.array(ANSWER[:-1], np.int32), (len(prompts), 1))
  _, logits, _ = _extend(params, CONFIG, cache, tokens, budget)
  compare.close(logits, want[:, 1:])


@pytest.mark.parametrize("name", PROMPTS)
def test_a_row_alone_is_the_row_in_a_batch(params, name):
  prompts = list(PROMPTS.values())
  row = list(PROMPTS).index(name)
  batch = _batch(prompts)
  budget = np.full(len(prompts), 2, np.int32)
  _, together, _ = _read(params, CONFIG, batch, budget)
  _, alone, _ = _read(params, CONFIG, _take(batch, row), budget[:1])
  compare.close(alone[0], together[row])


def test_a_question_in_a_branch_is_a_question_alone(params):
  image = [row_lib.Text([1]), row_lib.Unit(5, 5)]
  asked = [([2, 3], [20, 21]), ([4], [22]), ([5, 6, 7], [23, 24])]
  packed = list(image)
  for i, (question, answer) in enumerate(asked):
    packed += [
      row_lib.Text(question, i + 1),
      row_lib.Text(answer, i + 1, question=i),
    ]
  together = _batch([packed])
  out = _apply(params, CONFIG, together, np.array([2], np.int32)).logits
  for i, (question, answer) in enumerate(asked):
    row = [*image, row_lib.Text(question), row_lib.Text(answer, question=0)]
    alone = _apply(params, CONFIG, _batch([row]), np.array([2], np.int32))
    mine = np.asarray(out)[0, together.answer_of[0] == i]
    compare.close(alone.logits[0, : len(answer)], mine)


def _variant(**decoder):
  changed = dataclasses.replace(CONFIG.decoder, **decoder)
  return dataclasses.replace(CONFIG, decoder=changed)


def _loss_and_grad(params, config):
  batch = _batch([[*PROMPTS["one image"], row_lib.Text(ANSWER, question=0)]])

  def loss(p):
    out = mllm.apply(p, config, batch, np.array([2], np.int32))
    return (out.logits**2).mean()

  lowered = jax.jit(jax.value_and_grad(loss)).lower(params)
  compiled = lowered.compile()
  kept = compiled.memory_analysis().temp_size_in_bytes
  value, gradients = compiled(params)
  return (value, compare.joined(gradients)), lowered.as_text(), kept


@pytest.fixture(scope="module")
def plain(params):
  return _loss_and_grad(params, CONFIG)


@pytest.mark.nightly
@pytest.mark.parametrize("decoder", [{}, dict(remat="full")], ids=str)
def test_layers_one_by_one_compute_what_a_scan_does(params, plain, decoder):
  got, text, _ = _loss_and_grad(params, _variant(scan=False, **decoder))
  assert text.count("stablehlo.while") < plain[1].count("stablehlo.while")
  compare.close(got, plain[0])


@pytest.mark.nightly
def test_remat_trades_products_for_memory_and_changes_no_result(params, plain):
  """From the policy that keeps most to the one that keeps least."""
  _, text, kept = plain
  for policy in ("dots", "attention", "full"):
    got, new_text, new_kept = _loss_and_grad(params, _variant(remat=policy))
    assert new_text.count("dot_general") > text.count("dot_general"), policy
    assert new_kept < kept, policy
    compare.close(got, plain[0])
    text, kept = new_text, new_kept


@pytest.mark.nightly
def test_remat_of_the_tower(params, plain):
  vision = dataclasses.replace(CONFIG.vision, remat="full")
  got, text, _ = _loss_and_grad(
    params, dataclasses.replace(CONFIG, vision=vision)
  )
  assert text.count("dot_general") > plain[1].count("dot_general")
  compare.close(got, plain[0])


@pytest.mark.few(1)
@pytest.mark.parametrize("refresh", ["token", "question"])
def test_terms_of_distillation_by_hand(params, refresh):
  """Text slots that see an image, times those that choose, times layers."""
  gaze = dict(gradient="kl", granularity="kv_group", dense_layers=(1,))
  gaze = dataclasses.replace(CONFIG.gaze, refresh=refresh, **gaze)
  config = dataclasses.replace(CONFIG, gaze=gaze)
  samples = [[*p, row_lib.Text(ANSWER, question=0)] for p in PROMPTS.values()]
  batch = _batch(samples)
  slots = np.array([2 + 5, 1 + 3 + 5, 0, 1 + 5])
  terms = mllm.router_terms(config, batch)
  np.testing.assert_array_equal(terms, slots * 2 * 2)
  loss = _apply(params, config, batch, np.full(4, 2, np.int32)).router_loss
  assert loss.shape == (4,)
  np.testing.assert_array_equal(loss > 0, slots > 0)


def test_masked_and_chunked_models_agree(params):
  gaze = dataclasses.replace(CONFIG.gaze, implementation="masked")
  masked = dataclasses.replace(CONFIG, gaze=gaze)
  image_last = [row_lib.Text([11, 12]), row_lib.Unit(4, 4)]
  prompts = [*PROMPTS.values(), image_last]
  want, _ = _teacher(params, prompts, 2, masked)
  got, _ = _teacher(params, prompts, 2)
  compare.close(got, want)


def test_features_take_the_place_of_pixels(params):
  prompt = PROMPTS["one image"]
  pixels = _batch([[*prompt, row_lib.Text(ANSWER, question=0)]])
  model = mllm.MLLM(CONFIG)
  features = model.apply({"params": params}, pixels.images, method="features")
  cached = dataclasses.replace(pixels, images=features)
  budget = np.array([2], np.int32)
  without = {k: v for k, v in params.items() if k != "vision"}
  want = _apply(params, CONFIG, pixels, budget).logits
  got = _apply(without, CONFIG, cached, budget).logits
  compare.close(got, want)


def test_a_batch_of_padding_is_finite_in_value_and_gradient(params):
  batch = _batch([[]])

  def loss(p):
    return mllm.apply(p, CONFIG, batch, np.array([0], np.int32)).logits.sum()

  value, grad = jax.jit(jax.value_and_grad(loss))(params)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grad))


def test_bfloat16_stays_near_float32_and_keeps_float32_logits(params):
  half = _variant(dtype="bfloat16")
  prompts = list(PROMPTS.values())
  want, _ = _teacher(params, prompts, 27)
  got, _ = _teacher(params, prompts, 27, half)
  assert got.dtype == np.float32
  relative = np.linalg.norm(got - want) / np.linalg.norm(want)
  assert 0 < relative < 0.05


def test_every_parameter_has_a_logical_name_for_each_axis():
  boxed = jax.eval_shape(
    lambda: mllm.init(_variant(tied=False), jax.random.key(0))
  )
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box)
  assert len(leaves) > 20
  for path, leaf in leaves:
    assert is_box(leaf), path
    assert len(leaf.names) == leaf.value.ndim, path
    assert all(isinstance(n, str) for n in leaf.names), path
  layers = boxed["decoder"]["layers"]["query"]["weight"]
  assert layers.names == ("layers", "embed", "heads", "head_dim")


def test_without_context_tokens_there_is_no_such_parameter():
  none = dataclasses.replace(CONFIG.gaze, context_tokens=0)
  shapes, names = mllm.abstract(dataclasses.replace(CONFIG, gaze=none))
  some, _ = mllm.abstract(CONFIG)
  rest = {k: v for k, v in some["projector"].items() if k != "context"}
  assert some["projector"]["context"].shape == (3, 32)
  assert shapes == some | dict(projector=rest)
  assert "context" not in names["projector"]
  assert all(x.size for x in jax.tree.leaves(shapes))


def test_untied_head_has_its_own_weights():
  make = jax.jit(mllm.init, static_argnums=0)
  untied = nn.meta.unbox(make(_variant(tied=False), jax.random.key(0)))
  assert untied["decoder"]["head"]["weight"].shape == (32, 64)


def test_larger_grids_stretch_the_position_tables():
  """A 2-entry table on 4 cells, by hand: ends kept, quarters between."""
  np.testing.assert_allclose(
    projector._stretch(2, 4) @ np.array([0.0, 1.0]), [0, 0.25, 0.75, 1]
  )


def test_roles_choose_what_enters_the_decoder(params):
  batch = _batch([PROMPTS["one image"]])
  x = mllm.MLLM(CONFIG).apply({"params": params}, batch, method="embed")
  role = batch.layout.role[0]
  table = np.asarray(params["decoder"]["embedding"])
  np.testing.assert_allclose(x[0, 0], table[1], rtol=1e-6)
  context = np.asarray(params["projector"]["context"])
  np.testing.assert_allclose(
    x[0, role == types.Role.CONTEXT], context, rtol=1e-6
  )
  assert not np.any(np.asarray(x)[0, role == types.Role.PAD])
  assert jnp.abs(x[0, role == types.Role.VISUAL]).min() > 0


def _tiled_embedding(parts, shape, images):
  """What slots hold, [S, E], with 0, 1, 2, ... for projected tokens."""
  batch = row_lib.make_batch([row_lib.lay_out(parts, shape)], images)
  tokens = np.arange(images.shape[1] * shape.unit_tokens, dtype=np.float32)
  numbers = np.broadcast_to(tokens[None, :, None], (1, len(tokens), 2))
  newline = np.array([100.0, 200.0], np.float32)
  return np.asarray(mllm._gather(numbers, newline, batch))[0], batch


def test_visual_slots_hold_blends_and_newlines():
  n = row_lib.NEWLINE
  shape = row_lib.RowShape(
    slots=8,
    units=2,
    unit_tokens=4,
    regions=2,
    region_length=4,
    answer_slots=1,
    region=(2, 2, 1),
    context_tokens=0,
    tiles=3,
    taps=4,
  )
  feed = np.array([[0, 1, 4, 5], [7, 0, 0, 0], [n, 0, 0, 0]])
  blend = np.array([[0.5, 0.25, 0.125, 0.125], [1, 0, 0, 0], [1, 0, 0, 0]])
  unit = row_lib.Unit(
    1, 2, tail=1, tiles=2, feed=feed, blend=blend.astype(np.float32)
  )
  images = np.zeros((1, 3, 1, 1, 3), np.float32)
  got, batch = _tiled_embedding([row_lib.Unit(2, 2), unit], shape, images)
  # The second unit's tiles begin with token 4: 4/2 + 5/4 + 8/8 + 9/8, then 11.
  np.testing.assert_allclose(
    got[:7], [[i, i] for i in (0, 1, 2, 3, 5.375, 11)] + [[100, 200]]
  )
  assert batch.blend is not None
  # Without blends each slot is one token.
  plain = dataclasses.replace(shape, taps=1)
  row = [row_lib.Unit(2, 2, tail=1), row_lib.Unit(1, 2)]
  plain = dataclasses.replace(plain, largest_unit=5, region_length=5)
  got, batch = _tiled_embedding(row, plain, images)
  assert batch.blend is None
  np.testing.assert_array_equal(got[:7, 0], [0, 1, 2, 3, 100, 4, 5])


def test_a_tiled_model_has_a_newline_and_others_have_none():
  tiling = config_lib.TilingConfig(kind="anyres", pinpoints=((70, 140),))
  shapes = lambda config: jax.eval_shape(
    lambda: nn.meta.unbox(mllm.init(config, jax.random.key(0)))
  )
  tiled = shapes(dataclasses.replace(CONFIG, tiling=tiling))
  plain = shapes(CONFIG)
  assert tiled["projector"].pop("newline").shape == (32,)
  assert jax.tree.structure(tiled) == jax.tree.structure(plain)


def test_one_tap_of_four_is_a_plain_token(params):
  """With context tokens, whose numbers share the array of the taps."""
  parts = [*PROMPTS["one image"], row_lib.Text(ANSWER, question=0)]
  images = _batch([parts]).images
  logits = []
  for taps in (1, 4):
    shape = dataclasses.replace(SHAPE, taps=taps)
    batch = row_lib.make_batch([row_lib.lay_out(parts, shape)], images)
    out = _apply(params, CONFIG, batch, np.array([2], np.int32))
    logits.append(np.asarray(out.logits)[0, :5])
  compare.close(logits[0], logits[1])
