"""Gaze Attention: one function in two forms, and the one place they are chosen.

The parallel form (training, prefill) sees a whole row at once and applies the
region test as a mask, or visits the chosen regions of each tile of rows. The
decode form scores stored descriptors, reads the chosen pages and merges them
with text and context by log-sum-exp. They agree because a region is complete
before any query that may see it, both use the same scores and tie rule, and
the merge is exact (docs/method.md, section 6).

  form       implementation   for
  parallel   masked           the oracle: one S x S mask
             chunked          XLA on any device; looks at no later key
             pallas           TPU: visits the regions that were chosen
  decode     masked           all pages in place under a mask: dense
             gather           XLA on any device; reads the chosen pages
             pallas           TPU: reads the chosen pages, copies nothing
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import types
from gaze_jax.kernels import gaze_decode
from gaze_jax.kernels import gaze_prefill
from gaze_jax.kernels import support
from gaze_jax.kernels import visual as visual_kernel
from gaze_jax.ops import cache as cache_ops
from gaze_jax.ops import gather
from gaze_jax.ops import merge
from gaze_jax.ops import own_unit
from gaze_jax.ops import paged
from gaze_jax.ops import regions
from gaze_jax.ops import routing
from gaze_jax.ops import rows
from gaze_jax.ops import split
from gaze_jax.ops import tracing
from gaze_jax.parallel import shard


class ImplementationError(errors.GazeError):
  """An implementation that was asked for and can't serve."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routed:
  """Attention, and the regions it read.

  Attributes:
    out: [B, X, Q, D].
    members: bool [B, X, Q, R]; none for rows that choose nothing.
    router_loss: float32 [B, n], the distillation loss of each that chooses, in
      nats, summed over the rows of `routing.choosing`; 0 unless `gradient =
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


_ONE, _ROWS, _HEADS = shard.WHOLE, shard.ROWS, shard.HEADS
_CHOICES = shard.HEADS_FIRST
_RESULT = Routed(_HEADS, _HEADS, _CHOICES, _HEADS, _HEADS)


def parallel(
  query: types.Float[types.Array, "B S Q D"],
  key: types.Float[types.Array, "B S H D"],
  value: types.Float[types.Array, "B S H D"],
  plan: types.Plan,
  budget: types.Int[types.Array, " B"],
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
    budget: int32 [B], K of each row; see `routing.allowed`.
    config: static.
    dense: this layer reads every region; True drops the region test.
    override: float32 [B, Q, R] or None; takes the place of the scores, for
      controls such as random or centre regions.
    unit_span: static; visual and context tokens of the largest unit, if known.

  Raises:
    ImplementationError: `config.implementation` can't serve.
  """
  static, dense = _static(dense)
  run = functools.partial(_parallel, config, static, unit_span)
  arguments = query, key, value, plan, budget, dense, override
  specs = _HEADS, _HEADS, _HEADS, _ROWS, _ROWS, _ONE, _CHOICES
  return shard.local(run, specs, _RESULT)(*arguments)


def _static(dense: bool | types.Array) -> tuple:
  """What is known while tracing of a flag, and what is not."""
  return (dense, None) if isinstance(dense, bool) else (None, dense)


