"""The engine against whole passes of the parallel form, on every mix."""

import dataclasses

import jax
import numpy as np
import pytest

from gaze_jax import errors
from gaze_jax.decode import context
from gaze_jax.decode import engine
from gaze_jax.decode import programs
from gaze_jax.decode import reading
from gaze_jax.decode import sampling
from gaze_jax.kernels import target
from gaze_jax.layout import row as row_lib
from gaze_jax.ops.decode import prompt_units

UNIT = row_lib.Unit(5, 5)
# What each row begins with; every one ends in text, as a chat does.
PROMPTS = {
  "text only": [row_lib.Text([1, 3, 70, 81, 9, 4])],
  "one image": [row_lib.Text([1]), UNIT, row_lib.Text([3, 70, 81, 9, 4])],
  "several images": [
    row_lib.Text([1]),
    UNIT,
    row_lib.Text([5, 6]),
    UNIT,
    row_lib.Text([3, 71, 4]),
  ],
  "video frames": [row_lib.Text([1]), UNIT, UNIT, UNIT, row_lib.Text([90, 4])],
}
COUNT = 5


@dataclasses.dataclass(frozen=True)
class Row:
  """A prompt that was read, and how it is to be answered."""

  prompt: context.Context
  budget: int
  max_tokens: int = COUNT
  temperature: float = 0.0
  top_p: float = 1.0
  sample_top_k: int = 0
  seed: int = 0


def decoding(params, config, rows, **kwargs):
  column = lambda name: [getattr(r, name) for r in rows]
  return engine.Decoding(
    params,
    config,
    column("prompt"),
    column("budget"),
    max_tokens=column("max_tokens"),
    sampling=sampling.make(
      len(rows), **{name: column(name) for name in sampling.NAMES}
    ),
    **kwargs,
  )


@pytest.fixture(autouse=True)
def _caches_of_two_sizes(monkeypatch):
  """24 pages, or 36 for the video: prompts of all kinds share programs."""
  monkeypatch.setattr(context, "_REGIONS", 24)


@pytest.fixture
def read(tiny, tiny_params, row):
  def make(parts, *, top_k, after=None, seed=0, skip=0, config=tiny, **kwargs):
    before = context.empty(config) if after is None else after
    batch = row(parts, seed, skip=skip)
    kwargs.setdefault("room", COUNT)
    return reading.read(tiny_params, config, before, batch, top_k, **kwargs)

  return make


@pytest.fixture
def decode(tiny, tiny_params):
  def make(rows, *, config=tiny, stop=(-1,), trace=False, steps=None):
    out = decoding(tiny_params, config, rows, stop=stop, trace=trace)
    if trace or steps == 1:
      while not out.done:
        out.step()
    else:
      out.run(COUNT)
    return out

  return make


@pytest.mark.few(10)
@pytest.mark.parametrize("top_k", [0, 1, 2, 9, 1000])
@pytest.mark.parametrize("name", PROMPTS)
def test_decode_is_teacher_forcing(read, decode, oracle, name, top_k):
  parts = PROMPTS[name]
  want, regions = oracle(parts, top_k=top_k, count=COUNT)
  prompt = read(parts, top_k=top_k, trace=True)
  rows = [Row(prompt, top_k, COUNT)]
  out = decode(rows, trace=True)
  assert out.tokens(0) == want
  there = 9 * sum(p is UNIT for p in parts)
  for step, token, chosen in zip(out.steps(0), want, regions, strict=True):
    assert step.token == token
    np.testing.assert_array_equal(step.chosen, chosen[..., :there])
    assert (step.chosen.sum(-1) == min(top_k, there)).all()
  # The compiled loop says the same. (A prompt is decoded once: its cache is
  # written on.)
  rows = [Row(read(parts, top_k=top_k, trace=True), top_k, COUNT)]
  assert decode(rows).tokens(0) == want


