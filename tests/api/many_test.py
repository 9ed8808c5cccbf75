"""Continuous batching: answers are those of one request at a time."""

import dataclasses
import itertools

import numpy as np
import pytest

from gaze_jax import api
from gaze_jax import errors
from gaze_jax.api import request as request_lib
from gaze_jax.decode import context
from gaze_jax.decode import reading
from gaze_jax.decode import scheduler

FEW = dict(max_tokens=4)


@pytest.fixture
def requests(picture):
  """Ten of all mixes, which end at different times."""

  def make():
    image = [picture(0)]
    video = [[picture(i) for i in range(3)]]
    return [
      api.Request("what is it?", max_tokens=2),
      api.Request("this one?", images=image, max_tokens=7, top_k=2),
      api.Request("and this?", images=image, max_tokens=3, top_k=0),
      api.Request("what moves?", videos=video, max_tokens=5, share=0.4),
      api.Request("long " * 40, max_tokens=6),
      api.Request("drawn", images=image, temperature=0.9, seed=4, **FEW),
      api.Request("drawn", temperature=0.9, seed=5, **FEW),
      *(api.Request(f"number {i}", images=image, **FEW) for i in range(3)),
    ]

  return make


def alone(model, request):
  given = {
    f.name: getattr(request, f.name) for f in dataclasses.fields(request)
  }
  return model.generate(given.pop("question"), given.pop("after"), **given)


def same(got, want):
  assert got.text == want.text and got.tokens == want.tokens
  assert got.reason == want.reason and got.question == want.question
  assert got.entries == pytest.approx(want.entries, rel=1e-5)


@pytest.fixture(scope="module")
def ours(model):
  return model()


def test_answers_are_those_of_one_at_a_time_in_order(ours, requests):
  want = [alone(ours, r) for r in requests()]
  got = list(ours.generate_many(iter(requests()), batch_size=3))
  assert len(got) == len(want)
  for one, other in zip(got, want, strict=True):
    same(one, other)


def test_requests_are_taken_as_rows_become_free(ours):
  """An endless source is read no further than two batches ahead."""
  taken = itertools.count()
  endless = (
    api.Request(f"number {next(taken)}", max_tokens=2) for _ in iter(int, 1)
  )
  answers = ours.generate_many(endless, batch_size=2)
  first = [next(answers) for _ in range(3)]
  answers.close()
  assert [a.question for a in first] == [f"number {i}" for i in range(3)]
  assert next(taken) <= 3 + 2 + 2 * 2


def test_a_context_is_shared_and_an_answer_keeps_none(ours, picture, tmp_path):
  image = ours.encode_image(picture())
  asked = [api.Request("what?", image, top_k=k, **FEW) for k in (1, 2, 9)]
  got = list(ours.generate_many(asked))
  for one, request in zip(got, asked, strict=True):
    same(one, alone(ours, request))
  assert got[0].context.cache is None and len(got[0].context.sizes) == 9
  with pytest.raises(errors.GazeError, match="not kept"):
    got[0].accounting()
  with pytest.raises(errors.GazeError, match="holds no keys and values"):
    ours.generate("and then?", got[0].context)
  with pytest.raises(errors.GazeError, match="holds no keys and values"):
    api.save_context(got[0].context, ours, tmp_path / "kept")
  assert not (tmp_path / "kept").exists()


def test_stop_strings_end_an_answer(ours, requests):
  long = alone(ours, requests()[1])
  stop = long.text[len(long.text) // 2 :][:2]
  request = dataclasses.replace(requests()[1], stop=[stop])
  (got,) = ours.generate_many([request], batch_size=2)
  same(got, alone(ours, request))
  assert got.reason == "stop string" and stop not in got.text


def test_a_bad_request_is_named_after_the_answers_before_it(ours):
  asked = [api.Request("one", **FEW), api.Request(" "), api.Request("two")]
  answers = ours.generate_many(asked)
  assert next(answers).question == "one"
  with pytest.raises(
    request_lib.RequestError, match="request 1: the question is empt"
  ):
    next(answers)
  with pytest.raises(request_lib.RequestError, match="batch_size = 0"):
    next(ours.generate_many(asked, batch_size=0))
  assert list(ours.generate_many([])) == []


@pytest.mark.nightly
def test_memory_is_bounded_and_requests_wait_their_turn(ours, requests):
  want = [one.tokens for one in ours.generate_many(requests(), batch_size=4)]
  row = scheduler.Size(64, 256, 64).bytes(ours.config.model)
  # Room for two rows of the largest pool and the one that is read.
  small = dataclasses.replace(ours, cache_bytes=3 * row)
  pools = []
  keep = scheduler._Pool.__init__

  def watched(self, *args):
    keep(self, *args)
    pools.append(self.size)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scheduler._Pool, "__init__", watched)
    got = [one.tokens for one in small.generate_many(requests(), batch_size=4)]
  assert got == want
  # One pool had to make room for another, and was made again.
  assert len(pools) > len(set(pools)) > 1
  none = dataclasses.replace(ours, cache_bytes=1000)
  with pytest.raises(errors.GazeError, match=r"request 0: .* cache_bytes is"):
    next(none.generate_many(requests()))


