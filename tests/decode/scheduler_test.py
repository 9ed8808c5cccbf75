"""Continuous batching: rows that come and go, and what they depend on."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gaze_jax.decode import context
from gaze_jax.decode import engine
from gaze_jax.decode import reading
from gaze_jax.decode import sampling
from gaze_jax.decode import scheduler as scheduler_lib
from gaze_jax.layout import row as row_lib

UNIT = row_lib.Unit(5, 5)
LIMITS = context.Limits()


@pytest.fixture
def job(tiny, row):
  """Makes jobs: text of so many ids, so many images, so many tokens."""

  def make(length, images, count, seed=0, top_k=2, config=tiny):
    ids = np.random.default_rng(seed).integers(3, 100, length).tolist()
    parts = [row_lib.Text([1]), *[UNIT] * images, row_lib.Text([*ids, 4])]
    batch, before = row(parts, seed), context.empty(config)
    return scheduler_lib.Job(
      reading.Prompt(before, batch, top_k),
      reading.extended(before, batch, room=count, limits=LIMITS),
      count,
      sampling.make(1),
      lambda ids: False,
    )

  return make


def make(params, config, rows=3, cache_bytes=10**9):
  return scheduler_lib.Scheduler(
    params, config, rows=rows, cache_bytes=cache_bytes, stop=[-1]
  )


def watched(scheduler, jobs):
  """Tokens of each job, and the bits of its row of the cache at the end."""
  bits = {}

  def stopped_of(number, job):
    def stopped(ids):
      (pool, row) = next(
        (pool, row)
        for pool in scheduler._pools.values()
        for row, one in enumerate(pool._jobs)
        if one and one[0] == number
      )
      filled = job.after.length + len(ids) - 1
      carry = pool._carry.cache
      bits[number] = [
        np.asarray(x[:, row, :, :filled]) for x in (carry.k, carry.v)
      ]
      return False

    return stopped

  given = [
    dataclasses.replace(job, stopped=stopped_of(i, job))
    for i, job in enumerate(jobs)
  ]
  found = dict(scheduler.run(given))
  assert sorted(found) == list(range(len(jobs)))
  return [(found[i].tokens, bits[i]) for i in range(len(jobs))]


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_has_the_same_bits_whatever_is_beside_it(
  tiny, tiny_params, job, dtype
):
  decoder = dataclasses.replace(tiny.decoder, dtype=dtype)
  tiny = dataclasses.replace(tiny, decoder=decoder)
  tiny_params = jax.tree.map(lambda x: x.astype(dtype), tiny_params)
  job = functools.partial(job, config=tiny)
  jobs = [
    job(5, 1, 6, seed=1),
    *(job(3 + i, i % 3, 2 + 2 * i, seed=i, top_k=i) for i in range(5)),
  ]
  run = lambda some: watched(make(tiny_params, tiny), some)
  together, reverse = run(jobs), run(jobs[::-1])[::-1]
  alone = [run([one])[0] for one in jobs[:2]]
  assert [len(tokens) for tokens, _ in together] == [6, 2, 4, 6, 8, 10]
  for others in (reverse, alone):
    for (tokens, bits), (want, want_bits) in zip(
      others,
      together,
      strict=False,  # of those alone there are two
    ):
      assert tokens == want
      for got, expected in zip(bits, want_bits, strict=True):
        np.testing.assert_array_equal(got, expected)


def open_jobs(scheduler, jobs, steps=1):
  """Runs jobs to their end; all events of each."""
  events = {number: [] for number in jobs}
  for number, job in jobs.items():
    scheduler.submit(number, job)
  while scheduler.admit():
    pass
  while scheduler.live:
    for event in scheduler.turn(steps):
      events[event.number].append(event)
    scheduler.admit()
  return events


def test_tokens_come_turn_by_turn_and_do_not_depend_on_turns(
  tiny, tiny_params, job
):
  jobs = {i: job(3 + i, i % 2, 5 + 4 * i, seed=i) for i in range(4)}
  want = dict(make(tiny_params, tiny).run(jobs.values()))
  for steps in (1, 3, 32):
    events = open_jobs(make(tiny_params, tiny, rows=4), jobs, steps)
    for number, told in events.items():
      assert all(e.result is None and e.chosen is None for e in told[:-1])
      assert told[-1].result == want[number]
      tokens = [tuple(e.tokens) for e in told]
      assert tokens[-1] == want[number].tokens
      # The first token is there with the prompt.
      assert len(told) == -(-(len(tokens[-1]) - 1) // steps)
      for before, after in zip(tokens, tokens[1:], strict=False):
        assert len(before) < len(after) <= len(before) + steps
        assert after[: len(before)] == before


def test_a_job_that_is_cancelled_frees_its_row_at_once(tiny, tiny_params, job):
  scheduler = make(tiny_params, tiny, rows=1)
  jobs = [job(4, 1, 40, seed=i) for i in range(4)]
  for number, one in enumerate(jobs):
    scheduler.submit(number, one)
  assert [*scheduler.admit()] == [0] and not scheduler.admit()
  list(scheduler.turn(3))
  scheduler.cancel(2)  # which waits
  scheduler.cancel(0)
  assert (scheduler.live, scheduler.waiting) == (0, 2)
  assert [*scheduler.admit()] == [1]
  list(scheduler.turn(5))
  scheduler.cancel(1)
  scheduler.cancel(1)  # over already
  (want,) = make(tiny_params, tiny).run([jobs[3]])
  assert [*scheduler.admit()] == [3]
  found = {}
  while scheduler.live:
    found |= {e.number: e.result for e in scheduler.turn() if e.result}
  assert found == {3: want[1]}


def test_a_trace_is_what_steps_of_the_engine_read(tiny, tiny_params, job):
  """In a pool of its own, and for the same tokens."""
  jobs = {i: job(4 + i, 1 + i % 2, 3 + 4 * i, seed=i) for i in range(3)}
  traced = {i: dataclasses.replace(j, traced=True) for i, j in jobs.items()}
  want = dict(make(tiny_params, tiny).run(jobs.values()))
  scheduler = make(tiny_params, tiny)
  events = open_jobs(scheduler, traced | {9: jobs[0]}, steps=2)
  assert {size.traced for size in scheduler._pools} == {True, False}
  assert all(e.chosen is None for e in events[9])
  for number, one in jobs.items():
    assert events[number][-1].result == want[number]
    chosen = np.concatenate([e.chosen for e in events[number]])
    read = reading.read(
      tiny_params, tiny, *one.prompt, room=one.max_tokens, trace=True
    )
    decoding = engine.Decoding(
      *(tiny_params, tiny, [read], [one.prompt.budget]),
      max_tokens=[one.max_tokens],
      stop=[-1],
      trace=True,
    )
    while not decoding.done:
      decoding.step()
    steps = np.stack([step.chosen for step in decoding.steps(0)])
    np.testing.assert_array_equal(chosen, steps)


def test_a_finished_row_goes_to_the_next_job_at_once(tiny, tiny_params, job):
  """Three rows: the short ones make room while the long one goes on."""
  scheduler = make(tiny_params, tiny)
  jobs = [job(4, 0, 40), *(job(4, 0, 2, seed=i) for i in range(6))]
  order = [number for number, _ in scheduler.run(jobs)]
  assert order[-1] == 0 and order[:-1] == [1, 2, 3, 4, 5, 6]
  assert list(scheduler._pools) == [scheduler_lib.Size(16, 256, 64)]


def test_sizes_are_few():
  sizes = {scheduler_lib._step(n, 16) for n in range(1, 513)}
  assert sizes == {16, 64, 256, 1024}


def test_rows_are_as_many_as_memory_has_room_for(tiny, tiny_params, job):
  one = job(4, 1, 4)
  each = one.size.bytes(tiny)
  cache = context.empty(tiny)
  shape = dict(regions=one.size.regions, slots=one.size.slots)
  held = context.reserve(cache.cache, **shape)
  assert (
    each
    == sum(
      x.nbytes
      for x in jax.tree.leaves(held)
      if x.shape != (1,)  # length and position: 8 bytes more
    )
    + 8
  )
  jobs = [job(4, 1, 4, seed=i) for i in range(4)]
  want = [tokens for tokens, _ in watched(make(tiny_params, tiny), jobs)]
  small = make(tiny_params, tiny, cache_bytes=3 * each)
  assert [tokens for tokens, _ in watched(small, jobs)] == want
  (pool,) = small._pools.values()
  assert len(pool._jobs) == 2 and pool.bytes == 3 * each
  with pytest.raises(context.LimitError, match="cache_bytes is"):
    make(tiny_params, tiny, cache_bytes=2 * each - 1).check(one)
  make(tiny_params, tiny, cache_bytes=2 * each).check(one)
