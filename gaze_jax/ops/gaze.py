"""Gaze Attention: one function in two forms, and the one place they are chosen.

The parallel form (training, evaluation) sees a whole row at once and applies
the region test as a mask, or visits the chosen regions of each tile of rows.
The decode form scores stored descriptors, reads the chosen pages and merges
them with text and context by log-sum-exp. They agree because a region is
complete before any query that may see it, both use the same scores and tie
rule, and the merge is exact (docs/method.md, section 6).

  form       implementation   for
  parallel   masked           the oracle: one S x S mask
             chunked          XLA on any device; looks at no later key
             pallas           TPU: visits the regions that were chosen
             cudnn            GPU: chunked, and cuDNN for what chooses nothing
  decode     masked           all pages in place under a mask: dense
             gather           XLA on any device; reads the chosen pages
             pallas           TPU: reads the chosen pages, copies nothing
"""

import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attention
from gaze_jax.kernels import backends
from gaze_jax.ops import regions as regions_lib
from gaze_jax.ops import routing
from gaze_jax.ops.decode import cache as cache_ops
from gaze_jax.ops.decode import pages
from gaze_jax.ops.decode import trace as trace_lib
from gaze_jax.ops.parallel import chunked
from gaze_jax.ops.parallel import inputs as inputs_lib
from gaze_jax.ops.parallel import kernel
from gaze_jax.ops.parallel import masked
from gaze_jax.parallel import shard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routed:
  """Attention, and the regions it read.

  Attributes:
    out: [B, X, Q, D].
    members: bool [B, X, Q, R]; none for queries that choose nothing.
    router_loss: float32 [B, n], the distillation loss of each that chooses, in
      nats, summed over the queries of `routing.choosing`; 0 unless `gradient =
      "kl"`. None in decoding.
    scores: float32 [B, X, Q, R] if `decode` was asked for a trace, else None;
      see `types.Trace`.
    dense: likewise.
  """

  out: types.Leaf
  members: types.Leaf
  router_loss: types.Leaf = None
  scores: types.Leaf = None
  dense: types.Leaf = None


_RESULT = Routed(
  out=shard.HEADS,
  members=shard.HEADS,
  router_loss=shard.HEADS_FIRST,
  scores=shard.HEADS,
  dense=shard.HEADS,
)


@shard.local(
  _RESULT,
  query=shard.HEADS,
  key=shard.HEADS,
  value=shard.HEADS,
  plan=shard.ROWS,
  budget=shard.ROWS,
  dense=shard.WHOLE,
  override=shard.HEADS_FIRST,
)
def parallel(
  query: types.Float[types.Array, "B S Q D"],
  key: types.Float[types.Array, "B S H D"],
  value: types.Float[types.Array, "B S H D"],
  plan: types.Plan,
  budget: types.Int[types.Array, "B ..."],
  config: config_lib.GazeConfig = config_lib.GazeConfig(),  # noqa: B008
  *,
  dense: bool | types.Bool[types.Array, ""] = False,
  override: types.Float[types.Array, "B Q R"] | None = None,
  unit_span: int | None = None,
) -> Routed:
  """Attention of a whole row to itself.

  Args:
    query: [B, S, Q, D], post-RoPE.
    key: [B, S, H, D], post-RoPE.
    value: [B, S, H, D].
    plan: from `routing.plan`.
    budget: int32 [B], K of each row, or [B, G], K of each of its segments; see
      `routing.allowed`.
    config: static.
    dense: this layer reads every region; True drops the region test.
    override: float32 [B, Q, R] or None; takes the place of the scores, for
      controls such as random or centre regions.
    unit_span: static; visual and context tokens of the largest unit, if known.

  Raises:
    ImplementationError: `config.implementation` can't serve.
  """
  descriptors = None
  if dense is not True and override is None:
    descriptors = regions_lib.descriptors(
      key, plan.layout.region, plan.region_slots, config
    )
  inputs = inputs_lib.Inputs(
    query=query,
    key=key,
    value=value,
    descriptors=descriptors,
    budget=budget,
    plan=plan,
    config=config,
    dense=dense,
    override=override,
  )
  result = _attend(inputs, query.shape[1] if unit_span is None else unit_span)
  return Routed(
    out=result.out,
    members=routing.per_head(result.members, query.shape[2]),
    router_loss=result.loss,
  )


def _attend(inputs: inputs_lib.Inputs, unit_span: int) -> inputs_lib.Result:
  config = inputs.config
  if config.implementation == "masked":
    return masked.attend(inputs)
  form = None
  if config.implementation != "chunked":
    form = _rows_form(inputs)
  if form in backends.ATTEND_REGIONS:
    return kernel.attend(inputs, form, config.chunk, unit_span)
  if form:
    return chunked.attend_beside(inputs, config.chunk, form)
  if config.visual_attention == "own_unit":
    return chunked.attend_own_unit(inputs, config.chunk, unit_span)
  return chunked.attend(inputs, config.chunk)


