"""The decoder's families: which leaves they have, and where a bias goes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compare
from gaze_jax import config as config_lib
from gaze_jax.models import decoder

CONFIG = config_lib.DecoderConfig(
  vocab_size=16,
  width=8,
  depth=2,
  query_heads=4,
  kv_heads=2,
  head_dim=2,
  mlp_dim=12,
)
QWEN3 = dict(qk_norm=True)
QWEN2 = dict(qk_norm=False, qkv_bias=True)
LLAMA = dict(qk_norm=False)

_init = jax.jit(decoder.init, static_argnums=0)


def names(tree):
  return {
    "/".join(k.key for k in path)
    for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.mark.few(2)
@pytest.mark.parametrize(
  "family, more",
  [
    (QWEN3, {"layers/query_norm/scale", "layers/key_norm/scale"}),
    (QWEN2, {f"layers/{n}/bias" for n in ("query", "key", "value")}),
    (LLAMA, set()),
    (LLAMA | dict(tied=False), {"head/weight"}),
  ],
)
def test_the_leaves_of_a_family(family, more):
  config = dataclasses.replace(CONFIG, **family)
  shapes = decoder.param_shapes(config)
  projections = ("query", "key", "value", "out")
  common = {f"layers/{n}/weight" for n in projections} | {
    *("embedding", "final_norm/scale"),
    *("layers/attention_norm/scale", "layers/mlp_norm/scale"),
    *(f"layers/mlp/{n}/weight" for n in ("gate", "up", "down")),
  }
  assert names(shapes) == common | more
  made = _init(config, jax.random.key(0))
  like = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert like(made) == like(shapes)


def test_biases_are_named_and_stacked():
  config = dataclasses.replace(CONFIG, **QWEN2)
  module = decoder.Decoder(config)
  boxed = jax.eval_shape(
    lambda: module.init(jax.random.key(0), method=decoder._touch)
  )
  layer = boxed["params"]["layers"]
  assert layer["query"]["bias"].names == ("layers", "heads", "head_dim")
  assert layer["key"]["bias"].names == ("layers", "kv_heads", "head_dim")
  assert nn.meta.unbox(layer["query"]["bias"]).shape == (2, 4, 2)
  assert nn.meta.unbox(layer["value"]["bias"]).shape == (2, 2, 2)


def test_a_bias_is_added_before_rope():
  """With weights of 0 the heads are the biases, turned by the position."""
  config = dataclasses.replace(CONFIG, depth=1, **QWEN2)
  params = jax.tree.map(jnp.zeros_like, _init(config, jax.random.key(0)))
  ones = lambda heads: jnp.ones((1, heads, 2))
  for name, heads in (("query", 4), ("key", 2), ("value", 2)):
    params["layers"][name]["bias"] = ones(heads)

  def attend(q, k, v, memory):
    return jnp.zeros_like(q), (q, k, v)

  x, position = jnp.ones((1, 2, 8)), jnp.array([[0, 1]])
  _, (q, k, v) = decoder.Decoder(config).apply(
    {"params": params}, x, position, attend, None
  )
  turned = [np.cos(1) - np.sin(1), np.cos(1) + np.sin(1)]
  for found in (q, k):
    np.testing.assert_allclose(found[0, 0, 0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(found[0, 0, 1], [turned] * found.shape[3], 1e-6)
  np.testing.assert_array_equal(v, jnp.ones_like(v))


@functools.partial(jax.jit, static_argnums=0)
def _run(config, params, x):
  """All layers, with an attention that remembers the layer it is in."""
  attend = lambda q, k, v, layer: (q + layer, (k, v))
  position = jnp.arange(x.shape[1])[None]
  layers = jnp.arange(config.depth, dtype=jnp.float32)
  return decoder.Decoder(config).apply(
    {"params": params}, x, position, attend, layers
  )


@pytest.mark.few(1)
@pytest.mark.parametrize("family", [QWEN3, QWEN2])
def test_split_parameters_compute_the_same(family):
  config = dataclasses.replace(CONFIG, depth=3, **family)
  stacked = _init(config, jax.random.key(0))
  noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape)
  stacked = jax.tree.map(noise, stacked)
  split = decoder.split(stacked)
  assert len(split["layers"]["mlp"]["up"]["weight"]) == 3
  x = jax.random.normal(jax.random.key(2), (2, 4, config.width))
  want, got = (_run(config, p, x) for p in (stacked, split))
  compare.close(got, want)
  logits = lambda p: decoder.Decoder(config).apply(
    {"params": p}, want[0], method="logits"
  )
  np.testing.assert_array_equal(logits(split), logits(stacked))


def test_split_weights_are_not_copied():
  """A step's temporaries are smaller than any weight of a layer."""
  heads = dict(query_heads=8, kv_heads=8, head_dim=64)
  config = dataclasses.replace(CONFIG, width=512, mlp_dim=512, **heads)
  params = _init(config, jax.random.key(0))
  run = jax.jit(lambda params, x: _run(config, params, x)[0])
  size = lambda params: (
    run.lower(params, jnp.ones((1, 1, 512)))
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
  )
  weight = 4 * 512 * 512
  assert size(decoder.split(params)) < weight / 4
  assert size(params) > weight  # what is to be avoided is there


@pytest.mark.parametrize("tied", [True, False])
def test_narrow_weights_give_wide_embeddings_and_logits(tied):
  config = dataclasses.replace(CONFIG, dtype="bfloat16", tied=tied)
  params = _init(config, jax.random.key(0))
  narrow = jax.tree_util.tree_map_with_path(
    lambda path, x: x if path[-1].key == "scale" else x.astype(jnp.bfloat16),
    params,
  )
  run = lambda method, x: decoder.call(dict(decoder=narrow), config, method, x)
  embedded = run("embed", np.arange(3)[None])
  assert embedded.dtype == jnp.float32
  np.testing.assert_array_equal(embedded[0], narrow["embedding"][:3])
  x = jax.random.normal(jax.random.key(1), (1, 3, 8), jnp.bfloat16)
  logits = run("logits", x)
  assert logits.dtype == jnp.float32
  # Sums that nothing has rounded to bfloat16.
  assert (logits != logits.astype(jnp.bfloat16)).any()


def test_split_gives_memory_back_as_it_goes():
  params = _init(CONFIG, jax.random.key(0))
  want = jax.tree.map(np.asarray, decoder.split(params))
  got = decoder.split(params, donate=True)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  layers = params["layers"]
  assert layers["query"]["weight"].is_deleted()
  assert not layers["attention_norm"]["scale"].is_deleted()
