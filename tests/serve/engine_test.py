"""One thread for everybody: slow clients, and faults of its own."""

import base64
import io
import json
import socket
import time
import urllib.parse

import numpy as np
import openai
import pytest
from PIL import Image

from gaze_jax.serve import chat_request
from gaze_jax.serve import limits as limits_lib

GREEDY = dict(model="gaze", temperature=0)


@pytest.fixture
def alone(serve):
  with serve(rows=2, limits=limits_lib.Limits(tokens=4000)) as server:
    with openai.OpenAI(
      base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:
      yield server, client


def until(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def noise():
  """A clip whose frames no JPEG makes small: more than a socket holds."""
  draw = np.random.default_rng(0).integers
  pixels = draw(0, 255, (24, 500, 500, 3), dtype=np.uint8)
  shots = list(map(Image.fromarray, pixels))
  file = io.BytesIO()
  shots[0].save(file, "GIF", save_all=True, append_images=shots[1:])
  return base64.b64encode(file.getvalue()).decode()


def test_who_does_not_read_holds_up_nobody(alone, user):
  """An answer with pictures of frames, of which nothing is read."""
  server, client = alone
  url = dict(url="data:image/gif;base64," + noise())
  parts = [
    dict(type="video_url", video_url=url),
    dict(type="text", text="much"),
  ]
  body = GREEDY | dict(
    messages=[dict(role="user", content=parts)],
    max_tokens=900,
    stream=True,
    gaze=dict(trace=True, frames=24),
  )
  text = json.dumps(body).encode()
  where = urllib.parse.urlsplit(server.url)
  slow = socket.socket()
  slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
  slow.connect((where.hostname, where.port))
  head = (
    f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
  )
  slow.sendall(head.encode() + text)
  until(lambda: server.engine.live == 1)
  for _ in range(3):
    got = client.chat.completions.create(
      messages=[user("short", 1)], max_tokens=3, **GREEDY
    )
    assert got.usage.completion_tokens == 3
  # Its row is free once the answer is there, read or not.
  until(lambda: server.engine.live == 0)
  slow.close()


def test_a_fault_ends_what_is_open_and_nothing_else(alone, user, monkeypatch):
  server, client = alone
  ask = lambda: client.chat.completions.create(
    messages=[user("what?", 0)], max_tokens=3, **GREEDY
  )
  want = ask().choices[0].message.content
  broken = server.engine._scheduler

  def turn(steps):
    raise RuntimeError("a fault")

  monkeypatch.setattr(broken, "turn", turn)
  with pytest.raises(openai.InternalServerError) as failed:
    ask()
  assert failed.value.code == "internal_error"
  assert "fault" not in failed.value.message
  assert any("RuntimeError: a fault" in line for line in server.lines)
  assert ask().choices[0].message.content == want


def test_system_texts_are_joined():
  said = lambda role, text: dict(role=role, content=text)
  body = dict(
    model="gaze",
    messages=[
      said("system", "be brief"),
      said("developer", [dict(type="text", text="and kind")]),
      said("user", "<image> what?"),
    ],
  )
  asked = chat_request.read(json.dumps(body).encode(), limits_lib.Limits())
  system, question = asked.talk
  assert system.role == "system"
  assert [p.text for p in system.parts] == ["be brief\n\nand kind"]
  assert [(p.kind, p.text) for p in question.parts] == [
    ("text", "<image> what?")
  ]
  assert asked.media == () and asked.gaze is None and asked.seed is None
  assert (asked.temperature, asked.top_p, asked.max_tokens) == (1, 1, 256)
