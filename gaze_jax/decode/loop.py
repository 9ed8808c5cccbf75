"""The decode loop: one compiled while_loop, and the same step on its own.

A token is sampled from the logits of the one before it, so the last token of
an answer has been said and not read. What is carried:

  token   read it -> logits -> sample the next -> token
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.decode import programs
from gaze_jax.decode import sampling as sampling_lib
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.ops import usage


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
  """What each row may say; arrays of [B, ...], the same in every step.

  Attributes:
    budget: int32 [B], K.
    sampling: `Sampling` of [B].
    stop: int32 [Z], ids that end an answer.
    most: int32 [B], tokens of an answer at most.
    sizes: float32 [B, R], visual tokens of each region.
  """

  budget: Any
  sampling: sampling_lib.Sampling
  stop: Any
  most: Any
  sizes: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
  """Where rows stand.

  Attributes:
    cache: `DecodeCache` of [B] without its pages.
    tokens: int32 [B, T], what was said; 0 past the last token.
    count: int32 [B], how many there are.
    done: bool [B], rows that say no more.
    read: float32 [B, 2], summed over the tokens: visual entries read per query
      head, and unique ones per KV head (docs/method.md, section 8), context
      tokens not included.
  """

  cache: types.DecodeCache
  tokens: Any
  count: Any
  done: Any
  read: Any


def start(
  cache: types.DecodeCache,
  logits: types.Float[types.Array, "B V"],
  chosen: types.Bool[types.Array, "N B X Q R"],
  rules: Rules,
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
    rules: `Rules` of [B].
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
    read=jnp.zeros((b, 2), jnp.float32),
  )
  return _say(carry, logits, chosen, rules, config, greedy)


def step(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  visual: types.VisualCache,
  carry: Carry,
  rules: Rules,
  *,
  greedy: bool,
  trace: bool = False,
) -> tuple[Carry, types.Trace]:
  """Reads the last token of each row that goes on, and says another.

  Args:
    params: as in `mllm.apply`; only "decoder" is read.
    config: static.
    visual: `VisualCache` of [B], which is read alone.
    carry: where the rows stand.
    rules: `Rules` of [B].
    greedy: static; see `sampling.sample`.
    trace: static; see `gaze.decode`.

  Returns:
    Where they stand then, and the `Trace` of [N, B, 1, Q, R].
  """
  last = jnp.maximum(carry.count - 1, 0)[:, None]
  cache, logits, traced = cached.extend(
    params,
    config,
    dataclasses.replace(carry.cache, visual=visual),
    jnp.take_along_axis(carry.tokens, last, axis=1),
    rules.budget,
    count=(~carry.done).astype(jnp.int32),
    trace=trace,
  )
  carry = dataclasses.replace(
    carry, cache=dataclasses.replace(cache, visual=None)
  )
  logits = logits[:, 0]
  return _say(carry, logits, traced.chosen, rules, config, greedy), traced


def run(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  visual: types.VisualCache,
  carry: Carry,
  rules: Rules,
  steps: types.Int[types.Array, ""],
  *,
  greedy: bool,
) -> Carry:
  """Up to `steps` more tokens, fewer once every row is done; see `step`."""

  def goes_on(state):
    carry, left = state
    return (left > 0) & ~carry.done.all()

  def body(state):
    carry, left = state
    carry, _ = step(params, config, visual, carry, rules, greedy=greedy)
    return carry, left - 1

  return jax.lax.while_loop(goes_on, body, (carry, steps))[0]


def _say(
  carry: Carry,
  logits: types.Array,
  chosen: types.Array,
  rules: Rules,
  config: config_lib.ModelConfig,
  greedy: bool,
) -> Carry:
  """Samples a token for each row that goes on, and counts what it read."""
  token = sampling_lib.sample(
    logits, rules.sampling, carry.count, greedy=greedy
  )
  rows = jnp.arange(len(token))
  live = ~carry.done
  place = jnp.where(live, carry.count, carry.tokens.shape[1])  # dropped
  count = carry.count + live
  ended = (token[:, None] == rules.stop).any(1) | (count >= rules.most)
  read = usage.of_step(chosen[:, :, 0], rules.sizes, config.decoder.kv_heads)
  return Carry(
    cache=carry.cache,
    tokens=carry.tokens.at[rows, place].set(token, mode="drop"),
    count=count,
    done=carry.done | ended,
    read=carry.read + jnp.where(live[:, None], read, 0.0),
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
