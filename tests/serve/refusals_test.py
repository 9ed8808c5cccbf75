"""What is refused: each body names its field, and harms nobody beside it."""

import concurrent.futures
import contextlib
import json
import re
from http import client

import httpx2
import pytest

import bodies
from gaze_jax.serve import chat
from gaze_jax.serve import limits as limits_lib

PATH = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def http(server):
  with httpx2.Client(base_url=server.url, timeout=60) as client:
    yield client


def post(http, body, **headers):
  return http.post(PATH, content=body, headers=JSON | headers)


def check(response, param):
  """A 4xx of the standard form, which has no path of this machine."""
  assert 400 <= response.status_code < 500, response.text
  (error,) = response.json().values()
  assert error.keys() == {"message", "type", "param", "code"}
  assert error["type"] == "invalid_request_error" and error["code"]
  assert error["param"] == param, error
  if param:
    assert error["message"].startswith(f"{param}: ")
  assert not re.search(r"/(root|home|tmp|work|usr|etc)\b", error["message"])
  assert len(error["message"]) < 1000


def test_five_hundred_bodies_are_refused_and_good_ones_answered(http):
  wrong = bodies.of_one_field()
  assert len(wrong) >= 250
  wrong += [(body, None) for body in bodies.of_no_json(500 - len(wrong))]
  assert len(wrong) == 500
  ask = lambda n: post(http, json.dumps(bodies.good(n)).encode())
  said = lambda response: response.json()["choices"][0]["message"]["content"]
  want = [said(ask(n)) for n in range(4)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    good = [pool.submit(ask, n % 4) for n in range(16)]
    refused = list(pool.map(lambda one: post(http, one[0]), wrong))
    beside = [pool.submit(ask, n % 4) for n in range(4)]
  for n, one in enumerate([*good, *beside]):
    assert said(one.result()) == want[n % 4]
  for (_, param), response in zip(wrong, refused, strict=True):
    check(response, param)


def test_other_refusals(http):
  body = bodies.good()
  response = post(http, json.dumps(body | dict(model="gpt")).encode())
  check(response, "model")
  assert response.status_code == 404
  assert "gaze" in response.json()["error"]["message"]
  both = body | dict(max_tokens=3)
  check(post(http, json.dumps(both).encode()), "max_tokens")
  gaze = dict(top_k=1, share=0.5)
  check(post(http, json.dumps(body | dict(gaze=gaze)).encode()), "gaze.share")
  for kind in ("text/plain", "application/x-www-form-urlencoded"):
    response = post(http, b"{}", **{"Content-Type": kind})
    assert response.status_code == 415
  assert http.get(PATH).status_code == 405
  assert http.get("/etc/passwd").json()["error"]["code"] == "not_found"
  assert http.get("/v1/models/x").json()["error"]["param"] == "model"


def test_videos_are_refused_by_their_field(http):
  url = "messages[0].content[0].video_url.url"

  def ask(uri):
    part = dict(type="video_url", video_url=dict(url=uri))
    talk = [dict(role="user", content=[part, dict(type="text", text="?")])]
    return post(http, json.dumps(dict(model="gaze", messages=talk)).encode())

  for content in (
    b"no video",
    bodies.PICTURE[:40],
    b"\x00\x00\x00\x18ftypmp42",
  ):
    check(ask(bodies.encoded(content, "data:video/mp4;base64,")), url)
  check(ask("https://example.org/x.mp4"), url)


def test_a_conversation_that_is_none(http):
  said = lambda role: dict(role=role, content="x")
  for roles, param in (
    ("user assistant", "messages"),
    ("user system user", "messages[1].content"),
    ("system", "messages"),
    ("system user", "messages"),  # this template leaves it out
  ):
    talk = [said(role) for role in roles.split()]
    body = dict(model="gaze", messages=talk)
    check(post(http, json.dumps(body).encode()), param)


def test_a_conversation_that_is_too_long(http):
  for length in (200_000, 2_000_000):
    talk = [dict(role="user", content="word " * (length // 5))]
    body = json.dumps(dict(model="gaze", messages=talk)).encode()
    response = post(http, body)
    check(response, "messages")
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    # The longer one is not even made tokens of.
    assert ("characters" in error["message"]) == (length > 10**6)


def test_limits(serve):
  small = limits_lib.Limits(
    body_bytes=3000, images=1, pixels=700, frames=2, tokens=5
  )
  with serve(limits=small) as server:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
      ask = lambda body: post(http, json.dumps(body).encode())
      body = bodies.good()
      assert ask(body).status_code == 200
      check(ask(body | dict(max_completion_tokens=6)), "max_completion_tokens")
      check(ask(body | dict(gaze=dict(frames=3))), "gaze.frames")
      body["messages"][1]["content"] *= 2
      check(ask(body), "messages[1].content[3].image_url.url")
      large = bodies.encoded(bodies.png(bodies.np.zeros((20, 36, 3), "u1")))
      body = bodies.good()
      body["messages"][1]["content"][1]["image_url"]["url"] = large
      check(ask(body), bodies.URL)
      assert "the limit is 700" in ask(body).json()["error"]["message"]
      body["user"] = "x" * 3000
      response = ask(body)
      assert response.status_code == 413
      assert response.json()["error"]["code"] == "request_too_large"
      # And one that does not say how long it is.
      response = http.post(PATH, content=iter([b"x" * 2000] * 9), headers=JSON)
      assert response.status_code == 413


def test_who_sends_much_too_much_is_told_so(serve):
  """By a client that sends all before it reads that it was for nothing."""
  key = "a-key-of-some-length"
  small = limits_lib.Limits(body_bytes=1000)
  much = bytes(20 * 2**20)
  with serve(limits=small, key=key) as server:
    host = server.url.removeprefix("http://")
    for known, status in (({}, 401), ({"Authorization": f"Bearer {key}"}, 413)):
      with contextlib.closing(client.HTTPConnection(host, timeout=60)) as http:
        http.request("POST", PATH, much, JSON | known)
        assert http.getresponse().status == status


def test_a_fault_of_ours_is_a_500_and_logged(serve, monkeypatch):
  def fault(self, body):
    raise ZeroDivisionError("by zero")

  with serve() as server:
    monkeypatch.setattr(chat.Chat, "_prepare", fault)
    with httpx2.Client(base_url=server.url, timeout=60) as http:
      for _ in range(3):
        response = post(http, b"{}")
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "zero" not in response.text
    assert any("ZeroDivisionError" in line for line in server.lines)


def test_queue_and_time(serve):
  brief = limits_lib.Limits(waiting=1, seconds=1.5, tokens=10**6)
  with serve(limits=brief, rows=1) as server:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
      said = [dict(role="user", content="endless")]
      endless = dict(model="gaze", messages=said, max_tokens=1000)
      ask = lambda stream: post(
        http, json.dumps(endless | dict(stream=stream)).encode()
      )
      post(http, json.dumps(endless | dict(max_tokens=1)).encode())
      with concurrent.futures.ThreadPoolExecutor(4) as pool:
        several = list(pool.map(ask, [False, True, False, False]))
  codes = [r.status_code for r in several]
  assert 429 in codes, codes
  for response in several:
    if response.status_code == 429:
      assert response.json()["error"]["type"] == "rate_limit_error"
      assert response.headers["retry-after"] == "1"
    elif response.status_code == 504:
      assert response.json()["error"]["code"] == "timeout"
