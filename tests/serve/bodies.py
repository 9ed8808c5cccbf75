"""Bodies that can't be taken: no JSON, or JSON with one field wrong."""

import base64
import copy
import io
import json
import random
import struct
import zlib

import numpy as np
from PIL import Image

LEFT_OUT = object()


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


PICTURE = png(np.zeros((20, 30, 3), np.uint8))
URI = "data:image/png;base64,"
URL = "messages[1].content[1].image_url.url"


def encoded(content, head=URI):
  return head + base64.b64encode(content).decode()


def bomb():
  """A PNG whose header promises 60,000 x 60,000 pixels, in 100 bytes."""

  def chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc

  header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
  data = zlib.compress(bytes(1000))
  parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def good(number=0):
  return dict(
    model="gaze",
    temperature=0,
    max_completion_tokens=3,
    messages=[
      dict(role="assistant", content="hello"),
      dict(
        role="user",
        content=[
          dict(type="text", text=f"what is number {number}?"),
          dict(type="image_url", image_url=dict(url=encoded(PICTURE))),
        ],
      ),
    ],
  )


def _wrong_urls():
  draw = random.Random(1)
  cuts = range(1, len(PICTURE) // 2, 2)
  broken = [encoded(PICTURE[:cut]) for cut in cuts]
  broken += [encoded(draw.randbytes(1 + n * n)) for n in range(40)]
  return [
    *broken,
    "http://169.254.169.254/latest",
    "https://example.org/x.png",
    "file:///etc/passwd",
    "/etc/passwd",
    "",
    "data:,x",
    "data:image/png,plain",
    "data:text/plain;base64,aGk=",
    "data:video/mp4;base64,aGk=",
    URI,
    URI + "%%%",
    URI + "aGk",
    URI + "aG k=",
    URI + "\u00e4",
    encoded(b"no picture at all"),
    encoded(b"%PDF-1.7 and so on"),
    encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    encoded(bomb()),
    encoded(b"\x1f\x8b" + bytes(60)),
    *[3, True, [], {}, ["x"]],
  ]


def _fields():
  """Path of a field, as a list, its name in an error, and a wrong value."""
  top = lambda name, *values: [([name], name, v) for v in values]
  numbers = ("1", True, [], {})
  beyond = (-1, 1e30, 3.5, "3", True, [], {})
  out = [
    *top("model", LEFT_OUT, 3, True, [], {}),
    *top("messages", LEFT_OUT, [], "x", 3, True, {}),
    (["messages"], "messages[0]", [[]]),
    (["messages"], "messages[0]", ["x"]),
    (["messages"], "messages[0]", [3]),
    *top("temperature", *numbers, -0.1, 2.1, 10**400, -(10**30)),
    *top("top_p", *numbers, -0.1, 1.1, 7),
    *top("seed", *numbers, 1.5, 2**63, -(2**63) - 1, 1e300),
    *top("max_completion_tokens", *beyond, 0, 10**6),
    *top("stop", 3, True, {}, "", ["a"] * 5, "\ud800"),
    (["stop"], "stop[1]", ["a", ""]),
    (["stop"], "stop[0]", [3]),
    (["stop"], "stop[0]", [["a"]]),
    *top("stream", "yes", 1, 0, [], {}),
    *top("stream_options", "x", 3, [], {}, {"include_usage": True}),
    *top("n", 2, 0, "1", True, 1.5),
    *top("tools", [{"type": "function"}], "x", 3, {}),
    *top("tool_choice", "required", 3, {"type": "function"}),
    *top("response_format", {"type": "json_object"}, "text", {}, []),
    *top("logprobs", True, 1, "x"),
    *top("logit_bias", {"3": 1}, [], 3),
    *top("frequency_penalty", 1, -0.5, "x"),
    *top("presence_penalty", 1, -0.5, "x"),
    *top("modalities", ["audio"], "text", []),
    *top("user", 3, [], True),
    *top("store", "x", 3),
    *top("gaze", 3, "x", [], True),
    *top("top_k", 3),
    *top("functions", []),
    *top("repetition_penalty", 1.1),
    *top("Temperature", 0),
  ]
  for name, values in {
    "top_k": (-1, 1.5, "3", True, 2**31, [], {}),
    "share": (-0.1, 1.1, "x", True, [], {}),
    "regions": ("dense", 3, [], True),
    "frames": (0, 33, 1.5, "8", True),
    "trace": (1, "yes", [], {}),
    "unknown": (1,),
  }.items():
    out += [(["gaze", name], f"gaze.{name}", v) for v in values]
  message, part = ["messages", 1], ["messages", 1, "content", 1]
  of = lambda path, name, *values: [(path, name, v) for v in values]
  out += [
    *of(
      [*message, "role"], "messages[1].role", LEFT_OUT, "tool", 3, [], "User"
    ),
    *of([*message, "content"], "messages[1].content", LEFT_OUT, 3, {}, "", []),
    *of([*message, "name"], "messages[1].name", 3, []),
    *of([*message, "x"], "messages[1].x", 3),
    *of(["messages", 0, "content"], "messages[0].content", 3, True, {}),
    *of([*part, "type"], "messages[1].content[1].type", LEFT_OUT, 3, "file"),
    *of(part, "messages[1].content[1]", "x", 3, [], True),
    *of([*part, "x"], "messages[1].content[1].x", 3),
    *of([*part, "image_url"], "messages[1].content[1].image_url", "x", [], 3),
    *of([*part, "image_url", "x"], URL.replace(".url", ".x"), 1),
    *of(
      [*part, "image_url", "detail"], URL.replace(".url", ".detail"), "hi", 3
    ),
    *of([*part, "image_url", "url"], URL, LEFT_OUT, *_wrong_urls()),
    *of(
      ["messages", 1, "content", 0, "text"],
      "messages[1].content[0].text",
      *(LEFT_OUT, 3, [], "\udc00"),
    ),
  ]
  return out


def of_one_field():
  """Bodies as bytes, each with the name of what is wrong."""
  out = []
  for path, name, value in _fields():
    body = copy.deepcopy(good())
    at = body
    for key in path[:-1]:
      at = at.setdefault(key, {}) if isinstance(at, dict) else at[key]
    if value is LEFT_OUT:
      del at[path[-1]]
    else:
      at[path[-1]] = value
    out.append((json.dumps(body).encode(), name))
  return out


def of_no_json(count):
  """Bodies that are no JSON object, drawn by their number."""
  whole = json.dumps(good()).encode()
  fixed = [
    b"",
    b"null",
    b"[]",
    b"3",
    b'"x"',
    b"{",
    b"{}}",
    b"[" * 100_000,
    b'{"messages": [' + b"[]," * 10**6,
    b'{"a":' * 100_000,
    b'{"temperature": NaN}',
    b'{"temperature": -Infinity}',
    b"\xff\xfe\x00",
    b'{"model": "\xff"}',
    b'{"seed": ' + b"9" * 10_000 + b"}",
    b"model=gaze&messages=x",
  ]
  draw = random.Random(0)
  out = list(fixed)
  while len(out) < count:
    cut = draw.randrange(1, len(whole) - 1)
    kind = draw.randrange(3)
    if kind == 0:
      out.append(whole[:cut])
    elif kind == 1:
      out.append(whole[cut:])
    else:
      out.append(draw.randbytes(draw.randrange(1, 200)))
  return out
