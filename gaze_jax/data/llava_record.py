"""Reads one record of LLaVA's format: its conversation and names of media."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from gaze_jax.data import json_records
from gaze_jax.data import samples
from gaze_jax.data import skipped
from gaze_jax.data import tokenizer as tokenizer_lib

# Roles and keys, as LLaVA and OpenAI name them.
_USER, _ASSISTANT, _SYSTEM = (
  ("human", "user"),
  ("gpt", "assistant"),
  ("system",),
)
_IMAGES, _VIDEOS = ("image", "images"), ("video", "videos")
_CONVERSATIONS = ("conversations", "messages")
_ROLE, _TEXT = ("from", "role"), ("value", "content")

# Keys under which a record may have media of another kind, and keys of images
# that are not read here.
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

# Keys of an answer that leave it out of the loss, or weigh it otherwise.
_WEIGHTS = ("weight", "loss", "loss_weight", "train", "train_on_turn")

VIDEO = "<video>"
_MARKS = {"image": tokenizer_lib.IMAGE, "video": VIDEO}
_ALMOST = re.compile(r"<\s*/?\s*(?:image|img)\W*\d*\s*>", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Media:
  """Names of what a conversation shows, each kind in the order of its marks."""

  images: tuple[str, ...] = ()
  videos: tuple[str, ...] = ()


def of_record(
  record: json_records.Record,
) -> tuple[samples.Sample, Media]:
  """`read`, of a record of a file.

  Raises:
    SkipError: also where it could not be read as JSON.
  """
  if record.error:
    raise skipped.SkipError("not JSON", record.error)
  try:
    return read(record.value)
  except RecursionError:
    raise skipped.SkipError("not JSON", "it is nested too deep") from None


def read(record: Any) -> tuple[samples.Sample, Media]:
  """Reads a record.

  Keys that are null, empty or NaN are as good as absent. Text of an assistant
  before the first question is left out, as LLaVA's own code does, and so is a
  last question that has no answer.

  Args:
    record: the value of a `json_records.Record`.

  Returns:
    The conversation without its media, and their names.

  Raises:
    SkipError: the record can't be used; a part of it alone never is.
  """
  if not isinstance(record, dict):
    raise skipped.SkipError(
      "not an object", f"{type(record).__name__} instead of an object"
    )
  _refuse_repeated(record, "")
  names = _names(record, _IMAGES), _names(record, _VIDEOS)
  _refuse_media(record, bool(names[0]))
  system, turns, left_out = _read_turns(record)
  questions = [turn.question for turn in turns]
  _refuse_other_mark(questions, names)
  kept = [
    _count(kind, questions, left_out.count(mark), its)
    for (kind, mark), its in zip(_MARKS.items(), names, strict=True)
  ]
  sample = samples.Sample((), conversation=turns, system=system)
  return sample, Media(*map(tuple, kept))


def _refuse_other_mark(
  questions: Sequence[str], names: Sequence[list[str]]
) -> None:
  """A row of one kind of media whose text has the mark of the other."""
  text = "".join(questions)
  given = [kind for kind, its in zip(_MARKS, names, strict=True) if its]
  shown = [kind for kind, mark in _MARKS.items() if mark in text]
  if len(given) == len(shown) == 1 and given != shown:
    (kind,), (other,) = given, shown
    raise skipped.SkipError(
      f"{kind} count",
      f"{_MARKS[other]} in the text, and {kind}s are marked by {_MARKS[kind]}",
    )


def _count(
  kind: str, questions: Sequence[str], left_out: int, names: list[str]
) -> list[str]:
  """The names of media of a kind that the questions show.

  Args:
    kind: of `_MARKS`.
    questions: with marks.
    left_out: marks of a last question that has no answer.
    names: of them all.
  """
  marks = sum(text.count(_MARKS[kind]) for text in questions)
  if len(names) not in (marks, marks + left_out):
    raise skipped.SkipError(
      f"{kind} count",
      _miscount(kind, questions, marks + left_out, len(names)),
    )
  return names[:marks]


def _miscount(
  kind: str, questions: Sequence[str], marks: int, names: int
) -> str:
  mark = _MARKS[kind]
  counts = f"{marks} {mark} in the text for {names} {kind}s"
  if marks and not names:
    return f"{counts}; {mark} can't be written as literal text"
  almost = [m[0] for text in questions for m in _ALMOST.finditer(text)]
  almost = [mark for mark in almost if mark != tokenizer_lib.IMAGE]
  return f"{counts}; {almost[0]} is no mark" if almost else counts


def _read_turns(
  record: dict[Any, Any],
) -> tuple[str | None, tuple[samples.Turn, ...], str]:
  """System text, turns, and the text of a last question that is left out."""
  if not any(key in record for key in _CONVERSATIONS):
    raise skipped.SkipError("absent key", f"no {' or '.join(_CONVERSATIONS)}")
  listed = _value_of(record, _CONVERSATIONS)
  if not isinstance(listed, list):
    raise skipped.SkipError("odd turns", "conversations is not a list of turns")
  turns = [(i, _role(i, turn), turn) for i, turn in enumerate(listed)]
  system = _value_of(record, _SYSTEM)
  if system is not None:
    system = _checked_text(system, "the system text")
  if turns[0][1] in _SYSTEM:
    first = _text(*turns.pop(0), empty=True)
    if first and system not in (None, first):
      raise skipped.SkipError(
        "two keys", "system and turn 0 from 'system' differ"
      )
    system = first or system
  while turns and turns[0][1] in _ASSISTANT:
    turns.pop(0)
  left_out = ""
  if turns and turns[-1][1] in _USER:
    last = _value_of(turns.pop()[2], _TEXT)
    left_out = last if isinstance(last, str) else ""
  if not turns:
    raise skipped.SkipError(
      "odd turns", "there is no question that has an answer"
    )
  for at, (i, role, _) in enumerate(turns):
    if role not in (_USER, _ASSISTANT)[at % 2]:
      after = f", after one from {turns[at - 1][1]!r}" if at else ""
      raise skipped.SkipError("odd turns", f"turn {i} is from {role!r}{after}")
  texts = [_text(*turn) for turn in turns]
  for i, _, turn in turns[1::2]:
    _refuse_weighted(i, turn)
  pairs = zip(texts[::2], texts[1::2], strict=True)
  return system, tuple(samples.Turn(q, a.strip()) for q, a in pairs), left_out


def _role(i: int, turn: Any) -> str:
  if not isinstance(turn, dict):
    raise skipped.SkipError("not an object", f"turn {i} is not an object")
  _refuse_repeated(turn, f"turn {i}: ")
  role = _value_of(turn, _ROLE, f"turn {i}: ")
  if role is None:
    raise skipped.SkipError("absent key", f"turn {i} has no 'from'")
  known = (*_USER, *_ASSISTANT, *_SYSTEM)
  if not isinstance(role, str) or role.lower() not in known:
    raise skipped.SkipError(
      "odd turns",
      f"turn {i} is from {str(role)[:40]!r}; known are human, gpt and system",
    )
  return role.lower()


def _text(i: int, role: str, turn: dict, empty: bool = False) -> str:
  """The text of a turn; a question may be pictures alone."""
  if not any(key in turn for key in _TEXT):
    raise skipped.SkipError("absent key", f"turn {i} has no 'value'")
  text = _value_of(turn, _TEXT, f"turn {i}: ")
  text = "" if text is None else _checked_text(text, f"the value of turn {i}")
  bare = text.replace(tokenizer_lib.IMAGE, "").replace(VIDEO, "").strip()
  if not (bare or empty or (text and role in _USER)):
    raise skipped.SkipError("empty turn", f"turn {i} has no text")
  return text


def _refuse_weighted(i: int, turn: dict[Any, Any]) -> None:
  """Refuses an answer that is not to be learned as all others are."""
  for key in _WEIGHTS:
    value = turn.get(key)
    if not _empty(value) and value != 1:
      raise skipped.SkipError(
        "answer weight",
        f"turn {i} has {key!r}: {str(value)[:40]}, and every answer of a"
        " conversation is learned alike: take the key out, or the turns",
      )


def _checked_text(text: Any, what: str) -> str:
  if not isinstance(text, str):
    kind, remedy = type(text).__name__, "write it in quotes"
    if isinstance(text, (list, dict)):
      remedy = "write it as one text, with <image> where an image is"
    raise skipped.SkipError(
      "not a text", f"{what} is of type {kind}, not a text: {remedy}"
    )
  if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
    raise skipped.SkipError("not a text", f"{what} holds half a surrogate pair")
  return text


def _names(record: dict[Any, Any], keys: Sequence[str]) -> list[str]:
  """The names under some keys, of which each may be a name or a list."""
  found: dict[str, list[str]] = {}
  for key in keys:
    if _empty(record.get(key)):
      continue
    names = [record[key]] if isinstance(record[key], str) else record[key]
    if not isinstance(names, list) or not all(
      isinstance(n, str) and n.strip() for n in names
    ):
      raise skipped.SkipError(
        "not a text",
        f"{key} is neither a name nor a list of names: write each {keys[0]} to"
        " a file, and its name here",
      )
    found[key] = names
  names = list(found.values())
  if len(names) == 2 and names[0] != names[1]:
    kind = "pictures" if keys == _IMAGES else "videos"
    raise skipped.SkipError(
      "two keys", f"{' and '.join(keys)} name different {kind}"
    )
  return names[0] if names else []


def _refuse_media(record: dict[Any, Any], has_images: bool) -> None:
  """Refuses media that are not read: the answer would be learned blind."""
  for key, value in record.items():
    if key in (*_IMAGES, *_VIDEOS) or not isinstance(key, str) or _empty(value):
      continue
    if not isinstance(value, (str, list, dict)):
      continue
    for kind, names in _MEDIA.items():
      if names.fullmatch(key):
        raise skipped.SkipError(
          kind,
          f"the record has {key!r}; images are read under 'image', videos under"
          " 'video', and no other medium",
        )
    if not has_images and _PICTURE.fullmatch(key):
      raise skipped.SkipError(
        "image key", f"the record has {key!r}; images are read under 'image'"
      )


def _refuse_repeated(table: dict[Any, Any], where: str) -> None:
  if repeated := table.get(json_records.REPEATED):
    raise skipped.SkipError(
      "two keys", f"{where}{repeated[0]!r} is there twice, and differs"
    )


def _value_of(
  table: dict[Any, Any], keys: Sequence[str], where: str = ""
) -> Any | None:
  """The value of keys that mean the same; None where all are empty."""
  filled = [table[key] for key in keys if not _empty(table.get(key))]
  if any(value != filled[0] for value in filled):
    raise skipped.SkipError("two keys", f"{where}{' and '.join(keys)} differ")
  return filled[0] if filled else None


def _empty(value: Any) -> bool:
  """Null, as tables write it: also "", [], [null] and NaN."""
  if isinstance(value, list):
    return all(one is None or one == "" for one in value)
  if isinstance(value, str):
    return not value.strip()
  return value is None or value != value or value == {}