def test_what_can_never_fit_is_refused_before_it_is_read(
  ours, picture, monkeypatch
):
  none = dataclasses.replace(ours, cache_bytes=1000)
  monkeypatch.setattr(reading, "read_together", None)
  for ask in (
    lambda: none.generate("what is it?"),
    lambda: none.stream("what is it?"),
    lambda: none.encode_image(picture()),
    lambda: none.generate_batch([api.Request("what is it?")]),
    lambda: next(none.generate_many([api.Request("what is it?")])),
  ):
    with pytest.raises(errors.GazeError, match="cache_bytes is 1,000; show"):
      ask()


@pytest.mark.nightly
def test_batches_that_do_not_fit_are_answered_one_after_the_other(
  ours, requests
):
  asked = requests()[:4]
  want = [one.tokens for one in ours.generate_batch(asked)]
  prepared = [ours.prepare(r) for r in asked]
  needs = [
    context.row_bytes(
      ours.config.model, *reading.needs(one.after, one.max_tokens)
    )
    for one in prepared
  ]
  small = dataclasses.replace(ours, cache_bytes=max(needs) + min(needs))
  assert 1 < len(small._that_fit(prepared)) < len(asked)
  assert [one.tokens for one in small.generate_batch(asked)] == want


def test_what_cannot_be_asked_is_told_by_number_and_passed_over(ours, picture):
  asked = [
    api.Request("first", **FEW),
    api.Request("a <image> that is not there", **FEW),
    api.Request("second", images=[picture()], **FEW),
    api.Request("", **FEW),
  ]
  told = []
  got = dict(
    ours.generate_as_completed(
      asked, batch_size=2, on_error=lambda *error: told.append(error)
    )
  )
  assert got.keys() == {0, 2}
  for number, one in got.items():
    same(one, alone(ours, asked[number]))
  assert [number for number, _ in told] == [1, 3]
  assert "names 1 <image>" in str(told[0][1])
  with pytest.raises(errors.GazeError, match="request 1: "):
    list(ours.generate_many(asked, batch_size=2))


def test_random_regions_are_as_many_and_drawn_once_for_an_answer(ours, picture):
  """By trace: K of each head in every layer and step, and drawn by the seed."""
  few = dict(images=[picture()], top_k=2, max_tokens=4)
  asked = lambda **how: ours.generate("what?", trace=True, **few, **how)
  first, again = asked(regions="random"), asked(regions="random")
  assert first.tokens == again.tokens
  read = np.stack([step.chosen for step in first.steps])
  assert read.shape[0] > 1 and (read == read[:1, :1]).all()
  assert (read.sum(-1) == 2).all()
  # Heads draw for themselves, and another seed draws others.
  assert (read[0, 0] != read[0, 0, 0]).any()
  other = asked(regions="random", seed=1).steps[0].chosen
  assert (other != read[0]).any()
  scored = np.stack([step.chosen for step in asked().steps])
  assert (scored[:, 0] != read[:, 0]).any()
  with pytest.raises(errors.GazeError, match="regions = 'drawn'"):
    ours.generate("what?", regions="drawn", **few)


@pytest.mark.nightly
def test_random_rows_have_pools_of_their_own(ours, picture):
  few = dict(images=[picture()], top_k=2, max_tokens=3)
  asked = [
    api.Request(f"{i}", regions="random" if i % 2 else "scores", seed=i, **few)
    for i in range(4)
  ]
  want = [alone(ours, request) for request in asked]
  for got in (
    ours.generate_many(asked, batch_size=2),
    ours.generate_batch(asked),
  ):
    for one, other in zip(got, want, strict=True):
      same(one, other)


def test_a_long_answer_holds_up_nobody_elses(ours):
  """A short answer that is asked for later comes first, by its number."""
  asked = [api.Request("long", max_tokens=64)]
  asked += [api.Request(f"short {i}", max_tokens=2) for i in range(3)]
  got = list(ours.generate_as_completed(asked, batch_size=2))
  assert [number for number, _ in got][-1] == 0
  for number, one in got:
    same(one, alone(ours, asked[number]))
