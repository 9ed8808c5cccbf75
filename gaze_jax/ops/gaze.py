"""Gaze Attention: one function in two forms, and the one place they are chosen.

The parallel form (training, prefill) sees a whole row at once and applies the
region test as a mask, or visits the chosen regions of each tile of rows. The
decode form scores stored descriptors, reads the chosen pages and merges them
with text and context by log-sum-exp. They agree because a region is complete
before any query that may see it, both use the same scores and tie rule, and
the merge is exact (METHOD.md section 6).

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
from absl import logging

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import types
from gaze_jax.kernels import gaze_decode
from gaze_jax.kernels import gaze_prefill
from gaze_jax.kernels import support
from gaze_jax.kernels import visual as visual_kernel
from gaze_jax.ops import attention
from gaze_jax.ops import gather
from gaze_jax.ops import merge
from gaze_jax.ops import own_unit
from gaze_jax.ops import regions
from gaze_jax.ops import routing
from gaze_jax.ops import rows
from gaze_jax.ops import split


class ImplementationError(errors.GazeError):
  """An implementation that was asked for and can't serve."""


@dataclasses.dataclass(frozen=True)
class Routed:
  """Attention, and the regions it read.

  Attributes:
    out: [B, X, Q, D].
    members: bool [B, X, Q, R]; none for rows that choose nothing.
    router_loss: float32 scalar in nats, the distillation loss; 0 unless
      `gradient = "kl"`, and in decoding.
  """

  out: types.Leaf
  members: types.Leaf
  router_loss: types.Leaf = 0.0


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
  form = _parallel_form(config, key.dtype)
  inputs = rows.Inputs(
    query=query,
    key=key,
    value=value,
    descriptors=None
    if dense is True or override is not None
    else regions.descriptors(
      key, plan.layout.region, plan.region_slots, config
    ),
    budget=budget,
    plan=plan,
    config=config,
    dense=dense,
    override=override,
  )
  s = query.shape[1]
  confined = config.visual_attention == "own_unit"
  span = s if unit_span is None else unit_span
  if form == "pallas":
    interpret = support.target().interpret
    result = split.attend(
      inputs,
      config.chunk,
      functools.partial(gaze_prefill.attend_regions, interpret=interpret),
      functools.partial(_visual_rows, span, interpret),
    )
  elif form == "chunked" and confined:
    result = own_unit.attend(inputs, config.chunk, span)
  else:
    result = rows.attend(inputs, s if form == "masked" else config.chunk)
  return Routed(
    out=result.out,
    members=routing.per_head(result.members, query.shape[2]),
    router_loss=result.loss / jnp.maximum(result.count, 1.0),
  )


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


def decode(
  query: types.Float[types.Array, "B X Q D"],
  visual: types.VisualCache,
  key: types.Float[types.Array, "B H Y D"],
  value: types.Float[types.Array, "B H Y D"],
  length: types.Int[types.Array, " B"],
  budget: types.Int[types.Array, " B"],
  config: config_lib.GazeConfig = config_lib.GazeConfig(),  # noqa: B008
  *,
  k_max: int | None = None,
  dense: bool | types.Bool[types.Array, ""] = False,
  override: types.Float[types.Array, "B Q R"] | None = None,
  frozen: types.Bool[types.Array, "B Q R"] | None = None,
) -> Routed:
  """Attention of new tokens to the cache of their row.

  Args:
    query: [B, X, Q, D], post-RoPE; the last X tokens of the linear cache.
    visual: `VisualCache` of this layer.
    key: [B, H, Y, D], text and context keys, the X new ones included.
    value: [B, H, Y, D].
    length: int32 [B], filled slots before the X new ones.
    budget: int32 [B], K of each row; see `routing.allowed`.
    config: static.
    k_max: static bound of the regions that a query reads, where one is known;
      without it any budget runs in one program, and takes as long as it is.
    dense: as in `parallel`.
    override: as in `parallel`.
    frozen: bool [B, Q, R], regions to read whatever the query is; or None.

  Raises:
    ImplementationError: `config.decode_implementation` can't serve.
  """
  seen = jnp.arange(key.shape[2]) <= (
    length[:, None, None] + jnp.arange(query.shape[1])[:, None]
  )
  linear = attention.attend(
    query, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3), seen[:, None]
  )
  looked, members = _look(
    query, visual, budget, config, k_max, dense, override, frozen
  )
  return Routed(out=merge.merge(looked, linear).out, members=members)


def choose(
  query: types.Float[types.Array, "B X Q D"],
  visual: types.VisualCache,
  budget: types.Int[types.Array, " B"],
  config: config_lib.GazeConfig = config_lib.GazeConfig(),  # noqa: B008
  *,
  override: types.Float[types.Array, "B Q R"] | None = None,
) -> types.Bool[types.Array, "B X Q R"]:
  """The regions that `decode` would read; arguments as there."""
  b, x, q, _ = query.shape
  open_ = jnp.broadcast_to(
    visual.valid.any(-1)[:, None], (b, x, visual.valid.shape[1])
  )
  score = _scores(query, visual, config, override)
  k = routing.allowed(budget, open_, visual.unit, config)
  return routing.per_head(routing.members(score, open_, k), q)


