"""Draws by hand and by distribution, filters against transformers'."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from gaze_jax import errors
from gaze_jax.decode import sampling

LN = np.log(np.array([[0.5, 0.25, 0.125, 0.0625, 0.0625]], np.float32))

sample = functools.partial(jax.jit, static_argnames="greedy")(sampling.sample)
kept = jax.jit(sampling.kept)
INFINITY = float("inf")


def ids(mask):
  return [np.flatnonzero(row).tolist() for row in np.asarray(mask)]


def logits_of(rows, size, seed=0, spread=3.0):
  rng = np.random.default_rng(seed)
  return rng.normal(scale=spread, size=(rows, size)).astype(np.float32)


# What is kept, by hand.


@pytest.mark.parametrize(
  "options, expected",
  [
    (dict(), [0, 1, 2, 3, 4]),
    (dict(sample_top_k=1), [0]),
    (dict(sample_top_k=3), [0, 1, 2]),
    (dict(sample_top_k=4), [0, 1, 2, 3]),  # of two equals, the lower id
    (dict(sample_top_k=5), [0, 1, 2, 3, 4]),
    (dict(sample_top_k=2**31 - 1), [0, 1, 2, 3, 4]),
    (dict(top_p=1e-30), [0]),
    (dict(top_p=0.49), [0]),
    (dict(top_p=0.51), [0, 1]),
    (dict(top_p=0.75), [0, 1]),  # the two weigh just so much
    (dict(top_p=0.8), [0, 1, 2]),
    (dict(top_p=0.9), [0, 1, 2, 3]),
    (dict(top_p=0.94), [0, 1, 2, 3, 4]),
    # Of the three that sample_top_k keeps, the first weighs 4 / 7.
    (dict(top_p=0.56, sample_top_k=3), [0]),
    (dict(top_p=0.58, sample_top_k=3), [0, 1]),
    (dict(top_p=0.51, sample_top_k=1), [0]),
    # At temperature 2 the first weighs 0.343, the first two 0.586.
    (dict(top_p=0.35, temperature=2), [0, 1]),
    (dict(top_p=0.58, temperature=2), [0, 1]),
    (dict(top_p=0.59, temperature=2), [0, 1, 2]),
    (dict(top_p=0.9, temperature=0.25), [0]),
    (dict(temperature=0), [0]),
    (dict(temperature=0, sample_top_k=3, top_p=0.9), [0]),
    (dict(temperature=1e-44, top_p=0.999), [0]),  # no normal float32
    (dict(temperature=1e300), [0, 1, 2, 3, 4]),
  ],
)
def test_what_is_kept_by_hand(options, expected):
  options = sampling.make(1, **dict(dict(temperature=1.0), **options))
  assert ids(kept(LN, options)) == [expected]


def test_equals_are_kept_by_lower_id():
  row = np.array([[1, 2, 2, 0, 2, 1, 2]], np.float32)
  by_k = lambda k: ids(
    kept(row, sampling.make(1, temperature=1.0, sample_top_k=k))
  )
  assert by_k(1) == [[1]] and by_k(2) == [[1, 2]] and by_k(3) == [[1, 2, 4]]
  assert by_k(5) == [[0, 1, 2, 4, 6]]
  even = np.zeros((1, 8), np.float32)
  by_p = lambda p: ids(kept(even, sampling.make(1, temperature=1.0, top_p=p)))
  assert by_p(0.125) == [[0]] and by_p(0.13) == [[0, 1]]
  assert by_p(0.5) == [[0, 1, 2, 3]]


def test_a_token_is_kept_even_when_none_is_wanted():
  """What `make` refuses, an array may hold."""
  none = sampling.Sampling(*map(np.array, ([1.0], [0.0], [0], [0])))
  none = jax.tree.map(lambda x: x.astype(np.float32), none)
  assert ids(kept(LN, none)) == [[0]]


def test_the_coldest_and_the_hottest_draw():
  rows = np.repeat(LN, 200, 0)
  cold = sampling.make(200, temperature=1e-44, seed=range_of(200))
  assert not np.asarray(sample(rows, cold, 0)).any()
  hot = sampling.make(200, temperature=1e300, seed=range_of(200))
  assert set(np.asarray(sample(rows, hot, 0)).tolist()) == {0, 1, 2, 3, 4}


def test_a_forbidden_token_is_never_drawn():
  row = np.full((64, 5), -INFINITY, np.float32)
  row[:, 3] = -2.0
  for options in (dict(), dict(sample_top_k=4), dict(top_p=0.999)):
    options = sampling.make(64, temperature=9.0, seed=range_of(64), **options)
    assert set(np.asarray(sample(row, options, 0)).tolist()) == {3}


def range_of(n):
  return list(range(n))


@pytest.mark.parametrize("size", [7, 997, 49_152])
def test_kept_sets_are_those_of_transformers(size):
  temperatures, ks = (0.5, 1.0, 1.7), (0, 1, 2, 40, 500, size, 2 * size)
  ps = (1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999, 1.0)
  rng = np.random.default_rng(size)
  rows = 12
  logits = logits_of(rows, size)
  asked = [[rng.choice(v) for _ in range(rows)] for v in (temperatures, ps, ks)]
  options = sampling.make(
    rows,
    temperature=[float(t) for t in asked[0]],
    top_p=[float(p) for p in asked[1]],
    sample_top_k=[int(k) for k in asked[2]],
  )
  ours = np.asarray(kept(logits, options))
  for row, mask, t, p, k in zip(logits, ours, *asked, strict=True):
    theirs = torch.from_numpy(row[None])
    warpers = [transformers.TemperatureLogitsWarper(float(t))]
    warpers += [transformers.TopKLogitsWarper(int(k))] if k else []
    warpers += [transformers.TopPLogitsWarper(float(p))] if p < 1 else []
    for warper in warpers:
      theirs = warper(None, theirs)
    np.testing.assert_array_equal(mask, np.isfinite(theirs.numpy()[0]))


# Draws.


def by_hand(row, temperature, top_p, sample_top_k):
  """Probabilities of a row, in float64, by sorting."""
  row = np.asarray(row, np.float64) / temperature
  order = np.argsort(-row, kind="stable")
  weight = np.exp(row - row.max())
  weight[order[sample_top_k or len(row) :]] = 0
  share = weight / weight.sum()
  betters = np.cumsum(share[order]) - share[order]
  share[order[betters >= top_p]] = 0
  return share / share.sum()


@pytest.mark.parametrize(
  "options",
  [
    dict(temperature=1.0, top_p=1.0, sample_top_k=0),
    dict(temperature=0.6, top_p=1.0, sample_top_k=0),
    dict(temperature=1.0, top_p=1.0, sample_top_k=5),
    dict(temperature=1.0, top_p=0.8, sample_top_k=0),
    dict(temperature=1.5, top_p=0.9, sample_top_k=7),
  ],
  ids=str,
)
@pytest.mark.parametrize("over", ["seeds", "steps"])
def test_draws_follow_the_distribution(options, over):
  """Chi-square of 20,000 draws, over seeds and over the steps of one seed."""
  draws, size = 20_000, 12
  row = logits_of(1, size, seed=4, spread=1.0)
  every = np.arange(draws, dtype=np.int32)
  seeds, steps = (every, 5) if over == "seeds" else (np.full(draws, 9), every)
  asked = sampling.make(draws, seed=seeds, **options)
  drawn = np.asarray(sample(np.repeat(row, draws, 0), asked, steps))
  expected = draws * by_hand(row[0], **options)
  counts = np.bincount(drawn, minlength=size)
  assert not counts[expected == 0].any()
  some = expected > 0
  chi = ((counts - expected)[some] ** 2 / expected[some]).sum()
  freedom = some.sum() - 1
  # Four standard deviations above its mean.
  assert chi < freedom + 4 * np.sqrt(2 * freedom)


def test_steps_of_one_seed_are_independent():
  """Pairs of consecutive draws fill their table evenly."""
  draws, size = 16_000, 4
  asked = sampling.make(draws, temperature=1.0, seed=3)
  drawn = np.asarray(
    sample(np.zeros((draws, size), np.float32), asked, np.arange(draws))
  )
  pairs = np.bincount(drawn[:-1] * size + drawn[1:], minlength=size * size)
  expected = (draws - 1) / size**2
  chi = ((pairs - expected) ** 2 / expected).sum()
  assert chi < 15 + 4 * np.sqrt(2 * 15)


def mixed(rows):
  """Rows of all kinds: greedy, hot, filtered either way or both ways."""
  take = lambda *values: [values[i % len(values)] for i in range(rows)]
  return dict(
    temperature=take(0.0, 1.0, 0.7, 2.0, 1.3),
    top_p=take(1.0, 0.9, 1.0, 0.5, 0.95, 0.8, 0.3),
    sample_top_k=take(0, 40, 3, 0),
    seed=[11 * i + 5 for i in range(rows)],
  )


def test_a_row_draws_what_it_draws_alone():
  rows, size = 20, 300
  logits, options = logits_of(rows, size), mixed(rows)
  steps = np.arange(rows, dtype=np.int32) % 7
  whole = np.asarray(sample(logits, sampling.make(rows, **options), steps))
  for i in range(rows):
    one = sampling.make(1, **{k: v[i] for k, v in options.items()})
    assert sample(logits[i : i + 1], one, int(steps[i]))[0] == whole[i]
  # In another order, among other neighbours, and in a larger batch.
  order = np.random.default_rng(1).permutation(rows)
  turned = sampling.make(
    rows, **{k: [v[i] for i in order] for k, v in options.items()}
  )
  again = np.asarray(sample(logits[order], turned, steps[order]))
  np.testing.assert_array_equal(again, whole[order])
  more = {k: [*v, *v] for k, v in options.items()}
  doubled = np.concatenate([logits, np.zeros_like(logits)])
  larger = sample(
    doubled, sampling.make(2 * rows, **more), np.concatenate([steps, steps])
  )
  np.testing.assert_array_equal(np.asarray(larger)[:rows], whole)


def test_a_padded_vocabulary_draws_the_same():
  rows = 40
  logits, options = logits_of(rows, 100), sampling.make(rows, **mixed(rows))
  padded = np.pad(logits, ((0, 0), (0, 28)), constant_values=-INFINITY)
  np.testing.assert_array_equal(
    sample(logits, options, 3), sample(padded, options, 3)
  )


def test_seed_and_step_each_change_a_draw():
  logits = np.zeros((1, 10_000), np.float32)
  at = lambda seed, step: int(
    sample(logits, sampling.make(1, temperature=1.0, seed=seed), step)[0]
  )
  assert at(0, 0) == at(0, 0)
  drawn = {at(seed, step) for seed in (0, 1, 2**32 - 1) for step in (0, 1, 2)}
  assert len(drawn) == 9


def test_greedy_rows_are_the_argmax():
  logits = logits_of(6, 50)
  logits[0, 7] = logits[0, 31] = 99.0
  options = sampling.make(6, top_p=0.5, sample_top_k=3, seed=1)
  for greedy in (False, True):
    token = sample(logits, options, 0, greedy=greedy)
    assert token.dtype == jnp.int32
    np.testing.assert_array_equal(token, logits.argmax(1))


def test_options_are_traced_and_greedy_is_cheap():
  """One program for any mix; and what is greedy by name draws no noise."""
  traced = []

  @jax.jit
  def count(logits, options, step):
    traced.append(1)
    return sampling.sample(logits, options, step)

  logits = logits_of(4, 30)
  for change in (dict(), mixed(4), dict(temperature=1.0), dict(sample_top_k=2)):
    count(logits, sampling.make(4, **change), np.int32(len(traced)))
  assert len(traced) == 1
  options = sampling.make(4)
  text = lambda **o: str(
    jax.make_jaxpr(functools.partial(sampling.sample, **o))(logits, options, 0)
  )
  greedy = text(greedy=True)
  assert "random_bits" in text() and "sort" not in text()
  assert "random" not in greedy and "exp" not in greedy


def test_works_within_a_loop_on_the_device():
  def body(step, tokens):
    logits = jnp.asarray(logits_of(3, 20))
    return tokens.at[step].set(sampling.sample(logits, options, step))

  options = sampling.make(3, **mixed(3))
  looped = jax.jit(
    lambda: jax.lax.fori_loop(0, 5, body, jnp.zeros((5, 3), jnp.int32))
  )()
  for step in range(5):
    np.testing.assert_array_equal(
      looped[step], sample(logits_of(3, 20), options, step)
    )


# A user's numbers.


def test_numbers_become_columns():
  made = sampling.make(
    2, temperature=[0, 1], top_p=0.5, sample_top_k=3, seed=2**32 - 1
  )
  assert (
    made.temperature.tolist() == [0, 1] and made.top_p.tolist() == [0.5] * 2
  )
  assert (
    made.sample_top_k.tolist() == [3, 3]
    and made.seed.tolist() == [2**32 - 1] * 2
  )
  types = [str(x.dtype) for x in jax.tree.leaves(made)]
  assert types == ["float32", "float32", "int32", "uint32"]
  assert [x.shape for x in jax.tree.leaves(sampling.make(3))] == [(3,)] * 4


@pytest.mark.parametrize(
  "options, says",
  [
    (dict(temperature=-0.1), "temperature = -0.1: it must be a number, 0"),
    (dict(temperature=float("nan")), "temperature = nan"),
    (dict(temperature=INFINITY), "temperature = inf"),
    (dict(temperature=[1.0, -2.0]), "temperature = -2.0"),
    (dict(temperature="hot"), "temperature = 'hot'"),
    (dict(temperature=True), "temperature = True"),
    (dict(top_p=0.0), "top_p = 0.0: it must be above 0 and at most 1"),
    (dict(top_p=1.01), "top_p = 1.01"),
    (dict(top_p=None), "top_p = None"),
    (dict(sample_top_k=-1), "sample_top_k = -1: it must be a whole number, 0"),
    (dict(sample_top_k=2.5), "sample_top_k = 2.5"),
    (dict(sample_top_k=2**31), "sample_top_k = 2147483648"),
    (dict(seed=-1), "seed = -1: it must be a whole number from 0"),
    (dict(seed=2**32), "seed = 4294967296"),
    (dict(seed=[1, 2, 3]), "seed has 3 numbers for 2 rows"),
    (dict(sample_top_k=[1]), "sample_top_k has 1 numbers for 2 rows"),
  ],
)
def test_a_number_out_of_its_range_is_named(options, says):
  with pytest.raises(errors.GazeError) as caught:
    sampling.make(2, **options)
  assert str(caught.value).startswith(says)
