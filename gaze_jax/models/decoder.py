"""A decoder of the Llama and Qwen families; attention is handed in.

The module owns the parameters and the order of operations; what attention
means is a function `attend(query, key, value, memory) -> (out, record)`,
which is how one set of layers serves training, prompts and decoding. State
goes in as `memory` (scanned over the layers) and comes out as `record`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import backends
from gaze_jax.kernels import products
from gaze_jax.models import layers
from gaze_jax.ops import rope
from gaze_jax.parallel import shard

# (query [B, X, Q, D], key [B, X, H, D], value, memory) -> (out, record)
Attend = Callable[..., tuple[types.Array, Any]]

# How the residual stream is sharded: [B, X, E].
SLOTS = ("batch", "slots", None)

# What a layer keeps for its backward pass beside its input, by remat. The
# names are those of `layers.Linear` (what its product gives, in the dtype of
# the computation); "attention", its output, with the log-sum-exp of kernels;
# and "weights", what the softmax gives.
_ATTENTION = ("query", "key", "value", "attention", "out")
_KEPT = {
  "full": (),  # least memory: the whole layer is run again
  "attention": _ATTENTION,  # the MLP is run again: the widest arrays
  "dots": (*_ATTENTION, "gate", "up"),  # no product with a weight is
  # Where backends.copies_what_is_kept(): no product is; elsewhere nothing is.
  "none": (*_ATTENTION, "gate", "up", "weights"),
}


class Layer(nn.Module):
  """Pre-norm attention and SwiGLU, with grouped heads.

  Queries and keys are normalised (Qwen3), or they and the values have biases
  (Qwen2), or neither (Llama).
  """

  config: config_lib.DecoderConfig
  attend: Attend

  @nn.compact
  def __call__(
    self, x: types.Array, memory: Any, angles: tuple[types.Array, types.Array]
  ) -> tuple[types.Array, Any]:
    c = self.config
    norm = lambda name, axis="embed": layers.RMSNorm(
      axis, c.norm_eps, name=name
    )
    h = norm("attention_norm")(x)
    q = self._heads(c.query_heads, "heads", "query")(h)
    k = self._heads(c.kv_heads, "kv_heads", "key")(h)
    v = self._heads(c.kv_heads, "kv_heads", "value")(h)
    if c.qk_norm:
      q = norm("query_norm", "head_dim")(q)
      k = norm("key_norm", "head_dim")(k)
    q, k = rope.rotate(q, *angles), rope.rotate(k, *angles)
    with jax.named_scope("attend"):
      out, record = self.attend(q, k, v, memory)
    out = checkpoint_name(out, "attention")
    x += layers.Linear(
      (c.query_heads, c.head_dim, c.width),
      ("heads", "head_dim", "embed"),
      inputs=2,
      name="out",
    )(out)
    x = shard.constrain(x, *SLOTS)
    x += layers.SwiGLU(c.mlp_dim, name="mlp")(norm("mlp_norm")(x))
    return shard.constrain(x, *SLOTS), record

  def _heads(self, heads: int, axis: str, name: str) -> layers.Linear:
    shape = (self.config.width, heads, self.config.head_dim)
    axes = ("embed", axis, "head_dim")
    return layers.Linear(shape, axes, bias=self.config.qkv_bias, name=name)


class Decoder(nn.Module):
  """Embedding, layers, final norm and head."""

  config: config_lib.DecoderConfig

  def setup(self):
    c = self.config
    self.embedding = layers.param(
      self,
      "embedding",
      nn.initializers.normal(c.embedding_std),
      ("vocab", "embed"),
      (c.vocab_size, c.width),
    )
    self.final_norm = layers.RMSNorm("embed", c.norm_eps)
    if not c.tied:
      self.head = layers.Linear(
        (c.width, c.vocab_size),
        ("embed", "vocab"),
        out=jnp.float32,
        used=(None, "head_vocab"),
      )

  def embed(self, tokens: types.Array) -> types.Array:
    """Token embeddings, float32 [..., E]."""
    # Each device looks up its part of the width for all rows, which are then
    # moved: they are less than the table, and so is their gradient.
    tokens = shard.constrain(tokens, "table_rows", "slots")
    # The head, where it is the same table, wants it sharded otherwise.
    table = shard.constrain(self.embedding, "vocab", "embed")
    x = shard.constrain(table[tokens], "table_rows", "slots", "embed")
    return x.astype(jnp.float32) * self.config.embedding_scale

  @nn.compact
  def __call__(
    self, x: types.Array, position: types.Array, attend: Attend, memory: Any
  ) -> tuple[types.Array, Any]:
    """Runs all layers.

    Args:
      x: [B, X, E], embedded slots.
      position: int32 [B, X].
      attend: see the top of this file.
      memory: pytree with a leading N, or None.

    Returns:
      Hidden states [B, X, E] before the final norm, and the records with a
      leading N.
    """
    c = self.config
    angles = rope.angles(position, c.head_dim, c.rope_theta)
    x = shard.constrain(x.astype(c.dtype), *SLOTS)
    if _is_split(apart := self.variables["params"].get("layers", {})):
      return _run_split(Layer(c, attend, parent=None), apart, x, memory, angles)
    layer = Layer
    if c.remat != "none" or backends.copies_what_is_kept():
      policy = jax.checkpoint_policies.save_only_these_names(*_KEPT[c.remat])
      layer = nn.remat(Layer, policy=policy, prevent_cse=not c.scan)
    scanned = nn.scan(
      layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast),
      length=c.depth,
      unroll=1 if c.scan else c.depth,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    layers_ = scanned(c, attend, name="layers")
    return layers_(x, memory, angles)

  def logits(self, x: types.Array) -> types.Array:
    """float32 [..., V] of hidden states [..., E]; the only way to a token."""
    x = self.final_norm(x)
    between = [None] * (x.ndim - 2)
    x = shard.constrain(x, "table_rows", *between, None)
    if self.config.tied:
      table = shard.constrain(self.embedding, "head_vocab", None)
      form = backends.best(
        backends.TABLE_PRODUCT, rows=x.size // x.shape[-1], entries=len(table)
      )
      x = form.table_product(x, table, jnp.float32)
    else:
      x = self.head(x)
    return shard.constrain(x, "table_rows", *between, "head_vocab")


def call(
  params: dict[str, Any],
  config: config_lib.DecoderConfig,
  method: str,
  *args: Any,
) -> Any:
  """Calls a method of `Decoder`; `params` are a model's, with "decoder"."""
  variables = {"params": params["decoder"]}
  return Decoder(config).apply(variables, *args, method=method)


