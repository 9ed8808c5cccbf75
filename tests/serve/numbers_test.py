"""What the server tells of itself: its model, its numbers, its log."""

import re

import httpx2
import pytest


def numbers(server):
  text = httpx2.get(f"{server.url}/metrics").text
  lines = [line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#"]
  return {name: float(value) for name, value in lines}


def test_the_model_says_what_it_is(server, client, model):
  (about,) = client.models.list().data
  assert about.id == "gaze" and about.owned_by == "gaze_jax"
  gaze = about.gaze
  assert (gaze["layers"], gaze["heads"], gaze["kv_heads"]) == (2, 4, 2)
  assert gaze["budget"]["unit"] == "fixed" and gaze["budget"]["trained"] == 2
  assert gaze["region"] == [2, 2, 1] and gaze["sees"]
  assert client.models.retrieve("gaze").id == "gaze"


def test_what_is_read_and_saved_is_counted(server, client, user):
  ask = lambda: client.chat.completions.create(
    model="gaze",
    temperature=0,
    max_tokens=4,
    messages=[user("what?", 77)],
    extra_body=dict(gaze=dict(top_k=2)),
  )
  before = numbers(server)
  first, second = ask(), ask()
  after = numbers(server)
  grown = {k: after[k] - before.get(k, 0) for k in after}
  assert grown['gaze_requests_total{status="200"}'] == 3  # /metrics is one
  assert grown["gaze_answer_tokens_total"] == 8
  assert grown["gaze_prompt_tokens_total"] == 2 * first.usage.prompt_tokens
  cached = second.usage.prompt_tokens_details.cached_tokens
  assert grown["gaze_cached_tokens_total"] == cached > 0
  # Of 25 visual tokens, in 2 of 9 regions.
  read = grown["gaze_visual_entries_read_total"]
  assert read + grown["gaze_visual_entries_saved_total"] == pytest.approx(200)
  entries = first.gaze["accounting"]["entries_per_query_head"] - 2
  assert read == pytest.approx(8 * entries)
  assert grown["gaze_first_token_seconds_count"] == 2
  assert after["gaze_live_requests"] == after["gaze_waiting_requests"] == 0
  assert after["gaze_pool_bytes"] > 0 and after["gaze_kept_bytes"] > 0


def test_a_request_is_a_line_without_its_words(server, client, user):
  client.chat.completions.create(
    model="gaze", max_tokens=2, messages=[user("secret", 0)]
  )
  httpx2.get(f"{server.url}/a%0Ab")
  chat, other = server.lines[-2:]
  assert re.fullmatch(
    r"POST '/v1/chat/completions' 200 [\d.]+ s prompt \d+ \(cached \d+\)"
    r" answer 2 first [\d.]+ s",
    chat,
  )
  assert re.fullmatch(r"GET '/a\\nb' 404 [\d.]+ s", other)
