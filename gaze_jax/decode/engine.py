"""Decodes rows that were read, together: at once or token by token."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import loop
from gaze_jax.decode import programs
from gaze_jax.decode import reading
from gaze_jax.decode import sampling as sampling_lib
from gaze_jax.decode import trace as trace_lib
from gaze_jax.models import mllm

# Answers come in buffers of so many tokens, or 1.5 times, twice, ... as many.
TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Row:
  """A prompt that was read, and how it is to be answered.

  Attributes:
    read: the prompt. Its text cache is written into where it is decoded
      alone: read it again to decode it again.
    budget: K, in the unit of `gaze.budget`.
    max_tokens: at most so many tokens; the prompt was read with this room.
    temperature: 0 is greedy; this and the next three as in `sampling.make`.
    top_p: see there.
    top_k: see there: likeliest tokens, not regions.
    seed: see there.
  """

  read: reading.Read
  budget: int
  max_tokens: int = TOKENS
  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Said:
  """What was said to one row.

  Attributes:
    tokens: token ids, the one that ended it included.
    read: visual entries that a token's queries read, a mean: per query head,
      and unique ones per KV head; context tokens not included.
    context: the prompt and the answer.
    steps: one for each token; empty unless they were traced.
  """

  tokens: tuple[int, ...]
  read: tuple[float, float]
  context: context_lib.Context
  steps: tuple[trace_lib.Step, ...]


class Decoding:
  """Answers being said; the first token of each is there at once.

  Rows depend on nothing but themselves: a row alone says the same.

  Args:
    params: as in `mllm.apply`; only "decoder" is read.
    config: the model.
    rows: one or more.
    stop: ids that end an answer.
    trace: whether to record where every token looked. Costs as much as dense
      attention, and `step` is the way to go on then.
  """

  def __init__(
    self,
    params: mllm.Params,
    config: config_lib.ModelConfig,
    rows: Sequence[Row],
    *,
    stop: Sequence[int],
    trace: bool = False,
  ):
    self._params = {"decoder": params["decoder"]}
    self._config, self._rows, self._trace = config, tuple(rows), trace
    batch = programs.up(len(rows), 2) if len(rows) > 1 else 1
    cache = context_lib.stack([r.read.context.cache for r in rows], batch)
    self._visual = cache.visual
    self._rules = _rules(rows, batch, cache.visual.valid.shape[1], stop)
    self._greedy = not any(r.temperature for r in rows)
    first = [r.read.trace for r in rows]
    fill = lambda x, axis: jnp.concatenate(
      [*x, *[jnp.zeros_like(x[0])] * (batch - len(x))], axis=axis
    )
    regions = cache.visual.valid.shape[1]
    self._carry = loop.start_program(
      dataclasses.replace(cache, visual=None),
      fill([r.read.logits for r in rows], 0),
      fill([_wide(t.chosen, regions) for t in first], 1),
      self._rules,
      np.arange(batch) >= len(rows),
      config=config,
      room=programs.up(max(r.max_tokens for r in rows), TOKENS),
      greedy=self._greedy,
    )
    self._steps: list[list[trace_lib.Step]] = [[] for _ in rows]
    self._sync()
    if trace:
      for row, seen in enumerate(first):
        self._record(row, seen, 0)

  @property
  def done(self) -> bool:
    """Whether all answers are complete."""
    return bool(self._done.all())

  def tokens(self, row: int) -> list[int]:
    """What was said to a row so far."""
    return self._tokens[row, : self._count[row]].tolist()

  def ended(self, row: int) -> bool:
    """Whether an answer is complete."""
    return bool(self._done[row])

  def step(self) -> None:
    """One more token for each row that is not done."""
    before = self._count
    self._carry, traced = loop.step_program(
      self._params,
      self._config,
      self._visual,
      self._carry,
      self._rules,
      greedy=self._greedy,
      trace=self._trace,
    )
    self._sync()
    if self._trace:
      traced = jax.device_get(traced)
      for row in np.flatnonzero(self._count > before).tolist():
        self._record(row, traced, row)

  def run(self, steps: int) -> None:
    """Up to so many more tokens for each row, in one call."""
    self._carry = loop.run_program(
      self._params,
      self._config,
      self._visual,
      self._carry,
      self._rules,
      jnp.int32(steps),
      greedy=self._greedy,
    )
    self._sync()

  def end(self, row: int) -> None:
    """Ends an answer: a stop string came, or nobody listens any more."""
    self._done[row] = True
    self._carry = dataclasses.replace(
      self._carry, done=jnp.asarray(np.append(self._done, self._spare))
    )

  def said(self, row: int, count: int | None = None) -> Said:
    """What was said to a row, or its first `count` tokens."""
    tokens = self.tokens(row)
    total = len(tokens)
    tokens = tokens[:count]
    read = np.asarray(self._carry.read[row]) / max(total, 1)
    before = self._rows[row].read.context
    cache = dataclasses.replace(
      context_lib.row(self._carry.cache, row), visual=before.cache.visual
    )
    cache = _narrow(cache)
    kept = max(len(tokens) - 1, 0)  # the last one was said and not read
    return Said(
      tokens=tuple(tokens),
      read=(float(read[0]), float(read[1])),
      context=dataclasses.replace(
        before,
        cache=cache,
        length=before.length + kept,
        position=before.position + kept,
        pending=tuple(tokens[-1:]),
        ids=(*before.ids, *tokens[:kept]),
      ),
      steps=tuple(self._steps[row][: len(tokens)]),
    )

  def _sync(self) -> None:
    """Fetches the little that the host decides by."""
    n = len(self._rows)
    tokens, count, done = jax.device_get(
      (self._carry.tokens, self._carry.count, self._carry.done)
    )
    self._tokens, self._count = tokens[:n], count[:n]
    self._done, self._spare = done[:n].copy(), done[n:]

  def _record(self, row: int, seen: types.Trace, place: int) -> None:
    """Keeps where the newest token of a row looked."""
    regions = len(self._rows[row].read.context.sizes)
    take = lambda x: (
      None if x is None else np.asarray(x[:, place, 0, :, :regions])
    )
    self._steps[row].append(
      trace_lib.Step(
        int(self._tokens[row, self._count[row] - 1]),
        take(seen.chosen),
        take(seen.scores),
        take(seen.dense),
      )
    )


def _rules(
  rows: Sequence[Row], batch: int, regions: int, stop: Sequence[int]
) -> loop.Rules:
  """Rows that fill up the batch are greedy and may say nothing."""
  column = lambda name, fill: (
    [getattr(r, name) for r in rows] + [fill] * (batch - len(rows))
  )
  sizes = np.zeros((batch, regions), np.float32)
  for row, out in zip(rows, sizes, strict=False):
    out[:] = context_lib.as_numpy(row.read.context.sizes, regions)
  return loop.Rules(
    budget=np.array(column("budget", 0), np.int32),
    sampling=sampling_lib.make(
      batch,
      temperature=column("temperature", 0.0),
      top_p=column("top_p", 1.0),
      top_k=column("top_k", 0),
      seed=column("seed", 0),
    ),
    stop=np.array(stop, np.int32),
    most=np.array(column("max_tokens", 0), np.int32),
    sizes=sizes,
  )


def _wide(chosen: jax.Array, regions: int) -> jax.Array:
  """bool [N, 1, 1, Q, regions]."""
  room = regions - chosen.shape[-1]
  return jnp.pad(chosen, ((0, 0),) * 4 + ((0, room),)) if room else chosen


def _narrow(cache: types.DecodeCache) -> types.DecodeCache:
  """A row whose frozen choice has the regions of its own pages again."""
  if cache.frozen is None:
    return cache
  regions = cache.visual.valid.shape[1]
  return dataclasses.replace(cache, frozen=cache.frozen[..., :regions])