def decodes_apart(mesh: jax.sharding.Mesh) -> bool:
  """Whether a backend decodes fastest with parameters from `split`."""
  return mesh.size == 1 and backends.layers_apart()


def is_apart(path: Sequence[str]) -> bool:
  """Whether `split` takes a parameter apart; its path begins at "decoder"."""
  return path[:2] == ("decoder", "layers") and path[-1] == "weight"


def split(params: dict[str, Any], *, donate: bool = False) -> dict[str, Any]:
  """Parameters for decoding on CPU: every matrix transposed, in its own array.

  `Decoder` computes the same with them, without the copy of each weight that
  XLA:CPU makes of a slice (see `products.OneOf`). Not for training.

  Args:
    params: of `Decoder`, whose layers are stacked.
    donate: delete each stacked weight once it is taken apart, so that memory
      holds one of them twice, and not all.

  Returns:
    The same, but a tuple of N transposes in place of each stacked weight;
    biases and scales stay stacked.
  """

  def apart(path, x):
    keys = ("decoder", "layers", *(k.key for k in path))
    if not is_apart(keys):
      return x
    layers_ = jax.block_until_ready(tuple(one.T for one in x))
    if donate:
      x.delete()
    return layers_

  layers_ = jax.tree_util.tree_map_with_path(apart, params["layers"])
  return params | {"layers": layers_}


def _is_split(layers_: dict[str, Any]) -> bool:
  leaves = jax.tree.leaves(layers_, is_leaf=lambda x: isinstance(x, tuple))
  return any(isinstance(x, tuple) for x in leaves)


def _run_split(
  layer: Layer, params: dict[str, Any], x: types.Array, memory: Any, angles
) -> tuple[types.Array, Any]:
  """`Decoder.__call__` with parameters from `split`."""

  def step(x, xs):
    number, memory = xs

    def of_layer(leaf):
      if isinstance(leaf, tuple):
        return products.OneOf(leaf, number)
      return jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)

    own = jax.tree.map(of_layer, params, is_leaf=lambda x: isinstance(x, tuple))
    return layer.apply({"params": own}, x, memory, angles)

  numbers = jnp.arange(layer.config.depth)
  return jax.lax.scan(step, x, (numbers, memory))


def param_shapes(config: config_lib.DecoderConfig) -> dict[str, Any]:
  """Nested dict of `jax.ShapeDtypeStruct`, the parameters of `Decoder`."""
  variables = jax.eval_shape(
    lambda: Decoder(config).init(jax.random.key(0), method=_touch)
  )
  return nn.meta.unbox(variables["params"])


def init(config: config_lib.DecoderConfig, key: jax.Array) -> dict[str, Any]:
  """New parameters, a plain nested dict."""
  variables = Decoder(config).init(key, method=_touch)
  return nn.meta.unbox(variables["params"])


def _touch(module: Decoder) -> types.Array:
  """Uses every parameter once."""
  x = module.embed(jnp.zeros((1, 1), jnp.int32))
  skip = lambda q, k, v, memory: (q, None)
  x, _ = module(x, jnp.zeros((1, 1), jnp.int32), skip, None)
  return module.logits(x)
