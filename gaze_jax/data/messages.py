"""Conversations as messages, and as ids with the places of images in them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
TEXT, IMAGE, VIDEO = "text", "image", "video"
OWN = "own"  # a control token that the model itself generated
TEXTS = (TEXT, OWN)
MARKED = {"<image>": IMAGE, "<video>": VIDEO}


class Part(NamedTuple):
  """A part of a message: a text, or an image or video of so many units.

  A template looks for some control tokens in an answer: for the end of what was
  thought. It finds those that the model generated, and none that a
  text spells out.
  """

  kind: str
  text: str = ""
  units: int = 1


class Message(NamedTuple):
  """What one side writes."""

  role: str
  parts: tuple[Part, ...]


Conversation = tuple[Message, ...]


def marked(text: str) -> Message:
  """A question in which each mark stands for an image or a video."""
  pieces = re.split("(" + "|".join(map(re.escape, MARKED)) + ")", text)
  parts = [
    Part(MARKED[p]) if i % 2 else Part(TEXT, p) for i, p in enumerate(pieces)
  ]
  filled = [p for p in parts if p.kind != TEXT or p.text]
  return Message(USER, tuple(filled))


class Place(NamedTuple):
  """Where an image or video stands: which part of which message it is."""

  message: int
  part: int


Flat = tuple[int | Place, ...]  # ids, and places among them


class Span(NamedTuple):
  """An answer among ids, what ends it included, and the id that ends it.

  `end` is -1 where the answer's own last id ends it, and else an id that the
  template never writes and a model generates all the same.
  """

  start: int
  stop: int
  end: int


class Lesson(NamedTuple):
  """A conversation to learn from.

  Attributes:
    flat: its ids, up to the last that counts.
    spans: of its answers, in order.
  """

  flat: Flat
  spans: tuple[Span, ...]


def plain(role: str, text: str) -> Message:
  """A message of text alone."""
  return Message(role, (Part(TEXT, text),))


def question(text: str, shown: int = 0, kind: str = IMAGE) -> Message:
  """A question after `shown` images or videos."""
  return Message(USER, (*(Part(kind),) * shown, Part(TEXT, text)))


def system(text: str | None) -> Conversation:
  """What a system text adds to the start of a conversation."""
  return () if text is None else (plain(SYSTEM, text),)


def places(talk: Conversation) -> list[Place]:
  """Places of the images and videos of a conversation, in order."""
  return [
    Place(i, j)
    for i, message in enumerate(talk)
    for j, part in enumerate(message.parts)
    if part.kind not in TEXTS
  ]


def common_prefix(flats: Sequence[Sequence[int | Place]]) -> int:
  """How many first items the sequences share."""
  first, *rest = flats
  length = min(map(len, flats))
  for i in range(length):
    if any(other[i] != first[i] for other in rest):
      return i
  return length


def trim_around_images(parts: Sequence[Part]) -> list[Part]:
  """Texts without the white space that sets an image off; OWN is text here."""
  out: list[Part] = []
  for part in parts:
    if part.kind not in TEXTS:
      if out and out[-1].kind == TEXT:
        out[-1] = Part(TEXT, out[-1].text.rstrip())
      out.append(part)
    elif out and out[-1].kind == TEXT:
      out[-1] = Part(TEXT, out[-1].text + part.text)
    else:
      out.append(Part(TEXT, part.text.lstrip() if out else part.text))
  return [p for p in out if p.text or p.kind != TEXT or len(out) == 1]


def images_on_lines(parts: Sequence[Part]) -> list[Part]:
  """Parts with a line break between the images in front and the text."""
  texts = [i for i, part in enumerate(parts) if part.kind in TEXTS]
  first = texts[0] if texts else 0
  text = parts[first].text if parts else ""
  if not first or not text or text.startswith("\n"):
    return list(parts)
  return [*parts[:first], Part(TEXT, "\n" + text), *parts[first + 1 :]]
