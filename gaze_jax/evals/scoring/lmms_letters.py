"""Which option a prediction names to lmms-eval 0.7.3: protocol "lmms".

Where it guesses at random, there is no letter.
"""

import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from gaze_jax.evals.scoring import letters
from gaze_jax.evals.scoring import mmmu
from gaze_jax.evals.scoring.verdict import Verdict
from gaze_jax.evals.scoring.verdict import one_of

# What a letter stands in, and how much that counts. Apart from these: at the
# text's beginning 10, at its end 9, after a phrase 7, anywhere else 0.
_FORMS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
_PHRASES = (
  *(
    f"{article}{noun} is"
    for article in ("the ", "")
    for noun in (
      *("answer", "correct answer", "best answer", "choice"),
      *("correct option", "best option", "correct choice"),
    )
  ),
  *("i choose", "i select", "i pick", "my answer is", "my choice is"),
  *("옵션", "정답은", "답은", "답:"),
  *("答案是", "答案为", "选", "答えは"),
)
_MMVP = (
  re.compile(r"^\(?([AB])\)?(?:[.\s]|$)", re.I),
  re.compile(r"answer\s+is\s+\(?([AB])", re.I),
  re.compile(r"option\s+\(?([AB])", re.I),
  re.compile(r"([AB])\)?(?:\s|$)", re.I),  # the end of any word
  re.compile(r"^([AB])", re.I),
)
_CV_BENCH = re.compile(r"[(\s]*([A-Z])", re.I)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# What MMBench's script finds around a letter that is a word, in its order.
_DECORATED = (
  *(("", after) for after in ("", ".", ",", ":", ")", ").")),
  *(("(", after) for after in (")", ").")),
  *((":", after) for after in ("", ",", ".", ")", ").")),
)


def shared(text: str, names: str) -> str | None:
  """The extractor that several tasks share.

  Of the places where letters stand, the form that counts most wins; among
  equals, the last.
  """
  for mark in ",.!?;:'\"":
    text = text.strip(mark)
  bare, text = text.strip(), f" {text} "
  places = [
    (rank, text.rfind(form.format(x)), x)
    for form, rank in _FORMS
    for x in names
    if form.format(x) in text
  ]
  lower = text.lower()
  for phrase in _PHRASES:
    if (at := lower.find(phrase)) >= 0:
      after = at + len(phrase)
      found = [(7, text.find(x, after), x) for x in names]
      places += [place for place in found if place[1] >= 0]
  if bare and bare[0] in names and not bare[1:2].isalpha():
    places.append((10, 0, bare[0]))
  if bare and bare[-1] in names and not bare[-2:-1].isalpha():
    places.append((9, len(text), bare[-1]))
  if not places:
    places = [(0, text.rfind(x), x) for x in names if x in text]
  return max(places)[2] if places else None


def realworldqa(text: str, reference: Mapping[str, Any]) -> Verdict:
  answer = reference["answer"].strip()
  if answer.upper() in ("A", "B", "C", "D"):
    return letters.verdict(shared(text, "ABCD"), reference)
  plain = text.lower().rstrip(".")
  return Verdict(float(plain == answer.lower()), plain)


def mmvp(text: str, reference: Mapping[str, Any]) -> Verdict:
  """Also a letter after "option", at the end of any word, or first in one."""
  found = next((m for form in _MMVP if (m := form.search(text))), None)
  letter = found[1].upper() if found else None
  return letters.verdict(letter, {"answer": reference["Correct Answer"]})


def scienceqa(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The letter alone in either case, or an upper-case one and a full stop."""
  alone = len(text) == 1 or (text[:1].isupper() and text[1:2] == ".")
  letter = text[0].upper() if alone else None
  known = letter and letter in letters.of(reference["choices"])
  return letters.verdict(letter if known else None, reference)


def videomme(text: str, reference: Mapping[str, Any]) -> Verdict:
  return letters.verdict(shared(text, "ABCD") or "", reference)


def mlvu(text: str, reference: Mapping[str, Any]) -> Verdict:
  return letters.candidate(shared(text, "ABCD"), reference)


def mc5(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The rule of `reference["dataset"]`, or else NExT-QA's, which is MMMU's.

  Raises:
    ScoringError: a data set that has no rule here.
  """
  dataset = reference.get("dataset", "nextqa")
  one_of("data set", dataset, _MC5)
  return letters.verdict(_MC5[dataset](text, reference), reference)


def mmbench(text: str, reference: Mapping[str, Any]) -> Verdict:
  """One letter among the words; else one option's text; else `shared`.

  There are four options always: one that is not there is called "nan".
  """
  options = [str(option) for option in reference["options"]]
  options += ["nan"] * (4 - len(options))
  names, lower = letters.of(options), text.lower()
  named = zip(names, options, strict=True)
  told = [x for x, option in named if option.lower() in lower]
  letter = _one_word(text) or (told[0] if len(told) == 1 else None)
  return letters.verdict(letter or shared(text, names), reference)


def _one_word(text: str) -> str | None:
  """The letter that alone stands among the words, in the first form of it.

  "A" may be an article in a text of more than three words.
  """
  words = text.split()
  for before, after in _DECORATED:
    found = [x for x in "ABCDE" if f"{before}{x}{after}" in words]
    article = not before + after and "A" in words and len(words) > 3
    if len(found) == 1 and not article:
      return found[0]
  return None


def cv_bench(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The first character, of either case, after brackets and spaces."""
  found = _CV_BENCH.match(text)
  return letters.verdict(found[1].upper() if found else None, reference)


def _nextqa(text: str, reference: Mapping[str, Any]) -> str | None:
  return mmmu.multiple_choice_lmms(text, reference).parsed


def _egoschema(text: str, reference: Mapping[str, Any]) -> str | None:
  """The first of all forms' last places; else of options' texts."""
  text = f" {letters.trimmed(text)} "
  names = letters.of(reference["options"])
  places = [
    (text.rfind(name), x)
    for form in ("({})", "{} ", "{}.")
    for x in names
    if (name := form.format(x)) in text
  ]
  if not places and len(text.split()) > 5:
    lower = text.lower()
    places = [
      (lower.rfind(option.lower()), x)
      for x, option in zip(names, reference["options"], strict=True)
      if option.lower() in lower
    ]
  return min(places)[1] if places else None


def _longvideobench(text: str, reference: Mapping[str, Any]) -> str | None:
  return letters.first(text, "ABCDE")


def _ai2d(text: str, reference: Mapping[str, Any]) -> str | None:
  """An upper-case letter and a full stop, else nothing but a letter."""
  leads = re.match(r"([A-Z])\.", text)
  letter = leads[1] if leads else text.translate(_NO_PUNCTUATION)
  return _known(letter, reference)


def _seed(text: str, reference: Mapping[str, Any]) -> str | None:
  """The first character."""
  return _known(text[:1], reference)


def _known(letter: str, reference: Mapping[str, Any]) -> str | None:
  letter = letter.upper()
  return letter if letter in set(letters.of(reference["options"])) else None


_MC5: dict[str, Callable[[str, Mapping[str, Any]], str | None]] = {
  "nextqa": _nextqa,
  "egoschema": _egoschema,
  "longvideobench": _longvideobench,
  "ai2d": _ai2d,
  "seed": _seed,
}
