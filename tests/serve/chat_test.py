"""The openai client talks to a server, and gets what `api.generate` gives."""

import base64
import io
import time

import numpy as np
import openai
import pytest
from PIL import Image

from gaze_jax.data import messages
from gaze_jax.data import video

GREEDY = dict(model="gaze", temperature=0, max_tokens=6)


def ask(client, *talk, **options):
  return client.chat.completions.create(
    messages=list(talk), **(GREEDY | options)
  )


def test_a_question_about_nothing(client, user, model):
  got = ask(client, dict(role="user", content="what is it?"))
  want = model.generate("what is it?", max_tokens=6)
  assert got.choices[0].message.content == want.text
  assert got.choices[0].finish_reason == "length"
  assert got.usage.completion_tokens == len(want.tokens)
  assert got.usage.prompt_tokens == want.context.length - 5
  assert got.usage.total_tokens == (
    got.usage.prompt_tokens + got.usage.completion_tokens
  )
  assert not hasattr(got, "gaze")


def test_two_images_stand_where_they_were_sent(client, user, model, picture):
  sent = user("what differs?", 0, 1)
  got = ask(client, sent)
  want = model.generate(
    "what differs?", images=[picture(0), picture(1)], max_tokens=6
  )
  assert got.choices[0].message.content == want.text
  # Between texts, and a text that spells a mark is a text.
  first, second = sent["content"][:2]
  words = [dict(type="text", text=x) for x in ("a <image> ", " and ", " b?")]
  mixed = [words[0], first, words[1], second, words[2]]
  got = ask(client, dict(role="user", content=mixed))
  part = lambda text: messages.Part(messages.TEXT, text)
  image = messages.Part(messages.IMAGE)
  parts = (part("a <image> "), image, part(" and "), image, part(" b?"))
  want = model.generate(
    "",
    talk=(messages.Message("user", parts),),
    images=[picture(0), picture(1)],
    max_tokens=6,
  )
  assert got.choices[0].message.content == want.text


def test_streamed_pieces_are_the_answer(client, user):
  long = dict(stop=["zzz"], max_tokens=100)
  whole = ask(client, user("what?", 2), **long)
  chunks = list(
    ask(
      client,
      user("what?", 2),
      **long,
      stream=True,
      stream_options=dict(include_usage=True),
    )
  )
  *most, last = chunks
  assert most[0].choices[0].delta.role == "assistant"
  text = "".join(c.choices[0].delta.content or "" for c in most)
  assert text == whole.choices[0].message.content
  assert len(most) > 4
  assert most[-1].choices[0].finish_reason == "length"
  assert last.usage.model_dump() == whole.usage.model_dump() | dict(
    prompt_tokens_details=last.usage.prompt_tokens_details.model_dump()
  )
  # Read for the first request, and not again.
  assert last.usage.prompt_tokens_details.cached_tokens > 25
  assert all(c.usage is None for c in most)


def test_a_conversation_goes_on(client, user, model, picture):
  talk = [user("what?", 3)]
  first = ask(client, *talk)
  assert first.usage.prompt_tokens_details.cached_tokens == 0
  talk += [first.choices[0].message.model_dump(), user("and this?", 4)]
  second = ask(client, *talk)
  assert second.usage.prompt_tokens_details.cached_tokens > 25
  again = ask(client, *talk, dict(role="assistant", content="x"), user("so?"))
  assert again.usage.prompt_tokens_details.cached_tokens > 50
  part = lambda text: messages.Part(messages.TEXT, text)
  image = messages.Part(messages.IMAGE)
  want = model.generate(
    "",
    talk=(
      messages.Message("user", (image, part("what?"))),
      messages.plain("assistant", first.choices[0].message.content),
      messages.Message("user", (image, part("and this?"))),
    ),
    images=[picture(3), picture(4)],
    max_tokens=6,
  )
  assert second.choices[0].message.content == want.text


def test_sampling_is_by_seed(client, user):
  how = dict(temperature=1.5, top_p=0.9, max_tokens=12)
  draw = lambda seed: (
    ask(client, user("what?"), seed=seed, **how).choices[0].message.content
  )
  assert draw(5) == draw(5) == draw(5 + 2**32) != draw(6)
  drawn = {
    ask(client, user("what?"), **how).choices[0].message.content
    for _ in range(3)
  }
  assert len(drawn) > 1