@pytest.mark.nightly
def test_a_batch_of_all_mixes_says_what_each_row_says_alone(read, decode):
  budgets = [0, 1, 3, 1000, 2, 9, 5]
  asked = [
    (parts, k, seed)
    for seed, k in enumerate(budgets)
    for parts in [list(PROMPTS.values())[seed % len(PROMPTS)]]
  ]
  rows = [
    Row(
      read(parts, top_k=k, seed=seed),
      k,
      max_tokens=COUNT - seed % 2,
      temperature=0.7 * (seed % 3),
      top_p=0.9,
      sample_top_k=20 * (seed % 2),
      seed=seed,
    )
    for parts, k, seed in asked
  ]
  together = decode(rows)
  for i, (parts, k, seed) in enumerate(asked):
    again = dataclasses.replace(rows[i], prompt=read(parts, top_k=k, seed=seed))
    alone = decode([again])
    assert together.tokens(i) == alone.tokens(0)
    assert len(alone.tokens(0)) == COUNT - seed % 2
    assert together.entries(i) == pytest.approx(alone.entries(0))


def test_sampling_is_not_greedy_and_keeps_to_its_seed(read, decode):
  say = lambda **options: decode(
    [Row(read(PROMPTS["one image"], top_k=2), 2, COUNT, **options)]
  ).tokens(0)
  drawn = [say(temperature=5.0, seed=s) for s in (0, 1, 0)]
  assert drawn[0] == drawn[2] != drawn[1]
  assert say(temperature=5.0, sample_top_k=1, seed=3) == say()


def test_the_stop_token_and_the_image_and_the_budget_matter(read, decode):
  def say(name, top_k, **kwargs):
    row = Row(read(PROMPTS[name], top_k=top_k), top_k, COUNT)
    return decode([row], **kwargs)

  free = say("one image", 2).tokens(0)
  stopped = say("one image", 2, stop=(free[2],))
  assert stopped.tokens(0) == free[: free.index(free[2]) + 1]
  assert stopped.ended(0)
  assert say("one image", 9).tokens(0) != say("text only", 9).tokens(0)


# Every option once, in few models: tests/models/ has each alone.
OPTIONS = [
  {},
  dict(refresh="question", granularity="kv_group", descriptor="minmax"),
  dict(route_prompt=False, visual_attention="own_unit", budget="per_unit"),
  dict(budget="ratio", descriptor="submean", dense_layers=(1,)),
]


@pytest.mark.nightly
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_turns_go_on_from_what_was_said(
  read, decode, oracle, tiny, options, monkeypatch
):
  """Question, answer, another image, question: one row to the oracle."""
  if not options:
    monkeypatch.setattr(context, "_REGIONS", 8)  # pages are added
  # Neither the tower nor the projector knows of these options.
  embed = reading._embed
  monkeypatch.setattr(
    reading, "_embed", lambda params, _, *args: embed(params, tiny, *args)
  )
  # A unit takes two chunks.
  monkeypatch.setattr(prompt_units, "_MASKED", (16, 32))
  monkeypatch.setattr(reading, "_TEXT", 4)
  gaze = dataclasses.replace(tiny.gaze, **options)
  config = dataclasses.replace(tiny, gaze=gaze)
  k = 300 if gaze.budget == "ratio" else 2
  begin = [*PROMPTS["one image"]]
  want, _ = oracle(begin, top_k=k, count=COUNT, config=config)
  prompt = read(begin, top_k=k, config=config, trace=True)
  first = decode([Row(prompt, k, COUNT)], config=config)
  assert first.tokens(0) == want
  second = [row_lib.Text([8, 9]), UNIT, row_lib.Text([10, 11, 12, 13, 14, 4])]
  whole = [*begin, row_lib.Text(want, question=0), *second]
  want, regions = oracle(whole, top_k=k, count=COUNT, config=config)
  again = read(
    second, top_k=k, after=first.context(0), config=config, skip=1, trace=True
  )
  out = decode([Row(again, k, COUNT)], config=config, trace=True)
  assert out.tokens(0) == want
  for step, chosen in zip(out.steps(0)[1:], regions[1:], strict=True):
    np.testing.assert_array_equal(step.chosen, chosen[..., :18])


