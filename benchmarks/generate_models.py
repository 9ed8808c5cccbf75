"""One decoder on both sides: ours, and transformers on the same memory.

A cache of random keys and values stands for a prefill. Ours lies in pages, of
which the last has a slot to spare; one after the other, the pages of a layer
and head are a contiguous [slots, D], which is what transformers' caches hold.
So PyTorch sees the very memory of JAX, and only writes to the spare slot, which
our masks never look at.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import decode_methods
from benchmarks import timing
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import types
from gaze_jax.models import cached
from gaze_jax.models import decoder

try:
  import transformers
except ImportError:
  transformers = None

_PAGE = decode_methods.REGION
_LINEAR = 64  # slots for text
# Of the new token. The cached keys have none, being random; and a float32 angle
# at position 20,480 depends on how a frequency is rounded, to 1e-3 in logits.
_POSITION = 100
_LARGEST_DIFFERENCE = 1e-3  # of logits, relative to the largest

SHAPES = {
  "qwen3-0.6b": config_lib.DecoderConfig(
    vocab_size=151_936,
    width=1024,
    depth=28,
    query_heads=16,
    kv_heads=8,
    head_dim=128,
    mlp_dim=3072,
    rope_theta=1e6,
  ),
  "tiny": config_lib.DecoderConfig(  # for tests
    vocab_size=4100,
    width=64,
    depth=3,
    query_heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_dim=96,
  ),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """Rows that have seen their visual tokens and decode the next token.

  Attributes:
    config: of the decoder.
    tokens: visual tokens of a row.
    visual: `VisualCache` of all layers.
    new: int32 [B, 1], the token that is read.
  """

  config: config_lib.DecoderConfig
  tokens: int
  visual: types.VisualCache
  new: jax.Array

  @property
  def budget(self) -> int:
    """K: a tenth of the regions, at least one."""
    return max(1, round(decode_methods.ROUTED * -(-self.tokens // _PAGE)))

  @property
  def token_bytes(self) -> int:
    """Of the key and value of a token in one KV head of one layer."""
    return 2 * self.config.head_dim * self.visual.k.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Step:
  """A step of ours.

  Attributes:
    call: runs it; the same step whenever it is called. Returns the logits [B,
      1, V].
    bytes: of the cache that it must read.
    pages_read: the share of the pages among them.
  """

  call: Callable[[], Any]
  bytes: int
  pages_read: float


def weights(config: config_lib.DecoderConfig) -> dict[str, Any]:
  """Random parameters as decoding on CPU wants them."""
  numbers = iter(range(10_000))
  key = jax.random.key(0, impl="unsafe_rbg")

  @functools.partial(jax.jit, static_argnums=(1, 2))
  def draw(key, shape, inputs):
    return jax.random.normal(key, shape) * inputs**-0.5

  def leaf(path, spec):
    if path[-1].key == "scale":
      return jnp.ones(spec.shape)
    own = lambda: jax.random.fold_in(key, next(numbers))
    if path[0].key == "layers":  # as `decoder.split` leaves them
      n, *shape = spec.shape
      turned = tuple(shape[::-1])
      return tuple(draw(own(), turned, shape[0]) for _ in range(n))
    return draw(own(), spec.shape, spec.shape[0])

  specs = decoder.param_shapes(config)
  return jax.tree_util.tree_map_with_path(leaf, specs)


def make(config: config_lib.DecoderConfig, tokens: int, batch: int) -> Case:
  """A cache of random keys and values; a region may be ragged."""
  r = tokens // _PAGE + 1  # at least a slot to spare
  keys = jax.random.split(jax.random.key(tokens, impl="unsafe_rbg"), 2)
  shape = (config.depth, batch, config.kv_heads, r, _PAGE, config.head_dim)
  k, v = (decode_methods.draw(key, shape, config.dtype) for key in keys)
  slots = np.arange(r * _PAGE).reshape(1, r, _PAGE)
  valid = jnp.asarray(np.broadcast_to(slots < tokens, (batch, r, _PAGE)))
  describe = lambda k: decode_methods.descriptors(k, valid)
  visual = types.VisualCache(
    k=k,
    v=v,
    descriptors=jax.jit(lambda k: jax.lax.map(describe, k))(k),
    valid=valid,
    unit=jnp.where(valid, 0, -1),
  )
  new = jnp.arange(batch, dtype=jnp.int32)[:, None] + 7
  return Case(config, tokens, visual, new)


def ours(params: dict[str, Any], case: Case, granularity: str | None) -> Step:
  """A step that is routed by `granularity`, or dense if that is None.

  What is known of `cached.extend` and of the cache is known here alone.
  """
  c = case.config
  gaze = config_lib.GazeConfig(
    granularity=granularity or "query_head",
    dense_layers=() if granularity else tuple(range(c.depth)),
  )
  config = config_lib.ModelConfig(decoder=c, gaze=gaze)
  b = len(case.new)
  empty = lambda: jnp.zeros((c.depth, b, c.kv_heads, _LINEAR, c.head_dim))
  at = jnp.full(b, _POSITION, jnp.int32)
  budget = jnp.full(b, case.budget, jnp.int32)

  @functools.partial(jax.jit, donate_argnums=2)
  def step(params, visual, text, new, budget):
    cache = types.DecodeCache(visual, *text, 0 * at, at, None)
    params = {"decoder": params}
    cache, logits, trace = cached.extend(params, config, cache, new, budget)
    return (cache.k, cache.v), logits, trace.chosen

  state = {"text": (empty(), empty())}

  def run():
    text, logits, chosen = step(
      params, case.visual, state["text"], case.new, budget
    )
    state["text"] = text
    return logits, chosen

  size, share = _read(case, run()[1], routed=granularity is not None)
  return Step(lambda: run()[0], size, share)


def _read(case: Case, chosen, *, routed: bool) -> tuple[int, float]:
  """Bytes of the cache that a step must read, and the share of its pages.

  Args:
    case: what is read.
    chosen: bool [N, B, 1, Q, R].
    routed: whether descriptors are read as well.
  """
  n, b, _, q, r = chosen.shape
  h = case.config.kv_heads
  union = np.asarray(chosen).reshape(n, b, h, q // h, r).any(axis=3)
  filled = np.asarray(case.visual.valid).sum(axis=-1)  # [B, R]
  pages = (filled > 0).sum() * n * h
  size = int((union * filled[:, None]).sum()) * case.token_bytes
  if routed:
    size += case.visual.descriptors.nbytes
  return size, float(union.sum() / pages)


def transformers_model(
  config: config_lib.DecoderConfig, params: dict[str, Any]
) -> Any:
  """`Qwen3ForCausalLM` with the same weights, [out, in] as PyTorch has them.

  It shares their memory with ours, but for those of attention, whose heads are
  in another order.
  """
  torch = timing.torch
  model = transformers.Qwen3ForCausalLM(
    transformers.Qwen3Config(
      vocab_size=config.vocab_size,
      hidden_size=config.width,
      intermediate_size=config.mlp_dim,
      num_hidden_layers=config.depth,
      num_attention_heads=config.query_heads,
      num_key_value_heads=config.kv_heads,
      head_dim=config.head_dim,
      rms_norm_eps=config.norm_eps,
      rope_parameters=dict(rope_type="default", rope_theta=config.rope_theta),
      tie_word_embeddings=config.tied,
      attn_implementation="sdpa",
    )
  ).eval()

  def matrix(turned, inputs):
    w = torch.from_dlpack(turned).permute(*reversed(range(turned.ndim)))
    return w.reshape(math.prod(w.shape[:inputs]), -1).T.contiguous()

  stacked = params["layers"]
  mlp = stacked["mlp"]
  for i, layer in enumerate(model.model.layers):
    attention = layer.self_attn
    for name, module, inputs in (
      ("query", attention.q_proj, 1),
      ("key", attention.k_proj, 1),
      ("value", attention.v_proj, 1),
      ("out", attention.o_proj, 2),
    ):
      module.weight.data = matrix(stacked[name]["weight"][i], inputs)
    for name in ("gate", "up", "down"):
      module = getattr(layer.mlp, f"{name}_proj")
      module.weight.data = matrix(mlp[name]["weight"][i], 1)
  embedding = torch.from_dlpack(params["embedding"])
  model.model.embed_tokens.weight.data = embedding
  model.lm_head.weight.data = embedding
  return model


def theirs(model: Any, case: Case) -> dict[str, Callable[[], Any]]:
  """The same step by transformers, with each of its caches.

  `DynamicCache` is what `generate` takes by default: it copies a layer to grow
  it. Here it forgets the copy once it was read, so that the same step can be
  taken again. `StaticCache` writes in place and reads all slots under a mask.
  """
  torch = timing.torch
  b, r = case.visual.valid.shape[:2]
  n, h, d = case.config.depth, case.config.kv_heads, case.config.head_dim
  flat = lambda x: torch.from_dlpack(x).view(n, b, h, r * _PAGE, d)
  kept = flat(case.visual.k), flat(case.visual.v)
  new = torch.from_numpy(np.array(case.new)).long()
  position = torch.full((1, 1), _POSITION)

  class Forgetful(transformers.cache_utils.DynamicLayer):
    def update(self, key_states, value_states, *args, **kwargs):
      before = self.keys, self.values
      grown = super().update(key_states, value_states, *args, **kwargs)
      self.keys, self.values = before
      return grown

  def filled(cache, make_layer, slots):
    cache.layers = [make_layer() for _ in range(n)]
    for i, layer in enumerate(cache.layers):
      layer.keys, layer.values = (x[i, :, :, :slots] for x in kept)
      layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
      layer.is_initialized = True
    return cache

  size = r * _PAGE
  make_static = lambda: transformers.cache_utils.StaticLayer(size)
  static = transformers.StaticCache(config=model.config, max_cache_len=size)
  caches = {
    "DynamicCache": filled(transformers.DynamicCache(), Forgetful, case.tokens),
    "StaticCache": filled(static, make_static, size),
  }

  def run(cache):
    for layer in cache.layers:
      if isinstance(layer, transformers.cache_utils.StaticLayer):
        layer.cumulative_length.fill_(case.tokens)
    with torch.inference_mode():
      return model(
        new,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
      ).logits

  return {k: functools.partial(run, cache) for k, cache in caches.items()}


def faster(
  case: Case, model: Any, dense: Callable[[], Any]
) -> tuple[str, Callable[[], Any]]:
  """The faster of transformers' caches: its name, and a step with it.

  Args:
    case: the step that is taken.
    model: from `transformers_model`.
    dense: our dense step.

  Raises:
    GazeError: its logits are not those of our dense step.
  """
  want = np.asarray(dense())
  forms = theirs(model, case)
  for name, form in forms.items():
    got = form().numpy()
    off = np.abs(got - want).max() / np.abs(want).max()
    if (
      not off <= _LARGEST_DIFFERENCE
      or (got.argmax(-1) != want.argmax(-1)).any()
    ):
      raise errors.GazeError(
        f"{case.tokens} visual tokens: the logits of transformers with a {name}"
        f" differ from ours by {off:.1e} of the largest, or in the greedy token"
      )
  times = timing.in_turns(forms, rounds=3, seconds=10.0).times
  name = min(times, key=lambda x: times[x].least)
  return name, forms[name]
