"""The multimodal LLM: init, and whole rows.

Parameters are a plain nested dict {"vision", "projector", "decoder"}; the
functions are pure and fit for jit, grad and a sharded mesh. Rows that grow
from a cache are in `models/cached.py`.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles
from gaze_jax.models import decoder
from gaze_jax.models import projector
from gaze_jax.models import vision
from gaze_jax.ops import gaze
from gaze_jax.ops import routing
from gaze_jax.ops import usage
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard

Params = dict[str, Any]


class MLLM(nn.Module):
  """Owns the parameters; see the functions below for their use."""

  config: config_lib.ModelConfig

  def setup(self):
    c = self.config
    self.vision = vision.ViT(c.vision)
    self.projector = projector.Projector(
      c.projector,
      width=c.decoder.width,
      grid=c.projector.position_grid or c.vision.grid,
      context_tokens=c.gaze.context_tokens,
      newline=c.tiling.kind == "anyres",
    )
    self.decoder = decoder.Decoder(c.decoder)

  def __call__(
    self, images: types.Array | types.Patches, tokens: types.Array
  ) -> types.Array:
    """Touches every parameter once; for initialisation alone."""
    features = self.features(images)
    x, _, _ = self.projector(features)
    x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.decoder.embed(tokens)
    position = jnp.zeros(x.shape[:2], jnp.int32)
    skip = lambda q, k, v, memory: (q, None)
    x, _ = self.decoder(x, position, skip, None)
    return self.decoder.logits(x)

  def features(self, images: types.Array | types.Patches) -> types.Array:
    """Visual features [B, M, T, F] of pixels [B, M, height, width, 3]."""
    b, m = jax.tree.leaves(images)[0].shape[:2]
    flat = jax.tree.map(lambda a: a.reshape(b * m, *a.shape[2:]), images)
    features = self.vision(flat)
    return features.reshape(b, m, *features.shape[1:])

  def embed(self, batch: types.Batch) -> types.Array:
    """Embeds every slot of a batch, float32 [B, S, E]."""
    images, role = batch.images, batch.layout.role[..., None]
    if images is None:  # text alone: the decoder is all that is needed
      x = self.decoder.embed(batch.tokens)
      return jnp.where(role == types.Role.PAD, 0.0, x)
    cached = not isinstance(images, types.Patches) and images.ndim == 4
    features = images if cached else self.features(images)
    visual, context, newline = self.projector(features)
    visual = visual.reshape(visual.shape[0], -1, visual.shape[-1])
    visual = shard.constrain(visual, "batch", None, None)
    visual = shard.constrain(_gather(visual, newline, batch), *decoder.SLOTS)
    x = shard.constrain(self.decoder.embed(batch.tokens), *decoder.SLOTS)
    x = jnp.where(role == types.Role.VISUAL, visual, x)
    if context is not None:
      context = shard.constrain(context, None, None)
      number = batch.feed if batch.blend is None else batch.feed[..., 0]
      with jax.named_scope("context"):
        number = jax.nn.one_hot(number, context.shape[0])
        # Not a lookup, whose gradient sums S rows one by one.
        context = jnp.matmul(number, context, precision="highest")
      x = jnp.where(role == types.Role.CONTEXT, context, x)
    return jnp.where(role == types.Role.PAD, 0.0, x)


def init(config: config_lib.ModelConfig, key: jax.Array) -> Any:
  """New parameters, boxed with their logical axis names.

  `nn.meta.unbox` gives the plain dict that the other functions take.
  """
  v = config.vision
  images = vision.blank(v, 1, 1)
  tokens = jnp.zeros((1, v.tokens), jnp.int32)
  return MLLM(config).init(key, images, tokens)["params"]


@functools.cache
def abstract(config: config_lib.ModelConfig) -> tuple[Params, Params]:
  """All parameters, none of them made.

  Returns:
    A `jax.ShapeDtypeStruct` for each, and a `PartitionSpec` of the logical
    names of its axes.
  """
  boxed = jax.eval_shape(lambda: init(config, jax.random.key(0)))
  return nn.meta.unbox(boxed), nn.get_partition_spec(boxed)


def places(
  config: config_lib.ModelConfig,
  mesh: jax.sharding.Mesh | None = None,
  parts: Collection[str] = rules.PARTS,
) -> Callable[[Sequence[str]], jax.sharding.Sharding]:
  """Where parameters go on a mesh: the path of one -> its sharding.

  Args:
    config: of the model.
    mesh: one device by default.
    parts: those of the model that there are.

  Raises:
    MeshError: names each field of the config that does not divide.
  """
  if mesh is None or mesh.size == 1:
    device = mesh.devices.item() if mesh else jax.local_devices()[0]
    whole = jax.sharding.SingleDeviceSharding(device)
    return lambda path: whole
  rules.check_model(config, dict(mesh.shape), parts)
  shapes, names = abstract(config)
  table = rules.shardings({p: shapes[p] for p in parts}, names, mesh)
  return lambda path: functools.reduce(operator.getitem, path, table)


def features(
  params: Params,
  config: config_lib.ModelConfig,
  images: types.Array | types.Patches,
) -> types.Array:
  """What the tower makes of pixels [B, M, ...]: float [B, M, T, F]."""
  return MLLM(config).apply({"params": params}, images, method="features")


def embed(
  params: Params, config: config_lib.ModelConfig, batch: types.Batch
) -> types.Array:
  """Embeds every slot of a batch, float32 [B, S, E]."""
  return MLLM(config).apply({"params": params}, batch, method="embed")


def apply(
  params: Params,
  config: config_lib.ModelConfig,
  batch: types.Batch,
  budget: types.Int[types.Array, "B ..."],
  *,
  override: types.Float[types.Array, "B Q R"] | None = None,
) -> types.ModelOutput:
  """The parallel form: logits at the answer slots of whole rows.

  Args:
    params: plain nested dict; "vision" may be absent when `batch.images`
      holds features.
    config: static.
    batch: `Batch`.
    budget: int32 [B], K of each row, or [B, G], K of each of its segments.
    override: float32 [B, Q, R] or None; see `gaze.parallel`.
  """
  answers = jnp.maximum(batch.answer_slots, 0)
  g = config.gaze
  plan = routing.plan(
    batch.layout, batch.region_slots, g, batch.answer_slots, batch.answer_of
  )
  route = _parallel(config, plan, budget, override)

  def attend(q, k, v, dense):
    routed = route(q, k, v, dense=flag(dense))
    used = usage.count(routed.members, plan, config.decoder.kv_heads)
    chosen = jnp.take_along_axis(
      routed.members, answers[:, :, None, None], axis=1
    )
    return routed.out, (used, chosen, routed.router_loss)

  x = embed(params, config, batch)
  run = functools.partial(decoder.call, params, config.decoder)
  x, (used, chosen, router_loss) = run(
    "__call__", x, batch.layout.position, attend, dense_layers(config)
  )
  x = jnp.take_along_axis(x, answers[..., None], axis=1)
  return types.ModelOutput(
    logits=run("logits", x),
    usage=jax.tree.map(lambda n: n.sum(0), used),
    chosen=chosen,
    router_loss=router_loss.sum(axis=(0, 2)),
  )


def router_terms(
  config: config_lib.ModelConfig, batch: types.Batch
) -> types.Float[types.Array, " B"]:
  """How many terms `ModelOutput.router_loss` sums; known before it is run."""
  c, g = config.decoder, config.gaze
  plan = routing.plan(
    batch.layout, batch.region_slots, g, batch.answer_slots, batch.answer_of
  )
  n = dict(query_head=c.query_heads, kv_group=c.kv_heads, layer=1)
  each = n[g.granularity] * (c.depth - len(g.dense_layers))
  return each * routing.choosing(plan).sum(axis=1).astype(jnp.float32)


def _gather(
  visual: types.Array, newline: types.Array | None, batch: types.Batch
) -> types.Array:
  """[B, S, E], what VISUAL slots hold, from projected tokens [P, M * T, E]."""
  pools, _, width = visual.shape

  def take(feed: types.Array) -> types.Array:
    of_pool = jnp.maximum(feed, 0).reshape(pools, -1, 1)
    taken = jnp.take_along_axis(visual, of_pool, axis=1)
    taken = taken.reshape(*feed.shape, width)
    if newline is None:
      return taken
    return jnp.where(feed[..., None] == row_lib.NEWLINE, newline, taken)

  if batch.blend is None:
    return take(batch.feed)
  # Tap by tap: one array of all taps would be four times the sequence.
  taps = range(batch.blend.shape[-1])
  return sum(batch.blend[..., i, None] * take(batch.feed[..., i]) for i in taps)


def _parallel(
  config: config_lib.ModelConfig,
  plan: types.Plan,
  budget: types.Int[types.Array, "B ..."],
  override: types.Float[types.Array, "B Q R"] | None,
):
  """`gaze.parallel` of a batch, as a function of query, key and value."""
  return functools.partial(
    gaze.parallel,
    plan=plan,
    budget=budget,
    config=config.gaze,
    override=override,
    unit_span=tiles.largest_unit(config) + config.gaze.context_tokens,
  )


def dense_layers(config: config_lib.ModelConfig) -> Any:
  """Which layers read every region: bool [N] to scan over, or one for all."""
  depth, dense = config.decoder.depth, config.gaze.dense_layers
  if len(dense) in (0, depth):
    return _ForAll(bool(dense))
  return jnp.isin(jnp.arange(depth), jnp.array(dense))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _ForAll:
  """A static flag that every layer shares: a pytree without leaves."""

  value: bool


def flag(dense: Any) -> Any:
  """What a layer is told of `dense_layers`: a bool, or a traced one."""
  return dense.value if isinstance(dense, _ForAll) else dense