def test_a_context_is_a_value_that_forks_share(read, decode, tiny):
  image = read([row_lib.Text([1]), UNIT], top_k=2)
  pages = image.cache.visual.k.unsafe_buffer_pointer()
  question = [row_lib.Text([3, 70, 81, 9, 4])]
  rows = [Row(read(question, top_k=2, after=image), 2, COUNT) for _ in range(2)]
  answers = [decode([r]) for r in rows]
  assert answers[0].tokens(0) == answers[1].tokens(0)
  whole = Row(read(PROMPTS["one image"], top_k=2), 2, COUNT)
  assert answers[0].tokens(0) == decode([whole]).tokens(0)
  for answer in answers:
    visual = answer.context(0).cache.visual
    assert visual.k.unsafe_buffer_pointer() == pages
  # An image more is read into pages of its own.
  more = read([UNIT, row_lib.Text([4])], top_k=2, after=image)
  assert more.cache.visual.k.unsafe_buffer_pointer() != pages
  assert image.sizes == more.sizes[:9] and len(more.sizes) == 18
  assert not image.cache.k.is_deleted()


def test_an_answer_cut_short_goes_on_as_if_it_had_been_short(read, decode):
  parts = PROMPTS["one image"]
  long = decode([Row(read(parts, top_k=2), 2, COUNT)])
  short = decode([Row(read(parts, top_k=2), 2, 2)])
  cut = long.context(0, 2)
  assert long.tokens(0)[:2] == short.tokens(0)
  follow = lambda after: decode(
    [Row(read([row_lib.Text([7, 4])], top_k=2, after=after), 2, COUNT)]
  ).tokens(0)
  assert follow(cut) == follow(short.context(0))
  assert follow(long.context(0)) != follow(cut)


@pytest.mark.nightly
def test_an_ended_row_says_no_more(read, decode, tiny, tiny_params):
  rows = [
    Row(read(PROMPTS[n], top_k=2), 2, COUNT, temperature=t)
    for n, t in [
      *(("one image", 0.0), ("text only", 0.5), ("video frames", 0.5)),
      *[("text only", 0.0)] * 4,  # as many rows as in the test above
    ]
  ]
  out = decoding(tiny_params, tiny, rows, stop=(-1,))
  out.step()
  out.end(1)
  out.run(COUNT)
  assert [len(out.tokens(i)) for i in range(3)] == [COUNT, 2, COUNT]
  assert out.done


@pytest.mark.nightly
def test_prompts_of_many_lengths_share_programs(read, decode):
  def ask(length, images):
    parts = [row_lib.Text([1]), *[UNIT] * images, row_lib.Text([4] * length)]
    decode([Row(read(parts, top_k=2), 2, COUNT)])

  ask(5, 1)
  ask(12, 2)
  before = programs.compiled()
  for length in (4, 7, 8):
    ask(length, 1)
  for length in (10, 11):  # with 9, all of the prompt fits 64 slots
    ask(length, 2)
  assert programs.compiled() == before


def test_sizes_are_few_and_a_third_too_large_at_most():
  got = sorted({programs.bucket(n, 8) for n in range(1, 100)})
  assert got == [8, 12, 16, 24, 32, 48, 64, 96, 128]
  assert all(
    n <= programs.bucket(n, 8) <= max(8, 1.5 * n) for n in range(1, 500)
  )


