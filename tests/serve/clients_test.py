"""Many clients at once get what each gets alone."""

import json
import pathlib
import subprocess
import sys

import psutil
import pytest

from gaze_jax.serve import limits as limits_lib

SCRIPT = pathlib.Path(__file__).with_name("clients.py")


def run(server, requests, *, at_once):
  given = dict(url=server.url, requests=requests, at_once=at_once)
  done = subprocess.run(
    [sys.executable, str(SCRIPT)],
    input=json.dumps(given),
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)


def mixed(user, count):
  """Requests of all kinds, which end at different times."""
  kinds = [
    dict(messages=[dict(role="user", content="what is it?")]),
    dict(messages=[user("what is at the top?", 0)], stream=True),
    dict(messages=[user("what differs?", 1, 2)], stop=["a"]),
    dict(messages=[user("drawn", 0)], temperature=1.2, top_p=0.9, stream=True),
    dict(
      messages=[user("where?", 3)],
      extra_body=dict(gaze=dict(top_k=1, trace=True)),
    ),
    dict(
      messages=[user("?", 4), dict(role="assistant", content="so"), user("?")],
      extra_body=dict(gaze=dict(share=0.5)),
    ),
    dict(
      messages=[user("random", 0)],
      extra_body=dict(gaze=dict(regions="random", top_k=2)),
    ),
    dict(messages=[user("long " * 60, 5)], stream=True),
  ]
  return [
    dict(model="gaze", temperature=0, seed=i, max_tokens=2 + 3 * (i % 9))
    | kinds[i % len(kinds)]
    for i in range(count)
  ]


def test_32_clients_at_once_get_what_each_gets_alone(serve, user):
  asked = mixed(user, 32)
  with serve(rows=4) as server:
    alone = run(server, asked, at_once=False)
  # The last come first, and what they show is read by others or not at all.
  with serve(rows=4, kept_bytes=150_000) as server:
    together = run(server, asked[::-1], at_once=True)[::-1]
    assert server.engine.live == server.engine.waiting == 0
  for request, got, want in zip(asked, together, alone, strict=True):
    assert got == want, request


@pytest.mark.nightly
def test_memory_is_bounded_however_many_pictures_come(serve, user):
  """After 2,000 requests as after 200; the cache's limit is reached before."""
  ask = lambda numbers: [
    dict(
      model="gaze",
      temperature=0,
      max_tokens=2,
      messages=[user("what?", number)],
    )
    for number in numbers
  ]
  resident = lambda: psutil.Process().memory_info().rss
  limits = limits_lib.Limits(waiting=64)
  with serve(rows=4, kept_bytes=10**6, limits=limits) as server:
    kept, sizes = [], []
    for start in range(0, 2000, 50):
      run(server, ask(range(start, start + 50)), at_once=True)
      kept.append(server.engine.nbytes[1])
      sizes.append(resident())
  assert max(kept) <= 10**6
  # It was full before the first measurement, and stayed so.
  assert min(kept[3:]) > 0.7 * 10**6
  assert sizes[-1] < 1.05 * sizes[3], sizes
