"""The body of a chat completion: what is asked, or which field is wrong.

Nothing is decoded yet: pictures are bytes here.
"""

import base64
import binascii
import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from gaze_jax.data import messages
from gaze_jax.serve import failure
from gaze_jax.serve import fields
from gaze_jax.serve import limits as limits_lib

_DATA = re.compile(r"data:([a-z]+)/[\w.+-]+((?:;[\w-]+=[\w.-]+)*);base64,")
# Characters of a conversation: no row is so long, and to find that out by its
# tokens would take a hundred bytes for each.
_MOST_TEXT = 2**20
_HEAD = 200  # characters of a URI that its media type is looked for in
# What a part may be of, by the kind that it is shown as.
_MEDIA_TYPES = {
  messages.IMAGE: ("image",),
  messages.VIDEO: ("video", "image"),  # an animation is a picture by its type
}


@dataclasses.dataclass(frozen=True)
class Medium:
  """A picture or a video as it was sent.

  Attributes:
    kind: `messages.IMAGE` or `messages.VIDEO`.
    content: the bytes of its file.
    path: of the field that has it.
  """

  kind: str
  content: bytes
  path: str


@dataclasses.dataclass(frozen=True)
class Gaze:
  """The field `gaze`: docs/serve.md; None where it says nothing."""

  top_k: int | None = None
  share: float | None = None
  regions: str = "scores"
  frames: int = 8
  trace: bool = False


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a client asks for.

  Attributes:
    model: its name.
    talk: the conversation, as `api.Request.talk`.
    media: the pictures and videos of it, in order.
    max_tokens: of the answer.
    temperature: as in `api.Request`.
    top_p: likewise.
    seed: likewise; None to draw one.
    stop: likewise.
    stream: whether the answer comes in chunks.
    usage: whether the last of them has the usage.
    gaze: None if it was not sent.
  """

  model: str
  talk: messages.Conversation
  media: tuple[Medium, ...]
  max_tokens: int
  temperature: float
  top_p: float
  seed: int | None
  stop: tuple[str, ...]
  stream: bool
  usage: bool
  gaze: Gaze | None


def read(body: bytes, limits: limits_lib.Limits) -> Asked:
  """Reads a body.

  Raises:
    failure.Failure: naming the field that is wrong.
  """
  raw = fields.of_object(
    fields.parse(body), "", _checks(limits), ("model", "messages")
  )
  if "max_tokens" in raw and "max_completion_tokens" in raw:
    raise failure.of_field(
      "max_tokens", "it is the older name of max_completion_tokens: give one"
    )
  stream = raw.get("stream", False)
  if "stream_options" in raw and not stream:
    raise failure.of_field("stream_options", "is for stream = true alone")
  talk, media = _conversation(raw["messages"], limits)
  most = raw.get("max_completion_tokens", raw.get("max_tokens"))
  # To sample from no more than the likeliest token: 0 itself is out of range.
  top_p = max(raw.get("top_p", 1.0), 1e-9)
  seed = raw.get("seed")
  return Asked(
    model=raw["model"],
    talk=talk,
    media=media,
    max_tokens=most or limits.default_tokens,
    temperature=raw.get("temperature", 1.0),
    top_p=top_p,
    seed=None if seed is None else seed % 2**32,
    stop=raw.get("stop", ()),
    stream=stream,
    usage=raw.get("stream_options", {}).get("include_usage", False),
    gaze=raw.get("gaze"),
  )


@functools.cache
def _checks(limits: limits_lib.Limits) -> Mapping[str, fields.Check]:
  """Every field that a body may have."""
  tokens = fields.number(1, limits.tokens, whole=True)
  anything = lambda value, path: None
  ignored = dict(
    user=fields.text,
    metadata=anything,
    store=fields.boolean,
    service_tier=fields.text,
    safety_identifier=fields.text,
    prompt_cache_key=fields.text,
    prompt_cache_retention=fields.text,
    parallel_tool_calls=fields.boolean,
  )
  refused = dict(
    n=fields.nothing(1),
    response_format=fields.nothing({"type": "text"}),
    modalities=fields.nothing(["text"]),
    tools=fields.nothing([]),
    tool_choice=fields.nothing("none", "auto"),
    logprobs=fields.nothing(False),
    logit_bias=fields.nothing({}),
    frequency_penalty=fields.nothing(0, 0.0),
    presence_penalty=fields.nothing(0, 0.0),
  )
  return (
    ignored
    | refused
    | dict(
      model=fields.text,
      messages=functools.partial(fields.items, one=_message),
      max_tokens=tokens,
      max_completion_tokens=tokens,
      temperature=fields.number(0, 2),
      top_p=fields.number(0, 1),
      seed=fields.number(-(2**63), 2**63 - 1, whole=True),
      stop=_stop,
      stream=fields.boolean,
      stream_options=_stream_options,
      gaze=functools.partial(_gaze, limits=limits),
    )
  )


def _stop(value: Any, path: str) -> tuple[str, ...]:
  several = value if isinstance(value, list) else [value]
  if len(several) > 4:
    raise failure.of_field(path, f"{len(several)} texts; give up to 4")
  for i, one in enumerate(several):
    where = f"{path}[{i}]" if isinstance(value, list) else path
    if not fields.text(one, where):
      raise failure.of_field(where, "the text is empty")
  return tuple(several)


def _stream_options(value: Any, path: str) -> dict[str, Any]:
  known = dict(
    include_usage=fields.boolean, include_obfuscation=fields.nothing(False)
  )
  return fields.of_object(value, path, known, ())


def _gaze(value: Any, path: str, limits: limits_lib.Limits) -> Gaze:
  known = dict(
    top_k=fields.number(0, 2**30, whole=True),
    share=fields.number(0, 1),
    regions=fields.choice("scores", "random"),
    frames=fields.number(1, limits.frames, whole=True),
    trace=fields.boolean,
  )
  out = Gaze(**fields.of_object(value, path, known, ()))
  if out.top_k is not None and out.share is not None:
    raise failure.of_field(f"{path}.share", "give top_k or share, not both")
  return out


# ---- messages: first each by itself, then all of them together


@dataclasses.dataclass(frozen=True)
class _Message:
  """A message, and where it stands."""

  role: str
  parts: tuple[messages.Part | Medium, ...]
  path: str


_ROLES = ("system", "developer", "user", "assistant")


def _message(value: Any, path: str) -> _Message:
  known = dict(
    role=fields.choice(*_ROLES),
    content=lambda value, path: value,
    name=fields.text,
    tool_calls=fields.nothing([]),
    annotations=fields.nothing([]),
  )
  raw = fields.of_object(value, path, known, ("role", "content"))
  content = raw["content"]
  path += ".content"
  if isinstance(content, str):
    parts = [messages.Part(messages.TEXT, fields.text(content, path))]
  elif isinstance(content, list):
    one = functools.partial(_part, shows=raw["role"] == "user")
    parts = fields.items(content, path, one)
  else:
    raise fields.wrong_type(content, path, "a text or a list of parts")
  return _Message(raw["role"], tuple(parts), path)


def _part(value: Any, path: str, *, shows: bool) -> messages.Part | Medium:
  """A part of a message; `shows`: whether it may be a picture or a video."""
  kinds = ("text", "image_url", "video_url") if shows else ("text",)
  kind = fields.choice(*kinds)
  if isinstance(value, dict):  # what else there may be goes by its type
    fields.of_object(
      dict(type=value.get("type")), path, dict(type=kind), ("type",)
    )
    other = value["type"]
  else:
    other = "text"
  url = functools.partial(fields.of_object, required=("url",))
  detail = fields.choice("auto", "low", "high")
  checks = dict(
    text=fields.text,
    image_url=functools.partial(url, checks=dict(url=_image, detail=detail)),
    video_url=functools.partial(url, checks=dict(url=_video)),
  )
  known = {"type": kind, other: checks[other]}
  raw = fields.of_object(value, path, known, ("type", other))
  if other == "text":
    return messages.Part(messages.TEXT, raw["text"])
  return raw[other]["url"]


def _image(value: Any, path: str) -> Medium:
  return _medium(messages.IMAGE, value, path)


def _video(value: Any, path: str) -> Medium:
  return _medium(messages.VIDEO, value, path)


def _medium(kind: str, value: Any, path: str) -> Medium:
  """What a data: URI has."""
  found = _DATA.match(fields.text(value, path)[:_HEAD].lower())
  if not found or found[1] not in _MEDIA_TYPES[kind]:
    raise failure.of_field(
      path,
      "nothing is fetched here; give a data: URI in base64, such as"
      f" data:{kind}/{'png' if kind == messages.IMAGE else 'mp4'};base64,...",
      f"invalid_{kind}",
    )
  try:
    content = base64.b64decode(value[found.end() :], validate=True)
  except (binascii.Error, ValueError) as error:
    raise failure.of_field(
      path, f"broken base64: {error}", f"invalid_{kind}"
    ) from None
  if not content:
    raise failure.of_field(path, f"the {kind} is empty", f"invalid_{kind}")
  return Medium(kind, content, path)


def _conversation(
  given: list[_Message], limits: limits_lib.Limits
) -> tuple[messages.Conversation, tuple[Medium, ...]]:
  """Messages as a conversation; its system texts are joined to one."""
  systems = [m for m in given if m.role in ("system", "developer")]
  rest = given[len(systems) :]
  for message in rest:
    if message.role in ("system", "developer"):
      raise failure.of_field(
        message.path, "a system text begins a conversation: put it first"
      )
  if not rest or rest[-1].role != "user":
    raise failure.of_field("messages", "the last message must be the user's")
  last = rest[-1]
  if not any(isinstance(p, Medium) or p.text.strip() for p in last.parts):
    raise failure.of_field(last.path, "the question is empty")
  texts = [p.text for m in given for p in m.parts if not isinstance(p, Medium)]
  if (size := sum(map(len, texts))) > _MOST_TEXT:
    raise failure.of_field(
      "messages",
      f"{size:,} characters, and no row has room for {_MOST_TEXT:,}",
      "context_length_exceeded",
    )
  media = tuple(p for m in rest for p in m.parts if isinstance(p, Medium))
  if len(media) > limits.images:
    raise failure.of_field(
      media[limits.images].path,
      f"more than {limits.images} pictures and videos in one conversation",
    )
  talk = []
  if systems:
    texts = ["".join(p.text for p in m.parts) for m in systems]
    talk.append(messages.plain(messages.SYSTEM, "\n\n".join(texts)))
  for message in rest:
    parts = [
      messages.Part(p.kind) if isinstance(p, Medium) else p
      for p in message.parts
    ]
    parts = [p for p in parts if p.kind != messages.TEXT or p.text]
    talk.append(messages.Message(message.role, tuple(parts)))
  return tuple(talk), media