def _parallel(
  config: config_lib.GazeConfig,
  static: bool | None,
  unit_span: int | None,
  query,
  key,
  value,
  plan,
  budget,
  dense,
  override,
) -> Routed:
  """`parallel` of the rows and heads that a device has."""
  dense = dense if static is None else static
  descriptors = None
  if dense is not True and override is None:
    descriptors = regions.descriptors(
      key, plan.layout.region, plan.region_slots, config
    )
  inputs = rows.Inputs(
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


def _attend(inputs: rows.Inputs, unit_span: int) -> rows.Rows:
  config, s = inputs.config, inputs.query.shape[1]
  form = _parallel_form(inputs)
  if form == "pallas":
    interpret = support.target().interpret
    # The kernel would copy pages of another length.
    slots = inputs.plan.region_slots
    room = ((0, 0), (0, 0), (0, -slots.shape[2] % gaze_prefill.PAGE_MULTIPLE))
    slots = jnp.pad(slots, room, constant_values=-1)
    plan = dataclasses.replace(inputs.plan, region_slots=slots)
    return split.attend(
      dataclasses.replace(inputs, plan=plan),
      config.chunk,
      functools.partial(gaze_prefill.attend_regions, interpret=interpret),
      functools.partial(_visual_rows, unit_span, interpret),
    )
  if form == "chunked" and config.visual_attention == "own_unit":
    return own_unit.attend(inputs, config.chunk, unit_span)
  return rows.attend(inputs, s if form == "masked" else config.chunk)


def _visual_rows(span: int, interpret, inputs: rows.Inputs) -> types.Array:
  if inputs.config.visual_attention == "own_unit":
    return own_unit.unit_rows(inputs, inputs.config.chunk, span)
  return visual_kernel.attend_visual(
    inputs.query,
    inputs.key,
    inputs.value,
    inputs.plan.layout,
    interpret=bool(interpret),
  )


def store(
  key: types.Float[types.Array, "B S H D"],
  value: types.Float[types.Array, "B S H D"],
  plan: types.Plan,
  config: config_lib.GazeConfig = config_lib.GazeConfig(),  # noqa: B008
) -> types.VisualCache:
  """The region-major cache of one layer, as `decode` reads it.

  Args:
    key: [B, S, H, D], post-RoPE.
    value: [B, S, H, D].
    plan: from `routing.plan`.
    config: static.
  """
  run = functools.partial(_store, config)
  specs = _HEADS, _HEADS, _ROWS
  return shard.local(run, specs, paged.specs(_CHOICES))(key, value, plan)


def _store(config, key, value, plan) -> types.VisualCache:
  cache = cache_ops.visual(key, value, plan, config)
  if _decode_form(config, 1, cache.k.shape, key.dtype) != "pallas":
    return cache
  l, d = cache.k.shape[-2:]
  tiles, t, wide = gaze_decode.page_shape(l, d, key.dtype)
  room = ((0, 0),) * 3 + ((0, tiles * t - l), (0, wide - d))
  tiled = lambda x: jnp.pad(x, room).reshape(*x.shape[:3], tiles, t, wide)
  return dataclasses.replace(cache, k=tiled(cache.k), v=tiled(cache.v))


def decode(
  query: types.Float[types.Array, "B X Q D"],
  visual: types.VisualCache,
  text: types.Attended,
  budget: types.Int[types.Array, " B"],
  config: config_lib.GazeConfig = config_lib.GazeConfig(),  # noqa: B008
  *,
  layer: types.Int[types.Array, ""] | None = None,
  k_max: int | None = None,
  dense: bool | types.Bool[types.Array, ""] = False,
  override: types.Float[types.Array, "B Q R"] | None = None,
  frozen: types.Bool[types.Array, "B Q R"] | None = None,
  trace: bool = False,
) -> Routed:
  """Attention of new tokens to the cache of their row.

  Args:
    query: [B, X, Q, D], post-RoPE.
    visual: from `store`, of this layer, or stacked with `layer`.
    text: `Attended` of [B, X, Q, D], attention of the same queries to text and
      context, from `text.attend`.
    budget: int32 [B], K of each row; see `routing.allowed`.
    config: static.
    layer: int32 scalar, which layer of `visual` this is. A slice of it would
      copy pages that are not read.
    k_max: static bound of the regions that a query reads, where one is known;
      without it any budget runs in one program, and takes as long as it is.
    dense: as in `parallel`.
    override: as in `parallel`.
    frozen: bool [B, Q, R], regions to read whatever the query is; or None.
    trace: static; also what the query makes of the regions that it does not
      read, which costs as much as dense attention.

  Raises:
    ImplementationError: `config.decode_implementation` can't serve.
  """
  static, dense = _static(dense)
  run = functools.partial(_decode, config, static, k_max, trace)
  arguments = query, visual, text, budget, layer, dense, override, frozen
  pages = paged.specs(_CHOICES if layer is None else shard.LAYERS)
  specs = _HEADS, pages, _HEADS, _ROWS, _ONE, _ONE, _CHOICES, _CHOICES
  return shard.local(run, specs, _RESULT)(*arguments)


def _decode(
  config: config_lib.GazeConfig,
  static: bool | None,
  k_max: int | None,
  trace: bool,
  query,
  visual,
  text,
  budget,
  layer,
  dense,
  override,
  frozen,
) -> Routed:
  """`decode` of the rows and heads that a device has."""
  b, x, q, d = query.shape
  h = visual.descriptors.shape[-3]
  shape = (b, h, *visual.valid.shape[1:], d)
  turn = _turn(x, q // h, shape, visual.k.dtype)
  form = _decode_form(config, turn * q // h, shape, visual.k.dtype)
  step = paged.Step(query, visual, layer, budget, config, override, frozen)
  looked, members = paged.look(
    step,
    _PAGES[form],
    dense=dense if static is None else static,
    k_max=k_max,
    turn=turn if form == "pallas" else x,
  )
  return Routed(
    out=merge.merge(looked, text).out,
    members=members,
    scores=tracing.scores(step) if trace else None,
    dense=tracing.dense_share(step, text) if trace else None,
  )


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
    model: static; its decoder says the rest.
  """
  c, g = model.decoder, model.gaze
  n, h, d = c.depth, c.kv_heads, c.head_dim
  dtype = jnp.dtype(c.dtype)
  page: tuple[int, ...] = (length, d)
  shape = (batch, h, regions, length, d)
  if _decode_form(g, c.query_heads // h, shape, dtype) == "pallas":
    page = gaze_decode.page_shape(length, d, dtype)
  k = jnp.zeros((n, batch, h, regions, *page), dtype)
  parts = dict(mean=1, submean=g.sub_cells, minmax=2)[g.descriptor]
  return types.VisualCache(
    k=k,
    v=jnp.zeros_like(k),
    descriptors=jnp.zeros((n, batch, h, parts * regions, d), jnp.float32),
    valid=jnp.zeros((batch, regions, length), bool),
    unit=jnp.full((batch, regions), -1, jnp.int32),
  )


def _gather_pages(step: paged.Step, visits: types.Visits) -> types.Attended:
  lead = 3 if step.layer is None else 4
  k, v = (paged.plain(step, x, lead) for x in (step.visual.k, step.visual.v))
  return gather.attend_pages(
    step.query,
    dataclasses.replace(step.visual, k=k, v=v),
    visits.ids,
    visits.rows,
    visits.count,
    step.layer,
  )


def _kernel_pages(step: paged.Step, visits: types.Visits) -> types.Attended:
  return gaze_decode.attend_pages(
    step.query,
    step.visual.k,
    step.visual.v,
    step.visual.valid.sum(-1),
    visits.ids,
    visits.rows,
    visits.count,
    layer=step.layer,
    interpret=support.target().interpret,
  )


_PAGES = dict(masked=None, gather=_gather_pages, pallas=_kernel_pages)


def _parallel_form(inputs: rows.Inputs) -> str:
  config, (_, s, q, d) = inputs.config, inputs.query.shape
  h, l = inputs.key.shape[2], inputs.plan.region_slots.shape[2]
  dtypes = {x.dtype for x in (inputs.query, inputs.key, inputs.value)}
  reason = support.prefill(
    min(s, split.SLAB), q // h, l, d, dtypes, config.gradient
  )
  return _take("implementation", config.implementation, reason, "chunked")


def _decode_form(
  config: config_lib.GazeConfig, group_rows: int, shape, dtype
) -> str:
  reason = support.decode(group_rows, shape, dtype)
  asked = config.decode_implementation
  return _take("decode_implementation", asked, reason, "gather")


def _turn(x: int, group: int, shape, dtype) -> int:
  """New tokens of a call of the kernel: in as many turns as that takes."""
  most = max(gaze_decode.most_rows(shape, dtype) // group, 1)
  return -(-x // -(-x // most))


def _take(field: str, asked: str, reason: str | None, otherwise: str) -> str:
  """The form that serves, given why the kernel does not (None: it does)."""
  if asked == "pallas" and reason:
    raise ImplementationError(
      f"model.gaze.{field} = 'pallas' can't serve: {reason}; use 'auto'"
    )
  if asked != "auto":
    return asked
  form = otherwise if reason else "pallas"
  support.say(f"model.gaze.{field}", form, reason)
  return form
