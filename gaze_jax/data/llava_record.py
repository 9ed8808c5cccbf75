"""A record in LLaVA's format: its turns, and the names of its pictures."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from gaze_jax.data import json_rows
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib

# Who speaks, by the names that LLaVA and OpenAI give them.
_ASKS, _ANSWERS, _SYSTEM = ("human", "user"), ("gpt", "assistant"), ("system",)
_IMAGES = ("image", "images")
_CONVERSATIONS = ("conversations", "messages")
_WHO, _TEXT = ("from", "role"), ("value", "content")

# Keys under which a record may bring along more than pictures, by what that is,
# and those of pictures that are not read here.
_FILE = "s?([ _-]?(path|file|name|url|uri|byte|list)s?)*"
_MEDIA = {
  kind: re.compile(f"({names}){_FILE}", re.IGNORECASE)
  for kind, names in dict(
    video="video|clip|film|movie|frame|gif",
    audio="audio|sound|speech|voice|music",
    document="document|doc|pdf",
    cloud="point[ _-]?cloud|mesh",
  ).items()
}
_PICTURE = re.compile(f"(image|img|picture|pic|photo|file|media){_FILE}", re.I)

_VIDEO = "<video>"
_ALMOST = re.compile(r"<\s*/?\s*(?:image|img)\W*\d*\s*>", re.IGNORECASE)


class SkipError(Exception):
  """A record that can't be used.

  Attributes:
    reason: the kind of reason, in a word or two.
  """

  def __init__(self, reason: str, detail: str):
    super().__init__(detail)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Record:
  """One conversation.

  Attributes:
    turns: its questions and answers, at least one.
    images: names of the pictures of the questions, in order.
    system: the text of its system turn, if it has one.
  """

  turns: tuple[samples.Turn, ...]
  images: tuple[str, ...]
  system: str | None


def read(record: Any) -> Record:
  """Reads a record.

  Keys that are null, empty or NaN are as good as absent. What an assistant says
  before the first question is left out, as LLaVA's own code does, and so is a
  last question that has no answer.

  Args:
    record: as `json_rows` reads it.

  Raises:
    SkipError: the record can't be used; nothing of it is taken for text alone.
  """
  if not isinstance(record, dict):
    raise SkipError(
      "not an object", f"{type(record).__name__} instead of an object"
    )
  _refuse_twice(record, "")
  names = _image_names(record)
  _refuse_media(record, bool(names))
  system, turns, left = _read_turns(record)
  questions = [turn.question for turn in turns]
  if any(_VIDEO in text for text in questions):
    raise SkipError(
      "video",
      f"{_VIDEO} in the text: no video trains yet, and {_VIDEO} can't be"
      " written as text",
    )
  marks = sum(text.count(tokenizer_lib.IMAGE) for text in questions)
  if len(names) not in (marks, marks + left):
    raise SkipError(
      "image count", _miscounted(questions, marks + left, len(names))
    )
  return Record(turns, tuple(names[:marks]), system)


def _miscounted(questions: Sequence[str], marks: int, names: int) -> str:
  counts = f"{marks} <image> in the text for {names} images"
  if marks and not names:
    return f"{counts}; <image> can't be written as literal text"
  almost = [m[0] for text in questions for m in _ALMOST.finditer(text)]
  almost = [mark for mark in almost if mark != tokenizer_lib.IMAGE]
  return f"{counts}; {almost[0]} is no mark" if almost else counts


def _read_turns(
  record: dict[Any, Any],
) -> tuple[str | None, tuple[samples.Turn, ...], int]:
  """System text, turns, and the marks of a last question left out."""
  if not any(key in record for key in _CONVERSATIONS):
    raise SkipError("absent key", f"no {' or '.join(_CONVERSATIONS)}")
  listed = _given(record, _CONVERSATIONS)
  if not isinstance(listed, list):
    raise SkipError("odd turns", "conversations is not a list of turns")
  turns = [(i, _who(i, turn), turn) for i, turn in enumerate(listed)]
  system = _given(record, _SYSTEM)
  if system is not None:
    system = _checked(system, "the system text")
  if turns[0][1] in _SYSTEM:
    first = _text(*turns.pop(0), empty=True)
    if first and system not in (None, first):
      raise SkipError("two keys", "system and turn 0 from 'system' differ")
    system = first or system
  while turns and turns[0][1] in _ANSWERS:
    turns.pop(0)
  left = 0
  if turns and turns[-1][1] in _ASKS:
    last = _given(turns.pop()[2], _TEXT)
    left = last.count(tokenizer_lib.IMAGE) if isinstance(last, str) else 0
  if not turns:
    raise SkipError("odd turns", "there is no question that has an answer")
  for at, (i, who, _) in enumerate(turns):
    if who not in (_ASKS, _ANSWERS)[at % 2]:
      after = f", after one from {turns[at - 1][1]!r}" if at else ""
      raise SkipError("odd turns", f"turn {i} is from {who!r}{after}")
  texts = [_text(*turn) for turn in turns]
  pairs = zip(texts[::2], texts[1::2], strict=True)
  return system, tuple(samples.Turn(q, a.strip()) for q, a in pairs), left


def _who(i: int, turn: Any) -> str:
  if not isinstance(turn, dict):
    raise SkipError("not an object", f"turn {i} is not an object")
  _refuse_twice(turn, f"turn {i}: ")
  who = _given(turn, _WHO, f"turn {i}: ")
  if who is None:
    raise SkipError("absent key", f"turn {i} has no 'from'")
  if not isinstance(who, str) or who.lower() not in _ASKS + _ANSWERS + _SYSTEM:
    raise SkipError(
      "odd turns",
      f"turn {i} is from {str(who)[:40]!r}; known are human, gpt and system",
    )
  return who.lower()


def _text(i: int, who: str, turn: dict, empty: bool = False) -> str:
  """The text of a turn; a question may be pictures alone."""
  if not any(key in turn for key in _TEXT):
    raise SkipError("absent key", f"turn {i} has no 'value'")
  text = _given(turn, _TEXT, f"turn {i}: ")
  text = "" if text is None else _checked(text, f"the value of turn {i}")
  bare = text.replace(tokenizer_lib.IMAGE, "").strip()
  if not (bare or empty or (text and who in _ASKS)):
    raise SkipError("empty turn", f"turn {i} says nothing")
  return text


def _checked(text: Any, what: str) -> str:
  if not isinstance(text, str):
    raise SkipError("not a text", f"{what} is not a text")
  if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
    raise SkipError("not a text", f"{what} holds half a surrogate pair")
  return text


def _image_names(record: dict[Any, Any]) -> list[str]:
  found: dict[str, list[str]] = {}
  for key in _IMAGES:
    if _empty(record.get(key)):
      continue
    names = [record[key]] if isinstance(record[key], str) else record[key]
    if not isinstance(names, list) or not all(
      isinstance(n, str) and n.strip() for n in names
    ):
      raise SkipError(
        "not a text", f"{key} is neither a name nor a list of names"
      )
    found[key] = names
  names = list(found.values())
  if len(names) == 2 and names[0] != names[1]:
    raise SkipError("two keys", "image and images name different pictures")
  return names[0] if names else []


def _refuse_media(record: dict[Any, Any], pictures: bool) -> None:
  """Refuses what would be learned without having been seen or heard."""
  for key, value in record.items():
    if key in _IMAGES or not isinstance(key, str) or _empty(value):
      continue
    if not isinstance(value, (str, list, dict)):
      continue
    for kind, names in _MEDIA.items():
      if names.fullmatch(key):
        raise SkipError(
          kind, f"the record has {key!r}, and pictures alone are read yet"
        )
    if not pictures and _PICTURE.fullmatch(key):
      raise SkipError(
        "image key", f"the record has {key!r}; pictures stand under 'image'"
      )


def _refuse_twice(table: dict[Any, Any], where: str) -> None:
  if twice := table.get(json_rows.TWICE):
    raise SkipError(
      "two keys", f"{where}{twice[0]!r} stands there twice, and differs"
    )


def _given(
  table: dict[Any, Any], keys: Sequence[str], where: str = ""
) -> Any | None:
  """The value of keys that mean the same; None where all are empty."""
  filled = [table[key] for key in keys if not _empty(table.get(key))]
  if any(value != filled[0] for value in filled):
    raise SkipError("two keys", f"{where}{' and '.join(keys)} differ")
  return filled[0] if filled else None


def _empty(value: Any) -> bool:
  """Null, as tables write it: also "", [], [null] and NaN."""
  if isinstance(value, list):
    return all(one is None or one == "" for one in value)
  if isinstance(value, str):
    return not value.strip()
  return value is None or value != value or value == {}