def _look(
  query,
  visual: types.VisualCache,
  budget,
  config,
  k_max,
  dense,
  override,
  frozen,
) -> tuple[types.Attended, types.Array]:
  """Attention to the visual pages, and the regions read, [B, X, Q, R]."""
  b, x, q, _ = query.shape
  h, r = visual.k.shape[1:3]
  form = _decode_form(config, x * q // h, visual.k.dtype)
  k_max = r if k_max is None else min(k_max, r)
  open_ = jnp.broadcast_to(visual.valid.any(-1)[:, None], (b, x, r))

  def in_place(members) -> tuple[types.Attended, types.Array]:
    return _in_place(query, visual, members), members

  def everything() -> tuple[types.Attended, types.Array]:
    return in_place(jnp.broadcast_to(open_[:, :, None], (b, x, q, r)))

  def chosen() -> tuple[types.Attended, types.Array]:
    if frozen is not None:
      members = jnp.broadcast_to(frozen[:, None], (b, x, q, r))
    else:
      score = _scores(query, visual, config, override)
      k = routing.allowed(budget, open_, visual.unit, config)
      k = jnp.minimum(k, k_max)
      if form != "masked" and x == 1 and score.shape[2] <= h:
        return paged(*_shared(score, open_, k, k_max, q, h))
      members = routing.per_head(routing.members(score, open_, k), q)
    if form == "masked":
      return in_place(members)
    size = min(r, x * q // h * k_max)
    return paged(routing.visits(members, h, size), members)

  def paged(
    visits: types.Visits, members
  ) -> tuple[types.Attended, types.Array]:
    if form == "gather":
      out = gather.attend_pages(
        query, visual, visits.ids, visits.rows, visits.count
      )
      return out, members
    out = gaze_decode.attend_pages(
      query,
      visual.k,
      visual.v,
      visual.valid.sum(-1),
      visits.ids,
      visits.rows,
      visits.count,
      interpret=support.target().interpret,
    )
    return out, members

  if isinstance(dense, bool):
    return everything() if dense else chosen()
  return jax.lax.cond(dense, everything, chosen)


def _scores(query, visual: types.VisualCache, config, override) -> types.Array:
  if override is None:
    return routing.scores(query, visual.descriptors, config)
  score = routing.summed(override[:, None], visual.k.shape[1], config)
  b, x = query.shape[:2]
  return jnp.broadcast_to(score, (b, x, *score.shape[2:]))


def _shared(
  score, open_, k, k_max: int, q: int, h: int
) -> tuple[types.Visits, types.Array]:
  """Visits of one token whose groups share a choice: no union to take."""
  chosen = routing.select(score, open_, k, k_max)
  r, n = score.shape[-1], score.shape[2]
  hits = jax.nn.one_hot(chosen.ids, r, dtype=bool) & chosen.valid[..., None]
  ids = jnp.repeat(chosen.ids[:, 0], h // n, axis=1)
  all_rows = jnp.uint32(2 ** (q // h) - 1).astype(jnp.int32)
  visits = types.Visits(
    ids=ids,
    rows=jnp.full_like(ids, all_rows),
    count=jnp.broadcast_to(jnp.minimum(k, k_max), ids.shape[:2]),
  )
  return visits, routing.per_head(hits.any(axis=-2), q)


def _in_place(query, visual: types.VisualCache, members) -> types.Attended:
  """Attention over all pages under a mask, for when all may be read.

  Nothing is copied, which makes this the dense step that gaze is timed against.
  """
  b, h, r, l, d = visual.k.shape
  pages = lambda page: page.reshape(b, h, r * l, d).transpose(0, 2, 1, 3)
  mask = members[..., None] & visual.valid[:, None, None]
  mask = mask.reshape(*members.shape[:3], r * l).transpose(0, 2, 1, 3)
  return attention.attend(query, pages(visual.k), pages(visual.v), mask)


def _parallel_form(config: config_lib.GazeConfig, dtype) -> str:
  reason = support.prefill(dtype, config.gradient)
  return _take("implementation", config.implementation, reason, "chunked")


def _decode_form(config: config_lib.GazeConfig, group_rows: int, dtype) -> str:
  asked = config.decode_implementation
  if asked == "auto" and group_rows > gaze_decode.MAX_ROWS:
    return "masked"
  if asked == "gather" and group_rows > gaze_decode.MAX_ROWS:
    raise ImplementationError(
      f"model.gaze.decode_implementation = 'gather' can't serve: {group_rows}"
      f" query rows of a KV head, it takes {gaze_decode.MAX_ROWS}; use 'auto'"
    )
  reason = support.decode(group_rows, dtype)
  return _take("decode_implementation", asked, reason, "gather")


def _take(field: str, asked: str, reason: str | None, otherwise: str) -> str:
  """The form that serves, given why the kernel does not (None: it does)."""
  if asked == "pallas" and reason:
    raise ImplementationError(
      f"model.gaze.{field} = 'pallas' can't serve: {reason}; use 'auto'"
    )
  if asked != "auto":
    return asked
  form = otherwise if reason else "pallas"
  _say(
    f"model.gaze.{field}: auto takes {form!r}"
    + (f": {reason}" if reason else "")
  )
  return form


@functools.cache
def _say(message: str) -> None:
  """Logs a message the first time."""
  logging.info(message)