def test_what_does_not_fit_is_refused_by_how_much(read):
  parts = PROMPTS["video frames"]
  for limits, says in (
    (context.Limits(units=2), "3 images or frames in one conversation, the"),
    (context.Limits(slots=88), "need 89 slots, the limit is 88"),
  ):
    with pytest.raises(context.LimitError, match=says):
      read(parts, top_k=2, limits=limits)
  read(parts, top_k=2, limits=context.Limits(slots=89, units=3))
  with pytest.raises(errors.GazeError, match="empty"):
    read([], top_k=2)


def test_pieces_of_a_row(monkeypatch):
  monkeypatch.setattr(reading, "_TEXT", 3)
  monkeypatch.setattr(prompt_units, "_MASKED", (4, 32))
  # t t t t | v v v c c | v c | v v v v v | t | pad
  role = np.array([1] * 4 + [2] * 3 + [3] * 2 + [2, 3] + [2] * 5 + [1, 0])
  pieces = [(p.start, p.stop, p.text) for p in reading.split(role)]
  assert pieces == [
    (0, 3, True),
    (3, 4, True),
    (4, 7, False),  # both context tokens come together
    (7, 11, False),
    (11, 15, False),
    (15, 16, False),
    (16, 17, True),
  ]
  # More context tokens than a chunk has slots: one chunk all the same.
  role = np.array([3] * 6 + [2] * 2)
  pieces = [(p.start, p.stop) for p in reading.split(role)]
  assert pieces == [(0, 6), (6, 8)]


def test_a_tpu_reads_long_chunks_of_units():
  role = np.array([1] * 2 + [2] * 2100 + [1])
  sizes = lambda: [p.size for p in reading.split(role)]
  assert sizes() == [8, *[256] * 8, 64, 8]
  with target.tracing_for("tpu"):
    assert sizes() == [8, 2048, 64, 8]


def test_the_traces_scores_choose_and_dense_shares_add_up(read, decode):
  parts, k = PROMPTS["several images"], 3
  prompt = read(parts, top_k=k, trace=True)
  out = decode([Row(prompt, k, COUNT)], trace=True)
  for step in out.steps(0):
    scores = np.where(step.chosen, step.scores, -np.inf)
    least = scores.max(-1, where=step.chosen, initial=-np.inf)
    assert np.isfinite(least).all()
    lowest = np.where(step.chosen, step.scores, np.inf).min(-1)
    others = np.where(step.chosen, -np.inf, step.scores).max(-1)
    assert (lowest >= others).all()
    total = step.dense.sum(-1)
    assert (step.dense >= 0).all() and (total > 0).all() and (total < 1).all()


def test_entries_read_by_hand(read, decode, tiny):
  """All 25 tokens are read by dense, whoever counts; a union is no less."""
  parts = PROMPTS["one image"]
  dense = decode([Row(read(parts, top_k=9), 9, COUNT)])
  assert dense.entries(0) == (25.0, 25.0)
  prompt = read(parts, top_k=2, trace=True)
  out = decode([Row(prompt, 2, COUNT)], trace=True)
  sizes = np.array([1, 2, 2, 2, 4, 4, 2, 4, 4])
  assert out.context(0).sizes == tuple(sizes)
  chosen = np.stack([s.chosen for s in out.steps(0)])  # [steps, N, Q, R]
  heads = tiny.decoder.kv_heads
  group = chosen.reshape(*chosen.shape[:2], heads, -1, 9).any(3)
  want = ((chosen @ sizes).mean(), (group @ sizes).mean())
  assert out.entries(0) == pytest.approx(want)
  assert want[0] < want[1] < 2 * want[0]


def test_caches_are_written_in_place(read, tiny, tiny_params):
  prompt = read(PROMPTS["one image"], top_k=2, room=64)
  out = decoding(tiny_params, tiny, [Row(prompt, 2, 60)], stop=(-1,))
  out.step()
  before = out._carry.cache.k
  place = before.unsafe_buffer_pointer()
  out.step()
  assert before.is_deleted()
  assert out._carry.cache.k.unsafe_buffer_pointer() == place
  assert jax.tree.leaves(out._visual)[0].is_deleted() is False