def test_a_stop_string_ends_an_answer(client, user):
  text = ask(client, user("what?", 0), max_tokens=12)
  text = text.choices[0].message.content
  stop = text[len(text) // 2 :][:2]
  got = ask(client, user("what?", 0), max_tokens=12, stop=stop).choices[0]
  assert got.finish_reason == "stop"
  assert got.message.content == text[: text.find(stop)]


def unpacked(trace, geometry):
  """bool [T, N, Q, R]."""
  n, q, r = (geometry[x] for x in ("layers", "heads", "regions"))
  bits = np.frombuffer(base64.b64decode(trace["chosen"]), np.uint8)
  bits = bits.reshape(len(trace["pieces"]), n, q, -(-r // 8))
  return np.unpackbits(bits, axis=-1, bitorder="little", count=r).astype(bool)


def test_a_trace_is_what_the_engine_records(client, user, model, picture):
  asked = dict(extra_body=dict(gaze=dict(top_k=2, trace=True)), max_tokens=7)
  got = ask(client, user("what differs?", 5, 6), **asked)
  want = model.generate(
    "what differs?",
    images=[picture(5), picture(6)],
    top_k=2,
    max_tokens=7,
    trace=True,
  )
  plain = ask(
    client,
    user("what differs?", 5, 6),
    max_tokens=7,
    extra_body=dict(gaze=dict(top_k=2)),
  )
  assert got.choices == plain.choices
  assert got.choices[0].message.content == want.text
  trace = got.gaze["trace"]
  assert (trace["layers"], trace["heads"], trace["regions"]) == (2, 4, 18)
  steps = np.stack([step.chosen for step in want.steps])
  np.testing.assert_array_equal(unpacked(trace, trace), steps)
  assert trace["pieces"] == model.tokenizer.pieces(want.tokens)
  account, figures = want.accounting(), got.gaze["accounting"]
  for name in ("visual_tokens", "kv_bytes", "descriptor_bytes"):
    assert figures[name] == getattr(account, name)
  for name in ("entries_per_query_head", "unique_visual_kv_fraction"):
    assert figures[name] == pytest.approx(getattr(account, name), rel=1e-5)
  assert "trace" not in plain.gaze and plain.gaze["accounting"] == figures
  # The same in chunks, whose geometry comes first and once.
  first, *rest = ask(client, user("what differs?", 5, 6), **asked, stream=True)
  assert first.gaze["trace"] == {
    k: v for k, v in trace.items() if k not in ("pieces", "chosen")
  }
  parts = [c.gaze["trace"] for c in rest if "trace" in (c.gaze or {})]
  assert sum((p["pieces"] for p in parts), []) == trace["pieces"]
  chosen = np.concatenate([unpacked(p, trace) for p in parts])
  np.testing.assert_array_equal(chosen, steps)
  assert rest[-1].gaze["accounting"] == figures


def test_regions_are_boxes_of_the_picture(client, user):
  got = ask(client, user("?", 0, 0), extra_body=dict(gaze=dict(trace=True)))
  first, second = got.gaze["trace"]["views"]
  assert [v["picture"] for v in (first, second)] == [0, 1]
  assert first["kind"] == "image" and first["image"] is None
  assert [b[0] for b in first["boxes"]] == list(range(9))
  assert [b[0] for b in second["boxes"]] == list(range(9, 18))
  # 5 x 5 tokens: regions of 2, 2 and 1 a side.
  areas = [(r - l) * (b - t) for _, l, t, r, b in first["boxes"]]
  assert sum(areas) == pytest.approx(1) and min(areas) == pytest.approx(0.04)


def test_a_video_is_its_frames(client, model, picture):
  shots = [Image.open(io.BytesIO(picture(n))) for n in range(12)]
  file = io.BytesIO()
  shots[0].save(file, "GIF", save_all=True, append_images=shots[1:])
  uri = "data:image/gif;base64," + base64.b64encode(file.getvalue()).decode()
  parts = [
    dict(type="video_url", video_url=dict(url=uri)),
    dict(type="text", text="what moves?"),
  ]
  got = ask(
    client,
    dict(role="user", content=parts),
    extra_body=dict(gaze=dict(frames=3, trace=True)),
  )
  with video.as_file(file.getvalue()) as path:
    want = model.generate("what moves?", videos=[path], frames=3, max_tokens=6)
  assert got.choices[0].message.content == want.text
  views = got.gaze["trace"]["views"]
  assert [(v["picture"], v["kind"], v["frame"]) for v in views] == [
    (0, "video", n) for n in range(3)
  ]
  assert all(v["image"].startswith("data:image/jpeg;base64,") for v in views)
  assert {v["frames"] for v in views} == {3}


def test_who_leaves_frees_a_row(serve, user):
  """One row: an endless answer is left, and the next is answered soon."""
  with serve(rows=1) as server:
    client = openai.OpenAI(
      base_url=f"{server.url}/v1", api_key="none", max_retries=0
    )
    stream = ask(client, user("endless"), max_tokens=1000, stream=True)
    next(iter(stream))
    assert server.engine.live == 1
    stream.close()
    ask(client, user("short"), max_tokens=2)
    until(lambda: server.engine.live == 0)
    assert any("client left" in line for line in server.lines)
    # And one that is not streamed, or still waits.
    for _ in range(2):
      with pytest.raises(openai.APITimeoutError):
        ask(client, user("endless"), max_tokens=1000, timeout=0.3)
    until(lambda: server.engine.live == server.engine.waiting == 0)


def until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)
