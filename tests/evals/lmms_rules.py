"""Why scores under "default" differ from lmms-eval's, for lmms_parity.py."""

import re
import string
from collections.abc import Callable
from typing import Any

import lmms_inputs

from gaze_jax.evals import scoring

Reference = lmms_inputs.Reference
Why = Callable[[str, Reference, scoring.Verdict, scoring.Verdict], bool]


# What Video-MME's script takes away before it looks for a letter.
_LEAD = re.compile(
  "The (?:best|correct) (?:answer|option) is|The answer(?: is)?"
  "|Best (?:answer|option):"
)


def alone(letter: str, text: str) -> bool:
  return bool(re.search(rf"\b[{letter}{letter.lower()}]\b", text))


def letters_of(text: str) -> set[str]:
  return set(re.findall(r"\b[A-E]\b", text))


def gold_has(*marks: str) -> Why:
  return lambda text, ref, ours, lmms: any(x in ref["answer"] for x in marks)


def no_form(*forms: str) -> Why:
  """No answer, as none of these is in the text; X stands for a letter."""

  def holds(text: str, ref: Reference, ours: Any, lmms: Any) -> bool:
    keys = ("options", "choices", "candidates")
    options = next((ref[key] for key in keys if key in ref), "ABCD")
    names = f"[{'ABCDEFGHI'[: len(options)]}]"
    found = any(re.search(form.replace("X", names), text) for form in forms)
    return ours.parsed in (None, "") and not found

  return holds


# Alone, before a bracket, or before a mark that ends a word.
_FIRST = r"^\(?X(?:$|\)|[.:](?:\s|$))"
_MMVP = (
  r"(?i)^\(?[AB]\)?(?:[.\s]|$)",
  r"(?i)\banswer is:?\s+\(?[AB]\b",
  r"(?i)\([AB]\)",
)
_FORMS = (_FIRST, r"(?i:answer is):?\s+\(?X\b", r"\(X\)")


def reads(holds: Callable[[str], bool], label: str) -> Why:
  """A text of some kind is read as a label."""
  return lambda text, ref, ours, lmms: holds(text) and ours.parsed == label


def pope_no(text: str) -> bool:
  """LLaVA: one of three words in the first sentence, without its commas."""
  first = text.replace(",", "").partition(".")[0]
  return bool(re.search(r"(?<!\S)(No|no|not)(?!\S)", first))


def spaced(text: str, options: list[str]) -> str | None:
  """MMMU: the last letter between spaces, else the last option's text."""
  for mark in ",.!?;:'":
    text = text.strip(mark)
  names = "ABCDEFGHI"[: len(options)]
  found = re.findall(rf"(?<= )[{names}](?= )", f" {text} ")
  if found:
    return found[-1]
  lower = text.lower()
  places = {
    x: lower.rfind(o.lower()) for x, o in zip(names, options, strict=True)
  }
  best = max(places.values(), default=-1)
  if len(text.split()) <= 5 or best < 0:
    return None
  return next(x for x, place in places.items() if place == best)


def several(text: str, ref: Reference, ours: Any, lmms: Any) -> bool:
  return len(letters_of(text)) > 1


def several_are_none(text: str, ref: Reference, ours: Any, lmms: Any) -> bool:
  return ours.parsed is None and len(letters_of(text)) > 1


def many_words(text: str, *_: Any) -> bool:
  return len(text.split()) > 5


def within_word(text: str, ref: Reference, ours: Any, lmms: Any) -> bool:
  return bool(lmms.parsed) and not alone(lmms.parsed, text)


def says(pattern: str) -> Why:
  return lambda text, *_: bool(re.search(pattern, text, re.S))


def is_kind(kind: str) -> Why:
  return lambda text, ref, *_: ref["answer_type"] == kind


def many_stops(text: str, *_: Any) -> bool:
  return text.count(".") > 32


def blank(text: str, *_: Any) -> bool:
  return not text


