"""Continuous batching: requests of any mix through a few fixed programs.

A pool is a batch of rows of one size, decoded together. A request is read on
its own, and takes a free row of the pool of its size; the row of an answer that
is complete goes to the next request. What a row computes depends on its pool's
shape, and so on its own size alone, never on what is beside it.

  waiting   r5 r6 r7 ...          in the order in which they came
  pools     [r0 r3 -- r4]         of 16 regions, 256 slots, 64 tokens
            [r1 r2]               of 64 regions, 256 slots, 64 tokens
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import kept as kept_lib
from gaze_jax.decode import loop
from gaze_jax.decode import reading
from gaze_jax.decode import sampling as sampling_lib
from gaze_jax.layout import tiles
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.parallel import shard

# Sizes come in steps of four times, so that requests of a kind share a pool.
_REGIONS, _SLOTS, _TOKENS, _STEP = 16, 256, 64, 4
# Tokens of a pool's turn, at most.
_TURN = 32


class Size(NamedTuple):
  """Of a pool's rows: regions, slots of text and context, tokens of answers.

  Rows whose scores are overridden have pools of their own, and so have those
  that are traced: who doesn't ask pays nothing.
  """

  regions: int
  slots: int
  tokens: int
  overridden: bool = False
  traced: bool = False

  def bytes(self, config: config_lib.ModelConfig) -> int:
    """Of a row, on each device that has it."""
    return context_lib.row_bytes(config, self.regions, self.slots)


@dataclasses.dataclass(frozen=True)
class Job:
  """A request that is ready to be read.

  Attributes:
    prompt: what is read. Its context may have no cache, and has then that of
      the openings.
    after: `reading.extended` of it.
    max_tokens: tokens of the answer at most.
    sampling: `Sampling` of one row.
    stopped: whether an answer of these ids ends with its last one, by a stop
      string; given all ids each time. No string by default.
    openings: what comes before the prompt and is read once, in order.
    traced: whether events say which regions were read.
  """

  prompt: reading.Prompt
  after: context_lib.Context
  max_tokens: int
  sampling: sampling_lib.Sampling
  stopped: Callable[[Sequence[int]], bool] = lambda ids: False
  openings: tuple[kept_lib.Opening, ...] = ()
  traced: bool = False

  @property
  def size(self) -> Size:
    """Of the pool that it belongs to."""
    regions, slots = reading.needs(self.after, self.max_tokens)
    before = self.prompt.context.cache
    if before is not None and self.prompt.context.length:
      regions = max(regions, before.visual.valid.shape[1])
      slots = max(slots, before.k.shape[3])
    return Size(
      _step(regions, _REGIONS),
      _step(slots, _SLOTS),
      _step(self.max_tokens, _TOKENS),
      self.prompt.override is not None,
      self.traced,
    )


class Result(NamedTuple):
  """An answer: its ids, and `engine.Decoding.entries` of it."""

  tokens: tuple[int, ...]
  entries: tuple[float, float]


class Event(NamedTuple):
  """What a turn did for a job.

  Attributes:
    number: of the job.
    tokens: ids of its answer so far.
    chosen: bool [T, N, Q, R], the regions that were read for the newest T
      tokens, of the row's own R; None unless it is traced.
    result: of the answer once it is complete.
  """

  number: int
  tokens: Sequence[int]
  chosen: np.ndarray | None
  result: Result | None


class Scheduler:
  """Answers jobs, several at a time.

  Jobs are submitted whenever they come; `admit` and `turn`, called in turns,
  do a piece of the work each and wait for nobody. `run` is a loop of them.

  Args:
    params: as in `mllm.apply`.
    config: the model.
    rows: of a pool; rounded up to what the mesh can share out.
    cache_bytes: that the keys and values of all pools may take on a device.
    stop: ids that end an answer.
    kept_bytes: that `Job.openings` may take beside them, likewise.
  """

  def __init__(
    self,
    params: mllm.Params,
    config: config_lib.ModelConfig,
    *,
    rows: int,
    cache_bytes: int,
    stop: Sequence[int],
    kept_bytes: int = 0,
  ):
    self._params, self._config = params, config
    self._shards = shard.row_shards()
    self._rows = -(-rows // self._shards) * self._shards
    self._limit, self._stop = cache_bytes, np.array(stop, np.int32)
    self._pools: dict[Size, _Pool] = {}  # the one used last comes last
    self._waiting: collections.deque[tuple[int, Job]] = collections.deque()
    self._kept = kept_lib.Kept(params, config, kept_bytes)

  @property
  def waiting(self) -> int:
    """Jobs that have no row yet."""
    return len(self._waiting)

  @property
  def live(self) -> int:
    """Jobs that have one."""
    return sum(pool.live for pool in self._pools.values())

  @property
  def nbytes(self) -> tuple[int, int]:
    """Of keys and values on a device: of all pools, and of kept contexts."""
    return sum(pool.bytes for pool in self._pools.values()), self._kept.nbytes

  def check(self, job: Job) -> None:
    """Refuses a job that no pool can ever hold.

    Raises:
      context_lib.LimitError: naming what it takes and what there is.
    """
    # Its row of the pool, and the one that it is read into.
    need = 2 * job.size.bytes(self._config)
    context_lib.check_bytes(need, self._limit, job.size.regions, job.size.slots)
    self._kept.check(job.openings)

  def submit(self, number: int, job: Job) -> None:
    """Lets a job wait for a row; it is one that `check` lets pass.

    Args:
      number: what events call it; no other open job has it.
      job: the job.
    """
    self._waiting.append((number, job))

  def cancel(self, number: int) -> None:
    """Forgets a job; its row is free at once. One that is over stays so."""
    for one in self._waiting:
      if one[0] == number:
        self._waiting.remove(one)
        return
    for pool in self._pools.values():
      pool.cancel(number)

  def admit(self) -> Mapping[int, int]:
    """Reads jobs that there is a row for: one, or one in each shard.

    Returns:
      Their numbers, and how many slots of each were kept from another; none
      when all wait for a row, or nobody waits.
    """
    group = self._next(self._waiting)
    if group is None:
      return {}
    pool, chosen = group
    prompts, reused = [], {}
    for one in chosen:
      self._waiting.remove(one)
      number, job = one
      context, reused[number] = job.prompt.context, 0
      if context.cache is None:
        cache, reused[number] = self._kept.read(job.openings)
        context = dataclasses.replace(context, cache=cache)
      prompts.append(job.prompt._replace(context=context))
    pool.insert(chosen, prompts)
    return reused

  def turn(self, steps: int = _TURN) -> Iterator[Event]:
    """Some tokens more for every job that has a row.

    Ends a pool's turn sooner if a row is free that another job waits for.

    Args:
      steps: tokens at most. No answer depends on it.
    """
    for pool in [pool for pool in self._pools.values() if pool.live]:
      expected = any(job.size == pool.size for _, job in self._waiting)
      yield from pool.run(steps, until_one_ends=expected)

  def run(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Result]]:
    """Answers jobs; yields each one's number as it is done.

    Jobs are taken from the iterator as rows become free, a batch ahead.
    """
    source = enumerate(jobs)

    def refill():
      for one in itertools.islice(source, 2 * self._rows - self.waiting):
        self.submit(*one)

    while True:
      refill()
      while self.admit():
        refill()
      if not self.live:
        return
      for event in self.turn():
        if event.result:
          yield event.number, event.result

  def _next(
    self, waiting: Sequence[tuple[int, Job]]
  ) -> "tuple[_Pool, list[tuple[int, Job]]] | None":
    """Jobs that can be read now, together, and their pool."""
    for number, job in waiting:
      pool = self._pool(job.size)
      if pool is None:  # pools must empty first; who comes later waits as well
        return None
      free = pool.free_shards()
      if not free:
        continue
      chosen = [(number, job)]
      if not job.prompt.context.length:
        like = reading.shapes(job.prompt.batch)
        chosen += [
          (n, other)
          for n, other in waiting
          if n != number
          and not other.prompt.context.length
          and other.size == job.size
          and reading.shapes(other.prompt.batch) == like
        ][: free - 1]
      return pool, chosen
    return None

  def _pool(self, size: Size) -> "_Pool | None":
    """The pool of a size, made if there is memory; None if others are full."""
    pool = self._pools.pop(size, None)
    if pool is None:
      each = size.bytes(self._config)
      # As many rows as fit, beside a row of each shard that is being read.
      fit = self._limit // each - 1
      rows = min(self._rows // self._shards, fit)
      need = (rows + 1) * each
      held = lambda: sum(p.bytes for p in self._pools.values())
      for old in list(self._pools):
        if held() + need > self._limit and not self._pools[old].live:
          del self._pools[old]
      if held() + need > self._limit:
        return None
      pool = _Pool(
        *(self._params, self._config, size, rows * self._shards, need),
        self._stop,
      )
    self._pools[size] = pool
    return pool


class _Pool:
  """Rows of one size, decoded together."""

  def __init__(
    self,
    params: mllm.Params,
    config: config_lib.ModelConfig,
    size: Size,
    rows: int,
    held: int,
    stop: np.ndarray,
  ):
    self.size, self.bytes = size, held
    self._params, self._config = params, config
    self._shards = shard.row_shards()
    self._jobs: list[tuple[int, Job] | None] = [None] * rows
    # Of a traced row: what its first token read, until it is told.
    self._first: dict[int, np.ndarray] = {}
    self._count = np.zeros(rows, np.int32)  # tokens of answers so far
    cache = cached.empty(
      config,
      rows,
      regions=size.regions,
      region_length=tiles.largest_region(config),
      capacity=size.slots,
    )
    self._visual = cache.visual
    carry = loop.Carry(
      cache=dataclasses.replace(cache, visual=None),
      tokens=jnp.zeros((rows, size.tokens), jnp.int32),
      count=jnp.zeros(rows, jnp.int32),
      done=jnp.ones(rows, bool),
      entries=jnp.zeros((rows, 2), jnp.float32),
    )
    self._carry = shard.constrain_tree(carry, loop.SHARDING)
    self._options = loop.Options(
      budget=np.zeros(rows, np.int32),
      sampling=sampling_lib.make(rows),
      stop=stop,
      max_tokens=np.zeros(rows, np.int32),
      sizes=np.zeros((rows, size.regions), np.float32),
      override=self._no_scores(rows) if size.overridden else None,
    )

  @property
  def live(self) -> int:
    """How many rows are being answered."""
    return sum(one is not None for one in self._jobs)

  def free_shards(self) -> int:
    """How many shards of the rows have a free one."""
    return sum(None in part for part in self._parts())

  def insert(
    self,
    jobs: Sequence[tuple[int, Job]],
    prompts: Sequence[reading.Prompt],
  ) -> None:
    """Reads jobs of one shape, and gives each a row: a shard's, one each.

    Args:
      jobs: with their numbers.
      prompts: of each, whose contexts have caches.
    """
    shards, places = self._shards, np.full(self._shards, -1, np.int32)
    free = [i for i, part in enumerate(self._parts()) if None in part]
    # Shards read in their order, and those without a job read one again.
    read = [min(i, len(jobs) - 1) for i in range(shards)]
    for number, i in enumerate(free[: len(jobs)]):
      read[i] = number
      places[i] = self._parts()[i].index(None)
    options = self._options_of([jobs[number][1] for number in read])
    cache, logits, traced = reading.read_together(
      self._params,
      self._config,
      [prompts[number] for number in read],
      regions=self.size.regions,
      slots=self.size.slots,
    )
    carry = loop.start_program(
      dataclasses.replace(cache, visual=None),
      logits,
      traced.chosen,
      options,
      np.zeros(shards, bool),
      config=self._config,
      room=self.size.tokens,
      greedy=not options.sampling.temperature.any(),
    )
    self._visual, self._carry = loop.insert_program(
      self._visual, self._carry, cache.visual, carry, places
    )
    rows = len(self._jobs) // shards
    for i in free[: len(jobs)]:
      row = i * rows + int(places[i])
      self._jobs[row], self._count[row] = jobs[read[i]], 1
      if self.size.traced:
        self._first[row] = shard.to_host(traced.chosen)[:, i, 0]
      for mine, new in zip(
        jax.tree.leaves(dataclasses.replace(self._options, stop=None)),
        jax.tree.leaves(dataclasses.replace(options, stop=None)),
        strict=True,
      ):
        mine[row] = new[i]

  def cancel(self, number: int) -> None:
    """Frees the row of a job, if it has one here."""
    rows = [i for i, one in enumerate(self._jobs) if one and one[0] == number]
    self._free(rows)
    if rows:
      done = shard.to_host(self._carry.done).copy()
      done[rows] = True
      self._end(done)

  def run(self, steps: int, *, until_one_ends: bool) -> Iterator[Event]:
    """A turn: some tokens for every row that is being answered.

    Args:
      steps: as in `Scheduler.turn`.
      until_one_ends: another job waits for a row.
    """
    chosen = []
    if self.size.traced:
      chosen = self._step(steps, until_one_ends)
    else:
      self._carry = loop.run_program(
        {"decoder": self._params["decoder"]},
        self._config,
        self._visual,
        self._carry,
        self._options,
        np.int32(steps),
        np.bool_(until_one_ends),
        greedy=not self._options.sampling.temperature.any(),
      )
    carry, before = self._carry, self._count
    tokens, count, done, entries = shard.to_host(
      (carry.tokens, carry.count, carry.done, carry.entries)
    )
    self._count = count.copy()
    over = done.copy()
    for row, one in enumerate(self._jobs):
      if one is None:
        continue
      (number, job), looked = one, None
      if self.size.traced:
        new = [x[:, row] for x in chosen[: count[row] - before[row]]]
        looked = self._looked(row, job, new)
      ids, result = tokens[row, : count[row]].tolist(), None
      if job.stopped(ids) or done[row]:
        over[row] = True
        self._free([row])
        means = entries[row] / max(count[row], 1)
        result = Result(tuple(ids), (float(means[0]), float(means[1])))
      yield Event(number, ids, looked, result)
    if (over != done).any():
      self._end(over)

  def _step(self, steps: int, until_one_ends: bool) -> list[np.ndarray]:
    """`loop.run`, step by step; what each read, bool [N, B, Q, R]."""
    out: list[np.ndarray] = []
    before = done = shard.to_host(self._carry.done)
    while len(out) < steps and not done.all():
      if until_one_ends and (done & ~before).any():
        break
      self._carry, traced = loop.step_program(
        {"decoder": self._params["decoder"]},
        self._config,
        self._visual,
        self._carry,
        self._options,
        greedy=not self._options.sampling.temperature.any(),
      )
      chosen, done = shard.to_host((traced.chosen, self._carry.done))
      out.append(chosen[:, :, 0])
    return out

  def _looked(
    self, row: int, job: Job, new: Sequence[np.ndarray]
  ) -> np.ndarray:
    """`Event.chosen` of a row, from what its new steps read."""
    first = [self._first.pop(row)] if row in self._first else []
    return np.stack([*first, *new])[..., : len(job.after.sizes)]

  def _free(self, rows: Sequence[int]) -> None:
    """Lets rows go to other jobs."""
    for row in rows:
      self._jobs[row] = None
      self._first.pop(row, None)
      # A pool whose rows are all greedy runs a program without noise.
      self._options.sampling.temperature[row] = 0

  def _end(self, done: np.ndarray) -> None:
    """Says which rows compute nothing more."""
    done = shard.constrain(jnp.asarray(done), "batch")
    self._carry = dataclasses.replace(self._carry, done=done)

  def _parts(self) -> list[list[tuple[int, Job] | None]]:
    """The rows of each shard."""
    rows = len(self._jobs) // self._shards
    return [self._jobs[i * rows : (i + 1) * rows] for i in range(self._shards)]

  def _options_of(self, jobs: Sequence[Job]) -> loop.Options:
    """`Options` of jobs that are read together."""
    return loop.Options(
      budget=np.array([job.prompt.budget for job in jobs], np.int32),
      sampling=jax.tree.map(
        lambda *x: np.concatenate(x), *(job.sampling for job in jobs)
      ),
      stop=self._options.stop,
      max_tokens=np.array([job.max_tokens for job in jobs], np.int32),
      sizes=np.stack(
        [
          context_lib.as_numpy(job.after.sizes, self.size.regions)
          for job in jobs
        ]
      ),
      override=reading.stacked(
        [job.prompt.override for job in jobs], self.size.regions
      ),
    )

  def _no_scores(self, rows: int) -> np.ndarray:
    """`Options.override` of rows without a job."""
    heads = self._config.decoder.query_heads
    return np.zeros((rows, heads, self.size.regions), np.float32)


def _step(size: int, least: int) -> int:
  """The first of least * (1, 4, 16, ...) that is enough."""
  out = least
  while out < size:
    out *= _STEP
  return out
