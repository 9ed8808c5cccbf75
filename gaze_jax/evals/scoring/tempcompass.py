"""TempCompass without its judge: what its rules don't match is no answer.

lmms-eval has the same rules, so both protocols do.
"""

from collections.abc import Mapping
from typing import Any

from gaze_jax.evals.scoring.verdict import ScoringError
from gaze_jax.evals.scoring.verdict import Verdict

_KINDS = ("Sentence ", "Option ", "Caption ")


def multiple_choice(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The answer's line, or a letter: alone, or first before "." or ")"."""
  answer = reference["answer"]
  if text == answer:
    return Verdict(1.0, text[:1])
  if text[:1] in tuple("ABCD") and text[1:2] in ("", ".", ")"):
    return Verdict(float(text[0] == answer[:1]), text[0])
  return Verdict(0.0, None)


def yes_no(text: str, reference: Mapping[str, Any]) -> Verdict:
  """What the text begins with."""
  lower = text.lower()
  label = next((x for x in ("yes", "no") if lower.startswith(x)), None)
  return Verdict(float(label == reference["answer"]), label)


def caption_matching(text: str, reference: Mapping[str, Any]) -> Verdict:
  """An option as the question writes it, its sentence, or its number.

  Raises:
    ScoringError: an option or the answer has no ": " between these.
  """
  lines = reference["question"].split("\n")[1:]
  options = [_parts(line) for line in lines]
  numbers = [number for number, _ in options]
  short = [_short(number) for number in numbers]
  after = text.split(") ")[1] if ") " in text else None
  # Of several the last: numbers before sentences before lines.
  said = [line for line in lines if line == text]
  said += [one for _, one in options if one in (text, after)]
  bare = text.replace(".", "")
  said += [one for one in (*numbers, *short) if one in (text, bare)]
  if not said:
    return Verdict(0.0, None)
  answer = reference["answer"]
  number, sentence = _parts(answer)
  golds = (answer, answer.split(":")[0], sentence, *number.split()[1:2])
  return Verdict(float(said[-1] in golds), said[-1])


def _parts(line: str) -> tuple[str, str]:
  """The number and the sentence of an option."""
  number, *rest = line.split(": ")
  if not rest:
    raise ScoringError(f"TempCompass: {line!r} is no option with a ': '")
  return number, rest[0]


def _short(number: str) -> str:
  for kind in _KINDS:
    number = number.replace(kind, "")
  return number
