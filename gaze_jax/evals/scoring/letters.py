"""Which option a prediction names, under protocol "default".

Letters are upper-case and stand by themselves unless a function says otherwise.
"""

import re
import string
from collections.abc import Collection, Mapping
from typing import Any

from gaze_jax.evals.scoring.verdict import ScoringError
from gaze_jax.evals.scoring.verdict import Verdict

# The eight of Video-MME's script, which LongVideoBench's took over.
_PREFIXES = (
  *("The best answer is", "The correct answer is", "The answer is"),
  *("The answer", "The best option is", "The correct option is"),
  *("Best answer:", "Best option:"),
)
# Alone, before a bracket, or before a mark that ends a word.
_LEADING = re.compile(r"\(?([A-Z])(?:$|\)|[.:](?:\s|$))")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_BEFORE_BRACKET = re.compile(r"\b([A-Z])\)")
_ANSWER_IS = re.compile(r"(?i:answer is):?\s+\(?([A-Z])\b")
_MMVP = (
  re.compile(r"^\(?([AB])\)?(?:[.\s]|$)", re.I),
  re.compile(r"\banswer is:?\s+\(?([AB])\b", re.I),
  re.compile(r"\(([AB])\)", re.I),
)
_SCIENCE_QA = re.compile(r"The answer is ([A-Z])\.")


def of(options: Collection[Any]) -> str:
  """The letters of these options."""
  return string.ascii_uppercase[: len(options)]


def leading(text: str, letters: str) -> str | None:
  """The letter that a text begins with: `B`, `B.`, `B: x`, `(B) x`, `B) x`."""
  found = _LEADING.match(text)
  return found[1] if found and found[1] in letters else None


def bracketed(text: str, letters: str) -> list[str]:
  """The letters in brackets, in their order."""
  return [x for x in _BRACKETED.findall(text) if x in letters]


def trimmed(text: str) -> str:
  """Without marks at its ends, one kind after the other (MMMU's first step)."""
  for mark in ",.!?;:'":
    text = text.strip(mark)
  return text


def first(text: str, letters: str) -> str | None:
  """The first of these letters after Video-MME's prefixes went, in words too.

  The script's words "more than ten words and no letter" need no rule of their
  own: then there is no first letter.
  """
  for prefix in _PREFIXES:
    text = text.replace(prefix, "")
  found = re.search(f"[{letters}]", text)
  return found[0] if found else None


def gold(reference: Mapping[str, Any]) -> str | None:
  """The letter of `answer`: a letter, in brackets or not, or a 0-based index.

  Raises:
    ScoringError: an answer that is neither.
  """
  answer = reference.get("answer")
  if answer is None:
    return None
  plain = str(answer).strip().strip("()").upper()
  if plain.isdecimal() and int(plain) < len(string.ascii_uppercase):
    return string.ascii_uppercase[int(plain)]
  if len(plain) == 1 and plain in string.ascii_uppercase:
    return plain
  raise ScoringError(f"answer {answer!r} is neither a letter nor an index")


def verdict(letter: str | None, reference: Mapping[str, Any]) -> Verdict:
  """Right if it is the letter of `answer`; wrong if there is no `answer`."""
  right = gold(reference)
  return Verdict(float(right is not None and letter == right), letter)


def realworldqa(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The first letter if the gold is one of A to D; else an equal answer."""
  answer = reference["answer"].strip()
  if answer.upper() in ("A", "B", "C", "D"):
    found = re.search(r"\b[A-D]\b", text)
    return verdict(found[0] if found else None, reference)
  plain = lambda x: x.lower().rstrip(".")
  return Verdict(float(plain(text) == plain(answer)), plain(text))


def mmvp(text: str, reference: Mapping[str, Any]) -> Verdict:
  """A or B of either case: first in the text, after "answer is", in brackets.

  The text of an option is no answer, nor is a letter within a word.
  """
  found = next((m for form in _MMVP if (m := form.search(text))), None)
  letter = found[1].upper() if found else None
  return verdict(letter, {"answer": reference["Correct Answer"]})


def scienceqa(text: str, reference: Mapping[str, Any]) -> Verdict:
  """LLaVA's rule: `B`, `B. x`, or one "The answer is B." with its full stop."""
  letters = of(reference["choices"])
  found = _SCIENCE_QA.findall(text)
  letter = None
  if text in letters and len(text) == 1:
    letter = text
  elif text[1:3] == ". " and text[0] in letters:
    letter = text[0]
  elif len(found) == 1 and found[0] in letters:
    letter = found[0]
  return verdict(letter, reference)


def videomme(text: str, reference: Mapping[str, Any]) -> Verdict:
  """Video-MME's rule: the first of A to D, or ""."""
  return verdict(first(text, "ABCD") or "", reference)


def mlvu(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The last letter before a closing bracket, else the one at the beginning.

  The prompt ends with "Best option: (", so `B) Red` is an answer.
  """
  letters = of(reference["candidates"])
  found = [x for x in _BEFORE_BRACKET.findall(text) if x in letters]
  return candidate(found[-1] if found else leading(text, letters), reference)


def candidate(letter: str | None, reference: Mapping[str, Any]) -> Verdict:
  """Right if it is the letter of any candidate with the gold's text."""
  texts = zip(of(reference["candidates"]), reference["candidates"], strict=True)
  golds = [x for x, text in texts if text == reference["answer"]]
  return Verdict(float(letter in golds), letter)


def mc5(text: str, reference: Mapping[str, Any]) -> Verdict:
  """A letter at the beginning, after "the answer is" or in brackets.

  Else, in more than five words, the one option whose text stands there. Of
  several letters, or several options, none is the answer.
  """
  options = reference["options"]
  letters = of(options)
  named = {leading(text, letters), *_ANSWER_IS.findall(text)} & set(letters)
  named |= set(bracketed(text, letters))
  if not named and len(trimmed(text).split()) > 5:
    named = {
      letter
      for letter, option in zip(letters, options, strict=True)
      if option.lower() in text.lower()
    }
  return verdict(named.pop() if len(named) == 1 else None, reference)


def cv_bench(text: str, reference: Mapping[str, Any]) -> Verdict:
  """`mc5` of CV-Bench's columns."""
  return mc5(text, {**reference, "options": reference["choices"]})