_ANY_PUNCTUATION = f"[{re.escape(string.punctuation)}]"
_WIDE = "[\uff01-\uff5e\u3000]"
# By metric, the first that applies.
RULES: dict[str, tuple[tuple[str, Why], ...]] = {
  "textvqa": (
    ("full stops past the 32nd go too", many_stops),
    ("nothing is no answer", blank),
  ),
  "gqa": (
    ("nothing is no answer", blank),
    ("marks within an answer count", says(_ANY_PUNCTUATION)),
    (
      "marks within a gold count",
      lambda t, ref, *_: bool(re.search(_ANY_PUNCTUATION, ref["answer"])),
    ),
  ),
  "realworldqa": (
    ("a gold's full stop goes too", gold_has(".")),
    ("a letter stands alone", within_word),
    ("no letter, no answer", no_form(r"\bX\b")),
    ("the first letter", several),
  ),
  "mmmu_open": (("text of a list is a list", gold_has("[")),),
  "anls": (
    ("nothing is no answer", blank),
    (
      "the length is of the normal form",
      lambda text, ref, *_: any(
        " ".join(x.split()).upper() != " ".join(x.lower().split())
        or len(x.upper()) != len(" ".join(x.lower().split()))
        for x in (text, *ref["answers"])
      ),
    ),
  ),
  "ocrbench": (
    ("full width stays", says(_WIDE)),
    (
      "full width of a gold stays",
      lambda t, ref, *_: bool(re.search(_WIDE, "".join(ref["answer"]))),
    ),
  ),
  "mme_label": (
    ("y and n are no labels", says(r"^\.*[yYnN]\.*$")),
    ("full stops are characters", says(r"\.")),
  ),
  "pope_label": (
    ("no, No or not in the first sentence", reads(pope_no, "no")),
    (
      "all else is yes",
      lambda text, *rest: (
        not pope_no(text) and reads(lambda _: True, "yes")(text, *rest)
      ),
    ),
  ),
  "mmvp": (
    ("a letter stands alone", within_word),
    ("the forms of a letter", no_form(*_MMVP)),
    ("the first form", says(r"\([abAB]\)|answer is")),
  ),
  "scienceqa": (
    ("`b` and `B.` are no answers", says(r"^([a-z]|[A-Z]\.)$")),
    ("a space after `B.`", says(r"^[A-Z]\.\S")),
    ("The answer is B.", says(r"The answer is [A-Z]\.")),
    ("a letter by itself", says(r"^[A-Z]\.\s")),
  ),
  "videomme_letter": (
    (
      "the first of A to D, in words too",
      lambda text, r, ours, l: (
        ours.parsed == (re.findall("[A-D]", _LEAD.sub("", text)) or [""])[0]
      ),
    ),
  ),
  "mlvu": (
    ("a letter stands alone", within_word),
    ("the forms of a letter", no_form(_FIRST, r"\bX\)")),
    ("the last letter before a bracket", says(r"[A-D]\)")),
    ("the letter at the beginning", says(r"^\(?[A-D]")),
  ),
  "mmmu_mc": (
    (
      "between spaces: not at a word's end, not `B.`",
      lambda text, ref, ours, l: ours.parsed == spaced(text, ref["options"]),
    ),
  ),
  "mc5": (
    ("a letter stands alone", within_word),
    ("several are none", several_are_none),
    ("the forms of a letter", no_form(*_FORMS)),
    ("the letter at the beginning", says(r"^\(?[A-I]([).:]|$)")),
    ("after `answer is`, then in brackets", says(r"(?i)answer is|\([A-I]\)")),
    ("an option's text in more than five words", many_words),
  ),
  "mathvista": (
    ("nothing is no answer", blank),
    ("`precision` is cast", is_kind("float")),
    ("a bracketed letter is an option's", says(r"\([a-zA-Z]\)")),
    ("a letter at the beginning", says(r"^\(?[A-Z]([).:]|$)")),
  ),
  "mmbench": (
    ("a letter stands alone", within_word),
    ("several are none", several_are_none),
    ("the forms of a letter", no_form(*_FORMS)),
    ("the letter at the beginning", says(r"^\(?[A-D]([).:]|$)")),
    ("after `answer is`, then in brackets", says(r"(?i)answer is|\([A-D]\)")),
    ("an option's text in more than five words", many_words),
  ),
  "cv_bench": (
    ("only a letter that stands alone", within_word),
    ("several are none", several_are_none),
    ("the forms of a letter", no_form(*_FORMS)),
    ("after `answer is`, then in brackets", says(r"(?i)answer is|\([A-F]\)")),
    ("an option's text in more than five words", many_words),
  ),
}
