"""MMMU's official rules: its options, and its open questions."""

import ast
import re
from collections.abc import Mapping
from typing import Any

from gaze_jax.evals.scoring import letters
from gaze_jax.evals.scoring.verdict import Verdict

# A form that names an option, and the form whose last place counts among
# several.
Forms = tuple[tuple[str, str], ...]
_OFFICIAL: Forms = (("({})", "({})"), (" {} ", " {} "))
_LMMS: Forms = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))

_BEFORE_ANSWER = (
  *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer "),
  "result ",
)
_TRIVIAL = set(":,.!?;'")
_NUMBERS = (
  r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234
  r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1.5e3
  r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 12, 1.5, .5
)


def multiple_choice(text: str, reference: Mapping[str, Any]) -> Verdict:
  """`(B)`, else a B between spaces, else an option's text; of several the last.

  Options' texts count in predictions of more than five words.
  """
  return letters.verdict(_mentioned(text, reference, _OFFICIAL), reference)


def multiple_choice_lmms(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The same, where a letter may also end a word, or be before a full stop."""
  return letters.verdict(_mentioned(text, reference, _LMMS), reference)


def _mentioned(
  text: str, reference: Mapping[str, Any], forms: Forms
) -> str | None:
  options = reference["options"]
  text, names = f" {letters.trimmed(text)} ", letters.of(options)
  for form, place in forms:
    found = [x for x in names if form.format(x) in text]
    if found:
      return max(found, key=lambda x: text.rfind(place.format(x)))
  if len(text.split()) <= 5:
    return None
  text = text.lower()
  places = {
    name: text.rfind(option.lower())
    for name, option in zip(names, options, strict=True)
    if option.lower() in text
  }
  return max(places, key=places.get, default=None)


def open_question(text: str, reference: Mapping[str, Any]) -> Verdict:
  """A gold text within a candidate, or a gold number among them.

  A gold that is text of a list, as three of the validation split are, is the
  list.
  """
  return _score(text, _golds(reference["answer"]))


def open_question_lmms(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The same, but text of a list is a text."""
  gold = reference["answer"]
  return _score(text, [gold] if isinstance(gold, str) else gold)


def _score(text: str, answers: list[str]) -> Verdict:
  golds = [x for answer in answers for x in _normal(answer)]
  texts = [gold for gold in golds if isinstance(gold, str)]
  found = candidates(text)
  right = any(
    any(gold in x for gold in texts) if isinstance(x, str) else x in golds
    for x in found
  )
  return Verdict(float(right), found)


def _golds(answer: str | list[str]) -> list[str]:
  if isinstance(answer, str) and re.fullmatch(r"\s*\[.*\]\s*", answer, re.S):
    try:
      answer = [str(x) for x in ast.literal_eval(answer.strip())]
    except (ValueError, SyntaxError):
      pass  # a text in square brackets
  return [answer] if isinstance(answer, str) else list(answer)


def candidates(text: str) -> tuple[str | float, ...]:
  """Texts and numbers that may be the answer.

  Lines count as sentences: the official code looks for a capital after a full
  stop, in text that is lower-case by then.
  """
  text = text.strip().strip(".").lower()
  *lines, last = text.split("\n")
  tails = [_tail(line, _BEFORE_ANSWER) for line in lines]
  tails.append(_tail(last, (*_BEFORE_ANSWER, "=")))
  tails = [x for x in tails if x and x not in _TRIVIAL] or [text]
  numbers = [x for y in tails for form in _NUMBERS for x in re.findall(form, y)]
  found = [y for x in [*tails, *numbers] for y in _normal(x)]
  return tuple(dict.fromkeys(found))


def _tail(line: str, before: tuple[str, ...]) -> str:
  """What follows the last of these words, the shortest of them."""
  shortest = ""
  for word in before:
    if word in line:
      tail = line.split(word)[-1].strip()
      if not shortest or len(tail) < len(shortest):
        shortest = tail
  return shortest


def _normal(text: str) -> list[str | float]:
  """A number rounded to 2 decimals, else lower-case text.

  One character is padded, so that it is not found within words.
  """
  text = text.strip()
  try:
    return [round(float(text.replace(",", "")), 2)]
  except ValueError:
    pass
  text = text.lower()
  return [f" {text}", f"{text} "] if len(text) == 1 else [text]
