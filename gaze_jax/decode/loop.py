"""The decode loop: one compiled while_loop, and the same step on its own.

A token is sampled from the logits of the one before it, so the last token of
an answer is generated and not read yet:

  token   read it -> logits -> sample the next -> token
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import programs
from gaze_jax.decode import sampling as sampling_lib
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.ops import usage
from gaze_jax.ops.decode import cache as cache_ops
from gaze_jax.parallel import shard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Options:
  """How each row is answered; arrays, the same in every step.

  Attributes:
    budget: int32 [B], K.
    sampling: `Sampling` of [B].
    stop: int32 [Z], ids that end an answer.
    max_tokens: int32 [B], tokens of an answer at most.
    sizes: float32 [B, R], visual tokens of each region.
    override: float32 [B, Q, R], in place of the scores of regions, or None.
  """

  budget: Any
  sampling: sampling_lib.Sampling
  stop: Any
  max_tokens: Any
  sizes: Any
  override: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
  """The state of the loop.

  Attributes:
    cache: `DecodeCache` of [B] without its pages.
    tokens: int32 [B, T], the answers; 0 past the last token.
    count: int32 [B], how many there are.
    done: bool [B], rows whose answer is complete.
    entries: float32 [B, 2], summed over the tokens: visual entries read per
      query head, and unique ones per KV head (docs/method.md, section 8),
      context tokens not included.
  """

  cache: types.DecodeCache
  tokens: Any
  count: Any
  done: Any
  entries: Any


def start(
  cache: types.DecodeCache,
  logits: types.Float[types.Array, "B V"],
  chosen: types.Bool[types.Array, "N B X Q R"],
  options: Options,
  done: types.Bool[types.Array, " B"],
  *,
  config: config_lib.ModelConfig,
  room: int,
  greedy: bool,
) -> Carry:
  """The first token of each row.

  Args:
    cache: `DecodeCache` of the prompts; its pages are left out.
    logits: float32 [B, V] after the prompts.
    chosen: bool [N, B, 1, Q, R], what the prompts' last tokens read.
    options: `Options` of [B].
    done: bool [B], True for rows that fill up the batch.
    config: static.
    room: T, static.
    greedy: static; see `sampling.sample`.
  """
  b = logits.shape[0]
  carry = Carry(
    cache=cache,
    tokens=jnp.zeros((b, room), jnp.int32),
    count=jnp.zeros(b, jnp.int32),
    done=done,
    entries=jnp.zeros((b, 2), jnp.float32),
  )
  return _append_token(carry, logits, chosen, options, config, greedy)


def step(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  visual: types.VisualCache,
  carry: Carry,
  options: Options,
  *,
  greedy: bool,
  trace: bool = False,
) -> tuple[Carry, types.Trace]:
  """Reads the last token of each row that is not done; samples the next.

  Args:
    params: as in `mllm.apply`; only "decoder" is read.
    config: static.
    visual: `VisualCache` of [B], which is read alone.
    carry: the state.
    options: `Options` of [B].
    greedy: static; see `sampling.sample`.
    trace: static; see `gaze.decode`.

  Returns:
    The next state, and the `Trace` of [N, B, 1, Q, R].
  """
  last = jnp.maximum(carry.count - 1, 0)[:, None]
  cache, logits, traced = cached.extend(
    params,
    config,
    dataclasses.replace(carry.cache, visual=visual),
    jnp.take_along_axis(carry.tokens, last, axis=1),
    options.budget,
    count=(~carry.done).astype(jnp.int32),
    override=options.override,
    trace=trace,
  )
  carry = dataclasses.replace(
    carry, cache=dataclasses.replace(cache, visual=None)
  )
  carry = _append_token(
    carry, logits[:, 0], traced.chosen, options, config, greedy
  )
  return carry, traced


def run(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  visual: types.VisualCache,
  carry: Carry,
  options: Options,
  steps: types.Int[types.Array, ""],
  until_one_ends: types.Bool[types.Array, ""],
  *,
  greedy: bool,
) -> Carry:
  """Up to `steps` more tokens, fewer once every row is done; see `step`.

  Fewer too, with `until_one_ends`, once one more row is done.
  """
  before = carry.done

  def unfinished(state):
    carry, left = state
    one_ended = until_one_ends & (carry.done & ~before).any()
    return (left > 0) & ~carry.done.all() & ~one_ended

  def body(state):
    carry, left = state
    carry, _ = step(params, config, visual, carry, options, greedy=greedy)
    return carry, left - 1

  return jax.lax.while_loop(unfinished, body, (carry, steps))[0]


# How the state is sharded; see `shard.local`.
SHARDING = Carry(
  cache=dataclasses.replace(cache_ops.SHARDING, visual=None),
  tokens=shard.ROWS,
  count=shard.ROWS,
  done=shard.ROWS,
  entries=shard.ROWS,
)


@shard.local(
  (cache_ops.ALL_LAYERS, SHARDING),
  visual=cache_ops.ALL_LAYERS,
  carry=SHARDING,
  new_visual=cache_ops.ALL_LAYERS,
  new=SHARDING,
  places=shard.ROWS,
)
def insert(
  visual: types.VisualCache,
  carry: Carry,
  new_visual: types.VisualCache,
  new: Carry,
  places: types.Int[types.Array, " W"],
) -> tuple[types.VisualCache, Carry]:
  """Puts a row of each shard in the place of another one there.

  Args:
    visual: `VisualCache` of [B].
    carry: of [B].
    new_visual: of [W], a row for each shard of the rows.
    new: likewise.
    places: int32 [W], where a shard's new row goes among its own; -1 for one
      that goes nowhere.
  """
  at = jnp.maximum(places[0], 0)

  def put(path, old, row):
    axis = context_lib.row_axis(path)
    there = jax.lax.dynamic_slice_in_dim(old, at, 1, axis=axis)
    row = jnp.where(places[0] >= 0, row, there)
    return jax.lax.dynamic_update_slice_in_dim(old, row, at, axis=axis)

  return jax.tree_util.tree_map_with_path(
    put, (visual, carry), (new_visual, new)
  )


def _append_token(
  carry: Carry,
  logits: types.Array,
  chosen: types.Array,
  options: Options,
  config: config_lib.ModelConfig,
  greedy: bool,
) -> Carry:
  """Samples a token for each row that is not done; counts what it read."""
  token = sampling_lib.sample(
    logits, options.sampling, carry.count, greedy=greedy
  )
  rows = jnp.arange(len(token))
  live = ~carry.done
  place = jnp.where(live, carry.count, carry.tokens.shape[1])  # dropped
  count = carry.count + live
  ended = (token[:, None] == options.stop).any(1)
  entries = usage.of_step(
    chosen[:, :, 0], options.sizes, config.decoder.kv_heads
  )
  return shard.constrain_tree(
    Carry(
      cache=carry.cache,
      tokens=carry.tokens.at[rows, place].set(token, mode="drop"),
      count=count,
      done=carry.done | ended | (count >= options.max_tokens),
      entries=carry.entries + jnp.where(live[:, None], entries, 0.0),
    ),
    SHARDING,
  )


start_program = programs.Program(
  start, "first token", static=("room", "greedy"), donate=("cache",)
)
step_program = programs.Program(
  step, "decoding step", static=("greedy", "trace"), donate=("carry",)
)
run_program = programs.Program(
  run, "decoding loop", static=("greedy",), donate=("carry",)
)
insert_program = programs.Program(
  insert, "a row among others", donate=("visual", "carry")
)