def _rows_form(inputs: inputs_lib.Inputs) -> ModuleType | None:
  """The kernel of the parallel form, if one serves."""
  config, (_, s, q, d) = inputs.config, inputs.query.shape
  causal = config.visual_attention == "causal"
  return backends.choose(
    "model.gaze.implementation",
    config.implementation,
    backends.WHOLE_ROWS if causal else backends.ATTEND_REGIONS,
    otherwise="chunked",
    rows=min(s, kernel.SLAB),
    group=q // inputs.key.shape[2],
    length=inputs.plan.region_slots.shape[2],
    dim=d,
    dtypes={x.dtype for x in (inputs.query, inputs.key, inputs.value)},
    gradient=config.gradient,
  )


@shard.local(
  _RESULT,
  query=shard.HEADS,
  visual=cache_ops.ALL_LAYERS,
  text=shard.HEADS,
  budget=shard.ROWS,
  layer=shard.WHOLE,
  dense=shard.WHOLE,
  override=shard.HEADS_FIRST,
  choice=shard.HEADS_FIRST,
)
def decode(
  query: types.Float[types.Array, "B X Q D"],
  visual: types.VisualCache,
  text: types.Attended,
  budget: types.Int[types.Array, " B"],
  config: config_lib.GazeConfig = config_lib.GazeConfig(),  # noqa: B008
  *,
  layer: types.Int[types.Array, ""],
  dense: bool | types.Bool[types.Array, ""] = False,
  override: types.Float[types.Array, "B Q R"] | None = None,
  choice: types.Bool[types.Array, "B Q R"] | None = None,
  trace: bool = False,
) -> Routed:
  """Attention of new tokens to the cache of their row.

  Args:
    query: [B, X, Q, D], post-RoPE.
    visual: `VisualCache` of all layers, [N, B, H, ...].
    text: `Attended` of [B, X, Q, D], attention of the same queries to text and
      context, from `linear.attend`.
    budget: int32 [B], K of each row; see `routing.allowed`.
    config: static.
    layer: int32 scalar, which layer of `visual` this is. A slice of it would
      copy pages that are not read.
    dense: as in `parallel`.
    override: as in `parallel`.
    choice: bool [B, Q, R], regions to read whatever the query is; or None.
    trace: static; also what the query makes of the regions that it does not
      read, which costs as much as dense attention.

  Raises:
    ImplementationError: `config.decode_implementation` can't serve.
  """
  (_, x, q, d), (_, r, l) = query.shape, visual.valid.shape
  h, dtype = visual.k.shape[2], visual.k.dtype
  shape = (len(query), h, r, l, d)
  form = _pages_form(config, q // h, shape, dtype)
  most = form and form.most_rows(shape, dtype)
  lookup = pages.Lookup(query, visual, layer, budget, config, override, choice)
  looked, members = pages.look(
    lookup,
    form,
    dense=dense,
    tokens=_turn(x, most // (q // h)) if most else None,
  )
  return Routed(
    out=attention.merge(looked, text).out,
    members=members,
    scores=trace_lib.scores(lookup) if trace else None,
    dense=trace_lib.dense_share(lookup, text) if trace else None,
  )


def _turn(x: int, most: int) -> int:
  """New tokens at a time, at most `most`: in as many turns as that takes."""
  return -(-x // -(-x // max(most, 1)))


def empty(
  batch: int,
  regions: int,
  length: int,
  model: config_lib.ModelConfig,
) -> types.VisualCache:
  """Pages of all layers, with nothing in them yet.

  Args:
    batch: B.
    regions: R.
    length: L.
    model: static; its decoder gives the rest.
  """
  c, g = model.decoder, model.gaze
  n, h, d = c.depth, c.kv_heads, c.head_dim
  dtype = jnp.dtype(c.dtype)
  shape = (batch, h, regions, length, d)
  form = _pages_form(g, c.query_heads // h, shape, dtype)
  page = form.page_shape(length, d, dtype) if form else (length, d)
  k = jnp.zeros((n, batch, h, regions, *page), dtype)
  return types.VisualCache(
    k=k,
    v=jnp.zeros_like(k),
    descriptors=jnp.zeros(
      (n, batch, h, regions_lib.parts(g) * regions, d), jnp.float32
    ),
    valid=jnp.zeros((batch, regions, length), bool),
    unit=jnp.full((batch, regions, length), -1, jnp.int32),
  )


def _pages_form(
  config: config_lib.GazeConfig, rows: int, shape, dtype
) -> ModuleType | None:
  """What reads listed pages; None where all are read under a mask.

  Args:
    config: static.
    rows: query heads of a KV head.
    shape: (B, H, R, L, D) of the cache.
    dtype: of the cache.
  """
  asked = config.decode_implementation
  if asked == "masked":
    return None
  return backends.choose(
    "model.gaze.decode_implementation",
    asked,
    backends.ATTEND_PAGES,
    rows=rows,
    shape=shape,
    dtype=dtype,
  )
