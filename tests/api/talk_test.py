"""Whole conversations as one request, read at once, or in parts for others."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gaze_jax.api import conversation
from gaze_jax.api import media
from gaze_jax.api import request as request_lib
from gaze_jax.data import messages
from gaze_jax.decode import scheduler as scheduler_lib
from gaze_jax.train import loop

ON_ROWS = pathlib.Path(__file__).with_name("on_rows.py")
IMAGE, VIDEO = messages.Part(messages.IMAGE), messages.Part(messages.VIDEO)


def text(words):
  return messages.Part(messages.TEXT, words)


def user(*parts):
  return messages.Message(messages.USER, parts)


def answer(words):
  return messages.plain(messages.ASSISTANT, words)


def test_a_question_alone_is_that_of_next_turn(model, picture):
  ours = model()
  shown = dict(images=[picture(0), picture(1)], max_tokens=5)
  want = ours.generate("what?", **shown)
  got = ours.generate("", talk=(user(IMAGE, IMAGE, text("what?")),), **shown)
  assert got.tokens == want.tokens and got.question == want.question
  assert got.context.ids == want.context.ids
  # And it can be asked again from.
  again = [ours.generate("so?", x.context, max_tokens=3) for x in (got, want)]
  assert again[0].tokens == again[1].tokens


CONVERSATION = (
  user(text("look: "), IMAGE, text(" and "), IMAGE, text(" what?")),
  answer("a fox"),
  user(text("and this?"), IMAGE, VIDEO, text("?")),
  answer("an owl"),
  user(text("so?")),
)


def asked(picture, **options):
  return request_lib.Request(
    "",
    talk=CONVERSATION,
    images=[picture(n) for n in range(3)],
    videos=[[picture(5), picture(6)]],
    max_tokens=6,
    **options,
  )


def served(ours, request):
  """An answer by a scheduler that keeps what is shown."""
  scheduler = scheduler_lib.Scheduler(
    ours.params,
    ours.config.model,
    rows=2,
    cache_bytes=2**30,
    kept_bytes=2**30,
    stop=ours.tokenizer.ends,
  )
  jobs = [ours.prepare(request, in_parts=True) for _ in range(2)]
  for number, job in enumerate(jobs):
    scheduler.check(job)
    scheduler.submit(number, job)
  reused = dict(scheduler.admit())
  while read := scheduler.admit():
    reused |= read
  events = []
  while scheduler.live:
    events += scheduler.turn()
  first, second = (e.result for e in events if e.result)
  assert first == second
  return jobs[0], first.tokens, reused


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["plain", "crop", "tiles", "patches"])
def test_in_parts_it_is_answered_as_a_whole(model, picture, kind):
  ours = model(kind)
  for options, parts in ((dict(top_k=3), 3), (dict(regions="random"), 1)):
    request = asked(picture, **options)
    job, tokens, reused = served(ours, request)
    want = ours.generate_batch([request])[0]
    assert tokens == want.tokens
    assert len(job.openings) == parts - 1
    whole = ours.prepare(request)
    assert job.after.ids == whole.after.ids
    assert job.after.sizes == whole.after.sizes
    for view, other in zip(job.after.views, whole.after.views, strict=True):
      np.testing.assert_array_equal(view.regions, other.regions)
    if parts > 1:
      assert reused[0] == 0 < reused[1]


def test_parts_end_with_what_a_message_shows(model, picture):
  ours = model()
  request = asked(picture)
  found = conversation.in_parts(request, ours.config, ours.tokenizer)
  assert [before.unit_count for before, _ in found] == [0, 2, 5]
  assert all(before.cache is None for before, _ in found)
  whole = conversation.next_turn(request, ours.config, ours.tokenizer)[1]
  tokens = lambda batch: batch.tokens[batch.layout.role == 1].tolist()
  assert sum((tokens(batch) for _, batch in found), []) == tokens(whole)


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(question="x"), "give no question"),
    (dict(system="x"), "give no question"),
    (dict(talk=CONVERSATION[:2]), "ends with what the user says"),
    (dict(images=()), "shows 3 images, and 0 are given"),
    (dict(videos=()), "shows 1 videos, and 0 are given"),
  ],
)
def test_what_is_no_conversation_is_refused(picture, changes, says):
  request = asked(picture)
  for name, value in changes.items():
    object.__setattr__(request, name, value)
  with pytest.raises(request_lib.RequestError, match=says):
    request.check()


def test_which_part_of_a_picture_is_shown(model):
  """Of 30 rows and 60 columns; the views of crop are of 70 of 140 columns."""
  part = lambda kind, alone=True: media.shown_part(
    (30, 60), model(kind).config.model, alone=alone
  )
  assert part("plain") == part("patches") == part("tiles") == (0, 0, 1, 1)
  assert part("crop") == (0.25, 0, 0.75, 1)
  assert part("tiles", alone=False) == (0, -0.5, 1, 1.5)


def test_a_view_shows_its_part(model):
  """The right third is white: of what crop shows it is a sixth."""
  pixels = np.zeros((30, 60, 3), np.uint8)
  pixels[:, 40:] = 255
  ours = model("crop")
  ((seen, (view,)),) = media.see(ours.config, images=[pixels])
  del seen
  assert view.picture.shape[0] == view.picture.shape[1]
  white = (view.picture[..., 0] > 127).mean()
  left, _, right, _ = media.shown_part((30, 60), ours.config.model, alone=True)
  assert white == pytest.approx((right - 2 / 3) / (right - left), abs=0.02)


@pytest.mark.nightly
def test_devices_that_share_rows_answer_alike(tiny_config, tmp_path):
  loop.train(tiny_config(train__steps=2), tmp_path / "run")
  done = subprocess.run(
    [sys.executable, str(ON_ROWS), str(tmp_path / "run")],
    env=os.environ | dict(XLA_FLAGS="--xla_force_host_platform_device_count=2"),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  alone, alone_traced, shared, shared_traced = json.loads(done.stdout)
  assert sorted(alone["tokens"]) == list("01235")  # one was cancelled
  for one in (alone_traced, shared, shared_traced):
    assert one["tokens"] == alone["tokens"]
  assert alone_traced["read"] == shared_traced["read"]
  assert len(alone_traced["read"]["5"]) == len(alone["tokens"]["5"])
