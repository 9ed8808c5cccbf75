"""Answers several prompts together: at once, or token by token."""

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
from gaze_jax.models import mllm
from gaze_jax.parallel import shard

# Answers come in buffers of so many tokens, or 1.5 times, twice, ... as many.
TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Step:
  """One generated token, and what the query that predicted it looked at.

  Attributes:
    token: its id.
    chosen: bool [N, Q, R], the regions read, per layer and query head.
    scores: float32 [N, Q, R], the routing scores; anything where there is no
      region. None when they were not recorded.
    dense: float32 [N, Q, R], the mass that dense attention of the same query
      would give each region; a head's sum over R is at most 1, the rest is
      text and context tokens. None when it was not recorded.
  """

  token: int
  chosen: np.ndarray
  scores: np.ndarray | None = None
  dense: np.ndarray | None = None


class Decoding:
  """Answers in the making; the first token of each is there at once.

  A row depends on nothing but itself: alone it gets the same answer.

  Args:
    params: as in `mllm.apply`; only "decoder" is read.
    config: the model.
    prompts: what `reading.read` gave, one or more. The text cache of one that
      is decoded alone is written into: read it again to decode it again.
    budgets: K of each, in the unit of `gaze.budget`.
    max_tokens: tokens of each answer at most; the prompt was read with this
      room.
    stop: ids that end an answer.
    sampling: `Sampling` of the prompts; greedy by default.
    overrides: as in `reading.Prompt`, of each; all or none.
    trace: whether to record where every token looked. Costs as much as dense
      attention, and `run` records nothing: call `step`.
  """

  def __init__(
    self,
    params: mllm.Params,
    config: config_lib.ModelConfig,
    prompts: Sequence[context_lib.Context],
    budgets: Sequence[int],
    *,
    max_tokens: Sequence[int],
    stop: Sequence[int],
    sampling: sampling_lib.Sampling | None = None,
    overrides: Sequence[np.ndarray | None] | None = None,
    trace: bool = False,
  ):
    self._params = {"decoder": params["decoder"]}
    self._config, self._prompts, self._trace = config, tuple(prompts), trace
    batch, shards = len(prompts), shard.row_shards()
    if batch == 1:  # the rows of its own cache, of which the first is asked
      batch, cache = shards, prompts[0].cache
      logits, chosen = prompts[0].logits, prompts[0].trace.chosen
    else:
      batch = shards * -(-programs.bucket(batch, 2) // shards)
      cache = context_lib.stack([p.cache for p in prompts], batch)
      regions = cache.visual.valid.shape[1]
      logits = context_lib.first_rows(
        [p.logits for p in prompts], batch, axis=0
      )
      chosen = [_widened(p.trace.chosen, regions) for p in prompts]
      chosen = context_lib.first_rows(chosen, batch, axis=1)
    regions = cache.visual.valid.shape[1]
    self._visual = cache.visual
    sampling = sampling or sampling_lib.make(len(prompts))
    self._greedy = not sampling.temperature.any()
    self._options = _options(
      prompts, batch, regions, budgets, max_tokens, stop, sampling
    )
    if overrides and overrides[0] is not None:
      filled = [*overrides, *overrides[:1] * (batch - len(prompts))]
      override = reading.stacked(filled, regions)
      self._options = dataclasses.replace(self._options, override=override)
    self._carry = loop.start_program(
      dataclasses.replace(cache, visual=None),
      logits,
      chosen,
      self._options,
      np.arange(batch) >= len(prompts),
      config=config,
      room=programs.bucket(max(max_tokens), TOKENS),
      greedy=self._greedy,
    )
    self._steps: list[list[Step]] = [[] for _ in prompts]
    self._fetch()
    if trace:
      for row, prompt in enumerate(prompts):
        self._record(row, shard.to_host(prompt.trace), 0)

  @property
  def done(self) -> bool:
    """Whether all answers are complete."""
    return bool(self._done.all())

  def ended(self, row: int) -> bool:
    """Whether an answer is complete."""
    return bool(self._done[row])

  def tokens(self, row: int) -> list[int]:
    """The ids of an answer so far, the one that ended it included."""
    return self._tokens[row, : self._count[row]].tolist()

  def budget(self, row: int) -> int:
    """K of a row."""
    return int(self._options.budget[row])

  def steps(self, row: int) -> tuple[Step, ...]:
    """One for each token of an answer; none unless they were traced."""
    return tuple(self._steps[row])

  def entries(self, row: int) -> tuple[float, float]:
    """Visual entries that a token's queries read, a mean over the answer.

    Returns:
      Per query head, and unique ones per KV head; context tokens not included.
    """
    entries = self._entries[row] / max(self._count[row], 1)
    return float(entries[0]), float(entries[1])

  def context(self, row: int, count: int | None = None) -> context_lib.Context:
    """A prompt and its answer, or the first `count` tokens of it."""
    tokens = self.tokens(row)[:count]
    prompt = self._prompts[row]
    cache = self._carry.cache
    if len(self._prompts) > 1:
      alone = context_lib.one_row(cache, row)
      cache = context_lib.of_one_row(alone)
    cache = dataclasses.replace(cache, visual=prompt.cache.visual)
    if cache.choice is not None:  # the regions of its own pages again
      regions = cache.visual.valid.shape[1]
      cache = dataclasses.replace(cache, choice=cache.choice[..., :regions])
    read = max(len(tokens) - 1, 0)  # the last one was not read
    return dataclasses.replace(
      prompt,
      cache=cache,
      length=prompt.length + read,
      position=prompt.position + read,
      pending=tuple(tokens[-1:]),
      ids=(*prompt.ids, *tokens[:read]),
      logits=None,
      trace=None,
    )

  def step(self) -> None:
    """One more token for each row that is not done."""
    before = self._count
    self._carry, traced = loop.step_program(
      self._params,
      self._config,
      self._visual,
      self._carry,
      self._options,
      greedy=self._greedy,
      trace=self._trace,
    )
    self._fetch()
    if self._trace:
      traced = shard.to_host(traced)
      for row in np.flatnonzero(self._count > before).tolist():
        self._record(row, traced, row)

  def run(self, steps: int) -> None:
    """Up to so many more tokens for each row, in one call."""
    self._carry = loop.run_program(
      self._params,
      self._config,
      self._visual,
      self._carry,
      self._options,
      np.int32(steps),
      np.bool_(False),
      greedy=self._greedy,
    )
    self._fetch()

  def end(self, row: int) -> None:
    """Ends an answer: a stop string came, or nobody listens any more."""
    self._done[row] = True
    done = jnp.asarray(np.append(self._done, self._filling))
    self._carry = dataclasses.replace(
      self._carry, done=shard.constrain(done, "batch")
    )

  def _fetch(self) -> None:
    """Fetches the little that the host decides by."""
    n, carry = len(self._prompts), self._carry
    tokens, count, done, entries = shard.to_host(
      (carry.tokens, carry.count, carry.done, carry.entries)
    )
    self._tokens, self._count = tokens[:n], count[:n]
    self._done, self._filling = done[:n].copy(), done[n:]
    self._entries = entries[:n]

  def _record(self, row: int, trace: types.Trace, place: int) -> None:
    """Keeps where the newest token of a row looked."""
    regions = len(self._prompts[row].sizes)
    take = lambda x: (
      None if x is None else np.asarray(x[:, place, 0, :, :regions])
    )
    token = int(self._tokens[row, self._count[row] - 1])
    looked = map(take, (trace.chosen, trace.scores, trace.dense))
    self._steps[row].append(Step(token, *looked))


def _options(
  prompts: Sequence[context_lib.Context],
  batch: int,
  regions: int,
  budgets: Sequence[int],
  max_tokens: Sequence[int],
  stop: Sequence[int],
  sampling: sampling_lib.Sampling,
) -> loop.Options:
  """`Options` of a batch; rows that fill it up are greedy and get no token."""
  more = batch - len(prompts)
  filled = lambda x: np.array([*x, *[0] * more], np.int32)
  sizes = [context_lib.as_numpy(p.sizes, regions) for p in prompts]
  return loop.Options(
    budget=filled(budgets),
    sampling=jax.tree.map(
      lambda x, one: np.append(x, one.repeat(more)),
      sampling,
      sampling_lib.make(1),
    ),
    stop=np.array(stop, np.int32),
    max_tokens=filled(max_tokens),
    sizes=np.pad(sizes, ((0, more), (0, 0))),
  )


def _widened(chosen: jax.Array, regions: int) -> jax.Array:
  """bool [N, W, 1, Q, regions]."""
  room = regions - chosen.shape[-1]
  return jnp.pad(chosen, ((0, 0),) * 4 + ((0, room),)) if room else chosen
