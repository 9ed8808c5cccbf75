"""MathVista's official rules, without the judge that reads an answer out."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from gaze_jax.evals.scoring import anls
from gaze_jax.evals.scoring import letters
from gaze_jax.evals.scoring.verdict import Verdict


def default(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The prediction in the form of the gold, compared as text.

  A choice is named by a letter in brackets, else by a letter at the beginning,
  else the choice with the nearest text is meant.
  """
  return _score(text, reference, choose=_choose, cast=int)


def lmms(text: str, reference: Mapping[str, Any]) -> Verdict:
  """lmms-eval with the prediction itself in the place of the judge's answer.

  `precision` is taken as it is, so a float's, as parquet has it, makes every
  answer of type float unreadable.
  """
  return _score(text, reference, choose=_choose_lmms, cast=lambda x: x)


def official_default(reference: Mapping[str, Any]) -> float:
  """What an empty prediction scores in the official script.

  Of a multiple-choice question it takes the choice nearest to nothing: the
  shortest. Under protocol "default" an empty prediction scores 0.
  """
  if reference["question_type"] != "multi_choice":
    return 0.0
  return float(_same(nearest("", reference["choices"]), reference["answer"]))


def nearest(text: str, choices: list[str]) -> str:
  """The first of the choices at the least Levenshtein distance."""
  return min(choices, key=lambda choice: anls.levenshtein(text, choice))


def _choose(text: str, choices: list[str]) -> str:
  names = letters.of(choices)
  bracketed = letters.bracketed(text.upper(), names)
  name = bracketed[0] if bracketed else letters.leading(text, names)
  return choices[names.index(name)] if name else nearest(text, choices)


def _choose_lmms(text: str, choices: list[str]) -> str:
  """The text's nearest choice, or the first bracketed letter's.

  A bracketed letter that is no option's takes the text's place.
  """
  bracketed = re.findall(r"\(([a-zA-Z])\)", text)
  text = bracketed[0].upper() if bracketed else text
  named = dict(zip(letters.of(choices), choices, strict=True))
  return named[text] if text in named else nearest(text, choices)


def _score(
  text: str,
  reference: Mapping[str, Any],
  *,
  choose: Callable[[str, list[str]], str],
  cast: Callable[[Any], Any],
) -> Verdict:
  if reference["question_type"] == "multi_choice":
    answer = choose(text, reference["choices"])
  else:
    try:
      answer = _free_form(text, reference, cast)
    except (ValueError, OverflowError, TypeError):
      return Verdict(0.0, None)
  return Verdict(float(_same(answer, reference["answer"])), answer)


def _free_form(
  text: str, reference: Mapping[str, Any], cast: Callable[[Any], Any]
) -> str:
  if reference["answer_type"] == "integer":
    return str(int(float(text)))
  if reference["answer_type"] == "float":
    return str(round(float(text), cast(reference["precision"])))
  return text


def _same(answer: str, gold: Any) -> bool:
  return answer.strip() == str(gold).strip()
